"""Mends a damaged gallery: makes again what can be, and never gives up a picture that is whole.

What was learnt is learnt again, derived files are dropped (who needs them makes them), damaged
vectors are taken from the kept features or embedded from the pictures, as long as these are the
same files, and the embedder is taken from the installed package where its fingerprint proves that
it is the same one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from lmk.embed.config import preset_names
from lmk.embed.embedder import Embedder
from lmk.embed.errors import GalleryDamaged, LmkError
from lmk.embed.features import FeatureStore
from lmk.embed.manifest import Manifest, Row
from lmk.embed.whitening import load_whitening
from lmk.index.catalog import Picture
from lmk.index.gallery import embedder_folder
from lmk.index.verify import Finding, drop_derived, verify
from lmk.index.writer import GalleryWriter
from lmk.rerank.intake import BLOCK, extract_all, open_store
from lmk.rerank.learning import PIPELINE, SHARD, Progress, learn
from lmk.rerank.pipeline import Pipeline

_STAGE = "damaged vectors"
_WHITENING, _GRAPH = "whitening.safetensors", "graph"


@dataclass(frozen=True)
class RepairReport:
    """What a repair did.

    Attributes:
        remade: files that were made again, or dropped to be made when they are needed.
        reembedded: pictures whose vectors were made again.
        lost: ids of pictures whose vectors were damaged and whose files are gone or changed: they
            are removed.
    """

    remade: tuple[str, ...]
    reembedded: int
    lost: tuple[str, ...]


def repair_index(
    path: Path,
    *,
    embedder: Embedder | None = None,
    wait: float = 0.0,
    progress: Progress = lambda stage, done, total: None,
) -> RepairReport:
    """Mends all that `lmk.index.verify` finds, in one transaction.

    Args:
        path: the gallery.
        embedder: the gallery's embedder (without its whitening), where its files are damaged and it
            is not one of the installed ones at its usual size.
        wait: seconds to wait for another writer.
        progress: called with (stage, done, total).

    Raises:
        GalleryDamaged: where the catalog is damaged, or the embedder and nothing proves to be it.
        NotAGallery, GalleryLocked, StorageError: as the folder is.
    """
    with GalleryWriter(path, wait=wait) as writer:
        findings = verify(path)
        for finding in findings:
            if finding.mend == "none":
                raise GalleryDamaged(finding.what, where=finding.where, remedy=finding.remedy)
        if not findings:
            return RepairReport((), 0, ())
        drop_derived(path, findings)
        named = [f for f in findings if not f.where.is_relative_to(path / "cache")]
        damaged = [f.where for f in named if f.mend == "remake"]
        folder = embedder_folder(path, writer.fingerprint)
        broken = {file for file in damaged if file.is_relative_to(path / "embedder")}
        with TemporaryDirectory(prefix="lmk-repair-") as scratch:
            if broken:
                whole = _restored(folder, broken, Path(scratch), writer.fingerprint, embedder)
                writer.install_embedder(whole.save)
            else:
                whole = Embedder.load(folder)
            lost: list[str] = []
            reembedded = 0
            for finding in named:
                if finding.mend == "re-embed":
                    ids, rows = _reembed(writer, whole, finding, progress)
                    lost += ids
                    reembedded += rows
        for name, file in writer.arrays().items():
            if file in damaged:
                writer.drop_array(name)
        if named and writer.setting(SHARD) is None:
            saved = writer.setting(PIPELINE)
            pipeline = Pipeline() if saved is None else Pipeline.model_validate(saved)
            learn(writer, pipeline, progress=progress)
        writer.commit()
    remade = [f.where.relative_to(path).as_posix() for f in findings if f.mend == "remake"]
    return RepairReport(tuple(remade), reembedded, tuple(lost))


def _reembed(
    writer: GalleryWriter, embedder: Embedder, finding: Finding, progress: Progress
) -> tuple[list[str], int]:
    """Replaces the vectors of damaged rows; returns the ids it had to remove, and how many not."""
    store = open_store(writer.path, embedder)
    alive = writer.membership().alive
    rows = np.array([row for row in finding.rows if alive[row]], np.int64)
    kept: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    vectors = [np.empty((0, embedder.dim), np.float32)]
    lost: list[str] = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        pictures = writer.pictures(block)
        _compute(pictures, embedder, store, progress)
        there = np.array([picture.sha256 in store for picture in pictures], np.bool_)
        known = [picture.sha256 for picture in pictures if picture.sha256 in store]
        lost += [picture.id for picture in pictures if picture.sha256 not in store]
        kept.append(block[there])
        vectors.append(embedder.vectors(store.read(known)))
    writer.remove(lost)
    writer.replace_vectors(np.concatenate(kept), np.concatenate(vectors))
    return lost, len(rows) - len(lost)


def _compute(
    pictures: Sequence[Picture], embedder: Embedder, store: FeatureStore, progress: Progress
) -> None:
    """Puts the features of pictures into the store, as far as their files are what they were."""
    missing = sorted((p for p in pictures if p.sha256 not in store), key=lambda p: p.root)
    for root, some in groupby(missing, key=lambda picture: picture.root):
        rows = tuple(Row(picture.id, picture.path) for picture in some)
        extract_all(Manifest(Path(root), rows), embedder, store, _STAGE, progress)


def _restored(
    folder: Path, broken: set[Path], scratch: Path, fingerprint: str, given: Embedder | None
) -> Embedder:
    """The embedder of a folder of which some files are damaged; its fingerprint proves it.

    Args:
        folder: of the embedder.
        broken: its damaged files.
        scratch: an empty folder; it must be there until the embedder is saved.
        fingerprint: of the embedder.
        given: another one to try.

    Raises:
        GalleryDamaged: where nothing proves to be it.
    """
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.is_file() and file not in broken:
            shutil.copyfile(file, scratch / file.name)
    if any(file.stem == _GRAPH for file in broken):  # one half is of no use
        for half in scratch.glob(f"{_GRAPH}.*"):
            half.unlink()
    for candidate in _candidates(scratch, given):
        if candidate.fingerprint == fingerprint:
            return candidate
    raise GalleryDamaged(
        "the embedder is damaged, and no installed one is the same",
        where=sorted(broken)[0],
        remedy="build the index again with lmk build-index",
    )


def _candidates(intact: Path, given: Embedder | None) -> Iterator[Embedder]:
    """What the embedder may be: the intact files of its folder, the one given, the installed."""
    with suppress(LmkError):
        kept = Embedder.load(intact)
        kept.network()  # whose weights may be the damaged file
        yield kept
    if given is not None:
        with suppress(ValueError):  # the whitening of another one
            yield given.with_whitening(load_whitening(intact / _WHITENING, given.feature_dim))
    for name in preset_names():
        with suppress(LmkError, ValueError):  # its weights may not be here
            other = Embedder.named(name)
            yield other.with_whitening(load_whitening(intact / _WHITENING, other.feature_dim))
