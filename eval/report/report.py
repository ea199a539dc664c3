"""Numbers of the error report of a recognition submission.

The page cli/eval/report.html draws these numbers and computes no others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.eval.files.submission import Submission
from lmk.eval.files.truth import Truth
from lmk.eval.report.axes import Axis, axis_of
from lmk.eval.scores.bootstrap import wilson_bounds
from lmk.eval.scores.gap import GapResult, gap_losses, gap_of_judged
from lmk.eval.scores.gap_scores import Estimate
from lmk.eval.scores.judged import Judged, judge
from lmk.eval.scores.what_if import gain_if_blank, gain_if_right

CURVE_POINTS = 400
BINS = 30
SHOWN = 12
# With this many answers per landmark query a linear axis would compress the relevant ranks.
LOG_RANKS_FROM = 8
_Z95 = 1.959964  # quantile of the normal distribution for Wilson's 95 % interval


@dataclass(frozen=True)
class Curve:
    """Precision against rank, for these answers and for the same answers in the best order.

    Attributes:
        ranks: from 1, ascending; at most CURVE_POINTS, including the first and the last.
        precision: P(i) at each.
        best: min(1, right answers / i) at each: the precision if all right answers came first.
        positives: M.
        x, y: the axes; x is logarithmic for LOG_RANKS_FROM answers per landmark query or more.
    """

    ranks: tuple[int, ...]
    precision: tuple[float, ...]
    best: tuple[float, ...]
    positives: int
    x: Axis
    y: Axis


@dataclass(frozen=True)
class Histogram:
    """Counts of confidences in bins of equal width.

    Attributes:
        edges: the n + 1 borders of the bins, ascending. A bin includes its lower border, and the
            last bin includes both borders.
        counts: n counts for each kind of answer ("right", "wrong", "no landmark").
        blank: for each kind the number of queries without an answer.
        outside: the number of answers with infinite confidence, which are in no bin.
        x: the axis of confidence.
        y: for each panel ("landmark": right + wrong; "no landmark") its axis of counts.
    """

    edges: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]
    blank: dict[str, int]
    outside: int
    x: Axis
    y: dict[str, Axis]


@dataclass(frozen=True)
class SizeBin:
    """Landmark queries whose landmark has between `low` and `high` gallery pictures.

    Attributes:
        low, high: the range, both ends included.
        queries: the number of queries.
        right: the number of right answers.
        accuracy: the proportion of right answers with Wilson's 95 % interval.
    """

    low: int
    high: int
    queries: int
    right: int
    accuracy: Estimate

    @property
    def name(self) -> str:
        """The range as text: "5" or "5-8"."""
        return str(self.low) if self.low == self.high else f"{self.low}\u2013{self.high}"


@dataclass(frozen=True)
class Confusion:
    """Queries with the same true landmarks and the same wrong answer.

    Attributes:
        truth: the true landmarks; empty for queries without one.
        answer: the landmark in the submission; None for a blank.
        queries: the number of queries.
        loss: the sum of the losses of these queries (gap_losses).
    """

    truth: tuple[str, ...]
    answer: str | None
    queries: int
    loss: float


@dataclass(frozen=True)
class Case:
    """One wrong answer, or a landmark query with a blank.

    Attributes:
        query: the query id.
        truth: the true landmarks.
        answer: the landmark in the submission; None for a blank.
        confidence, rank: confidence and rank (from 1) of the answer; None for a blank.
        cost: the increase of GAP if only this query had a right answer (a landmark query), or were
            left blank (any other query).
    """

    query: str
    truth: tuple[str, ...]
    answer: str | None
    confidence: float | None
    rank: int | None
    cost: float


@dataclass(frozen=True)
class Losses:
    """Losses of GAP by kind; the three losses and GAP sum to 1.

    Attributes:
        confused: the loss of landmark queries with a wrong answer.
        blank: the loss of landmark queries without an answer.
        no_landmark: the loss of answers to queries without a landmark.
    """

    confused: float
    blank: float
    no_landmark: float


@dataclass(frozen=True)
class Report:
    """The content of the report page without the scores; see the classes of the parts."""

    losses: Losses
    curve: Curve
    histogram: Histogram
    sizes: tuple[SizeBin, ...] | None
    confusions: tuple[Confusion, ...]
    false_positives: tuple[Case, ...]
    misses: tuple[Case, ...]


def report_of(
    submission: Submission,
    truth: Truth,
    usage: str | None = None,
    *,
    class_sizes: Mapping[str, int] | None = None,
    shown: int = SHOWN,
) -> Report:
    """Returns the report of a submission.

    Args:
        submission: the answers.
        truth: the solution.
        usage: "Public", "Private", or None for all rows that are not Ignored.
        class_sizes: the number of gallery pictures of each landmark; None omits this section.
        shown: the largest number of confusions, false positives and misses.

    Raises:
        SubmissionError: a query id is unknown, or no query shows a landmark.
        UsageError: the solution has no row of that usage.
    """
    judged = judge(submission, truth, usage)
    result = gap_of_judged(judged)
    losses = gap_losses(judged)
    labels = [truth.labels[truth.row_of[query]] for query in judged.query_ids]
    answers = _answers(judged, submission)
    false_positives = _cases(
        judged, result, labels, answers, np.where(judged.has_landmark, 0.0, gain_if_blank(judged))
    )
    return Report(
        losses=_losses(judged, losses),
        curve=curve_of(result, judged.positives),
        histogram=histogram_of(judged),
        sizes=None if class_sizes is None else accuracy_by_size(judged, labels, class_sizes),
        confusions=confusions_of(judged, labels, answers, losses)[:shown],
        false_positives=false_positives[:shown],
        misses=_cases(judged, result, labels, answers, gain_if_right(judged))[:shown],
    )


def curve_of(result: GapResult, positives: int, points: int = CURVE_POINTS) -> Curve:
    """Returns the precision curve of a GAP with at most `points` points."""
    n = result.predictions
    logarithmic = n >= LOG_RANKS_FROM * positives
    steps = np.geomspace(1, n, points) if logarithmic else np.linspace(1, n, points)
    ranks = np.unique(np.rint(steps).astype(np.int64)) if n else np.zeros(0, dtype=np.int64)
    right = int(result.correct.sum())
    return Curve(
        tuple(ranks.tolist()),
        tuple(result.precision[ranks - 1].tolist()),
        tuple(np.minimum(1.0, right / np.maximum(ranks, 1)).tolist()),
        positives,
        axis_of(1, max(n, positives, 2), logarithmic=logarithmic, exact=True, whole=True),
        axis_of(0.0, 1.0),
    )


def histogram_of(judged: Judged, bins: int = BINS) -> Histogram:
    """Returns counts of confidences in bins between the lowest and the highest finite one."""
    sorts = {
        "right": judged.correct,
        "wrong": judged.has_landmark & ~judged.correct,
        "no landmark": ~judged.has_landmark,
    }
    finite = judged.answered & np.isfinite(judged.confidence)
    given = judged.confidence[finite]
    edges = _edges(given, bins)
    counts = {
        name: np.histogram(judged.confidence[finite & rows], edges)[0]
        for name, rows in sorts.items()
    }
    tallest = {"landmark": counts["right"] + counts["wrong"], "no landmark": counts["no landmark"]}
    return Histogram(
        tuple(edges.tolist()),
        {name: tuple(each.tolist()) for name, each in counts.items()},
        {name: int((rows & ~judged.answered).sum()) for name, rows in sorts.items()},
        int((judged.answered & ~finite).sum()),
        axis_of(float(edges[0]), float(edges[-1]), exact=True),
        {name: axis_of(0, max(1, int(each.max())), whole=True) for name, each in tallest.items()},
    )


def _edges(given: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Returns up to bins + 1 ascending borders around `given`; fewer if floats are too close."""
    low, high = (float(given.min()), float(given.max())) if given.size else (0.0, 1.0)
    if low == high:
        largest = float(np.finfo(np.float64).max)
        low = max(low - max(0.5, abs(low) / 2), -largest)
        high = min(high + max(0.5, abs(high) / 2), largest)
    # Halves keep the width finite for confidences near the largest float.
    edges = low + (high / 2 - low / 2) * np.linspace(0, 2, bins + 1)
    edges[-1] = high
    return np.unique(np.clip(edges, low, high))


