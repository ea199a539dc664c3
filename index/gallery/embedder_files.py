"""Writes the embedder of a gallery: a folder of files that the catalog names.

An existing folder is never changed. An embedder that replaces a damaged one gets another folder,
which readers use after the commit. The next writer removes the old folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from lmk.embed.errors import GalleryError, storage_errors
from lmk.embed.files import stamp, sync_folder
from lmk.index.gallery.embedder_paths import embedder_files, embedder_folder
from lmk.index.gallery.transaction import Transaction
from lmk.index.vectors.files import FileRecord, StoredFile, record_tree


def install_embedder(
    t: Transaction, save: Callable[[Path], None], *, replace: bool = False
) -> None:
    """Writes the embedder into the gallery; see GalleryWriter.install_embedder."""
    fingerprint = t.state.fingerprint
    committed = embedder_files(fingerprint, t.committed)
    if committed and not replace and _intact(t.folder, committed):
        t.changes.add_files(committed)
        return
    folder = _new_folder(t)
    path = folder.relative_to(t.folder).as_posix()
    with storage_errors(folder):
        t.written.append(folder)
        folder.mkdir(parents=True)
        save(folder)
        stamps = {item: stamp(item) for item in folder.rglob("*")}  # before the files are hashed
        records = record_tree(t.folder, path)
        t.records += [(record, stamps[t.folder / record.path]) for record in records]
        sync_folder(folder.parent)
        sync_folder(t.folder)
    named = embedder_files(fingerprint, t.catalog.files())
    t.changes.drop_files([record.path for record in named])
    t.changes.add_files(records)


def _new_folder(t: Transaction) -> Path:
    """Returns a folder for the embedder that does not exist yet."""
    plain = embedder_folder(t.folder, t.state.fingerprint, ())
    folder = plain
    while os.path.lexists(folder):
        folder = plain.with_name(f"{plain.name}-{t.state.next_file:06d}")
        t.change_state(next_file=t.state.next_file + 1)
    return folder


def _intact(folder: Path, records: Sequence[FileRecord]) -> bool:
    try:
        for record in records:
            with closing(StoredFile(folder, record)) as file:
                file.check()
    except GalleryError:
        return False
    return True
