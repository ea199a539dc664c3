"""Uncertainty of scores: bootstrap intervals over queries, and a paired test of two systems.

Each draw samples as many queries as there are, with replacement. A query that is drawn twice counts
twice in the score (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, percentile
intervals). Two systems are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.eval.scores.gap import gap_of_judged
from lmk.eval.scores.judged import Judged, require_positives

RESAMPLES = 1000
LEVEL = 0.95

# The score of a draw in which query i occurs counts[i] times; NaN if the score is not defined.
DrawScore = Callable[[NDArray[np.int64]], float]


def wilson_bounds(
    successes: NDArray[np.int64], trials: NDArray[np.int64], z: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns lower and upper score bounds of proportions (E. B. Wilson, 1927).

    The bounds are valid for few trials too.

    Args:
        successes, trials: int64 [n], 0 <= successes <= trials, at least one trial each.
        z: quantile of the normal distribution: 1.96 for 95 % between both bounds, .84 for 80 %
            above the lower one.
    """
    share, z2 = successes / trials, z**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    # The lower bound of no success is exactly 0, and the upper bound of no failure is exactly 1.
    low = np.where(successes == 0, 0.0, middle - half)
    return low, np.where(successes == trials, 1.0, middle + half)


@dataclass(frozen=True)
class Interval:
    """A score with a percentile interval.

    Attributes:
        value: the score of the original queries.
        low, high: the interval that contains the fraction `level` of the scores of the draws.
        level: 0.95 by default.
        resamples: the number of draws used. Draws without a defined score (for GAP, without a
            landmark) are left out, so it can be smaller than the number requested.
        seed: the random seed of the draws.
    """

    value: float
    low: float
    high: float
    level: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class PairedTest:
    """The difference of two systems on the same queries: the second score minus the first.

    Attributes:
        difference: the difference of the scores of the original queries.
        low, high: the percentile interval of the difference over the draws.
        p_value: two-sided p-value of the paired bootstrap, at most 1: twice the smaller of two
            proportions of draws, those with a difference <= 0 and those with a difference >= 0,
            after one draw is added to each count.
        level, resamples, seed: as in Interval.
    """

    difference: float
    low: float
    high: float
    p_value: float
    level: float
    resamples: int
    seed: int


def bootstrap(
    value: float, score: DrawScore, queries: int, *, resamples: int, level: float, seed: int
) -> tuple[Interval, NDArray[np.float64]]:
    """Returns a score with its percentile interval, and the scores of the draws.

    Args:
        value: the score of the original queries.
        score: returns the score of a draw, given how often each query occurs in it.
        queries: the number of queries.
        resamples: the number of draws.
        level: the fraction of the draws that the interval contains.
        seed: the random seed; equal seeds give equal draws.

    Raises:
        ValueError: `resamples` is below 1, `level` is not between 0 and 1, or no draw has a
            defined score.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be 1 or more and level 0 to 1: {resamples}, {level}")
    rng = np.random.default_rng(seed)
    scores = np.array(
        [
            score(np.bincount(rng.integers(0, queries, queries), minlength=queries))
            for _ in range(resamples)
        ]
    )
    scores = scores[~np.isnan(scores)]
    if not scores.size:
        raise ValueError("no draw has a defined score: use more resamples")
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level, len(scores), seed), scores


def gap_interval(
    judged: Judged,
    *,
    ignore_non_landmark: bool = False,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Returns GAP with its bootstrap interval.

    Raises:
        SubmissionError: no query shows a landmark.
        ValueError: as `bootstrap`.
    """
    require_positives(judged)
    value = gap_of_judged(judged, ignore_non_landmark=ignore_non_landmark).value
    ranked = _Ranked(judged, ignore_non_landmark)
    return bootstrap(value, ranked.gap, len(judged), resamples=resamples, level=level, seed=seed)[0]


