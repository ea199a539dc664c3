"""Comparison of submissions query by query, and blends of several submissions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmk.eval.files.submission import Submission
from lmk.eval.files.truth import Truth
from lmk.eval.scores.gap import gap_losses, gap_of_judged
from lmk.eval.scores.judged import Judged, judge

BlendRule = Literal["rank", "score"]


@dataclass(frozen=True, eq=False)
class GapDifference:
    """The change in GAP from a first submission to a second, by query.

    Attributes:
        first, second: the submissions judged against the truth; rows are the queries.
        first_gap, second_gap: the GAPs of the submissions.
        change: float64 [q], the contribution of each query to `second_gap - first_gap`: the
            decrease of the query's loss (see gap_losses). A change is positive if a miss became
            right or a wrong answer moved below right ones.
    """

    first: Judged
    second: Judged
    first_gap: float
    second_gap: float
    change: NDArray[np.float64]

    @property
    def difference(self) -> float:
        """The second GAP minus the first."""
        return self.second_gap - self.first_gap

    def largest(self, count: int) -> NDArray[np.int64]:
        """Returns the rows of the changes of largest magnitude, int64, largest first, no zeros."""
        order = np.argsort(-np.abs(self.change), kind="stable")[:count]
        return np.array([row for row in order if self.change[row] != 0], dtype=np.int64)


def compare(
    first: Submission, second: Submission, truth: Truth, usage: str | None = None
) -> GapDifference:
    """Returns the difference in GAP of two submissions on the same queries.

    Args:
        first, second: the submissions.
        truth: the solution.
        usage: "Public", "Private", or None for all rows that are not Ignored.

    Raises:
        SubmissionError: a query id is unknown, or no query shows a landmark.
        UsageError: the solution has no row of that usage.
    """
    a, b = judge(first, truth, usage), judge(second, truth, usage)
    return GapDifference(
        a, b, gap_of_judged(a).value, gap_of_judged(b).value, gap_losses(a) - gap_losses(b)
    )


def blend(
    submissions: Sequence[Submission],
    weights: Sequence[float] | None = None,
    rule: BlendRule = "rank",
) -> Submission:
    """Returns the weighted vote of several submissions.

    For each query every submission adds its weight times a value to its own label. The label
    with the largest sum wins (the smaller label in a tie), and its confidence is that sum over the
    sum of all weights. A blank adds nothing. The value is

    - "rank": the relative rank of the answer among the answers of that submission, 1 for the
      highest confidence down to 1/n for the lowest; ties get their mean rank. The scales need
      not be comparable.
    - "score": the confidence itself. The scales of the submissions must be the same, and no
      confidence may be negative or infinite, or agreement would count against a label.

    Args:
        submissions: one or more; the result has the queries of all, by first occurrence.
        weights: one for each submission, above 0; None is 1 for all.
        rule: "rank" or "score".

    Raises:
        ValueError: there is no submission, the number of weights differs, a weight is not above
            0, the rule is unknown, or with the rule "score" a confidence is negative or infinite.
    """
    weight = _weights(len(submissions), weights)
    votes: dict[str, dict[str, float]] = {}
    for submission, factor in zip(submissions, weight.tolist(), strict=True):
        values = _values(submission, rule).tolist()
        for query, label, value in zip(
            submission.query_ids, submission.labels, values, strict=True
        ):
            ballot = votes.setdefault(query, {})
            if label is not None:
                ballot[label] = ballot.get(label, 0.0) + factor * value
    labels: list[str | None] = []
    confidence: list[float] = []
    for ballot in votes.values():
        winner = min(ballot, key=lambda label: (-ballot[label], label), default=None)
        labels.append(winner)
        confidence.append(-np.inf if winner is None else ballot[winner] / weight.sum())
    return Submission(tuple(votes), tuple(labels), np.array(confidence, dtype=np.float64), "blend")


def _weights(count: int, weights: Sequence[float] | None) -> NDArray[np.float64]:
    if not count:
        raise ValueError("there is no submission to blend")
    weight = np.ones(count) if weights is None else np.array(weights, dtype=np.float64)
    if weight.shape != (count,) or not (np.isfinite(weight) & (weight > 0)).all():
        raise ValueError(f"{count} weights above 0 are needed, got {weights}")
    return weight


def _values(submission: Submission, rule: BlendRule) -> NDArray[np.float64]:
    """Returns the value of each row of a submission by a rule; 0 for a blank."""
    answered = np.array([label is not None for label in submission.labels], dtype=bool)
    given = submission.confidence[answered]
    values = np.zeros(len(submission))
    if rule == "rank":
        _, level, size = np.unique(given, return_inverse=True, return_counts=True)
        last = np.cumsum(size)  # ranks from below, 1 for the lowest confidence
        values[answered] = ((2 * last - size + 1) / 2)[level] / max(len(given), 1)
    elif rule == "score":
        if not (np.isfinite(given) & (given >= 0)).all():
            raise ValueError(
                f"{submission.source}: confidences must be finite and not negative to be averaged; "
                'use the rule "rank"'
            )
        values[answered] = given
    else:
        raise ValueError(f'the rule must be "rank" or "score", got {rule!r}')
    return values
