"""Google Landmarks Dataset v2: its download, verification and unpacking into the usual layout.

    OUT/train/a/b/c/<id>.jpg      likewise index/, test/; a, b, c are the id's first characters
    OUT/metadata/*.csv            labels, ground truth and train's attribution
    OUT/LICENSES.txt              who may use the pictures, and how
    OUT/archives/train/*.tar      during a run only, unless keep_archives is set
    OUT/.gldv2/                   one record for each finished item: its files, with their sizes

An item is a shard or a metadata file. Its record is written last, so an item with a record is
finished. A run that is killed earlier leaves whole pictures, whole records and resumable archives.
Names, counts and licences come from the page of the data set,
https://github.com/cvdfoundation/google-landmark (version 2.1).
"""

from __future__ import annotations

import json
import queue
import re
import threading
import urllib.parse
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lmk.embed.errors import DownloadError, LmkError, StorageError, UsageError, storage_errors
from lmk.embed.files import try_lock
from lmk.embed.gldv2.download import Patience, StoppedError, fetch, file_md5, write_note
from lmk.embed.gldv2.unpack import unpack

BASE_URL = "https://s3.amazonaws.com/google-landmark"
SHARDS = {"train": 500, "index": 100, "test": 20}
METADATA = {
    "train": (
        "metadata/train.csv",
        "metadata/train_clean.csv",
        "metadata/train_attribution.csv",
        "metadata/train_label_to_category.csv",
        "metadata/train_label_to_hierarchical.csv",
    ),
    "index": (
        "metadata/index.csv",
        "metadata/index_image_to_landmark.csv",
        "metadata/index_label_to_category.csv",
        "metadata/index_label_to_hierarchical.csv",
    ),
    "test": (
        "metadata/test.csv",
        "ground_truth/recognition_solution_v2.1.csv",
        "ground_truth/retrieval_solution_v2.1.csv",
    ),
}
# Largest sizes of files in bytes: several times the sizes in the data set.
_MOST_CHECKSUM, _MOST_SHARD, _MOST_METADATA = 64 << 10, 8 << 30, 8 << 30
LICENSES = """\
Google Landmarks Dataset v2, https://github.com/cvdfoundation/google-landmark

Annotations: by Google, under CC BY 4.0.
train pictures: CC-BY licences without the NonDerivs restriction; author, licence and source of
    each picture stand in metadata/train_attribution.csv and must be named where it is shown.
index and test pictures: CC-0 or public domain.

Google does not own the pictures' copyright and gives no warranty about the licence of any of them:
verify it for each picture you use.
"""


@dataclass(frozen=True)
class Item:
    """The result for one shard or metadata file.

    Attributes:
        name: path of the file below the server's base address, such as "train/images_003.tar".
        status: "downloaded" in this run, "present" from an earlier run, or "missing".
        images: number of pictures in the shard.
        size: size of the file on the server, in bytes.
        md5: checksum of the file on the server.
        error: the reason why the file is missing; None if the run ended before its download began.
    """

    name: str
    status: Literal["downloaded", "present", "missing"]
    images: int = 0
    size: int = 0
    md5: str | None = None
    error: LmkError | None = None


@dataclass(frozen=True)
class Report:
    """All items of a run: the metadata of the split, then the shards in the requested order."""

    items: tuple[Item, ...]

    @property
    def missing(self) -> tuple[Item, ...]:
        """The items that are missing."""
        return tuple(item for item in self.items if item.status == "missing")


