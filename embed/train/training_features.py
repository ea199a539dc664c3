"""Stored features of the training pictures, for teachers, whitenings and memories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest
from lmk.embed.errors import ManifestError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import extract
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.progress import Progress, no_progress

_TAUGHT_BY = 20_000  # number of pictures that a whitening is fitted on


@dataclass(frozen=True, eq=False)
class Stored:
    """Features of a training set by an embedder.

    Attributes:
        store: the features, of length 1, by SHA-256.
        numbers: int64 [n], the numbers of the readable pictures in the training set.
        sha256s: the SHA-256 of each of them.
        skipped: the pictures that cannot be read, each with a reason.
    """

    store: FeatureStore
    numbers: NDArray[np.int64]
    sha256s: list[str]
    skipped: tuple[Skipped, ...]


def stored_features(
    manifests: Sequence[Manifest],
    embedder: Embedder,
    folder: Path,
    stage: str,
    on_progress: Progress = no_progress,
) -> Stored:
    """Returns the features of a training set; missing ones are computed and stored.

    Args:
        manifests: the training set.
        embedder: the embedder. Its whitening is not applied.
        folder: the folder of the stores, which several runs may share.
        stage: the stage that `on_progress` receives.
        on_progress: called with (stage, done, total).
    """
    store = FeatureStore(folder, embedder.feature_fingerprint, embedder.feature_dim)
    total = sum(len(manifest) for manifest in manifests)
    numbers: list[int] = []
    sha256s: list[str] = []
    skipped: list[Skipped] = []
    before = 0
    for manifest in manifests:

        def count(done: int, before: int = before) -> None:
            on_progress(stage, before + done, total)

        result = extract(manifest, embedder, store, on_progress=count)
        place = {row.id: before + i for i, row in enumerate(manifest.rows)}
        numbers += [place[picture.row.id] for picture in result.pictures]
        sha256s += [picture.sha256 for picture in result.pictures]
        skipped += result.skipped
        before += len(manifest)
    return Stored(store, np.array(numbers, np.int64), sha256s, tuple(skipped))


def spread(pictures: int) -> NDArray[np.int64]:
    """Returns the numbers of the pictures to fit a whitening on: all, or evenly spread ones."""
    return np.unique(np.linspace(0, pictures - 1, min(_TAUGHT_BY, pictures)).astype(np.int64))


def require_enough(pictures: int, features: int, dim: int) -> None:
    """Raises ManifestError if a whitening of `dim` components cannot be fitted."""
    if pictures <= dim or features < dim:
        raise ManifestError(
            f"{pictures} readable pictures and {features} features of the network are too few "
            f"for vectors of {dim} components",
            where="--data",
            remedy="give more pictures, or choose a smaller model.neck",
        )
