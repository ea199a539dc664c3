"""GAP: global average precision (micro-AP), the score of the landmark recognition contests.

The answers of all queries are ranked together by descending confidence. P(i) is the proportion of
right answers among the first i. GAP = (1/M) * sum of P(i) over the right answers, where M is the
number of queries that show a landmark (Kaggle's definition; DELF, metrics.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import SubmissionError
from lmk.eval.scores.judged import Judged, require_positives

# About 1.1 % of the contest's 117,577 test pictures show a landmark. 2 % is the round figure used
# to compare galleries whose own queries show far more landmarks than those of a contest.
CONTEST_SHARE_WITHOUT = 0.98


@dataclass(frozen=True, eq=False)
class GapResult:
    """A GAP with the terms of its sum.

    Attributes:
        value: the GAP, 0 to 1.
        positives: M, the number (with weights: the sum of weights) of queries with a landmark.
        order: int64 [n], the row number (in the input) of each rank, best first.
        precision: float64 [n], P(i): the proportion of right answers up to each rank.
        recall: float64 [n], right answers up to each rank, over M.
        correct: bool [q], by row.
        gain: float64 [q], the contribution of each row; 0 for a wrong answer or a blank. `value`
            is the sum.
    """

    value: float
    positives: float
    order: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    correct: NDArray[np.bool_]
    gain: NDArray[np.float64]

    @property
    def predictions(self) -> int:
        """N, the number of ranked answers."""
        return len(self.order)


def gap(
    confidence: NDArray[np.floating],
    correct: NDArray[np.bool_],
    positives: float,
    *,
    tie_order: NDArray[np.integer] | None = None,
    weights: NDArray[np.floating] | None = None,
) -> GapResult:
    """Returns the GAP of n answers.

    With weights w, by rank: P(i) = sum_{j<=i} w_j rel_j / sum_{j<=i} w_j, and
    GAP = (1/M) * sum_i w_i rel_i P(i), where M is the sum of the weights of the queries that show
    a landmark. Equal weights give the unweighted GAP.

    Args:
        confidence: float [n], on any scale; only the order matters.
        correct: bool [n].
        positives: M, the number of queries that show a landmark, with or without an answer; with
            weights the sum of their weights.
        tie_order: int [n]; among answers of equal confidence the smaller value ranks first. The
            contest ranks them by query id. None uses the order of the rows.
        weights: float [n], above 0; None is 1 for all.

    Raises:
        ValueError: M is 0 or smaller than the weight of the right answers, shapes differ, a
            confidence is NaN, or a weight is not above 0.

    >>> import numpy as np
    >>> round(gap(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2).value, 4)
    0.8333
    """
    weight = np.ones(len(confidence)) if weights is None else weights.astype(np.float64)
    if weight.shape != confidence.shape or not (np.isfinite(weight) & (weight > 0)).all():
        raise ValueError(f"weights must be [{len(confidence)}] and above 0")
    check_answers(confidence, correct, positives, weight)
    order = np.argsort(-confidence, kind="stable")
    if tie_order is not None:
        order = np.lexsort((tie_order, -confidence))
    hits, weight = correct[order], weight[order]
    right = np.cumsum(weight * hits)
    precision = right / np.cumsum(weight)
    gain = np.zeros(len(order))
    gain[order] = np.where(hits, weight * precision, 0.0) / positives
    value = float((weight * precision)[hits].sum() / positives)
    return GapResult(value, positives, order, precision, right / positives, correct, gain)


def gap_of_judged(
    judged: Judged,
    *,
    ignore_non_landmark: bool = False,
    weights: NDArray[np.floating] | None = None,
) -> GapResult:
    """Returns the GAP of judged answers; rows are those of `judged`.

    Args:
        judged: the answers joined with the truth.
        ignore_non_landmark: leave answers to queries without a landmark out of the ranking
            (landmark-only GAP). Only landmark queries then reduce the score. The contest ranks all
            answers.
        weights: float [q], one for each query, above 0.

    Raises:
        SubmissionError: no query shows a landmark.
        ValueError: a weight is not above 0.
    """
    require_positives(judged)
    ranked = judged.answered & judged.has_landmark if ignore_non_landmark else judged.answered
    rows = np.flatnonzero(ranked)
    weight = np.ones(len(judged)) if weights is None else weights
    positives = float(weight[judged.has_landmark].sum())
    result = gap(judged.confidence[rows], judged.correct[rows], positives, weights=weight[rows])
    gain = np.zeros(len(judged))
    gain[rows] = result.gain
    return replace(result, order=rows[result.order], correct=judged.correct, gain=gain)


def gap_losses(judged: Judged) -> NDArray[np.float64]:
    """Returns float64 [q]: the loss of each query; the losses and the GAP sum to 1.

    Since P(i) = 1 - (wrong answers above i) / i, GAP = 1 - (landmarks missed) / M -
    (1/M) * (sum of 1/i over the right answers i and the wrong answers ranked above them). The loss
    of a landmark query without a right answer is 1/M. The loss of a wrong answer is (1/M) * (sum of
    1/i over the right answers i below it). A wrong answer to a landmark query has both losses.

    Raises:
        SubmissionError: no query shows a landmark.
    """
    result = gap_of_judged(judged)
    hits = judged.correct[result.order]
    each = np.where(hits, 1.0 / np.arange(1, len(hits) + 1), 0.0)
    below = np.cumsum(each[::-1])[::-1]  # wrong answers add 0
    losses = np.where(judged.has_landmark & ~judged.correct, 1.0, 0.0)
    losses[result.order] += np.where(hits, 0.0, below)
    costs: NDArray[np.float64] = losses / result.positives
    return costs


def contest_gap(judged: Judged, share_without: float = CONTEST_SHARE_WITHOUT) -> GapResult:
    """Returns the GAP, weighted to a contest's proportion of queries without a landmark.

    Each query without a landmark has weight 1 and each query with one has weight
    w = N0 (1 - s) / (L s), where N0 and L are their numbers and s is `share_without`. Queries
    without a landmark thus have the fraction s of all weight. `gap` defines the weighted GAP.

    Raises:
        SubmissionError: no query shows a landmark, or every query shows one.
        ValueError: `share_without` is not between 0 and 1.
    """
    return gap_of_judged(judged, weights=contest_weights(judged, share_without))


def contest_weights(
    judged: Judged, share_without: float = CONTEST_SHARE_WITHOUT
) -> NDArray[np.float64]:
    """Returns the weights of `contest_gap`, float64 [q]; raises the same errors."""
    if not 0 < share_without < 1:
        raise ValueError(f"share_without must be between 0 and 1, got {share_without}")
    with_landmark = require_positives(judged)
    without = len(judged) - with_landmark
    if not without:
        what = "every query shows a landmark, so none can stand for the contest's others"
        remedy = "add queries without a landmark"
        raise SubmissionError(what, where="solution", remedy=remedy)
    weight = without * (1 - share_without) / (with_landmark * share_without)
    return np.where(judged.has_landmark, weight, 1.0)


def check_answers(
    confidence: NDArray[np.floating],
    correct: NDArray[np.bool_],
    positives: float,
    weight: NDArray[np.float64] | None = None,
) -> None:
    """Raises ValueError unless the GAP of these answers is defined."""
    if confidence.ndim != 1 or correct.shape != confidence.shape or correct.dtype != np.bool_:
        raise ValueError(
            f"confidence float [n] and correct bool [n] are needed, got {confidence.shape} and "
            f"{correct.dtype} {correct.shape}"
        )
    if len(confidence) and np.isnan(confidence.max()):
        raise ValueError("a confidence is NaN")
    if positives <= 0:
        raise ValueError("no query shows a landmark: GAP is not defined")
    right = np.count_nonzero(correct) if weight is None else weight[correct].sum()
    if right > positives * (1 + 1e-9):  # sums of weights have rounding errors
        raise ValueError(f"{right:g} right answers, but only {positives:g} queries with a landmark")
