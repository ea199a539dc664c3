"""How sure a score is: bootstrap intervals over queries, and a paired test of two systems.

Queries are drawn anew, as many as there are, with replacement; the score of each such draw is that
of a contest in which a query drawn twice stands twice (Efron and Tibshirani, An Introduction to
the Bootstrap, 1993, percentile intervals). Two systems are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.eval.scores.gap import gap_of_judged, ranking
from lmk.eval.scores.judged import Judged, require_positives

RESAMPLES = 1000
LEVEL = 0.95


def wilson_bounds(
    successes: NDArray[np.int64], trials: NDArray[np.int64], z: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper score bounds of shares: E. B. Wilson, 1927; sound for few trials too.

    Args:
        successes, trials: int64 [n], 0 <= successes <= trials, at least one trial each.
        z: of the normal distribution: 1.96 for 95 % between both bounds, .84 for 80 % above the
            lower one.
    """
    share, z2 = successes / trials, z**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    # All right is 1 and none right is 0 exactly, which the floats miss by a hair.
    low = np.where(successes == 0, 0.0, middle - half)
    return low, np.where(successes == trials, 1.0, middle + half)


@dataclass(frozen=True)
class Interval:
    """A score with a percentile interval.

    Attributes:
        value: the score of the queries as they are.
        low, high: the interval that holds `level` of the scores of the draws.
        level: 0.95, unless asked otherwise.
        resamples: the number of draws used; draws without any landmark have no GAP and are left
            out, so it can be smaller than asked for.
        seed: of the draws.
    """

    value: float
    low: float
    high: float
    level: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class PairedTest:
    """The difference of two systems on the same queries: the second minus the first.

    Attributes:
        difference: of the scores of the queries as they are.
        low, high: the percentile interval of the difference over the draws.
        p_value: two-sided, from the paired bootstrap: twice the smaller share of draws in which
            the difference is not positive or not negative, counting one draw more for each, at
            most 1.
        level, resamples, seed: as in Interval.
    """

    difference: float
    low: float
    high: float
    p_value: float
    level: float
    resamples: int
    seed: int


def gap_interval(
    judged: Judged,
    *,
    ignore_non_landmark: bool = False,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """GAP with its bootstrap interval; the same seed gives the same interval.

    Raises:
        SubmissionError: no query shows a landmark.
        ValueError: `resamples` below 1, `level` not between 0 and 1.
    """
    require_positives(judged)
    value = gap_of_judged(judged, ignore_non_landmark=ignore_non_landmark).value
    ranked = _Ranked(judged, ignore_non_landmark)
    draws = np.array([ranked.gap(counts) for counts in _draws(len(judged), resamples, seed)])
    return _interval(value, draws[~np.isnan(draws)], level, seed)


def gap_test(
    first: Judged,
    second: Judged,
    *,
    ignore_non_landmark: bool = False,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> PairedTest:
    """Is the GAP of the second system another than that of the first?

    Each draw ranks either system's answers by its own confidences, so the two scales need not be
    comparable (a permutation test that swaps answers between the systems would need that).

    Raises:
        SubmissionError: no query shows a landmark.
        ValueError: the two were judged on other queries; and as gap_interval.
    """
    if first.query_ids != second.query_ids or not np.array_equal(
        first.has_landmark, second.has_landmark
    ):
        raise ValueError("the two systems were not judged on the same queries and truth")
    require_positives(first)
    difference = (
        gap_of_judged(second, ignore_non_landmark=ignore_non_landmark).value
        - gap_of_judged(first, ignore_non_landmark=ignore_non_landmark).value
    )
    a, b = _Ranked(first, ignore_non_landmark), _Ranked(second, ignore_non_landmark)
    draws = np.array(
        [b.gap(counts) - a.gap(counts) for counts in _draws(len(first), resamples, seed)]
    )
    return _paired(difference, draws[~np.isnan(draws)], level, seed)


def mean_interval(
    values: NDArray[np.floating],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """The mean of a value per query (AP, P@k, right or wrong, F1) with its bootstrap interval.

    Args:
        values: float [q]; a NaN is a query without a value, left out of the mean and of every
            draw.
        resamples, level, seed: as gap_interval.

    Raises:
        ValueError: no value at all, and as gap_interval.
    """
    kept = _values(values)
    draws = np.array([counts @ kept for counts in _draws(len(kept), resamples, seed)]) / len(kept)
    return _interval(float(kept.mean()), draws, level, seed)


def mean_test(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> PairedTest:
    """Is the mean of the second system another than that of the first, on the same queries?

    Args:
        first, second: float [q], rows of the same queries; NaN in either leaves the query out.
        resamples, level, seed: as gap_interval.

    Raises:
        ValueError: shapes differ, no value at all, and as gap_interval.
    """
    if first.shape != second.shape:
        raise ValueError(f"the same queries are needed, got {first.shape} and {second.shape}")
    kept = _values(second.astype(np.float64) - first)
    draws = np.array([counts @ kept for counts in _draws(len(kept), resamples, seed)]) / len(kept)
    return _paired(float(kept.mean()), draws, level, seed)


class _Ranked:
    """Answers in order of rank, for GAPs of many draws.

    A query that stands w times in a draw takes w ranks in a row. With R ranks and C right answers
    before it, its w right answers give sum_{j=1..w} (C + j) / (R + j), which is
    w - (R - C) (H(R + w) - H(R)) with harmonic numbers H. So a draw costs two cumulative sums.
    """

    def __init__(self, judged: Judged, ignore_non_landmark: bool) -> None:
        ranked = judged.answered & judged.has_landmark if ignore_non_landmark else judged.answered
        rows = np.flatnonzero(ranked)
        self._order = rows[ranking(judged.confidence[rows])]
        self._right = np.flatnonzero(judged.correct[self._order])
        self._landmark = np.flatnonzero(judged.has_landmark)
        steps = 1.0 / np.arange(1, len(judged) + 1)
        self._harmonic = np.concatenate([[0.0], np.cumsum(steps)])

    def gap(self, counts: NDArray[np.int64]) -> float:
        """GAP of a draw in which query i stands counts[i] times; NaN without a landmark."""
        positives = counts[self._landmark].sum()
        if not positives:
            return float("nan")
        ranked = counts[self._order]
        times = ranked[self._right]
        ranks = np.cumsum(ranked)[self._right]  # R + w
        wrong = ranks - np.cumsum(times)  # R - C
        lost = wrong * (self._harmonic[ranks] - self._harmonic[ranks - times])
        return float((times - lost).sum() / positives)


def _draws(queries: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more, got {resamples}")
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(rng.integers(0, queries, queries), minlength=queries)


def _values(values: NDArray[np.floating]) -> NDArray[np.float64]:
    if values.ndim != 1:
        raise ValueError(f"values must be [q], got {values.shape}")
    kept: NDArray[np.float64] = values[~np.isnan(values)].astype(np.float64)
    if not kept.size:
        raise ValueError("no query has a value")
    return kept


def _bounds(draws: NDArray[np.float64], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if not draws.size:
        raise ValueError("no draw held a landmark: ask for more resamples")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _interval(value: float, draws: NDArray[np.float64], level: float, seed: int) -> Interval:
    low, high = _bounds(draws, level)
    return Interval(value, low, high, level, len(draws), seed)


def _paired(difference: float, draws: NDArray[np.float64], level: float, seed: int) -> PairedTest:
    low, high = _bounds(draws, level)
    tail = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    p_value = min(1.0, 2 * (int(tail) + 1) / (len(draws) + 1))
    return PairedTest(difference, low, high, p_value, level, len(draws), seed)
