"""The scores of one recognition submission side by side, each with its interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.eval.scores.bootstrap import LEVEL, RESAMPLES, Interval, gap_interval, mean_interval
from lmk.eval.scores.gap import CONTEST_SHARE_WITHOUT, contest_gap, gap_of_judged, ranking
from lmk.eval.scores.judged import Judged


@dataclass(frozen=True)
class Estimate:
    """A score, and the bounds of its bootstrap interval where one was asked for."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class GapScores:
    """What a submission scores on one part of the queries.

    Attributes:
        name: "all", "Public" or "Private".
        queries: how many are scored.
        with_landmark: M, those that show a landmark.
        answered: N.
        right: answers that are right.
        gap: GAP.
        landmark_only: GAP without the answers to queries that show no landmark.
        contest: GAP with queries weighed so that 98 % of them show no landmark; None where every
            query shows one.
        accuracy: acc@1, the share of landmark queries answered rightly.
        resamples: draws asked for; 0 where there are no intervals.
        seed, level: of the intervals.
    """

    name: str
    queries: int
    with_landmark: int
    answered: int
    right: int
    gap: Estimate
    landmark_only: Estimate
    contest: Estimate | None
    accuracy: Estimate
    resamples: int
    seed: int
    level: float


def gap_scores(
    judged: Judged,
    name: str = "all",
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> GapScores:
    """Scores judged answers; `resamples` 0 leaves the intervals out.

    Raises:
        SubmissionError: no query shows a landmark.
        ValueError: `level` is not between 0 and 1.
    """

    def estimate(value: float, interval: Callable[..., Interval]) -> Estimate:
        if not resamples:
            return Estimate(value)
        found = interval(resamples=resamples, level=level, seed=seed)
        return Estimate(value, found.low, found.high)

    right = judged.correct[judged.has_landmark].astype(np.float64)
    contest = None
    if not judged.has_landmark.all():
        contest = estimate(
            contest_gap(judged).value, lambda **draws: contest_interval(judged, **draws)
        )
    return GapScores(
        name=name,
        queries=len(judged),
        with_landmark=judged.positives,
        answered=int(judged.answered.sum()),
        right=int(judged.correct.sum()),
        gap=estimate(gap_of_judged(judged).value, lambda **draws: gap_interval(judged, **draws)),
        landmark_only=estimate(
            gap_of_judged(judged, ignore_non_landmark=True).value,
            lambda **draws: gap_interval(judged, ignore_non_landmark=True, **draws),
        ),
        contest=contest,
        accuracy=estimate(judged.accuracy(), lambda **draws: mean_interval(right, **draws)),
        resamples=resamples,
        seed=seed,
        level=level,
    )


def contest_interval(
    judged: Judged,
    share_without: float = CONTEST_SHARE_WITHOUT,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """`contest_gap` with its bootstrap interval.

    As gap_interval; in each draw the weights are made anew from its own numbers of queries with
    and without a landmark, and draws that lack either are left out.

    Raises:
        SubmissionError: no query shows a landmark, or every one does.
        ValueError: as gap_interval and contest_gap, or no draw holds both sorts of query.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be 1 or more and level 0 to 1: {resamples}, {level}")
    value = contest_gap(judged, share_without).value
    rows = np.flatnonzero(judged.answered)
    order = rows[ranking(judged.confidence[rows])]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        drawn = rng.integers(0, len(judged), len(judged))
        counts = np.bincount(drawn, minlength=len(judged))
        with_landmark = int(counts[judged.has_landmark].sum())
        if 0 < with_landmark < len(judged):
            draws.append(_contest_gap_of_draw(judged, order, counts, with_landmark, share_without))
    if not draws:
        raise ValueError("no draw held queries with and without a landmark: ask for more resamples")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level, len(draws), seed)


def _contest_gap_of_draw(
    judged: Judged,
    order: NDArray[np.int64],
    counts: NDArray[np.int64],
    with_landmark: int,
    share_without: float,
) -> float:
    """`contest_gap` of the draw in which query i stands counts[i] times."""
    without = len(judged) - with_landmark
    weight = without * (1 - share_without) / (with_landmark * share_without)
    ranked = np.repeat(order, counts[order])
    hits = judged.correct[ranked]
    right = weight * np.cumsum(hits)
    above = np.cumsum(np.where(judged.has_landmark[ranked], weight, 1.0))
    return float((right[hits] / above[hits]).sum() / with_landmark)
