"""The numbers of a report against a slow recomputation, and its binning."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmk.eval.files.submission import Submission
from lmk.eval.files.truth import Truth
from lmk.eval.report.report import (
    CURVE_POINTS,
    Report,
    accuracy_by_size,
    curve_of,
    histogram_of,
    report_of,
    wilson,
)
from lmk.eval.scores.gap import gap, gap_of_judged
from lmk.eval.scores.judged import Judged, judge

Row = tuple[str, tuple[str, ...], str | None, float]  # id, truth, answer, confidence

ROWS: list[Row] = [
    ("a", ("eiffel",), "eiffel", 0.9),
    ("b", (), "louvre", 0.8),
    ("c", ("louvre", "pyramid"), "pyramid", 0.7),
    ("d", ("eiffel",), "louvre", 0.6),
    ("e", ("louvre",), None, -np.inf),
    ("f", (), "eiffel", 0.5),
    ("g", ("eiffel",), "louvre", 0.4),
    ("h", ("eiffel",), "eiffel", 0.3),
    ("i", (), None, -np.inf),
    ("j", (), "eiffel", 0.1),
]
SIZES = {"eiffel": 5, "louvre": 1, "pyramid": 2}


def files(rows: list[Row]) -> tuple[Submission, Truth]:
    ids = tuple(row[0] for row in rows)
    submission = Submission(
        ids, tuple(row[2] for row in rows), np.array([row[3] for row in rows], dtype=np.float64)
    )
    return submission, Truth(ids, tuple(row[1] for row in rows), (None,) * len(rows))


def slow_gap(rows: list[Row]) -> float:
    right, total = 0, 0.0
    answered = sorted((row for row in rows if row[2] is not None), key=lambda row: -row[3])
    for rank, row in enumerate(answered, start=1):
        if row[2] in row[1]:
            right += 1
            total += right / rank
    return total / sum(bool(row[1]) for row in rows)


def report(rows: list[Row] = ROWS, **options: object) -> Report:
    return report_of(*files(rows), class_sizes=SIZES, **options)  # type: ignore[arg-type]


def test_gap_and_its_losses_add_up_to_1() -> None:
    losses = report().losses
    assert losses.confused + losses.blank + losses.no_landmark + slow_gap(ROWS) == pytest.approx(1)
    assert losses.blank == pytest.approx(1 / 6)  # "e": one of six landmarks
    # "b" stands above the right answers at ranks 3 and 7, "f" above that at rank 7
    assert losses.no_landmark == pytest.approx((1 / 3 + 1 / 7 + 1 / 7) / 6)


def test_the_worst_cases_cost_what_mending_them_brings() -> None:
    found = report()
    assert [case.query for case in found.false_positives] == ["b", "f"]  # "j" costs nothing
    for case in found.false_positives:
        mended = [(*row[:2], None, -np.inf) if row[0] == case.query else row for row in ROWS]
        assert case.cost == pytest.approx(slow_gap(mended) - slow_gap(ROWS))
        assert case.truth == ()
    assert {case.query for case in found.misses} == {"d", "e", "g"}
    for case in found.misses:
        mended = [
            (*row[:2], row[1][0], row[3] if row[2] else -1.0) if row[0] == case.query else row
            for row in ROWS
        ]
        assert case.cost == pytest.approx(slow_gap(mended) - slow_gap(ROWS))
    costs = [case.cost for case in found.misses]
    assert costs == sorted(costs, reverse=True)
    by_id = {case.query: case for case in (*found.misses, *found.false_positives)}
    assert (by_id["d"].rank, by_id["d"].confidence, by_id["d"].answer) == (4, 0.6, "louvre")
    assert (by_id["e"].rank, by_id["e"].confidence, by_id["e"].answer) == (None, None, None)


def test_confusions_are_counted_and_their_losses_add_up() -> None:
    found = report()
    pairs = {(each.truth, each.answer): each.queries for each in found.confusions}
    assert pairs == {
        (("eiffel",), "louvre"): 2,
        (("louvre",), None): 1,
        ((), "louvre"): 1,
        ((), "eiffel"): 1,
    }
    assert found.confusions[0].truth == ("eiffel",)
    losses = [each.loss for each in found.confusions]
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) == pytest.approx(1 - slow_gap(ROWS))
    # a miss at rank 4 with one right answer below at 7, and one at rank 6 with the same
    assert losses[0] == pytest.approx((1 + 1 / 7 + 1 + 1 / 7) / 6)


def test_no_more_is_shown_than_asked_for() -> None:
    found = report(shown=1)
    assert len(found.confusions) == len(found.false_positives) == len(found.misses) == 1


def test_accuracy_by_class_size() -> None:
    sizes = report().sizes
    assert sizes is not None
    assert [(each.name, each.queries, each.right) for each in sizes] == [
        ("1", 1, 0),
        ("2", 1, 1),  # of louvre and pyramid the larger one counts
        ("5\u20138", 4, 2),
    ]
    assert sizes[2].accuracy.value == 0.5
    assert report_of(*files(ROWS)).sizes is None


def test_parts_of_the_queries_are_reported_alone() -> None:
    submission, truth = files(ROWS)
    usage = tuple("Public" if query in "abcd" else "Private" for query in truth.query_ids)
    split = Truth(truth.query_ids, truth.labels, usage)
    public = report_of(submission, split, "Public")
    assert public.curve.positives == 3
    assert {case.query for case in public.misses} == {"d"}


def test_a_query_without_a_row_is_a_blank() -> None:
    submission, truth = files(ROWS)
    cut = Submission(submission.query_ids[1:], submission.labels[1:], submission.confidence[1:])
    case = next(case for case in report_of(cut, truth).misses if case.query == "a")
    assert (case.answer, case.rank) == (None, None)


def test_the_curve_is_precision_by_rank() -> None:
    curve = report().curve
    assert curve.ranks == tuple(range(1, 9))
    assert curve.precision == pytest.approx([1, 1 / 2, 2 / 3, 2 / 4, 2 / 5, 2 / 6, 3 / 7, 3 / 8])
    assert curve.best == pytest.approx([1, 1, 1, 3 / 4, 3 / 5, 3 / 6, 3 / 7, 3 / 8])
    assert curve.positives == 6
    assert not curve.x.logarithmic


@pytest.mark.parametrize(("positives", "logarithmic"), [(2000, False), (100, True)])
def test_a_long_curve_is_thinned(positives: int, logarithmic: bool) -> None:
    n = 5000
    correct = np.arange(n) % 50 == 0
    result = gap(-np.arange(n, dtype=np.float64), correct, positives)
    curve = curve_of(result, positives)
    assert curve.x.logarithmic == logarithmic
    assert len(curve.ranks) <= CURVE_POINTS
    assert (curve.ranks[0], curve.ranks[-1]) == (1, n)
    assert list(curve.ranks) == sorted(set(curve.ranks))
    for rank, precision in zip(curve.ranks, curve.precision, strict=True):
        assert precision == pytest.approx(correct[:rank].sum() / rank)
    assert curve.x.at(1) >= 0
    assert curve.x.at(n) == pytest.approx(1)


def test_a_submission_of_blanks_has_a_report() -> None:
    blank = [(*row[:2], None, -np.inf) for row in ROWS]
    found = report(blank)
    assert found.curve.ranks == ()
    assert sum(map(sum, found.histogram.counts.values())) == 0
    assert found.histogram.blank == {"right": 0, "wrong": 6, "no landmark": 4}
    assert found.false_positives == ()
    assert len(found.misses) == 6
    assert found.losses.blank == pytest.approx(1)


SORTS = st.sampled_from(["right", "wrong", "no landmark"])
CONFIDENCES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=True),
    st.floats(0, 1),
    st.sampled_from([0.5, 0.5000000001]),
)


@example([("right", 1.2e308, False)], 1)  # half as much again is no float any more
@example([("right", -1.2e308, False)], 3)
@given(st.lists(st.tuples(SORTS, CONFIDENCES, st.booleans()), max_size=40), st.integers(1, 40))
def test_every_finite_answer_stands_in_its_bin(
    queries: list[tuple[str, float, bool]], bins: int
) -> None:
    queries = [(sort, value, answered or sort == "right") for sort, value, answered in queries]
    kinds = np.array([sort for sort, _, _ in queries], dtype="U11")
    answered = np.array([there for _, _, there in queries], dtype=bool)
    given_values = np.array([value for _, value, _ in queries], dtype=np.float64)
    judged = Judged(
        tuple(f"{row:03}" for row in range(len(queries))),
        kinds != "no landmark",
        answered,
        kinds == "right",
        np.where(answered, given_values, -np.inf),
    )
    found = histogram_of(judged, bins)
    edges = found.edges
    assert 1 <= len(edges) - 1 <= bins
    assert all(a < b for a, b in itertools.pairwise(edges))
    wanted: Counter[tuple[str, int]] = Counter()
    for sort, value, there in queries:
        if there and np.isfinite(value):
            inside = [
                place for place in range(len(edges) - 1) if edges[place] <= value < edges[place + 1]
            ]
            wanted[sort, inside[0] if inside else len(edges) - 2] += 1
            assert edges[0] <= value <= edges[-1]
    for sort, counts in found.counts.items():
        assert list(counts) == [wanted[sort, place] for place in range(len(edges) - 1)]
        blank = sum(kind == sort and not there for kind, _, there in queries)
        assert found.blank[sort] == blank
    assert found.outside == sum(there and not np.isfinite(value) for _, value, there in queries)
    assert found.y["no landmark"].high >= max(found.counts["no landmark"])


@given(st.lists(st.tuples(st.integers(0, 10_000), st.booleans()), min_size=1, max_size=40))
def test_every_landmark_query_stands_in_the_bin_of_its_size(
    queries: list[tuple[int, bool]],
) -> None:
    rows: list[Row] = [
        (f"{n:03}", (f"m{n}",), f"m{n}" if right else "other", 0.5)
        for n, (_, right) in enumerate(queries)
    ]
    submission, truth = files(rows)
    class_sizes = {f"m{n}": size for n, (size, _) in enumerate(queries) if size}
    bins = accuracy_by_size(judge(submission, truth), list(truth.labels), class_sizes)
    assert sum(each.queries for each in bins) == len(queries)
    for each in bins:
        inside = [right for size, right in queries if each.low <= size <= each.high]
        assert (each.queries, each.right) == (len(inside), sum(inside))
        assert each.low == each.high or each.high == 2 * (each.low - 1)  # 3-4, 5-8, 9-16
    assert all(a.high < b.low for a, b in itertools.pairwise(bins))


def test_wilson_by_the_published_example() -> None:
    """81 of 263: 0.2553 to 0.3662 (R. G. Newcombe, Statistics in Medicine 17, 1998, table I)."""
    found = wilson(81, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert (wilson(0, 20).low, wilson(20, 20).high) == (0, 1)
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_bounds_hold_the_share(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    found = wilson(successes, trials)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (2, 1), (-1, 3)])
def test_what_is_no_share_is_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="is no proportion"):
        wilson(successes, trials)


def test_the_slow_gap_of_these_tests_is_the_librarys() -> None:
    assert slow_gap(ROWS) == pytest.approx(gap_of_judged(judge(*files(ROWS))).value)
