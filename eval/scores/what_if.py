"""Costs of single answers: the increase of GAP if only that answer were blank, or were right.

`gap_losses` divides 1 - GAP among the queries so that the parts add up. This module changes one
query at a time. The results differ, since a correction of one answer changes the losses of others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.eval.scores.judged import Judged, require_positives


def gain_if_blank(judged: Judged) -> NDArray[np.float64]:
    """Returns the increase of GAP if only this wrong answer were left blank, float64 [q].

    With C(i) right answers among the first i and M landmark queries, the removal of the wrong
    answer at rank r moves every right answer below it up by one rank:
    (1/M) * (sum of C(i) (1/(i-1) - 1/i) over the right answers i > r). The increase is 0 for right
    answers and blanks.

    Raises:
        SubmissionError: no query shows a landmark.
    """
    order, hits, right = _ranked(judged)
    ranks = np.arange(1, len(order) + 1)
    lifted = np.zeros(len(order))
    below_first = np.flatnonzero(hits[1:]) + 1  # no answer ranks above the first
    lifted[below_first] = right[below_first] / (ranks[below_first] * (ranks[below_first] - 1.0))
    gains = np.zeros(len(judged))
    gains[order] = np.where(hits, 0.0, _sum_from(lifted)) / require_positives(judged)
    return gains


def gain_if_right(judged: Judged) -> NDArray[np.float64]:
    """Returns the increase of GAP if only this landmark query had a right answer, float64 [q].

    A wrong answer at rank r becomes right with its own confidence:
    (1/M) * ((C(r) + 1) / r + (sum of 1/i over the right answers i > r)). A blank has no rank and
    becomes the last right answer: (1/M) (C(N) + 1) / (N + 1). The increase is 0 for right answers
    and for queries without a landmark.

    Raises:
        SubmissionError: no query shows a landmark.
    """
    order, hits, right = _ranked(judged)
    ranks = np.arange(1, len(order) + 1)
    positives = require_positives(judged)
    last = (int(hits.sum()) + 1) / (len(order) + 1)
    gains = np.where(judged.has_landmark, last, 0.0)
    gains[order] = (right + 1) / ranks + _sum_from(np.where(hits, 1.0 / ranks, 0.0))
    wrong = judged.has_landmark & ~judged.correct
    return np.where(wrong, gains, 0.0) / positives


def _ranked(judged: Judged) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Returns the rows with an answer, best first, whether each is right, and C(i)."""
    order = judged.ranked()
    hits = judged.correct[order]
    return order, hits, np.cumsum(hits)


def _sum_from(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the sum of the values from each place to the end."""
    sums: NDArray[np.float64] = np.cumsum(values[::-1])[::-1]
    return sums
