"""Photos with known answers: what tuning and calibration learn from.

Each is embedded once; the features stay in the cache of the index, so that the next tuning or
calibration on the same photos begins at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from lmk.index.vectors.view import View
from lmk.rerank.fit.copies import MOST_COPIES, CopyRule, photo_numbers
from lmk.rerank.fit.tables import exact_searcher, saved_copy_rule
from lmk.rerank.indexing.ingest import PHOTOS
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.distractor_similarity import refuse_queries_in_bank, shared_content


@dataclass(frozen=True, eq=False)
class KnownPhotos:
    """n photos that could be read, by rising id.

    Attributes:
        embeddings: of the photos.
        labels: of each, what it shows; an empty tuple for no landmark.
        files: of each.
        sha256: of each file's content, in hex.
        skipped: files that could not be read, and why.
        rule: which of them are copies of one photo.
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
        """The number of each one's file content, int64 [n]; equal files have the same."""
        number = {sha256: place for place, sha256 in enumerate(dict.fromkeys(self.sha256))}
        return np.array([number[sha256] for sha256 in self.sha256], np.int64)

    @cached_property
    def photo(self) -> NDArray[np.int64]:
        """The number of each one's photo, int64 [n]; its near-copies have the same."""
        return _numbers(self.embeddings, self.content, self.rule)


def read_known_photos(
    manifest: Manifest,
    recognizer: Recognizer,
    *,
    on_progress: Count = no_count,
) -> KnownPhotos:
    """Embeds the photos of a manifest for an index, and refuses those that it knows already.

    Args:
        manifest: the photos and what they show.
        recognizer: the opened index.
        on_progress: called with the number of photos done.

    Raises:
        UsageError: when the index holds one of them, as gallery picture or distractor, by content:
            it would find itself, or have been taught to be refused.
    """
    rows = tuple(sorted(manifest.rows, key=lambda row: row.id))
    embedder = recognizer.embedder
    with _features(recognizer) as store:
        found = extract(replace(manifest, rows=rows), embedder, store, on_progress=on_progress)
        pictures = list(found.pictures)
        features = store.read([picture.sha256 for picture in pictures])
    ids = tuple(picture.row.id for picture in pictures)
    embeddings = Embeddings(embedder.vectors(features), ids, embedder.fingerprint)
    photos = KnownPhotos(
        embeddings,
        tuple(picture.row.labels for picture in pictures),
        tuple(manifest.file(picture.row) for picture in pictures),
        tuple(picture.sha256 for picture in pictures),
        found.skipped,
        saved_copy_rule(recognizer.gallery),
    )
    _refuse_known(photos, recognizer.gallery)
    return photos


def refuse_shared_photos(first: KnownPhotos, second: KnownPhotos) -> None:
    """Refuses a test on photos that a choice was made on.

    Raises:
        UsageError: names the first photo of `second` whose content `first` has too.
    """
    shared = shared_content(second.sha256, first.sha256)
    if shared:
        place, other = shared[0]
        raise UsageError(
            f"{len(shared)} of {len(second)} photos to test on are also among those to choose by"
            f" (as {first.files[other]}), so the score would flatter",
            where=second.files[place],
            remedy="take them out of one of the two",
        )


def _numbers(
    embeddings: Embeddings, content: NDArray[np.int64], rule: CopyRule
) -> NDArray[np.int64]:
    """The number of each one's photo.

    Where the rule would leave fewer than half of the different files it does not tell copies from
    other photos, as with a network of random weights: then only equal files are copies.
    """
    if not content.size:
        return content
    rows = np.arange(len(embeddings))
    near = exact_searcher(View.of_embeddings(embeddings)).search(embeddings, MOST_COPIES)
    photo = photo_numbers(rows, rule.among(near))
    return photo if 2 * len(np.unique(photo)) >= len(np.unique(content)) else content


def _refuse_known(photos: KnownPhotos, gallery: Gallery) -> None:
    ids = photos.embeddings.ids
    known = [picture.sha256 for picture in gallery.pictures(gallery.role_rows("gallery"))]
    shared = shared_content(photos.sha256, known)
    if shared:
        raise UsageError(
            f"{len(shared)} of {len(photos)} photos are pictures of the index itself and would"
            " find themselves",
            where=photos.files[shared[0][0]],
            remedy="give photos that the index does not hold",
        )
    bank = [picture.sha256 for picture in gallery.pictures(gallery.role_rows("distractor"))]
    refuse_queries_in_bank(ids, photos.sha256, bank)


@contextmanager
def _features(recognizer: Recognizer) -> Iterator[FeatureStore]:
    """The features of photos, kept with the index; kept nowhere where that cannot be written.

    A read-only index, or another process that is at it, is no reason to stop.
    """
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
