"""Labelled photos for the tuning of steps and the fitting of calibrations.

Each photo is embedded once. The cache of the index stores the features, so that the next tuning or
calibration on the same photos starts at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest
from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import GalleryLocked, StorageError, UsageError, storage_errors
from lmk.embed.extract.extract import extract
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.plain_files import open_folder
from lmk.embed.progress import Count, no_count
from lmk.embed.scratch import ScratchFolder
from lmk.index.catalog.lock import take_lock
from lmk.index.gallery.gallery import Gallery
from lmk.index.vectors.labels import ROLES
from lmk.index.vectors.view import View
from lmk.rerank.fit.copies import MOST_COPIES, CopyRule, photo_numbers
from lmk.rerank.fit.tables import exact_searcher, saved_copy_rule
from lmk.rerank.indexing.ingest import PHOTOS
from lmk.rerank.recognizer import Recognizer


@dataclass(frozen=True, eq=False)
class LabelledPhotos:
    """n readable photos with their labels, by ascending id.

    Attributes:
        embeddings: the embeddings of the photos.
        labels: the labels of each photo; an empty tuple for no landmark.
        files: the file of each photo.
        sha256: the hash of each file's content, in hex.
        skipped: files that cannot be read, with the reason.
        rule: the rule for copies of one photo.
    """

    embeddings: Embeddings
    labels: tuple[tuple[str, ...], ...]
    files: tuple[Path, ...]
    sha256: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    rule: CopyRule

    def __len__(self) -> int:
        return len(self.embeddings)

    @cached_property
    def content(self) -> NDArray[np.int64]:
        """The number of each file's content, int64 [n]; equal files have equal numbers."""
        number = {sha256: place for place, sha256 in enumerate(dict.fromkeys(self.sha256))}
        return np.array([number[sha256] for sha256 in self.sha256], np.int64)

    @cached_property
    def photo(self) -> NDArray[np.int64]:
        """The number of each photo, int64 [n]; copies of one photo have equal numbers."""
        return _numbers(self.embeddings, self.content, self.rule)


def read_labelled_photos(
    manifest: Manifest, recognizer: Recognizer, *, on_progress: Count = no_count
) -> LabelledPhotos:
    """Returns the photos of a manifest, embedded for an index that does not contain them.

    Args:
        manifest: the photos with their labels.
        recognizer: the opened index.
        on_progress: called with the number of photos done.

    Raises:
        UsageError: the index contains a file of equal content. A gallery picture would be its own
            neighbour, and the thresholds were fitted on the distractors.
    """
    rows = tuple(sorted(manifest.rows, key=lambda row: row.id))
    embedder = recognizer.embedder
    with _features(recognizer) as store:
        extraction = extract(replace(manifest, rows=rows), embedder, store, on_progress=on_progress)
        pictures = list(extraction.pictures)
        features = store.read([picture.sha256 for picture in pictures])
    ids = tuple(picture.row.id for picture in pictures)
    embeddings = Embeddings(embedder.vectors(features), ids, embedder.fingerprint)
    photos = LabelledPhotos(
        embeddings,
        tuple(picture.row.labels for picture in pictures),
        tuple(manifest.file(picture.row) for picture in pictures),
        tuple(picture.sha256 for picture in pictures),
        extraction.skipped,
        saved_copy_rule(recognizer.gallery),
    )
    _refuse_indexed(photos, recognizer.gallery)
    return photos


def refuse_shared_photos(first: LabelledPhotos, second: LabelledPhotos) -> None:
    """Raises UsageError if test photos are among the photos that a choice was made on.

    Raises:
        UsageError: `first` and `second` have files of equal content; the first one is named.
    """
    shared = _shared_content(second.sha256, first.sha256)
    if shared:
        place, other = shared[0]
        raise UsageError(
            f"{len(shared)} of {len(second)} test photos are also among the photos of --data"
            f" (as {first.files[other]}), so the score would be too high",
            where=second.files[place],
            remedy="remove them from one of the two",
        )


def _numbers(
    embeddings: Embeddings, content: NDArray[np.int64], rule: CopyRule
) -> NDArray[np.int64]:
    """Returns the number of each photo."""
    if not content.size:
        return content
    rows = np.arange(len(embeddings))
    near = exact_searcher(View.of_embeddings(embeddings)).search(embeddings, MOST_COPIES)
    photo = photo_numbers(rows, rule.among(near))
    # A rule that joins most files cannot tell copies from others (a network of random weights).
    return photo if 2 * len(np.unique(photo)) >= len(np.unique(content)) else content


def _refuse_indexed(photos: LabelledPhotos, gallery: Gallery) -> None:
    indexed, distractors = (
        [picture.sha256 for picture in gallery.pictures(gallery.role_rows(role))] for role in ROLES
    )
    if shared := _shared_content(photos.sha256, indexed):
        raise UsageError(
            f"{len(shared)} of {len(photos)} photos are pictures of the index, so each would be its"
            " own nearest neighbour",
            where=photos.files[shared[0][0]],
            remedy="give photos that the index does not contain",
        )
    if shared := _shared_content(photos.sha256, distractors):
        raise UsageError(
            f"{len(shared)} of {len(photos)} evaluation queries are also among the distractors,"
            " so the score would flatter",
            where=photos.embeddings.ids[shared[0][0]],
            remedy="remove them from the queries or from the distractors",
        )


def _shared_content(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Returns the positions of equal hashes in two lists, each of `first` with its first match."""
    where = {content: place for place, content in reversed([*enumerate(second)])}
    return [(place, where[content]) for place, content in enumerate(first) if content in where]


@contextmanager
def _features(recognizer: Recognizer) -> Iterator[FeatureStore]:
    """Yields the store in the index, or a temporary one if the index cannot be written now."""
    with ExitStack() as held:
        below = recognizer.gallery.path
        folder = below / PHOTOS
        try:
            with storage_errors(folder), open_folder(folder, below=below, create=True):
                held.callback(os.close, take_lock(folder))
        except (GalleryLocked, StorageError):
            folder = below = held.enter_context(ScratchFolder("photos"))
        embedder = recognizer.embedder
        key, dim = embedder.feature_fingerprint, embedder.feature_dim
        yield FeatureStore(folder, key, dim, below=below)
