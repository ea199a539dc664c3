"""Download of a file over HTTP, with resuming, retries and a check of the content.

The content is written to `NAME.part`, which is renamed after the check. `NAME.part.json` stores the
address and the version of the content. A process may be killed at any moment: the next call resumes
the download.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from lmk.embed.errors import DownloadError, StorageError, storage_errors
from lmk.embed.files import remove_leftovers, write_whole

CHUNK = 1 << 20
RESERVE = 256 << 20  # bytes of the disk that a file of unknown length leaves free
_LOOK = 16 << 20  # bytes of such a file after which the free space is checked again
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # may be temporary
_AGAIN = "run the same command again: it goes on where it stopped"


class StoppedError(Exception):
    """The caller stopped the download, which can be resumed."""


class _PassingError(Exception):
    """A failure of the connection or the server that may be temporary."""

    def __init__(self, reason: object, asked_wait: float = 0.0) -> None:
        super().__init__(str(reason))
        self.asked_wait = asked_wait


@dataclass(frozen=True)
class Patience:
    """Time-outs and retries of a download.

    Waits are exponential with full jitter: uniform between 0 and min(longest, first * 2^n) seconds
    (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). If the server's
    Retry-After is longer, the wait has that length, but at most `longest_wait`.

    Attributes:
        timeout: seconds without a byte after which a connection counts as dead.
        attempts: number of successive failures without progress that ends the download.
        first_wait: seconds, upper limit of the first wait.
        longest_wait: seconds, upper limit of every wait.
        slowest: bytes per second; a slower connection, over `timeout` seconds, counts as dead.
        jitter: returns a number in [0, 1).
        wait: waits for a number of seconds. None: waits until then or until the caller stops.
        clock: returns seconds that never decrease.
    """

    timeout: float = 30.0
    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    slowest: float = 1024.0
    jitter: Callable[[], float] = random.random
    wait: Callable[[float], object] | None = None
    clock: Callable[[], float] = time.monotonic

    def delay(self, failure: int, retry_after: float = 0.0) -> float:
        """Returns the seconds to wait after a number of successive failures, from 1."""
        limit = min(self.longest_wait, self.first_wait * 2.0 ** (failure - 1))
        return max(limit * self.jitter(), min(retry_after, self.longest_wait))


@dataclass(frozen=True)
class Fetched:
    """A downloaded file: its size in bytes and the md5 of its content."""

    size: int
    md5: str


def fetch(
    url: str,
    target: Path,
    *,
    md5: str | None = None,
    patience: Patience | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
    space_factor: float = 1.0,
    most: int | None = None,
) -> Fetched:
    """Downloads `url` to `target`, and resumes the download of an earlier call.

    Args:
        url: an http or https address.
        target: the file to write; a complete, checked file replaces an older one.
        md5: expected checksum in lower case. None: only the stated length is checked.
        patience: time-outs and retries.
        stop: another thread sets it to end the call with StoppedError at the next chunk.
        on_progress: called with (bytes received, total bytes or None) after each chunk.
        space_factor: disk bytes needed for each byte of the file (2 if the file is also unpacked).
        most: largest size of the file in bytes. None: no limit but the free disk space.

    Raises:
        DownloadError: the server has no such file, failed `patience.attempts` times in a row
            without progress, or sent content with a wrong checksum twice.
        StorageError: the disk is too full or cannot be written.
        StoppedError: `stop` was set.
    """
    patience = patience or Patience()
    stop = stop or threading.Event()
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _Part(url, target)
    transfer = _Transfer(part, patience, stop, on_progress, space_factor, md5 is not None, most)
    digest = ""
    for _ in range(2):  # a wrong checksum gets one fresh try
        transfer.run()
        digest = part.hash.hexdigest()
        with _writing(target):
            if md5 is None or digest == md5:
                part.finish(target)
                return Fetched(part.size, digest)
            part.discard()
    what = f"wrong checksum twice: expected md5 {md5}, found {digest}"
    remedy = "try again later, or name another mirror"
    raise DownloadError(what, where=url, remedy=remedy)


def file_md5(path: Path) -> str:
    """Returns the md5 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _new_hash).hexdigest()


