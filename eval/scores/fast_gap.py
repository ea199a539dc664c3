"""The value of GAP for millions of answers, without an index sort and with the same tie rule.

GAP depends on the ranks of the right answers only. `_by_buckets` counts the other answers in
buckets of equal width and sorts only those that share a bucket with a right answer.
`_by_packed_keys` sorts one 64-bit integer per answer (confidence, row, right or wrong), which numpy
does several times faster than an index sort.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.eval.scores.gap import check_answers

BUCKETS = 1 << 18
# Above this proportion of right answers nearly every bucket has one, and buckets save nothing.
MANY_RIGHT = 0.1


def gap_value(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], positives: float
) -> float:
    """Returns the value of `gap(confidence, correct, positives)`, equal to the last bit.

    Args:
        confidence: float32 or float64 [n]; rows are in the order that breaks ties (ascending
            query ids), as in Judged.
        correct: bool [n].
        positives: M, the number of queries that show a landmark.

    Raises:
        ValueError: as `gap`.
    """
    check_answers(confidence, correct, positives)
    ranks = right_ranks(confidence, correct)
    precision = np.arange(1, len(ranks) + 1) / (ranks + 1)
    return float(precision.sum() / positives)


def right_ranks(confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the ranks (from 0) of the right answers, int64, ascending; ties are in row order."""
    if confidence.dtype not in (np.float32, np.float64):
        confidence = confidence.astype(np.float64)
    right = np.flatnonzero(correct)
    if not right.size:
        return right
    if right.size > MANY_RIGHT * len(correct):
        return _by_packed_keys(confidence, correct)
    return _by_buckets(confidence, correct, right)


def _by_buckets(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], right: NDArray[np.int64]
) -> NDArray[np.int64]:
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        # A float64 beyond the range of float32 becomes infinite. Rounding is monotone, so buckets
        # never contradict the order; answers in one bucket remain to be sorted.
        coarse = confidence.astype(np.float32, copy=False)
        low, high = coarse[right].min(), coarse[right].max()
        scale = np.float32(BUCKETS - 3) / (high - low)
        scaled = (coarse - low) * scale + np.float32(1)
    if not np.isfinite(scale) or np.isnan(scaled.max()):
        return _by_packed_keys(confidence, correct)
    bucket = np.clip(scaled, 0, BUCKETS - 1, out=scaled).astype(np.int64)
    contested = np.zeros(BUCKETS, dtype=bool)
    contested[bucket[right]] = True
    near = np.flatnonzero(contested.take(bucket))
    local = _by_packed_keys(confidence[near], correct[near])
    elsewhere = np.bincount(bucket, minlength=BUCKETS)
    elsewhere[contested] = 0
    above = np.cumsum(elsewhere[::-1])[::-1]  # in higher buckets, without the contested ones
    ranks: NDArray[np.int64] = local + above[np.sort(bucket[right])[::-1]]
    return ranks


def _by_packed_keys(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_]
) -> NDArray[np.int64]:
    n = len(confidence)
    values = confidence.astype(np.float64)
    row_bits = max(n - 1, 1).bit_length()
    # The row replaces the lowest bits of the confidence. Confidences that are equal without these
    # bits are sorted below (none among float32 values, which do not have these bits).
    packed = _falling(values) & np.uint64(2**64 - 2 ** (row_bits + 1))
    packed |= np.arange(n, dtype=np.uint64) << np.uint64(1)
    packed |= correct.astype(np.uint64)
    packed.sort()
    hits = (packed & np.uint64(1)) == 1
    if confidence.dtype == np.float64 or row_bits > 28:
        _sort_within_prefixes(packed, hits, row_bits, values, correct)
    return np.flatnonzero(hits)


def _falling(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Returns integers whose ascending order is the descending order of the values."""
    bits = (values + 0.0).view(np.int64)  # -0.0 becomes 0.0
    all_but_sign = np.int64(2**63 - 1)
    flipped: NDArray[np.int64] = bits ^ (~(bits >> np.int64(63)) & all_but_sign)
    return flipped.view(np.uint64)


def _sort_within_prefixes(
    packed: NDArray[np.uint64],
    hits: NDArray[np.bool_],
    row_bits: int,
    values: NDArray[np.float64],
    correct: NDArray[np.bool_],
) -> None:
    """Corrects, in `hits`, the order of answers whose shortened confidences are equal."""
    prefix = packed >> np.uint64(row_bits + 1)
    same = prefix[1:] == prefix[:-1]
    if not same.any():
        return
    member = np.zeros(len(packed), dtype=bool)
    member[1:] |= same
    member[:-1] |= same
    places = np.flatnonzero(member)
    mask = np.uint64(2**row_bits - 1)
    rows = ((packed[places] >> np.uint64(1)) & mask).astype(np.int64)
    there = values[rows]
    # Rows ascend within a prefix; only a value that follows a smaller one is out of order.
    if (same[places[1:] - 1] & (there[1:] > there[:-1])).any():
        hits[places] = correct[rows[np.lexsort((rows, -there))]]
