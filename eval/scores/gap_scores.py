"""The scores of one recognition submission, each with its interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.eval.scores.bootstrap import (
    LEVEL,
    RESAMPLES,
    Interval,
    bootstrap,
    gap_interval,
    mean_interval,
)
from lmk.eval.scores.gap import CONTEST_SHARE_WITHOUT, contest_gap, gap_of_judged
from lmk.eval.scores.judged import Judged


@dataclass(frozen=True)
class Estimate:
    """A score with the bounds of its bootstrap interval; None if no interval was computed."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class GapScores:
    """Scores of a submission on one part of the queries.

    Attributes:
        name: "all", "Public" or "Private".
        queries: the number of queries that are scored.
        with_landmark: M, the number of queries that show a landmark.
        answered: N, the number of answers.
        right: the number of right answers.
        gap: GAP.
        landmark_only: GAP without the answers to queries that show no landmark.
        contest: GAP with weights that give 98 % of the weight to queries without a landmark; None
            if every query shows a landmark.
        accuracy: acc@1, the proportion of landmark queries with a right answer.
        resamples: the number of draws requested; 0 if there are no intervals.
        seed, level: the random seed and the level of the intervals.
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
    """Returns the scores of judged answers; 0 for `resamples` omits the intervals.

    Raises:
        SubmissionError: no query shows a landmark.
        ValueError: `level` is not between 0 and 1.
    """

    def estimate(value: float, interval: Callable[..., Interval]) -> Estimate:
        if not resamples:
            return Estimate(value)
        bounds = interval(resamples=resamples, level=level, seed=seed)
        return Estimate(value, bounds.low, bounds.high)

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
    """Returns `contest_gap` with its bootstrap interval.

    The weights of each draw follow from its numbers of queries with and without a landmark.
    Draws that lack either kind are left out.

    Raises:
        SubmissionError: no query shows a landmark, or every query shows one.
        ValueError: as `bootstrap` and `contest_gap`.
    """
    value = contest_gap(judged, share_without).value
    order = judged.ranked()

    def score(counts: NDArray[np.int64]) -> float:
        with_landmark = int(counts[judged.has_landmark].sum())
        if not 0 < with_landmark < len(judged):
            return float("nan")
        without = len(judged) - with_landmark
        weight = without * (1 - share_without) / (with_landmark * share_without)
        ranked = np.repeat(order, counts[order])
        hits = judged.correct[ranked]
        right = weight * np.cumsum(hits)
        above = np.cumsum(np.where(judged.has_landmark[ranked], weight, 1.0))
        return float((right[hits] / above[hits]).sum() / with_landmark)

    return bootstrap(value, score, len(judged), resamples=resamples, level=level, seed=seed)[0]
