"""Several submissions together: what one gains over another, query by query, and blends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmk.eval.files.submission import MAX_IMAGES, RetrievalSubmission, Submission
from lmk.eval.files.truth import Truth
from lmk.eval.scores.gap import gap_losses, gap_of_judged
from lmk.eval.scores.judged import Judged, judge

BlendRule = Literal["rank", "score"]


@dataclass(frozen=True, eq=False)
class GapDifference:
    """The change in GAP from a first submission to a second, shared out over the queries.

    Attributes:
        first, second: the submissions beside the truth; rows are the queries.
        first_gap, second_gap: their GAPs.
        change: float64 [q], what each query adds to the difference; they sum to
            `second_gap - first_gap`. It is the fall of the query's loss (see gap_losses): a miss
            that became right, or a wrong answer that sank below right ones, counts up.
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
        """int64: rows of the largest changes, up or down, largest first, 0 left out."""
        order = np.argsort(-np.abs(self.change), kind="stable")[:count]
        return np.array([row for row in order if self.change[row] != 0], dtype=np.int64)


def compare(
    first: Submission, second: Submission, truth: Truth, usage: str | None = None
) -> GapDifference:
    """Compares two submissions on the same queries.

    Args:
        first, second: the submissions.
        truth: the solution.
        usage: "Public", "Private", or None for all that is not Ignored.

    Raises:
        SubmissionError: an unknown query id, or no query with a landmark.
        UsageError: no row of that usage.
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
    """Joins several submissions into one.

    For each query every submission gives its weight times a value to its own label; the label
    with the largest sum wins (the smaller label in a tie), and its confidence is that sum over the
    sum of all weights. Whoever leaves the query blank gives nothing. The value is

    - "rank": the place of the answer among that submission's own answers, 1 for the surest down
      to 1/n for the least sure, ties at their mean. Scales need not be comparable.
    - "score": the confidence itself; the submissions' scales must be the same, and none may be
      negative or infinite, or agreeing would count against a label.

    Args:
        submissions: one or more; the result has the queries of all of them, in the order in
            which they first stand.
        weights: one for each, above 0; None is 1 for all.
        rule: "rank" or "score".

    Raises:
        ValueError: no submission, other weights than submissions, a weight not above 0, an
            unknown rule, a negative or infinite confidence by the rule "score".
    """
    weight = _weights(len(submissions), weights)
    votes: dict[str, dict[str, float]] = {}
    for submission, share in zip(submissions, weight, strict=True):
        values = _values(submission, rule)
        for query, label, value in zip(
            submission.query_ids, submission.labels, values, strict=True
        ):
            ballot = votes.setdefault(query, {})
            if label is not None:
                ballot[label] = ballot.get(label, 0.0) + float(share * value)
    labels: list[str | None] = []
    confidence: list[float] = []
    for ballot in votes.values():
        winner = min(ballot, key=lambda label: (-ballot[label], label), default=None)
        labels.append(winner)
        confidence.append(-np.inf if winner is None else ballot[winner] / weight.sum())
    return Submission(tuple(votes), tuple(labels), np.array(confidence, dtype=np.float64), "blend")


def blend_retrieval(
    submissions: Sequence[RetrievalSubmission], weights: Sequence[float] | None = None
) -> RetrievalSubmission:
    """Joins several rank lists into one of 100 at most, by weighted Borda count.

    A picture at rank r (from 1) of a list gets the weight times 101 - r; the largest sums rank
    first, ties by the smaller id. Ranks past 100 and repeats give nothing.

    Args:
        submissions: one or more; queries as in `blend`.
        weights: one for each, above 0; None is 1 for all.

    Raises:
        ValueError: no submission, other weights than submissions, a weight not above 0.
    """
    weight = _weights(len(submissions), weights)
    points: dict[str, dict[str, float]] = {}
    for submission, share in zip(submissions, weight, strict=True):
        for query, images in zip(submission.query_ids, submission.images, strict=True):
            tally = points.setdefault(query, {})
            seen = set()
            for rank, image in enumerate(images[:MAX_IMAGES], start=1):
                if image not in seen:
                    seen.add(image)
                    tally[image] = tally.get(image, 0.0) + float(share) * (MAX_IMAGES + 1 - rank)
    lists = tuple(
        tuple(sorted(tally, key=lambda image: (-tally[image], image))[:MAX_IMAGES])
        for tally in points.values()
    )
    return RetrievalSubmission(tuple(points), lists, "blend")


def _weights(count: int, weights: Sequence[float] | None) -> NDArray[np.float64]:
    if not count:
        raise ValueError("there is no submission to blend")
    weight = np.ones(count) if weights is None else np.array(weights, dtype=np.float64)
    if weight.shape != (count,) or not (np.isfinite(weight) & (weight > 0)).all():
        raise ValueError(f"{count} weights above 0 are needed, got {weights}")
    return weight


def _values(submission: Submission, rule: BlendRule) -> NDArray[np.float64]:
    """What each row of a submission is worth; 0 where blank."""
    answered = np.array([label is not None for label in submission.labels], dtype=bool)
    given = submission.confidence[answered]
    values = np.zeros(len(submission))
    if rule == "rank":
        _, level, size = np.unique(given, return_inverse=True, return_counts=True)
        last = np.cumsum(size)  # places from below, 1 for the least sure
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
