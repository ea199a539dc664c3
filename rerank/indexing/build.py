"""Builds and extends an index: pictures in, a gallery with its learnt parts out.

Everything happens in one transaction: a build or a change that is killed leaves the gallery as it
was, and the next one takes up the features that are in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest, read_manifest
from lmk.embed.errors import FormatTooNew, GalleryDamaged, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import Extraction
from lmk.embed.progress import Progress, no_progress
from lmk.index.catalog.records import Precision
from lmk.index.gallery.deduplicate import LabelDifference
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.search.choose import RECALL, SEARCH, check_kind
from lmk.index.vectors.labels import Role
from lmk.rerank.fit.fit import fit, fit_change
from lmk.rerank.fit.tables import PIPELINE, SHARD
from lmk.rerank.indexing.ingest import (
    DUPLICATES,
    NOTHING,
    append_all,
    extract_all,
    landmarks_without_own_picture,
    open_store,
    part_of,
    prefix_of,
    prune_cache,
    record_skipped,
    require_pictures,
    shared_ids,
)
from lmk.rerank.indexing.removals import require_seen
from lmk.rerank.indexing.whiten import whitened, whitening_helps
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.tags.thresholds import HEAD_SETTING, THRESHOLDS_FILE, load_thresholds

Pictures = Manifest | str | os.PathLike[str]


@dataclass(frozen=True)
class BuildReport:
    """Result of a build.

    Attributes:
        pictures, distractors: in the index.
        computed: pictures whose features were not in the cache.
        skipped: files that gave nothing, and why.
        duplicates: (id left out, id that has its content).
        relabelled, conflicts, without_own: as in AddReport.
        shared: ids of distractors that are not used, as a gallery picture is the same file: they
            would push down the very landmark that they show.
        whitened: whether a whitening was learnt.
        threshold: below it an answer is "none of these"; None where there was nothing to learn it
            from, so that everything is answered.
    """

    pictures: int
    distractors: int
    computed: int
    skipped: tuple[Skipped, ...]
    duplicates: tuple[tuple[str, str], ...]
    shared: tuple[str, ...]
    whitened: bool
    threshold: float | None
    relabelled: tuple[LabelDifference, ...] = ()
    conflicts: tuple[LabelDifference, ...] = ()
    without_own: tuple[str, ...] = ()


@dataclass(frozen=True)
class AddReport:
    """Result of adding pictures.

    Attributes:
        added: pictures that are new in the index.
        unchanged: pictures that it had already.
        computed: pictures whose features were not in the cache.
        skipped: files that gave nothing, and why.
        duplicates: (id left out, id that has its content).
        shared: as in BuildReport, of the whole index.
        threshold: as in BuildReport.
        relabelled: pictures that the index had, and of which only the labels are new.
        conflicts: pictures that are the same file as one under another landmark; the index has
            both, unless they have one id (only a merge meets that).
        without_own: landmarks of which every picture is also under another landmark.
    """

    added: int
    unchanged: int
    computed: int
    skipped: tuple[Skipped, ...]
    duplicates: tuple[tuple[str, str], ...]
    shared: tuple[str, ...]
    threshold: float | None
    relabelled: tuple[LabelDifference, ...] = ()
    conflicts: tuple[LabelDifference, ...] = ()
    without_own: tuple[str, ...] = ()


@dataclass(frozen=True)
class RemoveReport:
    """Result of a removal.

    Attributes:
        removed: pictures removed.
        threshold: as in BuildReport.
        earlier: ids that an earlier removal had removed already.
    """

    removed: int
    threshold: float | None
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompactReport:
    """What a compaction did.

    Attributes:
        removed: rows of removed pictures that are no more.
        rows: that are left.
        features: cached features of files that are no pictures of the index, now dropped.
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
    kind: str | None = None,
    recall: float | None = None,
    backend: str | None = None,
    uri: str | None = None,
    collection: str | None = None,
    shard: tuple[int, int] | None = None,
    precision: Precision = "f16",
    duplicates: bool = False,
    allow_removals: bool = False,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> BuildReport:
    """Builds a gallery at `path`, or builds it anew; readers of the old one are not disturbed.

    Args:
        gallery: the known pictures: a manifest, or a folder or table as for read_manifest.
        path: the gallery folder (NAME.lmk).
        embedder: without a whitening; one is learnt here where it helps. lmk's own unless given.
        distractors: pictures that show no landmark of the gallery.
        pipeline: the steps saved with the gallery; the default ones unless given.
        whiten: whether to learn a whitening; by default where there are distractors and at least
            1,000 pictures in all, because below that it costs more rejection than it gains, and
            the network has no neck, which was trained to give vectors as they are.
        kind, recall, backend, uri, collection: how it will be searched (index.search.choose).
        shard: (i, n) builds only part i of n, i from 1 to n; which part a picture belongs to
            depends on its id alone. Nothing is learnt then: merge_indexes does, of the whole.
        precision: of the stored vectors.
        duplicates: also take pictures whose content another one has.
        allow_removals: build an index anew although whole landmarks, or more than a fifth of the
            pictures, that it has from these folders could not be looked at now.
        wait: seconds to wait for another writer.
        on_progress: called with (stage, done, total).

    Raises:
        ManifestError: when not one picture of the gallery can be read.
        UsageError: for a shard that there is not, or a kind that cannot search these pictures.
        GalleryError: when much could not be looked at (`allow_removals`); the index stays.
        GalleryLocked, StorageError: as the folder is.
    """
    path, gallery = Path(path), _manifest(gallery)
    distractors = None if distractors is None else _manifest(distractors)
    embedder = embedder or Embedder.named()
    if shard is not None and whiten:
        raise UsageError("a shard learns no whitening", remedy="whiten when the shards are merged")
    part = part_of(gallery, shard)
    part_of_bank = None if distractors is None else part_of(distractors, shard)
    check_kind(  # before hours of embedding; how many pictures a merge will have is not known
        kind or "auto",
        embedder.dim,
        recall=RECALL if recall is None else recall,
        rows=None if shard else len(part),
    )
    with GalleryWriter(path, create=True, wait=wait) as writer:
        store = open_store(path, embedder)
        known = extract_all(part, embedder, store, "gallery", on_progress)
        bank = NOTHING
        if part_of_bank is not None:
            bank = extract_all(part_of_bank, embedder, store, "distractors", on_progress)
        if len(part) or shard is None:
            require_pictures(part, known)
        if not allow_removals:
            _require_seen(writer, "gallery", gallery, part, known)
            if distractors is not None and part_of_bank is not None:
                _require_seen(writer, "distractor", distractors, part_of_bank, bank)
        if whiten is None:
            counts = len(known.pictures), len(bank.pictures)
            whiten = shard is None and whitening_helps(embedder, *counts)
        if whiten:
            embedder = whitened(embedder, store, known.pictures, bank.pictures)
        writer.reset(embedder.fingerprint, embedder.dim, precision)
        writer.install_embedder(embedder.save)
        added = append_all(
            writer, store, embedder, known.pictures, part.root, duplicates=duplicates
        )
        against = 0
        if part_of_bank is not None:
            against = append_all(
                writer, store, embedder, bank.pictures, part_of_bank.root, role="distractor",
                duplicates=duplicates,
            )  # fmt: skip
        record_skipped(writer, known.skipped, "gallery")
        record_skipped(writer, bank.skipped, "distractor")
        search = {"kind": kind, "recall": recall, "backend": backend, "uri": uri}
        search["collection"] = collection
        writer.set(SEARCH, {name: value for name, value in search.items() if value is not None})
        writer.set(SHARD, shard)
        writer.set(DUPLICATES, duplicates)
        if embedder.folder is not None:  # of the tags that it brings along
            tags = load_thresholds(embedder.folder / THRESHOLDS_FILE)
            writer.set(HEAD_SETTING, None if tags is None else tags.model_dump(mode="json"))
        pipeline, threshold = pipeline or Pipeline(), None
        if shard is None:
            threshold = fit(writer, pipeline, on_progress=on_progress).pipeline.threshold()
        else:
            writer.set(PIPELINE, pipeline.with_threshold(None).model_dump(mode="json"))
        shared, without_own = shared_ids(writer), landmarks_without_own_picture(writer)
        writer.commit()
        return BuildReport(
            pictures=added,
            distractors=against,
            computed=known.computed + bank.computed,
            skipped=(*known.skipped, *bank.skipped),
            duplicates=tuple(writer.duplicates),
            shared=shared,
            whitened=whiten,
            threshold=threshold,
            relabelled=tuple(writer.relabelled),
            conflicts=tuple(writer.conflicts),
            without_own=without_own,
        )