def accuracy_by_size(
    judged: Judged, labels: list[tuple[str, ...]], class_sizes: Mapping[str, int]
) -> tuple[SizeBin, ...]:
    """Returns acc@1 of landmark queries by the number of gallery pictures of their landmark.

    Bins are 0, 1, 2, 3-4, 5-8, 9-16 and so on; empty bins are left out. If a query has several true
    landmarks, the landmark with the most pictures counts.

    Args:
        judged: the answers joined with the truth.
        labels: the true landmarks of each row.
        class_sizes: the number of gallery pictures by landmark; 0 for other landmarks.
    """
    queries: Counter[int] = Counter()
    right: Counter[int] = Counter()
    for row in np.flatnonzero(judged.has_landmark):
        pictures = max(class_sizes.get(label, 0) for label in labels[row])
        place = _size_bin(pictures)
        queries[place] += 1
        right[place] += bool(judged.correct[row])
    return tuple(
        SizeBin(
            *_size_borders(place),
            queries[place],
            right[place],
            wilson(right[place], queries[place]),
        )
        for place in sorted(queries)
    )


def _size_bin(pictures: int) -> int:
    """Returns the bin of a class size: 0 for 0, 1 for 1, 2 for 2, 3 for 3-4, 4 for 5-8 ..."""
    return 0 if pictures == 0 else (pictures - 1).bit_length() + 1


