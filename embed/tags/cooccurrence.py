"""Labels from labels: tags that occur together, and tags that a network predicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lmk.embed.tags.hierarchy import RelationGraph


def cooccurrence(own: NDArray[np.bool_], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns CO(i, j) = n_ij / n_i: the fraction of pictures labelled i that have j.

    Wu et al., "Tencent ML-Images", 2019. There a picture has j if a network trained on other
    pictures gives j a probability above .95.

    Args:
        own: bool [n, a], the labels.
        seen: bool [n, b].

    Returns:
        float64 [a, b]; 0 for a label without pictures.

    Raises:
        ValueError: a dtype is wrong, or the numbers of pictures differ.
    """
    if own.dtype != np.bool_ or seen.dtype != np.bool_ or len(own) != len(seen):
        raise ValueError(f"bool [n, a] and [n, b] are needed, got {own.shape} and {seen.shape}")
    together = own.T.astype(np.float64) @ seen.astype(np.float64)
    pictures = own.sum(axis=0)[:, None]
    rates: NDArray[np.float64] = together / np.maximum(pictures, 1)
    return rates


def cooccurring_tags(
    rates: NDArray[np.float64],
    names: Sequence[str],
    seen_names: Sequence[str],
    relations: RelationGraph,
    *,
    above: float = 0.5,
) -> dict[str, tuple[str, ...]]:
    """Returns the tags to add to every picture of a label: frequent with it, but not related.

    A pair counts if CO > `above` and neither is an ancestor of the other.

    Args:
        rates: float64 [a, b], a result of `cooccurrence`.
        names: the names of the a labels.
        seen_names: the names of the b tags.
        relations: the relations between both.
        above: the rate must be greater.

    Returns:
        The tags by label, in the order of `seen_names`, without labels that have none.

    Raises:
        ValueError: the names do not fit the rates.
    """
    if rates.shape != (len(names), len(seen_names)):
        raise ValueError(f"{len(names)} and {len(seen_names)} names for {rates.shape}")
    tags: dict[str, tuple[str, ...]] = {}
    for name, row in zip(names, rates, strict=True):
        others = (other for other, rate in zip(seen_names, row, strict=True) if rate > above)
        added = tuple(other for other in others if not relations.related(name, other))
        if added:
            tags[name] = added
    return tags


def add_tags(
    tags: Iterable[str], cooccurring: dict[str, tuple[str, ...]], relations: RelationGraph
) -> tuple[str, ...]:
    """Returns a picture's tags, their ancestors, and the tags that occur with the given ones.

    Tags that occur with an added tag, and their ancestors, are not added, as CO is counted on
    labels.
    """
    given = tuple(dict.fromkeys(tags))
    more = (other for tag in given for other in cooccurring.get(tag, ()))
    return tuple(dict.fromkeys((*relations.close(given), *more)))


def pseudo_labels(
    probabilities: NDArray[np.floating], own: NDArray[np.bool_], *, top: int = 5, above: float = 0.5
) -> NDArray[np.bool_]:
    """Returns the given labels and the most probable ones of a network, bool [n, t].

    Args:
        probabilities: float [n, t] of a trained network. Ties go to the smaller column.
        own: bool [n, t], the given labels. None is removed.
        top: largest number of the network's labels per picture, 1 or more.
        above: the probability must be greater.

    Raises:
        ValueError: the shapes do not fit, a probability is NaN, or `top` is below 1.
    """
    if probabilities.ndim != 2 or probabilities.shape != own.shape or own.dtype != np.bool_:
        raise ValueError(
            f"float [n, t] and bool [n, t] are needed, got {probabilities.shape}, {own.dtype} "
            f"{own.shape}"
        )
    if top < 1 or np.isnan(probabilities).any():
        raise ValueError("top is below 1" if top < 1 else "a probability is NaN")
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    sure = np.zeros_like(own)
    np.put_along_axis(sure, best, np.take_along_axis(probabilities, best, axis=1) > above, axis=1)
    return own | sure
