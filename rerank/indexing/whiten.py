"""Whether a gallery gets a whitening, and the sample of features it is learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import Extracted
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.network.whitening import LEAST_PICTURES, MOST_PICTURES, fit_whitening


def whitening_helps(embedder: Embedder, pictures: int, distractors: int) -> bool:
    """Whether so many pictures and distractors gain by a whitening more than they lose.

    A network with a neck was trained to give vectors as they are to be compared.
    """
    enough = distractors > 0 and pictures + distractors >= LEAST_PICTURES
    return enough and embedder.whitening is None and embedder.config.neck is None


def whitened(embedder: Embedder, store: FeatureStore, *parts: Sequence[Extracted]) -> Embedder:
    """The embedder with a whitening learnt from pictures whose features are in the store."""
    step = -(-sum(map(len, parts)) // MOST_PICTURES)
    sample = islice(chain.from_iterable(parts), 0, None, step)
    features = store.read([picture.sha256 for picture in sample])
    return embedder.with_whitening(fit_whitening(features))