def write_note(path: Path, text: str) -> None:
    """Writes a small file atomically, and its folder if needed; no other process may write it."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        write_whole(path, text.encode())


def _new_hash() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


@contextmanager
def _writing(where: Path) -> Iterator[None]:
    """Turns an OSError of the block, which the disk causes, into a StorageError."""
    try:
        with storage_errors(where):
            yield
    except OSError as error:
        what = f"cannot write: {(error.strerror or str(error)).lower()}"
        remedy = "check the folder and the disk, then run the same command again"
        raise StorageError(what, where=error.filename or where, remedy=remedy) from error


class _Part:
    """The received part of a file, with its hash, its address and the version of its content."""

    def __init__(self, url: str, target: Path) -> None:
        self.url = url
        self.path = target.with_name(target.name + ".part")
        self._note = target.with_name(target.name + ".part.json")
        self.size = 0
        self.total: int | None = None
        self.validator: str | None = None
        self.hash = _new_hash()
        self.distrusted = False  # wrong content came once: ask caches on the way for a fresh copy
        self._load()

    def _load(self) -> None:
        try:
            note = json.loads(self._note.read_text("utf-8"))
            size = self.path.stat().st_size
            usable = (
                note["url"] == self.url
                and isinstance(note["validator"], str)
                and size <= note["total"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return
        if not usable:
            return
        with self.path.open("rb") as file:
            self.hash = hashlib.file_digest(file, _new_hash)
        self.size, self.total, self.validator = size, note["total"], note["validator"]

    @property
    def complete(self) -> bool:
        return self.size == self.total

    def restart(self, validator: str | None, total: int | None) -> None:
        """Empties the part. Only a part with a validator and a length can be resumed later."""
        self._note.unlink(missing_ok=True)
        self.path.write_bytes(b"")
        self.size, self.total, self.validator, self.hash = 0, total, validator, _new_hash()
        if validator is not None and total is not None:
            note = {"url": self.url, "validator": validator, "total": total}
            write_note(self._note, json.dumps(note))

    def discard(self) -> None:
        self.restart(None, None)
        self.distrusted = True

    def finish(self, target: Path) -> None:
        self.path.replace(target)
        self._note.unlink(missing_ok=True)


@dataclass
class _Transfer:
    part: _Part
    patience: Patience
    stop: threading.Event
    on_progress: Callable[[int, int | None], None]
    space_factor: float
    checked: bool
    most: int | None

    def run(self) -> None:
        """Connects until the part is complete, or too many attempts fail."""
        failures, best = 0, self.part.size
        while not self.part.complete:
            if self.stop.is_set():
                raise StoppedError
            try:
                self._connect()
            except _PassingError as trouble:
                # Attempts are counted from the last time the part exceeded its largest size. A
                # link that drops every 100 MB succeeds, and a server that cannot resume fails.
                failures = 1 if self.part.size > best else failures + 1
                best = max(best, self.part.size)
                if failures >= self.patience.attempts:
                    what = f"gave up after {failures} tries without progress: {trouble}"
                    remedy = _AGAIN
                    raise DownloadError(what, where=self.part.url, remedy=remedy) from trouble
                wait = self.patience.wait or self.stop.wait
                wait(self.patience.delay(failures, trouble.asked_wait))

    def _connect(self) -> None:
        part = self.part
        with _open(part, self.patience.timeout) as response:
            total = _total(response)
            resumed = response.status == 206
            if resumed and (_range_start(response) != part.size or total != part.total):
                part.discard()
                raise _PassingError("the server sent another range than the one asked for")
            chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
            if total is None and not chunked and not self.checked:
                what = "the server does not say how long the file is, so a cut would go unseen"
                remedy = "name another mirror"
                raise DownloadError(what, where=part.url, remedy=remedy)
            self._check_size(total or 0)
            self._check_space(total, part.size if resumed else 0)
            with _writing(part.path):
                if not resumed:  # a fresh start, a server without ranges, or a changed file
                    part.restart(_validator(response), total)
                self._receive(response)
        if part.total is None:
            part.total = part.size
        if not part.complete:
            raise _PassingError(f"the connection ended at {part.size} of {part.total} bytes")

    def _check_size(self, size: int) -> None:
        """Refuses a file larger than it may be (DownloadError)."""
        most = self.most
        if most is None or size <= most:
            return
        with _writing(self.part.path):
            self.part.discard()
        what = f"the server sends more than {most:,} bytes, which this file cannot have"
        remedy = "name another mirror"
        raise DownloadError(what, where=self.part.url, remedy=remedy)

    def _check_space(self, total: int | None, have: int) -> None:
        """Checks that the disk has room for the rest of a file (StorageError)."""
        free = shutil.disk_usage(self.part.path.parent).free
        if total is None:
            need = RESERVE + int(have * (self.space_factor - 1))  # the received bytes, unpacked
        else:
            need = int(total * self.space_factor) - have
        if free < need:
            what = f"this needs {need / 1e6:,.0f} MB"
            if total is None:
                what = f"{need / 1e6:,.0f} MB are kept free, as the server does not say how long "
                what += "the file is"
            raise StorageError(
                f"the disk has {free / 1e6:,.0f} MB free, {what}",
                where=self.part.path.parent,
                remedy=f"free some space and {_AGAIN}",
            )

    def _receive(self, response: http.client.HTTPResponse) -> None:
        part, clock = self.part, self.patience.clock
        with part.path.open("ab") as file:
            since, size_then = clock(), part.size
            looked = part.size
            while chunk := _read(response):
                file.write(chunk)
                part.hash.update(chunk)
                part.size += len(chunk)
                if part.total is None and part.size >= looked + _LOOK:
                    looked = part.size
                    file.flush()
                    self._check_space(None, part.size)
                if self.most is not None and part.size > self.most:
                    self._check_size(part.size)
                self.on_progress(part.size, part.total)
                if self.stop.is_set():
                    raise StoppedError
                elapsed = clock() - since
                if elapsed >= self.patience.timeout:
                    grown = part.size - size_then
                    if grown < self.patience.slowest * elapsed and not part.complete:
                        raise _PassingError(f"only {grown} bytes came in {elapsed:.0f} s")
                    since, size_then = clock(), part.size


def _open(part: _Part, timeout: float) -> http.client.HTTPResponse:
    headers = {"User-Agent": f"lmk/{version('lmk-landmarks')}"}
    if part.size and part.validator:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    if part.distrusted:
        headers["Cache-Control"] = "no-cache"
    try:
        request = urllib.request.Request(part.url, headers=headers)
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
        return response
    except urllib.error.HTTPError as error:
        with error:
            reason = f"the server answered {error.code} {error.reason}"
            if error.code == 416:  # no such range: the part belongs to another file
                with _writing(part.path):
                    part.discard()
                raise _PassingError(reason) from error
            if error.code in _PASSING:
                raise _PassingError(
                    reason, _retry_after(error.headers.get("Retry-After"))
                ) from error
        raise DownloadError(
            reason, where=part.url, remedy="check the name, or name another mirror"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _PassingError(
            getattr(error, "reason", None) or error or type(error).__name__
        ) from error


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _PassingError(error) from error


def _total(response: http.client.HTTPResponse) -> int | None:
    """Returns the length of the whole file; in Content-Range it follows the slash."""
    if response.status == 206:
        match = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return int(match[1]) if match else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _range_start(response: http.client.HTTPResponse) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _validator(response: http.client.HTTPResponse) -> str | None:
    """Returns the value for If-Range: a strong ETag, else the date (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")


def _retry_after(value: str | None) -> float:
    return float(value) if value and value.isdecimal() else 0.0
