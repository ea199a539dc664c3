"""What a report shows of a recognition submission, as numbers: nothing here draws or reads files.

The page is cli/report.html; every figure in it is one of these.
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
# With this many answers for each landmark a linear axis would squeeze all that matters to the left.
LOG_RANKS_FROM = 8
_Z95 = 1.959964  # of the normal distribution, for Wilson's interval


@dataclass(frozen=True)
class Curve:
    """Precision against rank, and what the same answers would give in the best order.

    Attributes:
        ranks: from 1, rising; at most CURVE_POINTS of them, the first and the last always.
        precision: P(i) at each.
        best: min(1, right answers / i) at each: the precision if all right answers came first.
        positives: M.
        x, y: the axes; x is logarithmic where answers outnumber landmarks by far.
    """

    ranks: tuple[int, ...]
    precision: tuple[float, ...]
    best: tuple[float, ...]
    positives: int
    x: Axis
    y: Axis


@dataclass(frozen=True)
class Histogram:
    """Confidences counted in bins of equal width.

    Attributes:
        edges: the bins' n + 1 borders, rising; a bin holds its lower border, the last both.
        counts: for each sort of answer ("right", "wrong", "no landmark") its n counts.
        blank: for each sort the queries without an answer.
        outside: answers of infinite confidence, in no bin.
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
    """Landmark queries whose landmark has so many gallery pictures.

    Attributes:
        low, high: the pictures, both ends included.
        queries: how many.
        right: how many of them are answered rightly.
        accuracy: their share with Wilson's 95 % interval.
    """

    low: int
    high: int
    queries: int
    right: int
    accuracy: Estimate

    @property
    def name(self) -> str:
        """ "5" or "5-8"."""
        return str(self.low) if self.low == self.high else f"{self.low}\u2013{self.high}"


@dataclass(frozen=True)
class Confusion:
    """One landmark (or none) taken for another.

    Attributes:
        truth: the true landmarks, empty for a query without one.
        answer: the landmark given; None for a blank.
        queries: how often.
        loss: what they cost together, of the shares that make up 1 - GAP (gap_losses).
    """

    truth: tuple[str, ...]
    answer: str | None
    queries: int
    loss: float


@dataclass(frozen=True)
class Case:
    """One wrong answer, or a landmark left blank.

    Attributes:
        query: its id.
        truth: the true landmarks.
        answer: the landmark given; None for a blank.
        confidence, rank: of the answer, rank from 1; None for a blank.
        cost: how much GAP would rise if this query alone were answered rightly (a landmark), or
            left blank (none).
    """

    query: str
    truth: tuple[str, ...]
    answer: str | None
    confidence: float | None
    rank: int | None
    cost: float


@dataclass(frozen=True)
class Losses:
    """Where GAP was lost; with GAP the three add up to 1.

    Attributes:
        confused: landmark queries with a wrong answer.
        blank: landmark queries without an answer.
        no_landmark: answers to queries without a landmark.
    """

    confused: float
    blank: float
    no_landmark: float


