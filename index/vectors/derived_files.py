"""DerivedFiles: files in the cache/ folder of a gallery, which can be made again from it.

A note holds the SHA-256 of each file. The file is compared with its note before it is read, because
FAISS and memory maps do not notice damage. A file whose stamp (inode, size, times of change) has
not changed since the last comparison is not hashed again, so a large file opens at once. The code
that needs a missing or damaged file makes it again, and works without it where the folder cannot be
written. A commit removes the files that were derived from vectors that no longer exist.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Container
from contextlib import suppress
from pathlib import Path

from lmk.embed.errors import StorageError, storage_errors
from lmk.embed.files import stamp, sync_folder, write_whole
from lmk.embed.plain_files import make_folder, open_plain, parse_json, read_plain

_NOTE = ".note"
_PART = re.compile(r"\..*\.(?P<pid>[0-9]{1,10})\.[0-9a-f]{8}\.part", re.DOTALL)  # being written
_FORGOTTEN = 3600.0  # seconds after which no process will write the note of a file


class DerivedFiles:
    """The derived files of one gallery.

    Args:
        folder: the folder of the files, created with the first file. None: nothing is stored.
        below: the gallery, below which no link is followed. Default: `folder`.
    """

    def __init__(self, folder: Path | None, *, below: Path | None = None) -> None:
        self._folder = folder
        self._below = below or folder

    def load(self, name: str) -> Path | None:
        """Returns the path of a file that has not changed since it was saved, or None.

        Args:
            name: the name, which must identify the source of the file (a checksum, parameters).
        """
        if self._folder is None:
            return None
        path = self._folder / name
        try:
            note = parse_json(read_plain(_note(path), below=self._below))
            now = stamp(path)
            digest = self._digest(path) if note["stamp"] != now else None
            if digest is None:
                os.close(open_plain(path, below=self._below))  # checks that it is a plain file
                return path
            if digest != note["sha256"] or stamp(path) != now:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with suppress(StorageError):
            self._write_note(path, digest, note.get("of", ()))
        return path

    def content(self, name: str) -> bytes | None:
        """Returns the content of a file that has not changed since it was saved, or None."""
        path = self.load(name)
        try:
            return None if path is None else read_plain(path, below=self._below)
        except OSError:  # removed meanwhile
            return None

    def damaged(self, name: str) -> bool:
        """Returns whether the content of a file has changed since it was saved.

        A file that another process replaces or removes meanwhile is not damaged.
        """
        if self._folder is None:
            return False
        path = self._folder / name
        while _note(path).exists():
            text = self._text(_note(path))
            with suppress(OSError, ValueError, KeyError, TypeError):
                if text is not None and self._digest(path) == parse_json(text)["sha256"]:
                    return False
            if self._text(_note(path)) == text:
                return True
        return False

    def save(
        self, name: str, write: Callable[[Path], object], of: Collection[str] = ()
    ) -> Path | None:
        """Saves a file and returns its path, or None if the folder cannot be written.

        Args:
            name: see `load`; a file with this name is replaced. Files with the same name up to the
                first dot belong together.
            write: writes the content to a path.
            of: keys of the parts of the vectors that the file is derived from (VectorPart.key).
        """
        if self._folder is None:
            return None
        path = self._folder / name
        part = path.with_name(f".{name}.{os.getpid()}.{secrets.token_hex(4)}.part")
        try:
            with storage_errors(self._folder):
                make_folder(self._folder, below=self._below or self._folder)
                write(part)
                with os.fdopen(open_plain(part, below=self._below), "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    os.fsync(file.fileno())
                # A file without a note is ignored; with the note of another it would be damaged.
                _note(path).unlink(missing_ok=True)
                part.replace(path)
                sync_folder(self._folder)
                self._write_note(path, digest, of)
        except (StorageError, FileNotFoundError):  # the disk is full, or the folder was emptied
            return None
        finally:
            with suppress(OSError):
                part.unlink()
        return path

    def names(self) -> list[str]:
        """Returns the names of all files, sorted; `load` checks whether a file has changed."""
        if self._folder is None:
            return []
        try:
            notes = [item.name for item in self._folder.iterdir() if item.name.endswith(_NOTE)]
        except OSError:
            return []
        return sorted(name.removesuffix(_NOTE) for name in notes)

    def remove(self, name: str) -> None:
        """Removes a file if it exists and the folder can be written."""
        if self._folder is not None:
            for path in (_note(self._folder / name), self._folder / name):
                with suppress(OSError):
                    path.unlink()

    def prune(self, keys: Container[str]) -> None:
        """Removes files derived only from parts that no longer exist, and half-written files.

        Args:
            keys: keys of the existing parts.
        """
        of: dict[str, set[str]] = {}
        names = self.names()
        for name in names:
            of.setdefault(_stem(name), set()).update(self._parts(name))
        for name in names:
            parts = of[_stem(name)]
            if parts and not any(key in keys for key in parts):
                self.remove(name)
        if self._folder is not None:
            with suppress(OSError):
                for item in self._folder.iterdir():
                    with suppress(OSError):
                        if _is_left_over(item):
                            item.unlink()

    def _parts(self, name: str) -> list[str]:
        """Returns the keys of the parts that a file is derived from, as far as known."""
        assert self._folder is not None
        try:
            note = parse_json(self._text(_note(self._folder / name)) or "")
            return [str(key) for key in note["of"]]
        except (ValueError, KeyError, TypeError):
            return []

    def _write_note(self, path: Path, digest: str, of: Collection[str]) -> None:
        note = {"sha256": digest, "stamp": stamp(path), "of": sorted(of)}
        write_whole(_note(path), json.dumps(note).encode(), below=self._below)

    def _digest(self, path: Path) -> str:
        with os.fdopen(open_plain(path, below=self._below), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _text(self, path: Path) -> str | None:
        try:
            return read_plain(path, below=self._below).decode()
        except (OSError, ValueError):
            return None


def _stem(name: str) -> str:
    return name.split(".", 1)[0]


def _is_left_over(item: Path) -> bool:
    """Returns whether a process that was killed left this file."""
    part = _PART.fullmatch(item.name)
    if part is not None:
        return not _runs(int(part["pid"]))
    noted = item.name.endswith(_NOTE) or _note(item).exists()
    return not noted and time.time() - item.lstat().st_mtime > _FORGOTTEN


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _note(path: Path) -> Path:
    return path.with_name(path.name + _NOTE)
