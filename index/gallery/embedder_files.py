"""The embedder in a gallery: a folder of files that the catalog names.

A folder that is there is never changed: an embedder that replaces a damaged one gets a folder of
its own, which readers see from the commit on, and the next writer sweeps the old one.
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
    kept = embedder_files(fingerprint, t.committed)
    if kept and not replace and _intact(t.folder, kept):
        t.changes.add_files(kept)
        return
    folder = _new_folder(t)
    path = folder.relative_to(t.folder).as_posix()
    with storage_errors(folder):
        t.written.append(folder)
        folder.mkdir(parents=True)
        save(folder)
        stamps = {item: stamp(item) for item in folder.rglob("*")}  # before they are hashed
        records = record_tree(t.folder, path)
        t.records += [(record, stamps[t.folder / record.path]) for record in records]
        sync_folder(folder.parent)
        sync_folder(t.folder)
    named = embedder_files(fingerprint, t.catalog.files())
    t.changes.drop_files([record.path for record in named])
    t.changes.add_files(records)


def _new_folder(t: Transaction) -> Path:
    """Returns a folder for the embedder that is not there yet."""
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