def parse_shards(spec: str, split: str) -> tuple[int, ...]:
    """Returns the shard numbers of "0-3", "0,5,7-9" or "all", ascending and without repetition.

    Raises:
        UsageError: the text has another form, or the split has no shard with that number.
    """
    count = SHARDS[split]
    if spec.strip() == "all":
        return tuple(range(count))
    chosen: set[int] = set()
    for piece in spec.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*", piece)
        if match is None:
            remedy = "write 0-3, 0,5,7-9 or all"
            raise UsageError(f"{piece!r} is no shard or range", where="--shards", remedy=remedy)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= count:
            what = f"{split} has the shards 0 to {count - 1}, not {piece.strip()}"
            remedy = "write 0-3, 0,5,7-9 or all"
            raise UsageError(what, where="--shards", remedy=remedy)
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def download(
    split: str,
    shards: Sequence[int],
    out: Path,
    *,
    mirror: str = BASE_URL,
    jobs: int = 4,
    keep_archives: bool = False,
    patience: Patience | None = None,
    on_bytes: Callable[[str, int, int | None], None] = lambda name, done, total: None,
    on_item: Callable[[Item], None] = lambda item: None,
) -> Report:
    """Downloads shards of a split and all its metadata into `out`, without finished items.

    If an item fails, the others continue. A full or read-only disk stops the run.

    Args:
        split: "train", "index" or "test".
        shards: shard numbers (`parse_shards`).
        out: the folder of the data set; it is created if it is missing.
        mirror: a base address with the same paths as `BASE_URL`.
        jobs: number of simultaneous connections.
        keep_archives: True to keep the tar files in OUT/archives after unpacking.
        patience: time-outs and retries of each connection.
        on_bytes: called in the worker threads with (item name, bytes received, total or None).
        on_item: called in the calling thread after each item.

    Raises:
        UsageError: the mirror is not an http address, or the split does not exist.
        StorageError: the folder cannot be created, or another run is writing into it.
        KeyboardInterrupt: Ctrl-C was pressed and the workers are stopping. A later run resumes.
    """
    if split not in SHARDS:
        raise UsageError(f"no such split: {split}", remedy="choose train, index or test")
    run = _Run(_base(mirror), split, out, keep_archives, patience, on_bytes)
    names = [*METADATA[split], *(f"{split}/images_{number:03d}.tar" for number in shards)]
    done: dict[str, Item] = {}
    with _alone(out):
        write_note(out / "LICENSES.txt", LICENSES)
        with closing(run.work(names, jobs)) as items:
            for item in items:
                done[item.name] = item
                on_item(item)
        with storage_errors(out):
            _remove_if_empty(out / "archives" / split)
            _remove_if_empty(out / "archives")
    return Report(tuple(done[name] for name in names))