def gap_test(
    first: Judged,
    second: Judged,
    *,
    ignore_non_landmark: bool = False,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> PairedTest:
    """Returns the paired test of a difference in GAP, the second system minus the first.

    Each draw ranks the answers of each system by that system's confidences, so the two scales need
    not be comparable, unlike in a permutation test, which swaps answers between the systems.

    Raises:
        SubmissionError: no query shows a landmark.
        ValueError: the two systems were judged on different queries; and as `bootstrap`.
    """
    if first.query_ids != second.query_ids or not np.array_equal(
        first.has_landmark, second.has_landmark
    ):
        raise ValueError("the two systems were not judged on the same queries and truth")
    require_positives(first)
    before, after = (
        gap_of_judged(each, ignore_non_landmark=ignore_non_landmark).value
        for each in (first, second)
    )
    a, b = _Ranked(first, ignore_non_landmark), _Ranked(second, ignore_non_landmark)

    def score(counts: NDArray[np.int64]) -> float:
        return b.gap(counts) - a.gap(counts)

    n, difference = len(first), after - before
    return _paired(*bootstrap(difference, score, n, resamples=resamples, level=level, seed=seed))


def mean_interval(
    values: NDArray[np.floating], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Returns the mean of a value per query (AP, P@k, right or wrong, F1) with its interval.

    Args:
        values: float [q]; a query with NaN is left out of the mean and of every draw.
        resamples, level, seed: as `bootstrap`.

    Raises:
        ValueError: no query has a value; and as `bootstrap`.
    """
    return _bootstrap_mean(values, resamples, level, seed)[0]


def mean_test(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> PairedTest:
    """Returns the paired test of a difference in the mean, the second system minus the first.

    Args:
        first, second: float [q], values of the same queries; NaN in either leaves the query out.
        resamples, level, seed: as `bootstrap`.

    Raises:
        ValueError: shapes differ or no query has a value; and as `bootstrap`.
    """
    if first.shape != second.shape:
        raise ValueError(f"the same queries are needed, got {first.shape} and {second.shape}")
    return _paired(*_bootstrap_mean(second.astype(np.float64) - first, resamples, level, seed))


def _bootstrap_mean(
    values: NDArray[np.floating], resamples: int, level: float, seed: int
) -> tuple[Interval, NDArray[np.float64]]:
    if values.ndim != 1:
        raise ValueError(f"values must be [q], got {values.shape}")
    defined = values[~np.isnan(values)].astype(np.float64)
    n = len(defined)
    if not n:
        raise ValueError("no query has a value")

    def score(counts: NDArray[np.int64]) -> float:
        return float(counts @ defined) / n

    mean = float(defined.mean())
    return bootstrap(mean, score, n, resamples=resamples, level=level, seed=seed)


def _paired(interval: Interval, draws: NDArray[np.float64]) -> PairedTest:
    tail = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    p_value = min(1.0, 2 * (int(tail) + 1) / (len(draws) + 1))
    facts = vars(interval).copy()
    return PairedTest(difference=facts.pop("value"), p_value=p_value, **facts)


class _Ranked:
    """Answers in order of rank, for the GAPs of many draws.

    A query that occurs w times in a draw has w consecutive ranks. With R ranks and C right answers
    before it, its w right answers contribute sum_{j=1..w} (C + j) / (R + j), which is
    w - (R - C) (H(R + w) - H(R)) with harmonic numbers H. A draw thus costs two cumulative sums.
    """

    def __init__(self, judged: Judged, ignore_non_landmark: bool) -> None:
        self._order = judged.ranked(ignore_non_landmark=ignore_non_landmark)
        self._right = np.flatnonzero(judged.correct[self._order])
        self._landmark = np.flatnonzero(judged.has_landmark)
        steps = 1.0 / np.arange(1, len(judged) + 1)
        self._harmonic = np.concatenate([[0.0], np.cumsum(steps)])

    def gap(self, counts: NDArray[np.int64]) -> float:
        """Returns the GAP of a draw; NaN without a landmark."""
        positives = counts[self._landmark].sum()
        if not positives:
            return float("nan")
        ranked = counts[self._order]
        times = ranked[self._right]
        ranks = np.cumsum(ranked)[self._right]  # R + w
        wrong = ranks - np.cumsum(times)  # R - C
        lost = wrong * (self._harmonic[ranks] - self._harmonic[ranks - times])
        return float((times - lost).sum() / positives)