def _manifest(pictures: Pictures) -> Manifest:
    return pictures if isinstance(pictures, Manifest) else read_manifest(pictures)


def _require_seen(
    writer: GalleryWriter, role: Role, whole: Manifest, part: Manifest, found: Extraction
) -> None:
    """As removals.require_seen, where there is an index already and it can be read."""
    if len(found.skipped) == len(part.skipped) and not whole.unseen_places():
        return
    with suppress(GalleryDamaged, FormatTooNew):
        old = writer.gallery()
        if old is not None:
            with old:
                require_seen(old, role, whole, part, found)


def add_pictures(
    path: Path,
    manifest: Manifest,
    *,
    role: Role = "gallery",
    duplicates: bool = False,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> AddReport:
    """Adds pictures to a gallery with its own embedder; penalty and threshold are kept right.

    A picture whose id and content the gallery has is left as it is, unless it brings other labels,
    which then replace the old ones.

    Args:
        path: the gallery.
        manifest: the pictures.
        role: "distractor" for pictures of no landmark.
        duplicates: also add pictures whose content another one has; later syncs do so too then.
        wait: seconds to wait for another writer.
        on_progress: called with (stage, done, total).

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: as the folder is.
        GalleryError: when another picture has an id.
    """
    with GalleryWriter(path, wait=wait) as writer, Gallery.open(path) as old:
        embedder = Embedder.load(old.embedder_dir, checked=True)
        store = open_store(path, embedder)
        found = extract_all(manifest, embedder, store, "pictures", on_progress)
        added = append_all(
            writer, store, embedder, found.pictures, manifest.root, role=role,
            duplicates=duplicates,
        )  # fmt: skip
        if duplicates:
            writer.set(DUPLICATES, True)
        skipped = {path for path, _ in old.skipped()}
        for picture in found.pictures:
            if (name := prefix_of(role) + picture.row.path) in skipped:
                writer.unskip(name)
        record_skipped(writer, found.skipped, role)
        changed = bool(added or writer.relabelled)
        threshold = fit_change(writer, old, changed=changed, on_progress=on_progress)
        without_own = landmarks_without_own_picture(writer)
        writer.commit()
        return AddReport(
            added=added,
            unchanged=writer.unchanged,
            computed=found.computed,
            skipped=found.skipped,
            duplicates=tuple(writer.duplicates),
            shared=shared_ids(writer),
            threshold=threshold,
            relabelled=tuple(writer.relabelled),
            conflicts=tuple(writer.conflicts),
            without_own=without_own,
        )


def remove_pictures(
    path: Path,
    ids: Iterable[str],
    *,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> RemoveReport:
    """Removes pictures and distractors by id; penalty and threshold are kept right.

    The same removal may be run again, as after a kill: an id that was removed since the last
    `compact` is no error.

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: as the folder is.
        GalleryError: for an id that the gallery never had; then nothing is removed.
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
    path: Path,
    *,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> CompactReport:
    """Gives back the space of removed pictures, joins small files, and learns what it must anew.

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: as the folder is.
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