@dataclass(frozen=True)
class Report:
    """All that the page shows besides the scores; see the classes of its parts."""

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
    """Everything a report shows of a submission.

    Args:
        submission: the answers.
        truth: the solution.
        usage: "Public", "Private", or None for all that is not Ignored.
        class_sizes: how many gallery pictures each landmark has; None leaves that section out.
        shown: how many confusions, false positives and misses at most.

    Raises:
        SubmissionError: an unknown query id, or no query with a landmark.
        UsageError: no row of that usage.
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
        losses=_share_out(judged, losses),
        curve=curve_of(result, judged.positives),
        histogram=histogram_of(judged),
        sizes=None if class_sizes is None else accuracy_by_size(judged, labels, class_sizes),
        confusions=confusions_of(judged, labels, answers, losses)[:shown],
        false_positives=false_positives[:shown],
        misses=_cases(judged, result, labels, answers, gain_if_right(judged))[:shown],
    )


def curve_of(result: GapResult, positives: int, points: int = CURVE_POINTS) -> Curve:
    """The curve of a GAP, thinned to the points that a plot can show."""
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
    """Counts confidences in bins between the lowest and the highest finite one."""
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
    tallest = {
        "landmark": counts["right"] + counts["wrong"],
        "no landmark": counts["no landmark"],
    }
    return Histogram(
        tuple(edges.tolist()),
        {name: tuple(each.tolist()) for name, each in counts.items()},
        {name: int((rows & ~judged.answered).sum()) for name, rows in sorts.items()},
        int((judged.answered & ~finite).sum()),
        axis_of(float(edges[0]), float(edges[-1]), exact=True),
        {name: axis_of(0, max(1, int(each.max())), whole=True) for name, each in tallest.items()},
    )


def _edges(given: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """bins + 1 rising borders that hold all of `given`; fewer where floats lie too close."""
    low, high = (float(given.min()), float(given.max())) if given.size else (0.0, 1.0)
    if low == high:
        low, high = low - max(0.5, abs(low) / 2), high + max(0.5, abs(high) / 2)
    # Halves keep the width finite for confidences near the largest float.
    edges = low + (high / 2 - low / 2) * np.linspace(0, 2, bins + 1)
    edges[-1] = high
    return np.unique(np.clip(edges, low, high))


def accuracy_by_size(
    judged: Judged, labels: list[tuple[str, ...]], class_sizes: Mapping[str, int]
) -> tuple[SizeBin, ...]:
    """acc@1 of landmark queries by the number of gallery pictures of their landmark.

    Bins are 0, 1, 2, 3-4, 5-8, 9-16 and so on; empty ones are left out. Of several true landmarks
    the one with the most pictures counts.

    Args:
        judged: the answers beside the truth.
        labels: for each row the true landmarks.
        class_sizes: gallery pictures by landmark; a landmark not named has 0.
    """
    asked: Counter[int] = Counter()
    right: Counter[int] = Counter()
    for row in np.flatnonzero(judged.has_landmark):
        pictures = max(class_sizes.get(label, 0) for label in labels[row])
        place = _size_bin(pictures)
        asked[place] += 1
        right[place] += bool(judged.correct[row])
    return tuple(
        SizeBin(
            *_size_borders(place), asked[place], right[place], wilson(right[place], asked[place])
        )
        for place in sorted(asked)
    )


def _size_bin(pictures: int) -> int:
    """0 for 0, 1 for 1, 2 for 2, 3 for 3-4, 4 for 5-8 ..."""
    return 0 if pictures == 0 else (pictures - 1).bit_length() + 1


def _size_borders(place: int) -> tuple[int, int]:
    if place < 2:
        return place, place
    return 2 ** (place - 2) + 1, 2 ** (place - 1)


def wilson(successes: int, trials: int) -> Estimate:
    """A share with its 95 % score interval (E. B. Wilson, 1927), sound for few trials too.

    Raises:
        ValueError: no trial, or more successes than trials.
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} of {trials} is no share")
    low, high = wilson_bounds(np.array(successes), np.array(trials), _Z95)
    return Estimate(successes / trials, float(low), float(high))


def confusions_of(
    judged: Judged,
    labels: list[tuple[str, ...]],
    answers: list[str | None],
    losses: NDArray[np.float64],
) -> tuple[Confusion, ...]:
    """Wrong answers and missed landmarks by (truth, answer), the costliest first."""
    count: Counter[tuple[tuple[str, ...], str | None]] = Counter()
    cost: defaultdict[tuple[tuple[str, ...], str | None], float] = defaultdict(float)
    for row in np.flatnonzero(losses > 0):
        pair = (labels[row], answers[row])
        count[pair] += 1
        cost[pair] += float(losses[row])
    found = [Confusion(*pair, count[pair], cost[pair]) for pair in count]
    return tuple(sorted(found, key=lambda each: (-each.loss, each.truth, each.answer or "")))


def _cases(
    judged: Judged,
    result: GapResult,
    labels: list[tuple[str, ...]],
    answers: list[str | None],
    cost: NDArray[np.float64],
) -> tuple[Case, ...]:
    """Queries that cost something, the costliest first, then by id."""
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
    """The label given to each judged query; None for a blank or a missing row."""
    rows = (submission.row_of.get(query) for query in judged.query_ids)
    return [None if row is None else submission.labels[row] for row in rows]


def _share_out(judged: Judged, losses: NDArray[np.float64]) -> Losses:
    missed = judged.has_landmark & ~judged.correct
    return Losses(
        confused=float(losses[missed & judged.answered].sum()),
        blank=float(losses[missed & ~judged.answered].sum()),
        no_landmark=float(losses[~judged.has_landmark].sum()),
    )