@dataclass(frozen=True)
class _Run:
    base: str
    split: str
    out: Path
    keep_archives: bool
    patience: Patience | None
    on_bytes: Callable[[str, int, int | None], None]

    def work(self, names: Sequence[str], jobs: int) -> Generator[Item, None, None]:
        """Downloads the named items in `jobs` threads, and yields each item when it is finished."""
        stop = threading.Event()
        todo: queue.SimpleQueue[str] = queue.SimpleQueue()
        ended: queue.SimpleQueue[Item | Exception] = queue.SimpleQueue()
        for name in names:
            todo.put(name)

        def worker() -> None:
            while True:
                try:
                    name = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    ended.put(self._one(name, stop))
                except Exception as bug:
                    ended.put(bug)

        # Daemons: after Ctrl-C a connection that hangs must not keep the process alive. To cut off
        # a thread is as harmless as to kill the process.
        threads = [threading.Thread(target=worker, daemon=True) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        try:
            for _ in names:
                item = ended.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stop.set()
            for thread in threads:
                thread.join(timeout=1.0 / jobs)

    def _one(self, name: str, stop: threading.Event) -> Item:
        try:
            if stop.is_set():
                return Item(name, "missing")
            return self._present(name) or self._get(name, stop)
        except StoppedError:
            return Item(name, "missing")
        except OSError as error:
            stop.set()
            reason = f"cannot write: {(error.strerror or str(error)).lower()}"
            return Item(
                name, "missing", error=StorageError(reason, where=error.filename or self.out)
            )
        except StorageError as error:  # every other item would fail, too
            stop.set()
            return Item(name, "missing", error=error)
        except LmkError as error:
            return Item(name, "missing", error=error)

    def _record(self, name: str) -> Path:
        return self.out / ".gldv2" / f"{name}.json"

    def _present(self, name: str) -> Item | None:
        """Returns the item if an earlier run finished it and its files still have their sizes."""
        try:
            record = json.loads(self._record(name).read_text("utf-8"))
            files, size, md5 = record["files"], record["size"], record["md5"]
            if any((self.out / path).stat().st_size != n for path, n in files.items()):
                return None
            archive = self.out / "archives" / name
            if self.keep_archives and name.endswith(".tar") and archive.stat().st_size != size:
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return Item(name, "present", _pictures(files), size, md5)

    def _get(self, name: str, stop: threading.Event) -> Item:
        if name.endswith(".tar"):
            files, size, md5 = self._shard(name, stop)
        else:
            target = self.out / "metadata" / PurePosixPath(name).name
            got = self._fetch(name, target, stop)
            files, size, md5 = {f"metadata/{target.name}": got[0]}, *got
        record = {"url": f"{self.base}/{name}", "size": size, "md5": md5, "files": files}
        write_note(self._record(name), json.dumps(record, indent=0))
        if name.endswith(".tar") and not self.keep_archives:
            (self.out / "archives" / name).unlink(missing_ok=True)
        return Item(name, "downloaded", _pictures(files), size, md5)

    def _shard(self, name: str, stop: threading.Event) -> tuple[dict[str, int], int, str]:
        expected = self._expected_md5(name, stop)
        archive = self.out / "archives" / name
        if not (archive.is_file() and file_md5(archive) == expected):
            # Twice the size: the archive is removed only after its pictures are unpacked.
            self._fetch(name, archive, stop, md5=expected, space_factor=2.0)
        stage = self.out / ".gldv2" / "unpacking" / name
        with storage_errors(self.out):
            unpacked = unpack(archive, stage, self.out / self.split)
        if not _pictures(unpacked):
            raise DownloadError("the archive holds no pictures", where=archive)
        files = {f"{self.split}/{path}": size for path, size in unpacked.items()}
        return files, archive.stat().st_size, expected

    def _expected_md5(self, name: str, stop: threading.Event) -> str:
        shard = PurePosixPath(name).stem
        md5_name = f"md5sum/{self.split}/md5.{shard}.txt"
        target = self.out / ".gldv2" / md5_name
        url = f"{self.base}/{md5_name}"
        fetch(url, target, patience=self.patience, stop=stop, most=_MOST_CHECKSUM)
        text = target.read_bytes().decode("utf-8", "replace")
        checksums: set[str] = set(re.findall(r"\b[0-9a-f]{32}\b", text.lower()))
        others = set(re.findall(r"images_\d+", text)) - {shard}
        if len(checksums) != 1 or others:
            what = f"not the checksum of {shard}.tar: {text[:80]!r}"
            remedy = "try again later, or name another mirror"
            raise DownloadError(what, where=url, remedy=remedy)
        return checksums.pop()

    def _fetch(
        self, name: str, target: Path, stop: threading.Event, **checks: Any
    ) -> tuple[int, str]:
        got = fetch(
            f"{self.base}/{name}",
            target,
            patience=self.patience,
            stop=stop,
            on_progress=partial(self.on_bytes, name),
            most=_MOST_SHARD if name.endswith(".tar") else _MOST_METADATA,
            **checks,
        )
        return got.size, got.md5


def _base(mirror: str) -> str:
    parts = urllib.parse.urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.netloc or re.search(r"[\s?#]", mirror):
        remedy = f"give the address that stands for {BASE_URL}"
        raise UsageError(f"{mirror!r} is no http or https address", where="--mirror", remedy=remedy)
    return mirror.rstrip("/")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Locks the folder against a second run; the kernel unlocks it when the process ends."""
    with storage_errors(out):
        (out / ".gldv2").mkdir(parents=True, exist_ok=True)
        lock = (out / ".gldv2" / "lock").open("w")
    with lock:
        if not try_lock(lock):
            remedy = "wait for it, or choose another folder"
            what = "another download is writing into this folder"
            raise StorageError(what, where=out, remedy=remedy)
        yield


def _pictures(files: dict[str, int]) -> int:
    return sum(path.lower().endswith(".jpg") for path in files)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
