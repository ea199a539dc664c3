"""Joins galleries, such as the parts that several machines built, and learns from the whole."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from lmk.embed.errors import UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.whitening import MOST_PICTURES, fit_whitening
from lmk.embed.progress import Progress, no_progress
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.merge import MergeReport, merge
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.search.choose import SEARCH, saved_search
from lmk.rerank.fit.fit import fit
from lmk.rerank.fit.saved import forget_fit, saved_pipeline
from lmk.rerank.fit.tables import SHARD
from lmk.rerank.indexing.ingest import DUPLICATES
from lmk.rerank.indexing.whiten import whitening_helps
from lmk.rerank.steps.pipeline import Pipeline

_STAGE = "merging"
_OF_ANY = ("kind", "recall")  # of the setting SEARCH, what is right for another gallery too


def merge_indexes(
    out: Path,
    paths: Sequence[Path],
    *,
    whiten: bool | None = None,
    duplicates: bool = False,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> MergeReport:
    """Makes the gallery `out` of several, and learns its penalty and threshold, in one transaction.

    Args:
        out: the new gallery; one that is there is replaced.
        paths: galleries of one embedder; the steps of the first one are the new one's, and so is
            how it is searched, but not on which server.
        whiten: whether to learn a whitening and map the vectors by it; by default where the
            galleries are parts of one (build_index with a shard), by the rule of build_index.
        duplicates: keep pictures whose content another one of the same role has too, and let
            later syncs do so.
        wait: seconds to wait for who writes to `out`.
        on_progress: called with (stage, done, total).

    Raises:
        UsageError: for no galleries, `out` among them, or galleries to be whitened that are.
        EmbedderMismatch: for galleries of different embedders.
        GalleryError: when two galleries give one id to different pictures.
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: as the folders are.
    """
    with ExitStack() as stack:
        galleries = [stack.enter_context(Gallery.open(path)) for path in paths]
        embedder = _whitened(galleries, whiten) if galleries else None
        pipeline = saved_pipeline(galleries[0]) if galleries else Pipeline()

    def finish(writer: GalleryWriter) -> None:
        forget_fit(writer)
        writer.set(SHARD, None)
        writer.set(DUPLICATES, duplicates)
        # A server that holds the first gallery does not hold this one.
        search = saved_search(writer)
        writer.set(SEARCH, {name: value for name, value in search.items() if name in _OF_ANY})
        fit(writer, pipeline, on_progress=on_progress)

    return merge(
        out,
        paths,
        duplicates=duplicates,
        embedder=embedder,
        finish=finish,
        wait=wait,
        on_progress=lambda done, total: on_progress(_STAGE, done, total),
    )


def _whitened(galleries: Sequence[Gallery], whiten: bool | None) -> Embedder | None:
    """The embedder of the galleries with a whitening learnt from all of them, if there is to be."""
    embedder = Embedder.load(galleries[0].embedder_dir, checked=True)
    if whiten is None:
        parts = all(gallery.setting(SHARD) is not None for gallery in galleries)
        pictures, distractors = (
            sum(len(gallery.role_rows(role)) for gallery in galleries)
            for role in ("gallery", "distractor")
        )
        whiten = parts and whitening_helps(embedder, pictures, distractors)
    if not whiten:
        return None
    if embedder.whitening is not None:
        raise UsageError(
            "the vectors are whitened already",
            where=galleries[0].path,
            remedy="merge parts that `lmk build-index --shard` made, or leave out --whiten",
        )
    same = [gallery for gallery in galleries if gallery.fingerprint == galleries[0].fingerprint]
    rows = sum(int(gallery.alive.sum()) for gallery in same)
    if not rows:
        raise UsageError(
            "there are no pictures to learn a whitening from",
            where=galleries[0].path,
            remedy="leave out --whiten",
        )
    step = -(-rows // MOST_PICTURES)
    sample = [gallery.stored.read(np.flatnonzero(gallery.alive)[::step]) for gallery in same]
    return embedder.with_whitening(fit_whitening(np.concatenate(sample)))
