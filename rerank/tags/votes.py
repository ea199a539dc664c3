"""Scores of tags from the votes of the nearest labelled pictures, without training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.rerank.steps.ranking import order_of
from lmk.rerank.steps.voting import label_sums, power_weights

VOTERS, POWER = 20, 1.0


def tag_votes(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
    labels: int,
    *,
    k: int = VOTERS,
    power: float = POWER,
) -> NDArray[np.float32]:
    """Returns, for each tag, the weighted fraction of the k best neighbours with the tag.

    A neighbour has the weight max(score, 0) ** power and votes for all its tags. A neighbour
    without tags votes against all tags. If no score is above 0, all fractions are 0.

    Args:
        rows: int64 [q, n], gallery rows in any order; -1 for no neighbour.
        scores: float32 [q, n]. If scores are equal, the lower row comes first.
        label_offsets, label_codes: the tags of each row (see voting.vote).
        labels: number of tags.
        k: number of neighbours that vote.
        power: see power_weights.

    Returns:
        float32 [q, labels], from 0 to 1.
    """
    order = order_of(rows, scores)[:, :k]
    voters = np.take_along_axis(rows, order, axis=1)
    of_voters = np.take_along_axis(scores, order, axis=1)
    weights = power_weights(np.where(voters < 0, 0, of_voters), power)
    sums = label_sums(voters, weights, label_offsets, label_codes)
    fractions = np.zeros((len(rows), labels))
    fractions[sums.query, sums.code] = sums.total
    whole = weights.sum(axis=1, keepdims=True)
    fractions /= np.where(whole > 0, whole, 1)
    return np.clip(fractions, 0, 1).astype(np.float32)
