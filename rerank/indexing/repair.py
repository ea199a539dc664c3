"""Repair of a damaged gallery.

A repair fits the tables again. It deletes derived files, which lmk builds again on demand. It
computes damaged vectors from cached features, or from the pictures if their files are unchanged.
An installed embedder with the same fingerprint replaces a damaged embedder. A picture is removed
only if its file is missing or has changed, not if a drive is unmounted or a file is unreadable now.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.manifest import Manifest, Row
from lmk.embed.errors import GalleryDamaged, GalleryError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.plain_files import NotPlainError, open_plain
from lmk.embed.progress import Progress, no_progress
from lmk.embed.scratch import ScratchFolder
from lmk.index.catalog.layout import CATALOG
from lmk.index.catalog.records import Picture
from lmk.index.catalog.settings import read_setting
from lmk.index.gallery.verify import drop_derived, verify
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.vectors import row_blocks
from lmk.rerank.fit.fit import fit
from lmk.rerank.fit.tables import PIPELINE, SHARD
from lmk.rerank.indexing.ingest import BLOCK, extract_all, open_store
from lmk.rerank.indexing.restored_embedder import restored, save_restored
from lmk.rerank.steps.pipeline import Pipeline

_STAGE = "damaged vectors"


@dataclass(frozen=True)
class RepairReport:
    """Result of a repair.

    Attributes:
        remade: files that were written again, or were deleted because lmk rebuilds them on demand.
        reembedded: number of pictures whose vectors were computed again.
        lost: ids of removed pictures, whose vectors were damaged and whose files are missing or
            have changed.
    """

    remade: tuple[str, ...]
    reembedded: int
    lost: tuple[str, ...]


def repair_index(
    path: Path,
    *,
    embedder: Embedder | None = None,
    drop_lost: bool = False,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> RepairReport:
    """Repairs all damage that `lmk.index.gallery.verify` reports, in one transaction.

    Args:
        path: the gallery.
        embedder: the gallery's embedder without its whitening. A repair needs the embedder if its
            files are damaged and no installed embedder is the same.
        drop_lost: whether to remove pictures with damaged vectors whose files are inaccessible:
            the folder is missing, contains none of its pictures, or cannot be read. The option
            also drops damaged tags of the embedder that no other copy has.
        wait: seconds to wait for another writer.
        on_progress: called with (stage, done, total).

    Raises:
        GalleryDamaged: the catalog is damaged, or no copy of a damaged embedder is available.
        GalleryError: files are inaccessible and `drop_lost` is False. Nothing changes.
        NotAGallery, GalleryLocked, StorageError: the folder cannot be used.
    """
    with GalleryWriter(path, wait=wait) as writer:
        findings = verify(path)
        for finding in findings:
            if finding.mend == "none":
                raise GalleryDamaged(finding.what, where=finding.where, remedy=finding.remedy)
        if not findings:
            return RepairReport((), 0, ())
        named = [f for f in findings if not f.where.is_relative_to(path / "cache")]
        damaged = [f.where for f in named if f.mend == "remake"]
        broken = {file for file in damaged if file.is_relative_to(path / "embedder")}
        with ScratchFolder("repair") as scratch:
            if broken:
                whole = restored(writer, broken, scratch, embedder, drop_lost=drop_lost)
            else:
                whole = Embedder.load(writer.uncommitted.embedder_dir, checked=True)
            rows = [f.rows for f in named if f.mend == "re-embed"]
            lost, reembedded = _reembed(writer, whole, rows, drop_lost, on_progress)
            if broken:  # This step follows everything that may raise an error.
                save = partial(save_restored, whole, scratch)
                writer.install_embedder(save, replace=True)
        for name, file in writer.uncommitted.arrays().items():
            if file in damaged:
                writer.drop_array(name)
        if named and writer.setting(SHARD) is None:
            pipeline = read_setting(writer, PIPELINE, Pipeline) or Pipeline()
            fit(writer, pipeline, on_progress=on_progress)
        if path / CATALOG in damaged:
            writer.rewrite_catalog()
        writer.commit()
        drop_derived(path, findings)
    remade = [f.where.relative_to(path).as_posix() for f in findings if f.mend == "remake"]
    return RepairReport(tuple(remade), reembedded, tuple(lost))


def _reembed(
    writer: GalleryWriter,
    embedder: Embedder,
    damaged: Sequence[range],
    drop_lost: bool,
    on_progress: Progress,
) -> tuple[list[str], int]:
    """Replaces damaged vectors; returns the ids of removed pictures and the number of vectors."""
    store = open_store(writer.path, embedder)
    alive = writer.uncommitted.membership().alive
    parts = [np.array([row for row in rows if alive[row]], np.int64) for rows in damaged]
    lost: list[Picture] = []
    for rows in parts:
        for block in row_blocks(rows, BLOCK):
            pictures = writer.uncommitted.pictures(block)
            _compute(pictures, embedder, store, on_progress)
            lost += [picture for picture in pictures if picture.sha256 not in store]
    if not drop_lost:
        _require_lost(lost, writer)
    writer.remove(picture.id for picture in lost)
    for rows in parts:
        _replace(writer, embedder, store, rows)
    return [picture.id for picture in lost], sum(map(len, parts)) - len(lost)


def _replace(
    writer: GalleryWriter, embedder: Embedder, store: FeatureStore, rows: NDArray[np.int64]
) -> None:
    """Writes new vectors for the rows that still exist."""
    rows = rows[writer.uncommitted.membership().alive[rows]]
    vectors = [np.empty((0, embedder.dim), np.float32)]
    for block in row_blocks(rows, BLOCK):
        pictures = writer.uncommitted.pictures(block)
        vectors.append(embedder.vectors(store.read([picture.sha256 for picture in pictures])))
    writer.replace_vectors(rows, np.concatenate(vectors))


def _require_lost(lost: Sequence[Picture], writer: GalleryWriter) -> None:
    """Raises GalleryError if a lost picture might still exist."""
    noun = "picture" if len(lost) == 1 else "pictures"
    what = f"{len(lost):,} {noun} with damaged vectors would be lost: "
    remedy = "make the files readable again, or remove the lost pictures with --drop-lost"
    for picture in lost:
        reason = _out_of_reach(picture)
        if reason is not None:
            raise GalleryError(what + reason, where=_file(picture), remedy=remedy)
    gone = {picture.root for picture in lost}  # folders whose drives may be unmounted
    for picture in (*lost, *_all_pictures(writer)):
        if not gone:
            return
        if picture.root in gone and _file(picture).exists():
            gone.remove(picture.root)
    for root in sorted(gone):
        reason = "none of its pictures exists" if Path(root).is_dir() else "it does not exist"
        remedy = "mount its drive, or remove the lost pictures with --drop-lost"
        raise GalleryError(what + reason, where=root, remedy=remedy)


def _out_of_reach(picture: Picture) -> str | None:
    """Returns why a file cannot be used now, or None if the file is missing or has changed."""
    try:
        with os.fdopen(open_plain(_file(picture)), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, NotPlainError):
        return None
    except OSError as error:
        return f"the file cannot be read ({(error.strerror or str(error)).lower()})"
    return "the file is unchanged, but cannot be decoded" if digest == picture.sha256 else None


def _file(picture: Picture) -> Path:
    return Path(picture.root) / picture.path


def _all_pictures(writer: GalleryWriter) -> Iterator[Picture]:
    for block in row_blocks(np.flatnonzero(writer.uncommitted.membership().alive), BLOCK):
        yield from writer.uncommitted.pictures(block)


def _compute(
    pictures: Sequence[Picture], embedder: Embedder, store: FeatureStore, on_progress: Progress
) -> None:
    """Computes the missing features of the pictures whose files are unchanged."""
    missing = sorted((p for p in pictures if p.sha256 not in store), key=lambda p: p.root)
    for root, some in groupby(missing, key=lambda picture: picture.root):
        rows = tuple(Row(picture.id, picture.path) for picture in some)
        extract_all(Manifest(Path(root), rows), embedder, store, _STAGE, on_progress)
