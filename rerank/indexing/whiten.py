"""The rule for the default of `whiten`, and the fit of a whitening on stored features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import Extracted
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.network.whitening import LEAST_PICTURES, MOST_PICTURES, fit_whitening


def whitening_helps(embedder: Embedder, pictures: int, distractors: int) -> bool:
    """True if a whitening improves the answers, by the numbers of pictures and distractors.

    A network with a neck needs none: its training includes the neck.
    """
    enough = distractors > 0 and pictures + distractors >= LEAST_PICTURES
    return enough and embedder.whitening is None and embedder.config.neck is None


def whitened(embedder: Embedder, store: FeatureStore, *parts: Sequence[Extracted]) -> Embedder:
    """Returns the embedder with a whitening fitted on pictures whose features are stored."""
    step = -(-sum(map(len, parts)) // MOST_PICTURES)
    sample = islice(chain.from_iterable(parts), 0, None, step)
    features = store.read([picture.sha256 for picture in sample])
    return embedder.with_whitening(fit_whitening(features))
