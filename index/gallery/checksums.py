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
        files: open files with the right sizes.
        verify: None: compare the files that have changed since the last comparison; True: compare
            all files; False: compare none.

    Raises:
        GalleryDamaged: a file has changed; the error is that of the first one.
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
        errors = list(pool.map(_error_of, todo))
    bad = {file.record.path for file, error in zip(todo, errors, strict=True) if error}
    # A file that has changed while it was read is not noted either.
    bad |= {file.record.path for file in todo if file.stamp() != now[file.record.path][1]}
    _write(folder, {path: value for path, value in now.items() if path not in bad})
    return [error for error in errors if error]


def note_written(
    folder: Path, written: Iterable[tuple[FileRecord, str]], named: Container[str]
) -> None:
    """Records new files as compared with their checksums.

    Args:
        folder: the gallery.
        written: the files, each with its stamp when it was written. A file that has changed since
            then has another stamp and is compared when it is opened.
        named: paths of all files that the catalog names. Records of other files are dropped.
    """
    note = {path: value for path, value in _known(folder).items() if path in named}
    note |= {record.path: [record.sha256, stamp] for record, stamp in written}
    _write(folder, note)


def _error_of(file: StoredFile) -> GalleryError | None:
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
    """Replaces the record; it is not fsynced, as its loss costs only a comparison."""
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
