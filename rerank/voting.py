"""kNN voting: the labels of the nearest gallery pictures, weighed by their similarity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Votes:
    """The outcome of a vote over q queries.

    Attributes:
        winner: int64 [q], label code with the largest sum, the smaller code on a tie; -1 where no
            neighbour has a label.
        total: float64 [q], its sum of weights; 0 where there is no winner.
        shares: float32 [q, k], what each neighbour gave to the winner.
    """

    winner: NDArray[np.int64]
    total: NDArray[np.float64]
    shares: NDArray[np.float32]


def vote(
    rows: NDArray[np.int64],
    weights: NDArray[np.floating],
    label_offsets: NDArray[np.int64],
    label_codes: NDArray[np.int32],
) -> Votes:
    """Sums weights by label and takes the label with the largest sum.

    Args:
        rows: int64 [q, k], gallery rows; -1 for no neighbour.
        weights: float [q, k], not negative.
        label_offsets: int64 [gallery rows + 1]; row r has the labels
            label_codes[label_offsets[r]:label_offsets[r + 1]] and votes for each of them.
        label_codes: int32, codes from 0.
    """
    q, k = rows.shape
    flat = rows.ravel()
    safe = np.where(flat < 0, 0, flat)
    starts = label_offsets[safe] if len(label_offsets) > 1 else np.zeros_like(safe)
    counts = label_offsets[safe + 1] - starts if len(label_offsets) > 1 else np.zeros_like(safe)
    counts = np.where(flat < 0, 0, counts)
    place = np.repeat(np.arange(flat.size), counts)  # the neighbour each single vote comes from
    within = np.arange(place.size) - np.repeat(np.cumsum(counts) - counts, counts)
    codes = label_codes[starts[place] + within].astype(np.int64)
    weight = weights.ravel()[place].astype(np.float64)
    winner, total = _winners(place // max(k, 1), codes, weight, q)
    shares = np.zeros(flat.size, np.float32)
    won = codes == winner[place // max(k, 1)]
    shares[place[won]] = weight[won]
    return Votes(winner, total, shares.reshape(q, k))


def _winners(
    query: NDArray[np.int64], codes: NDArray[np.int64], weight: NDArray[np.float64], q: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each query the code with the largest sum of weights, and the sum."""
    winner, total = np.full(q, -1, np.int64), np.zeros(q, np.float64)
    if not codes.size:
        return winner, total
    labels = int(codes.max()) + 1
    keys, inverse = np.unique(query * labels + codes, return_inverse=True)
    sums = np.bincount(inverse, weight)
    # Best last, so that the assignment below leaves it: sum rising, then code falling.
    order = np.lexsort((-keys, sums))
    winner[keys[order] // labels] = keys[order] % labels
    total[keys[order] // labels] = sums[order]
    return winner, total
