"""Conversion of the pictures of a manifest to rows of a gallery, with bounded memory.

The cache of the gallery stores raw features first, so that a killed run can continue.
"""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest
from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import GalleryLocked, ManifestError, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import Extracted, Extraction, extract
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.local.features import cache_of
from lmk.embed.network.whitening import LEAST_PICTURES, MOST_PICTURES, fit_whitening
from lmk.embed.progress import Progress
from lmk.index.catalog.lock import take_lock
from lmk.index.catalog.records import Picture
from lmk.index.gallery.deduplicate import LabelDifference
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.labels import Role

DISTRACTOR_PREFIX = "distractor:"  # separates the ids of distractors from those of pictures
DUPLICATES = "duplicates"  # setting: whether pictures with equal content are added
FEATURES = Path("cache", "features")  # raw features of the pictures
PHOTOS = Path("cache", "photos")  # raw features of photos that tune or calibrate the gallery
BLOCK = 8192  # maximum number of pictures whose vectors are in memory

NOTHING = Extraction((), (), 0)


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """The common results of a build, an addition and a sync.

    Attributes:
        computed: number of pictures whose features were not in the cache.
        skipped: files without a picture, each with a reason.
        duplicates: pairs (omitted id, id with the same content).
        shared: ids of distractors that are not used because a gallery picture is the same file.
            Such a distractor would lower the score of its landmark. Empty in a dry run.
        threshold: the score below which an answer is "none of these". None without data for the
            fit; every query then gets an answer.
        conflicts: pictures with the same file under another landmark. The index contains both
            pictures, unless both have the same id (only in a merge).
        without_own: landmarks whose pictures are all under another landmark too.
    """

    computed: int = 0
    skipped: tuple[Skipped, ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()
    shared: tuple[str, ...] = ()
    threshold: float | None = None
    conflicts: tuple[LabelDifference, ...] = ()
    without_own: tuple[str, ...] = ()


def ingest_results(writer: GalleryWriter) -> dict[str, Any]:
    """Returns the fields of an IngestReport that a writer provides before its commit."""
    return {
        "duplicates": tuple(writer.duplicates),
        "shared": tuple(
            picture.id for picture in writer.uncommitted.pictures(writer.uncommitted.shared())
        ),
        "conflicts": tuple(writer.conflicts),
        "without_own": _landmarks_without_own_picture(writer),
    }


def prefix_of(role: Role) -> str:
    """Returns the prefix of the ids of a role, and of its skipped files."""
    return DISTRACTOR_PREFIX if role == "distractor" else ""


def open_store(path: Path, embedder: Embedder, folder: Path = FEATURES) -> FeatureStore:
    """Returns the store of raw features in a folder of the gallery: FEATURES or PHOTOS."""
    key, dim = embedder.feature_fingerprint, embedder.feature_dim
    return FeatureStore(path / folder, key, dim, below=path)


def extract_all(
    manifest: Manifest,
    embedder: Embedder,
    store: FeatureStore,
    stage: str,
    on_progress: Progress,
    known: Container[str] = (),
) -> Extraction:
    """Computes the features of a manifest's pictures and stores them; see embed.extract."""
    on_progress(stage, 0, len(manifest))
    return extract(
        manifest,
        embedder,
        store,
        known=known,
        on_progress=lambda done: on_progress(stage, done, len(manifest)),
    )


def append_all(
    writer: GalleryWriter,
    store: FeatureStore,
    embedder: Embedder,
    pictures: Sequence[Extracted],
    root: Path,
    *,
    role: Role = "gallery",
    duplicates: bool = False,
) -> int:
    """Adds pictures with stored features to the gallery; returns the number of new pictures.

    Raises:
        GalleryError: the gallery has another picture with the same id.
    """
    added = 0
    for start in range(0, len(pictures), BLOCK):
        block = pictures[start : start + BLOCK]
        entries = entries_of(block, root, role)
        vectors = embedder.vectors(store.read([picture.sha256 for picture in block]))
        ids = tuple(entry.id for entry in entries)
        embeddings = Embeddings(vectors, ids, embedder.fingerprint)
        added += writer.append(embeddings, entries, role, duplicates=duplicates)
    return added


def entries_of(pictures: Sequence[Extracted], root: Path, role: Role) -> list[Picture]:
    """Returns the catalog records of pictures below `root`; ids have the prefix of the role."""
    folder, prefix = str(root.resolve()), prefix_of(role)
    return [
        Picture(
            id=prefix + picture.row.id,
            labels=picture.row.labels,
            root=folder,
            path=picture.row.path,
            sha256=picture.sha256,
            size=picture.size,
            mtime_ns=picture.mtime_ns,
        )
        for picture in pictures
    ]


def record_skipped(writer: GalleryWriter, skipped: Iterable[Skipped], role: Role) -> None:
    """Records the skipped files of a role in the catalog."""
    for skip in skipped:
        writer.skip(prefix_of(role) + skip.path, skip.reason)


def _landmarks_without_own_picture(writer: GalleryWriter) -> tuple[str, ...]:
    """Returns the landmarks, sorted, whose pictures are all under another landmark too.

    The function examines only the landmarks of the appended pictures.
    """
    disputed: dict[str, set[str]] = defaultdict(set)
    for one in writer.conflicts:
        for id_, labels in ((one.id, one.labels), (one.other, one.other_labels)):
            for label in labels:
                disputed[label].add(id_)
    if not disputed:
        return ()
    held = label_counts(writer)
    return tuple(sorted(name for name, ids in disputed.items() if held.get(name) == len(ids)))


def label_counts(writer: GalleryWriter) -> dict[str, int]:
    """Returns the number of pictures of each label, including uncommitted changes."""
    membership = writer.uncommitted.membership()
    each = np.repeat(membership.role("gallery"), np.diff(membership.offsets))
    counts = np.bincount(membership.codes[each], minlength=len(membership.names))
    return {n: count for n, count in zip(membership.names, counts.tolist(), strict=True) if count}


def require_pictures(manifest: Manifest, extraction: Extraction, *, others: int = 0) -> None:
    """Raises ManifestError if no picture of a manifest was read and `others` is 0."""
    if extraction.pictures or others:
        return
    paths = {row.path for row in manifest.rows}
    failed = [skip for skip in extraction.skipped if skip.path in paths]
    first = f"; the first is {failed[0].path}: {failed[0].reason}" if failed else ""
    raise ManifestError(
        f"none of its {len(manifest)} pictures can be read{first}",
        where=manifest.origin,
        remedy=manifest.unreadable_remedy,
    )


def part_of(manifest: Manifest, shard: tuple[int, int] | None) -> Manifest:
    """Returns part i of n of a manifest; the id of a picture alone determines its part.

    Args:
        manifest: the whole manifest.
        shard: (i, n) with i from 1 to n, or None for the whole manifest.

    Raises:
        UsageError: i is not from 1 to n.
    """
    if shard is None:
        return manifest
    number, count = shard
    if not 1 <= number <= count:
        raise UsageError(f"part {number} of {count}", remedy="count the parts from 1")

    def ours(name: str) -> bool:
        return zlib.crc32(name.encode("utf-8", "surrogateescape")) % count == number - 1

    rows = tuple(row for row in manifest.rows if ours(row.id))
    skipped = tuple(skip for skip in manifest.skipped if ours(skip.path))
    return replace(manifest, rows=rows, skipped=skipped)


def whitening_helps(embedder: Embedder, pictures: int, distractors: int) -> bool:
    """Returns whether a whitening improves the answers for these numbers of pictures.

    A network with a neck needs no whitening, because training fits the neck.
    """
    enough = distractors > 0 and pictures + distractors >= LEAST_PICTURES
    return enough and embedder.whitening is None and embedder.config.neck is None


def whitened(embedder: Embedder, store: FeatureStore, *parts: Sequence[Extracted]) -> Embedder:
    """Returns the embedder with a whitening fitted on the stored features of pictures."""
    step = -(-sum(map(len, parts)) // MOST_PICTURES)
    sample = islice(chain.from_iterable(parts), 0, None, step)
    features = store.read([picture.sha256 for picture in sample])
    return embedder.with_whitening(fit_whitening(features))


def prune_features(path: Path, gallery: Gallery) -> int:
    """Deletes the cached features of pictures outside the gallery; returns their number."""
    store = open_store(path, Embedder.load(gallery.embedder_dir, checked=True))
    return store.prune(_contents(gallery))


def prune_cache(path: Path, gallery: Gallery) -> int:
    """Deletes all cached features of files outside the gallery; returns their number.

    The function also deletes features of photos for tuning, unless a process uses these features.
    """
    dropped = prune_features(path, gallery) + cache_of(path).prune(_contents(gallery))
    if not (path / PHOTOS).is_dir():
        return dropped
    with ExitStack() as held, suppress(GalleryLocked):
        held.callback(os.close, take_lock(path / PHOTOS))
        embedder = Embedder.load(gallery.embedder_dir, checked=True)
        dropped += open_store(path, embedder, PHOTOS).prune(_contents(gallery))
    return dropped


def _contents(gallery: Gallery) -> Iterator[str]:
    """Yields the SHA-256 of each picture's file."""
    return (picture.sha256 for _, picture, _ in gallery.entries())
