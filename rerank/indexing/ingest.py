"""From the pictures of a manifest to rows of a gallery, a bounded number in memory at a time.

Raw features go to the gallery's cache first, as they come; a run that is killed goes on there.
"""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest
from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import GalleryLocked, ManifestError, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import Extracted, Extraction, extract
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.local.features import cache_of
from lmk.embed.progress import Progress
from lmk.index.catalog.lock import take_lock
from lmk.index.catalog.records import Picture
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.labels import Role

DISTRACTOR_PREFIX = "distractor:"  # so that a bank's ids never meet the gallery's
DUPLICATES = "duplicates"  # setting: whether a build took pictures whose content another one has
PHOTOS = Path("cache", "photos")  # features of photos that the gallery was tuned or calibrated on
BLOCK = 8192  # pictures whose vectors are in memory

NOTHING = Extraction((), (), 0)


def prefix_of(role: Role) -> str:
    """What the ids and skipped files of a role begin with."""
    return DISTRACTOR_PREFIX if role == "distractor" else ""


def open_store(path: Path, embedder: Embedder) -> FeatureStore:
    """The raw features that a gallery keeps of its pictures."""
    folder = path / "cache" / "features"
    key, dim = embedder.feature_fingerprint, embedder.feature_dim
    return FeatureStore(folder, key, dim, below=path)


def extract_all(
    manifest: Manifest,
    embedder: Embedder,
    store: FeatureStore,
    stage: str,
    on_progress: Progress,
    known: Container[str] = (),
) -> Extraction:
    """Puts the features of a manifest's pictures into the store; see embed.extract."""
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
    """Adds pictures whose features are in the store to the gallery; returns how many are new.

    Raises:
        GalleryError: when another picture has an id.
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
    """What the catalog keeps of pictures of a role, found below a root."""
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
    """Records the files of a role that gave nothing."""
    for skip in skipped:
        writer.skip(prefix_of(role) + skip.path, skip.reason)


def shared_ids(writer: GalleryWriter) -> tuple[str, ...]:
    """The ids of distractors that are not used, as a gallery picture is the same file.

    They would push down the very landmark that they show.
    """
    return tuple(picture.id for picture in writer.uncommitted.pictures(writer.uncommitted.shared()))


def landmarks_without_own_picture(writer: GalleryWriter) -> tuple[str, ...]:
    """The landmarks of which every picture is also under another landmark, by name.

    Only landmarks of the pictures that were appended are looked at.
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
    """The labels of the gallery's pictures and how many have each, with uncommitted changes."""
    membership = writer.uncommitted.membership()
    each = np.repeat(membership.role("gallery"), np.diff(membership.offsets))
    counts = np.bincount(membership.codes[each], minlength=len(membership.names))
    return {n: count for n, count in zip(membership.names, counts.tolist(), strict=True) if count}


def require_pictures(manifest: Manifest, found: Extraction, *, others: int = 0) -> None:
    """Checks that at least one picture of a manifest could be read, or is known (ManifestError)."""
    if found.pictures or others:
        return
    paths = {row.path for row in manifest.rows}
    failed = [skip for skip in found.skipped if skip.path in paths]
    first = f"; the first is {failed[0].path}: {failed[0].reason}" if failed else ""
    raise ManifestError(
        f"none of its {len(manifest)} pictures can be read{first}",
        where=manifest.origin,
        remedy=manifest.unreadable_remedy,
    )


def part_of(manifest: Manifest, shard: tuple[int, int] | None) -> Manifest:
    """Part i of n of a manifest: the pictures whose id falls into it, whatever others there are.

    Args:
        manifest: the whole.
        shard: (i, n), i from 1 to n; None for the whole.

    Raises:
        UsageError: for a part that there is not.
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


def prune_features(path: Path, gallery: Gallery) -> int:
    """Drops cached features of pictures that the gallery does not hold; returns how many."""
    store = open_store(path, Embedder.load(gallery.embedder_dir, checked=True))
    return store.prune(_contents(gallery))


def prune_cache(path: Path, gallery: Gallery) -> int:
    """Drops all cached features of files that are not pictures of the gallery; returns how many.

    Those of photos it was tuned on are among them, unless another process is at them just now.
    """
    dropped = prune_features(path, gallery) + cache_of(path).prune(_contents(gallery))
    if not (path / PHOTOS).is_dir():
        return dropped
    with ExitStack() as held, suppress(GalleryLocked):
        held.callback(os.close, take_lock(path / PHOTOS))
        embedder = Embedder.load(gallery.embedder_dir, checked=True)
        key, dim = embedder.feature_fingerprint, embedder.feature_dim
        store = FeatureStore(path / PHOTOS, key, dim, below=path)
        dropped += store.prune(_contents(gallery))
    return dropped


def _contents(gallery: Gallery) -> Iterator[str]:
    """The SHA-256 of each picture's file."""
    return (picture.sha256 for _, picture, _ in gallery.entries())
