"""A record of the files that were compared with their checksums, so that opening can skip them.

The comparison costs about a second per gigabyte. The result is stored in cache/files.json with the
stamp of the file (inode, size, times of change). A file that is written later has another stamp. A
disk that returns wrong bytes changes no stamp; only `verify` detects this damage.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lmk.embed.errors import GalleryDamaged, GalleryError
from lmk.embed.plain_files import open_folder, parse_json, read_plain
from lmk.index.vectors.files import FileRecord, StoredFile

NOTE = "cache/files.json"
_THREADS = 4


def check_files(folder: Path, files: Sequence[StoredFile], verify: bool | None) -> None:
    """Compares the contents of files with their checksums.

    Args:
        folder: the gallery.
        files: open, of which the sizes are right.
        verify: None: those that were changed since the last comparison, True: all, False: none.

    Raises:
        GalleryDamaged: for the first one that has changed.
    """
    failed = [] if verify is False else damaged_files(folder, files, verify)
    if failed:
        raise failed[0]


def damaged_files(
    folder: Path, files: Sequence[StoredFile], verify: bool | None
) -> list[GalleryError]:
    """Returns an error for each file that has changed or cannot be read."""
    known = _known(folder)
    now = {file.record.path: [file.record.sha256, file.stamp()] for file in files}
    todo = [f for f in files if verify or known.get(f.record.path) != now[f.record.path]]
    if not todo:
        return []
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(_compared, todo))
    bad = {file.record.path for file, error in zip(todo, found, strict=True) if error}
    for file in todo:  # changed while it was read: not noted
        if file.stamp() != now[file.record.path][1]:
            bad.add(file.record.path)
    _write(folder, {path: value for path, value in now.items() if path not in bad})
    return [error for error in found if error]


def note_written(
    folder: Path, written: Iterable[tuple[FileRecord, str]], named: Container[str]
) -> None:
    """Notes files as compared that were just written with their checksum.

    Args:
        folder: the gallery.
        written: the files, each with the stamp it had when it was written: one that was changed
            since has another, and is compared when it is opened.
        named: paths of all files the catalog names; what was noted of others is forgotten.
    """
    note = {path: value for path, value in _known(folder).items() if path in named}
    note |= {record.path: [record.sha256, stamp] for record, stamp in written}
    _write(folder, note)


def _compared(file: StoredFile) -> GalleryError | None:
    try:
        file.check()
    except GalleryDamaged as error:
        return error
    return None


def _known(folder: Path) -> dict[str, list[str]]:
    try:
        note = parse_json(read_plain(folder / NOTE, below=folder))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _write(folder: Path, note: dict[str, list[str]]) -> None:
    """Replaces the note; not fsynced, because one that is lost costs a comparison at most."""
    path, part = folder / NOTE, f".files.{secrets.token_hex(8)}.part"
    with suppress(OSError), open_folder(path.parent, below=folder, create=True) as cache:
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=cache)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(note, file)
            os.replace(part, path.name, src_dir_fd=cache, dst_dir_fd=cache)
        finally:
            with suppress(OSError):
                os.unlink(part, dir_fd=cache)
