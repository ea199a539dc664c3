"""Merging of galleries, such as parts that several machines built, with newly fitted tables."""

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
from lmk.index.search.settings import SEARCH, SearchSettings
from lmk.rerank.fit.fit import fit
from lmk.rerank.fit.saved import forget_fit, saved_pipeline
from lmk.rerank.fit.tables import SHARD
from lmk.rerank.indexing.ingest import DUPLICATES, whitening_helps
from lmk.rerank.steps.pipeline import Pipeline

_STAGE = "merging"


def merge_indexes(
    out: Path,
    paths: Sequence[Path],
    *,
    whiten: bool | None = None,
    duplicates: bool = False,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> MergeReport:
    """Merges galleries into `out` and fits its tables and threshold, in one transaction.

    Args:
        out: the new gallery, which replaces an existing one.
        paths: galleries with the same embedder. The new gallery takes the pipeline and the search
            settings of the first one, but not its server.
        whiten: whether to fit a whitening and apply it to the vectors. Default: the rule of
            build_index if the galleries are parts of one (build_index with a shard), else False.
        duplicates: whether the merge and later syncs add pictures with the content of another
            picture of the same role.
        wait: seconds to wait for another writer of `out`.
        on_progress: called with (stage, done, total).

    Raises:
        UsageError: there are no galleries, `out` is one of `paths`, or the galleries to whiten
            have a whitening already.
        EmbedderMismatch: the galleries have different embedders.
        GalleryError: two galleries use the same id for different pictures.
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: a folder cannot be used.
    """
    with ExitStack() as stack:
        galleries = [stack.enter_context(Gallery.open(path)) for path in paths]
        embedder = _whitened(galleries, whiten) if galleries else None
        pipeline = saved_pipeline(galleries[0]) if galleries else Pipeline()

    def finish(writer: GalleryWriter) -> None:
        forget_fit(writer)
        writer.set(SHARD, None)
        writer.set(DUPLICATES, duplicates)
        # The server of the first gallery does not contain the merged gallery.
        writer.set(SEARCH, SearchSettings.saved(writer).without_server().to_json())
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
    """Returns the embedder with a whitening fitted on all galleries; None without a whitening."""
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
            "there are no pictures to fit a whitening on",
            where=galleries[0].path,
            remedy="leave out --whiten",
        )
    step = -(-rows // MOST_PICTURES)
    sample = [gallery.stored.read(np.flatnonzero(gallery.alive)[::step]) for gallery in same]
    return embedder.with_whitening(fit_whitening(np.concatenate(sample)))
