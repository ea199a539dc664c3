"""Rebuild of an index with another network and with the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmk.embed.data.manifest import Manifest
from lmk.embed.errors import GalleryError, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.progress import Progress, no_progress
from lmk.embed.tables.landmark_table import LandmarkTable
from lmk.index.gallery.gallery import Gallery
from lmk.index.search.settings import SearchSettings
from lmk.rerank.fit.saved import saved_pipeline
from lmk.rerank.fit.tables import SHARD
from lmk.rerank.indexing.build import BuildReport, build_index
from lmk.rerank.indexing.ingest import DUPLICATES
from lmk.rerank.indexing.removals import UnseenPictures, require_few
from lmk.rerank.indexing.sync import planned_sync


def uses_network(path: Path, embedder: Embedder) -> bool:
    """Returns whether the embedder of an index has this network, with or without a whitening.

    Raises:
        NotAGallery, GalleryDamaged: the folder cannot be used.
    """
    with Gallery.open(path) as gallery:
        own = Embedder.load(gallery.embedder_dir, checked=True)
    return own.feature_fingerprint == embedder.feature_fingerprint


def reembed_index(
    path: Path,
    manifest: Manifest,
    embedder: Embedder,
    *,
    distractors: Manifest | None = None,
    allow_removals: bool = False,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> BuildReport:
    """Embeds all pictures of an index again, and replaces the old index in one transaction.

    The steps, the search, the precision, the treatment of duplicates and the details of landmarks
    do not change. The threshold and the calibration are fitted to the new vectors.

    Args:
        path: the index.
        manifest: all pictures of the index.
        embedder: an embedder without a whitening.
        distractors: all distractors of the index.
        allow_removals: whether the index may lose whole landmarks, more than a fifth of its
            pictures, and pictures that cannot be accessed now.
        wait: seconds to wait for another writer.
        on_progress: called with (stage, done, total).

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: the folder cannot be used.
        ManifestError: no picture can be read.
        UsageError: the index is one shard of several, or has distractors that the call lacks.
        GalleryError: the index would lose pictures as described for `allow_removals`, which is
            False. Nothing changes.
    """
    with Gallery.open(path) as old:
        if old.setting(SHARD) is not None:
            what = "is one part of an index, and all parts need the same network"
            remedy = "build each part again with `lmk build-index --shard I/N --model NAME`"
            raise UsageError(what, where=path, remedy=remedy)
        held = len(old.role_rows("distractor"))
        if held and distractors is None:
            what = f"has {held:,} distractors, which the new network must embed too"
            remedy = "name their folder or CSV with --distractors"
            raise UsageError(what, where=path, remedy=remedy)
        if not allow_removals:
            plans = planned_sync(old, manifest, distractors, on_progress)
            require_few(path, [plan.losses for plan in plans])
            _require_accessible(path, [kept for plan in plans for kept in plan.kept])
        pipeline = saved_pipeline(old).with_threshold(None)
        search = SearchSettings.saved(old)
        precision, duplicates = old.precision, bool(old.setting(DUPLICATES))
        landmarks = LandmarkTable(str(path), tuple(old.all_details())) if old.has_details else None
    return build_index(
        manifest,
        path,
        embedder,
        distractors=distractors,
        pipeline=pipeline,
        search=search,
        precision=precision,
        duplicates=duplicates,
        allow_removals=allow_removals,
        landmarks=landmarks,
        wait=wait,
        on_progress=on_progress,
    )


def _require_accessible(path: Path, hidden: Sequence[UnseenPictures]) -> None:
    """Raises GalleryError if pictures of the index cannot be read now."""
    if hidden:
        count = sum(one.pictures for one in hidden)
        what = (
            f"{count:,} of its pictures cannot be accessed now, so the new network cannot embed "
            f"them ({hidden[0].path}: {hidden[0].reason})"
        )
        remedy = "make them accessible, or leave them out with --allow-removals"
        raise GalleryError(what, where=path, remedy=remedy)
