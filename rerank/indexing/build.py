"""Functions that build an index, add and remove pictures, and compact an index.

Each function runs in one transaction. A killed build or change leaves the gallery as it was, and
the next run reuses the features in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lmk.embed.data.manifest import Manifest, read_manifest
from lmk.embed.errors import FormatTooNew, GalleryDamaged, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import Extraction
from lmk.embed.progress import Progress, no_progress
from lmk.embed.tables.landmark_table import LandmarkTable, read_landmarks
from lmk.index.catalog.records import Precision
from lmk.index.gallery.deduplicate import LabelDifference
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.landmarks import MatchedDetails, match_details
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.search.choose import DEFAULT, check_kind
from lmk.index.search.settings import SEARCH, SearchSettings
from lmk.index.vectors.labels import Role
from lmk.rerank.fit.fit import fit, fit_change
from lmk.rerank.fit.tables import PIPELINE, SHARD
from lmk.rerank.indexing.ingest import (
    DUPLICATES,
    NOTHING,
    IngestReport,
    append_all,
    extract_all,
    ingest_results,
    open_store,
    part_of,
    prefix_of,
    prune_cache,
    record_skipped,
    require_pictures,
    whitened,
    whitening_helps,
)
from lmk.rerank.indexing.removals import require_seen
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.tags.thresholds import HEAD_SETTING, THRESHOLDS_FILE, load_thresholds

Pictures = Manifest | str | os.PathLike[str]
_STAGES: dict[Role, str] = {"gallery": "gallery", "distractor": "distractors"}


@dataclass(frozen=True, kw_only=True)
class BuildReport(IngestReport):
    """Result of a build.

    Attributes:
        pictures, distractors: number of pictures and distractors in the index.
        whitened: True if the build fitted a whitening.
        relabelled: as in AddReport.
        described: number of landmarks with details in the index.
        unknown_landmarks: landmarks that no picture shows; the index omits their details.
    """

    pictures: int
    distractors: int
    whitened: bool
    relabelled: tuple[LabelDifference, ...] = ()
    described: int = 0
    unknown_landmarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AddReport(IngestReport):
    """Result of an addition; `shared` and `threshold` describe the whole index.

    Attributes:
        added: number of new pictures in the index.
        unchanged: number of pictures that the index contained already.
        relabelled: pictures that had other labels in the index before.
    """

    added: int
    unchanged: int
    relabelled: tuple[LabelDifference, ...] = ()


@dataclass(frozen=True)
class RemoveReport:
    """Result of a removal.

    Attributes:
        removed: number of removed pictures.
        threshold: as in IngestReport.
        earlier: ids of pictures that an earlier call removed.
    """

    removed: int
    threshold: float | None
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompactReport:
    """Result of a compaction.

    Attributes:
        removed: number of deleted rows; their pictures were removed before.
        rows: number of remaining rows.
        features: number of features deleted from the cache; their files are not in the index.
    """

    removed: int
    rows: int
    features: int


def build_index(
    gallery: Pictures,
    path: str | os.PathLike[str],
    embedder: Embedder | None = None,
    *,
    distractors: Pictures | None = None,
    pipeline: Pipeline | None = None,
    whiten: bool | None = None,
    search: SearchSettings = DEFAULT,
    shard: tuple[int, int] | None = None,
    precision: Precision = "f16",
    duplicates: bool = False,
    allow_removals: bool = False,
    landmarks: LandmarkTable | str | os.PathLike[str] | None = None,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> BuildReport:
    """Builds a gallery at `path` and replaces an existing one, whose open readers still work.

    Args:
        gallery: the labelled pictures: a manifest, or a folder or table for read_manifest.
        path: the gallery folder (NAME.lmk).
        embedder: an embedder without a whitening. Default: lmk's own.
        distractors: pictures that show no landmark of the gallery.
        pipeline: the steps to save with the gallery. Default: the standard pipeline.
        whiten: whether to fit a whitening. Default: True if there are distractors, at least 1,000
            pictures in all, and a network without a neck. A whitening of fewer pictures makes
            the rejection worse. The vectors of a trained neck need no whitening.
        search: settings of the search (lmk.index.search.settings).
        shard: (i, n) builds only part i of n, with i from 1 to n. The id of a picture determines
            its part. A part has no fitted tables; merge_indexes fits tables for the whole.
        precision: data type of the stored vectors.
        duplicates: whether to add pictures with the content of another picture.
        allow_removals: whether to replace an index even if whole landmarks, or more than a fifth
            of its pictures from these folders, cannot be read now.
        landmarks: names, coordinates and links of landmarks (lmk.embed.tables.landmark_table).
        wait: seconds to wait for another writer.
        on_progress: called with (stage, done, total).

    Raises:
        ManifestError: no picture of the gallery can be read.
        UsageError: the shard does not exist, `kind` cannot search these pictures, or none of
            `landmarks` is a landmark of these pictures.
        GalleryError: many pictures of the old index are unreadable, without `allow_removals`.
        GalleryLocked, StorageError: the folder is locked or cannot be written.
    """
    path = Path(path)
    wholes: dict[Role, Manifest] = {"gallery": _manifest(gallery)}
    if distractors is not None:
        wholes["distractor"] = _manifest(distractors)
    described = _described(wholes["gallery"], landmarks)
    embedder = embedder or Embedder.named()
    if shard is not None and whiten:
        raise UsageError("a shard has no whitening", remedy="whiten when the shards are merged")
    parts = {role: part_of(whole, shard) for role, whole in wholes.items()}
    # This check precedes hours of embedding. A shard does not know the size of the merged index.
    check_kind(search, embedder.dim, rows=None if shard else len(parts["gallery"]))
    with GalleryWriter(path, create=True, wait=wait) as writer:
        store = open_store(path, embedder)
        read = {
            role: extract_all(part, embedder, store, _STAGES[role], on_progress)
            for role, part in parts.items()
        }
        pictures, others = read["gallery"], read.get("distractor", NOTHING)
        if len(parts["gallery"]) or shard is None:
            require_pictures(parts["gallery"], pictures)
        if not allow_removals:
            for role, part in parts.items():
                _require_seen(writer, role, wholes[role], part, read[role])
        if whiten is None:
            counts = len(pictures.pictures), len(others.pictures)
            whiten = shard is None and whitening_helps(embedder, *counts)
        if whiten:
            embedder = whitened(embedder, store, pictures.pictures, others.pictures)
        writer.reset(embedder.fingerprint, embedder.dim, precision)
        writer.install_embedder(embedder.save)
        added: dict[Role, int] = {}
        for role, part in parts.items():
            added[role] = append_all(
                writer, store, embedder, read[role].pictures, part.root, role=role,
                duplicates=duplicates,
            )  # fmt: skip
            record_skipped(writer, read[role].skipped, role)
        writer.set_landmarks(described.details)
        writer.set(SEARCH, search.to_json())
        writer.set(SHARD, shard)
        writer.set(DUPLICATES, duplicates)
        if embedder.folder is not None:  # The folder may contain thresholds of tags.
            tags = load_thresholds(embedder.folder / THRESHOLDS_FILE)
            writer.set(HEAD_SETTING, None if tags is None else tags.model_dump(mode="json"))
        pipeline, threshold = pipeline or Pipeline(), None
        if shard is None:
            threshold = fit(writer, pipeline, on_progress=on_progress).pipeline.threshold()
        else:
            writer.set(PIPELINE, pipeline.with_threshold(None).model_dump(mode="json"))
        results = ingest_results(writer)
        writer.commit()
        return BuildReport(
            pictures=added["gallery"],
            distractors=added.get("distractor", 0),
            computed=pictures.computed + others.computed,
            skipped=(*pictures.skipped, *others.skipped),
            whitened=whiten,
            threshold=threshold,
            relabelled=tuple(writer.relabelled),
            **results,
            described=len(described.details),
            unknown_landmarks=described.unknown,
        )


def _manifest(pictures: Pictures) -> Manifest:
    return pictures if isinstance(pictures, Manifest) else read_manifest(pictures)


def _described(
    manifest: Manifest, landmarks: LandmarkTable | str | os.PathLike[str] | None
) -> MatchedDetails:
    """Returns the details of the landmarks in a manifest; errors precede hours of embedding."""
    if landmarks is None:
        return MatchedDetails((), ())
    table = landmarks if isinstance(landmarks, LandmarkTable) else read_landmarks(landmarks)
    labels = {label for row in manifest.rows for label in row.labels}
    return match_details(table, labels, where="the landmarks of the pictures")


def _require_seen(
    writer: GalleryWriter, role: Role, whole: Manifest, part: Manifest, extraction: Extraction
) -> None:
    """Calls removals.require_seen for an existing index, if the index can be read."""
    if len(extraction.skipped) == len(part.skipped) and not whole.unseen_places():
        return
    with suppress(GalleryDamaged, FormatTooNew):
        old = writer.gallery()
        if old is not None:
            with old:
                require_seen(old, role, whole, part, extraction)


def add_pictures(
    path: Path,
    manifest: Manifest,
    *,
    role: Role = "gallery",
    duplicates: bool = False,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> AddReport:
    """Adds pictures to a gallery, and updates the fitted tables and the threshold.

    The embedder of the gallery computes the vectors. A picture whose id and content are in the
    gallery is not added again. If its labels differ, the new labels replace the old ones.

    Args:
        path: the gallery.
        manifest: the pictures.
        role: "distractor" for pictures that show no landmark.
        duplicates: whether this call and later syncs add pictures with the content of another.
        wait: seconds to wait for another writer.
        on_progress: called with (stage, done, total).

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: the folder cannot be used.
        GalleryError: the gallery has another picture with the same id.
    """
    with GalleryWriter(path, wait=wait) as writer, Gallery.open(path) as old:
        embedder = Embedder.load(old.embedder_dir, checked=True)
        store = open_store(path, embedder)
        extraction = extract_all(manifest, embedder, store, "pictures", on_progress)
        added = append_all(
            writer, store, embedder, extraction.pictures, manifest.root, role=role,
            duplicates=duplicates,
        )  # fmt: skip
        if duplicates:
            writer.set(DUPLICATES, True)
        skipped = {path for path, _ in old.skipped()}
        for picture in extraction.pictures:
            if (name := prefix_of(role) + picture.row.path) in skipped:
                writer.unskip(name)
        record_skipped(writer, extraction.skipped, role)
        changed = bool(added or writer.relabelled)
        threshold = fit_change(writer, old, changed=changed, on_progress=on_progress)
        results = ingest_results(writer)
        writer.commit()
        return AddReport(
            added=added,
            unchanged=writer.unchanged,
            computed=extraction.computed,
            skipped=extraction.skipped,
            threshold=threshold,
            relabelled=tuple(writer.relabelled),
            **results,
        )


def remove_pictures(
    path: Path, ids: Iterable[str], *, wait: float = 0.0, on_progress: Progress = no_progress
) -> RemoveReport:
    """Removes pictures and distractors by id, and updates the fitted tables and the threshold.

    The same call may run again, for example after a kill. An id that was removed since the last
    compaction raises no error.

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: the folder cannot be used.
        GalleryError: the gallery never contained one of the ids. Nothing is removed.
    """
    with GalleryWriter(path, wait=wait) as writer, Gallery.open(path) as old:
        wanted = list(dict.fromkeys(ids))
        earlier = writer.uncommitted.removed_ids(wanted)
        removed = writer.remove(id_ for id_ in wanted if id_ not in earlier)
        threshold = fit_change(writer, old, changed=bool(removed), on_progress=on_progress)
        if removed:
            writer.commit()
    return RemoveReport(removed, threshold, tuple(id_ for id_ in wanted if id_ in earlier))


def compact_index(
    path: Path, *, wait: float = 0.0, on_progress: Progress = no_progress
) -> CompactReport:
    """Deletes the rows of removed pictures, joins small files, and updates the fitted tables.

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: the folder cannot be used.
    """
    with GalleryWriter(path, wait=wait) as writer:
        with Gallery.open(path) as old:
            removed = old.removed
            if writer.compact():
                fit_change(
                    writer, old, changed=bool(removed), compacted=True, on_progress=on_progress
                )
                writer.commit()
        with Gallery.open(path) as new:
            features = prune_cache(path, new)
            return CompactReport(removed, new.rows, features)
