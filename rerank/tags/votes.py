"""Tags by neighbours' votes: what the nearest labelled pictures have, without any training."""

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
    """For each tag the share of the k best neighbours that have it, weighed by similarity.

    A neighbour weighs max(score, 0) ** power and votes for all its tags; one without tags votes
    against all. Where no score is above 0 all shares are 0: nothing is known of such a picture.

    Args:
        rows: int64 [q, n], gallery rows in any order; -1 for no neighbour.
        scores: float32 [q, n]; of equal ones the lower row votes first.
        label_offsets, label_codes: the tags of each row (see voting.vote).
        labels: how many tags there are.
        k: neighbours that vote.
        power: see power_weights.

    Returns:
        float32 [q, labels], each 0 to 1.

    Raises:
        ValueError: for k below 1, a power not above 0.
    """
    if k < 1:
        raise ValueError(f"at least 1 neighbour must vote, got {k}")
    order = order_of(rows, scores)[:, :k]
    voters = np.take_along_axis(rows, order, axis=1)
    of_voters = np.take_along_axis(scores, order, axis=1)
    weights = power_weights(np.where(voters < 0, 0, of_voters), power)
    sums = label_sums(voters, weights, label_offsets, label_codes)
    shares = np.zeros((len(rows), labels))
    shares[sums.query, sums.code] = sums.total
    whole = weights.sum(axis=1, keepdims=True)
    shares /= np.where(whole > 0, whole, 1)
    return np.clip(shares, 0, 1).astype(np.float32)