def _size_borders(place: int) -> tuple[int, int]:
    if place < 2:
        return place, place
    return 2 ** (place - 2) + 1, 2 ** (place - 1)


def wilson(successes: int, trials: int) -> Estimate:
    """Returns a proportion with its 95 % score interval (E. B. Wilson, 1927).

    Raises:
        ValueError: there is no trial, or there are more successes than trials.
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} of {trials} is no proportion")
    low, high = wilson_bounds(np.array(successes), np.array(trials), _Z95)
    return Estimate(successes / trials, float(low), float(high))


def confusions_of(
    judged: Judged,
    labels: list[tuple[str, ...]],
    answers: list[str | None],
    losses: NDArray[np.float64],
) -> tuple[Confusion, ...]:
    """Returns wrong answers and blanks grouped by (truth, answer), by descending loss."""
    count: Counter[tuple[tuple[str, ...], str | None]] = Counter()
    cost: defaultdict[tuple[tuple[str, ...], str | None], float] = defaultdict(float)
    for row in np.flatnonzero(losses > 0):
        pair = (labels[row], answers[row])
        count[pair] += 1
        cost[pair] += float(losses[row])
    confusions = [Confusion(*pair, count[pair], cost[pair]) for pair in count]
    return tuple(sorted(confusions, key=lambda each: (-each.loss, each.truth, each.answer or "")))


def _cases(
    judged: Judged,
    result: GapResult,
    labels: list[tuple[str, ...]],
    answers: list[str | None],
    cost: NDArray[np.float64],
) -> tuple[Case, ...]:
    """Returns the queries with a cost, by descending cost, then by id."""
    rank = np.zeros(len(judged), dtype=np.int64)
    rank[result.order] = np.arange(1, result.predictions + 1)
    order = np.argsort(-cost, kind="stable")
    return tuple(
        Case(
            judged.query_ids[row],
            labels[row],
            answers[row],
            float(judged.confidence[row]) if judged.answered[row] else None,
            int(rank[row]) or None,
            float(cost[row]),
        )
        for row in order[cost[order] > 0]
    )


def _answers(judged: Judged, submission: Submission) -> list[str | None]:
    """Returns the answer to each judged query; None for a blank or a missing row."""
    rows = (submission.row_of.get(query) for query in judged.query_ids)
    return [None if row is None else submission.labels[row] for row in rows]


def _losses(judged: Judged, losses: NDArray[np.float64]) -> Losses:
    missed = judged.has_landmark & ~judged.correct
    return Losses(
        confused=float(losses[missed & judged.answered].sum()),
        blank=float(losses[missed & ~judged.answered].sum()),
        no_landmark=float(losses[~judged.has_landmark].sum()),
    )
