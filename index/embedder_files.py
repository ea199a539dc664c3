"""The embedder in a gallery: a folder of files named by its fingerprint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lmk.embed.errors import GalleryError, storage_errors
from lmk.embed.files import stamp, sync_folder
from lmk.index.gallery import embedder_folder
from lmk.index.segments import FileRecord, StoredFile, record_tree
from lmk.index.transaction import Transaction


def install_embedder(t: Transaction, save: Callable[[Path], None]) -> None:
    """Keeps the embedder in the gallery, see GalleryWriter.install_embedder."""
    folder = embedder_folder(t.folder, t.state.fingerprint)
    path = folder.relative_to(t.folder).as_posix()
    records = [record for record in t.committed if record.path.startswith(f"{path}/")]
    with storage_errors(folder):
        if not records or not _intact(t.folder, records):
            fresh = folder.with_name(f".{folder.name}")
            shutil.rmtree(fresh, ignore_errors=True)
            t.written += [fresh, folder]
            fresh.mkdir(parents=True)
            save(fresh)
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
            t.changes.drop_files([record.path for record in records])
            stamps = {item: stamp(item) for item in folder.rglob("*")}  # before they are hashed
            records = record_tree(t.folder, path)
            t.records += [(record, stamps[t.folder / record.path]) for record in records]
            sync_folder(folder.parent)
            sync_folder(t.folder)
        t.changes.add_files(records)


def _intact(folder: Path, records: Sequence[FileRecord]) -> bool:
    for record in records:
        with suppress(GalleryError):
            file = StoredFile(folder, record)
            try:
                file.check()
                continue
            finally:
                file.close()
        return False
    return True
