"""GAP: the golden values, the contest's edge cases, and a slow reference on random cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.embed.errors import SubmissionError, UsageError
from lmk.eval.files.submission import Submission
from lmk.eval.files.truth import Truth
from lmk.eval.scores.gap import contest_gap, contest_weights, gap, gap_losses, gap_of_judged
from lmk.eval.scores.judged import Judged, judge

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "gap.json").read_text())


def make_truth(labels: dict[str, list[str]], usage: dict[str, str] | None = None) -> Truth:
    return Truth(
        tuple(labels),
        tuple(tuple(of) for of in labels.values()),
        tuple((usage or {}).get(query) for query in labels),
    )


def make_submission(answers: dict[str, Any]) -> Submission:
    return Submission(
        tuple(answers),
        tuple(answer and answer[0] for answer in answers.values()),
        np.array([answer[1] if answer else -np.inf for answer in answers.values()], dtype=float),
    )


def slow_gap(
    answers: dict[str, tuple[str, float] | None],
    truth: dict[str, list[str]],
    ignore_non_landmark: bool = False,
) -> float:
    """The definition, word for word."""
    ranked = [
        (-answer[1], query, answer[0])
        for query, answer in answers.items()
        if answer is not None and (truth[query] or not ignore_non_landmark)
    ]
    ranked.sort()
    total = 0.0
    for i in range(1, len(ranked) + 1):
        _, query, label = ranked[i - 1]
        if label in truth[query]:
            right = sum(label in truth[query] for _, query, label in ranked[:i])
            total += right / i
    return total / sum(1 for labels in truth.values() if labels)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_golden_values(case: dict[str, Any]) -> None:
    submission, truth = make_submission(case["predictions"]), make_truth(case["truth"])
    result = gap_of_judged(judge(submission, truth))
    assert result.value == pytest.approx(case["gap"], abs=1e-12)
    assert result.gain.sum() == pytest.approx(case["gap"], abs=1e-12)
    if "gap_ignoring_non_landmark" in case:
        ignoring = gap_of_judged(judge(submission, truth), ignore_non_landmark=True)
        assert ignoring.value == pytest.approx(case["gap_ignoring_non_landmark"], abs=1e-12)


def test_the_parts_of_a_result_are_named_by_query() -> None:
    case = GOLDEN["cases"][8]  # G8
    submission, truth = make_submission(case["predictions"]), make_truth(case["truth"])
    judged, result = judge(submission, truth), gap_of_judged(judge(submission, truth))
    assert judged.query_ids == ("a", "b", "c", "d", "e")
    assert [judged.query_ids[row] for row in result.order] == ["a", "b", "d", "c", "e"]
    assert result.precision.tolist() == pytest.approx([0, 1 / 2, 2 / 3, 2 / 4, 3 / 5])
    assert result.gain.tolist() == pytest.approx([0, 1 / 8, 0, 1 / 6, 3 / 20])
    assert result.recall.tolist() == pytest.approx([0, 1 / 4, 2 / 4, 2 / 4, 3 / 4])
    assert (result.positives, result.predictions) == (4, 5)
    assert judged.accuracy() == pytest.approx(3 / 4)


def test_an_unknown_id_is_refused_with_its_place() -> None:
    with pytest.raises(SubmissionError, match="unknown query id z"):
        gap_of_judged(judge(make_submission({"z": ("1", 0.5)}), make_truth({"a": ["1"]})))


def test_a_row_left_out_counts_as_blank() -> None:
    truth = make_truth({"a": ["1"], "b": ["2"]})
    left_out = gap_of_judged(judge(make_submission({"a": ("1", 0.5)}), truth))
    blank = gap_of_judged(judge(make_submission({"a": ("1", 0.5), "b": None}), truth))
    assert left_out.value == blank.value == 0.5


def test_usages_are_ranked_apart_and_ignored_rows_count_nowhere() -> None:
    usage = {"a": "Public", "b": "Private", "c": "Ignored", "d": "Public"}
    truth = make_truth({"a": ["1"], "b": ["2"], "c": [], "d": []}, usage)
    submission = make_submission(
        {"a": ("1", 0.3), "b": ("9", 0.5), "c": ("5", 0.9), "d": ("5", 0.1)}
    )
    assert gap_of_judged(judge(submission, truth, "Public")).value == 1.0
    assert gap_of_judged(judge(submission, truth, "Private")).value == 0.0
    assert gap_of_judged(judge(submission, truth)).value == 0.25  # behind b, not behind c
    assert gap_of_judged(judge(submission, truth)).predictions == 3


def test_no_landmark_query_or_no_such_usage_raises() -> None:
    with pytest.raises(SubmissionError, match="not defined"):
        gap_of_judged(judge(make_submission({"a": ("1", 0.5)}), make_truth({"a": []})))
    with pytest.raises(UsageError, match="no row of usage Public"):
        gap_of_judged(judge(make_submission({}), make_truth({"a": ["1"]}), "Public"))


@pytest.mark.parametrize(
    ("confidence", "correct", "positives", "message"),
    [
        ([0.5], [True], 0, "not defined"),
        ([0.5, np.nan], [True, False], 1, "NaN"),
        ([0.5, 0.4], [True, True], 1, "2 right answers"),
        ([0.5], [True, False], 2, "float \\[n\\]"),
    ],
)
def test_the_array_form_refuses_what_has_no_gap(
    confidence: list[float], correct: list[bool], positives: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gap(np.array(confidence), np.array(correct), positives)


LABELS = ("1", "2", "3")
SCORES = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1e9])  # few, so ties are common


@st.composite
def contests(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, list[str]]]:
    queries = draw(st.lists(st.text("ab019", min_size=1, max_size=3), min_size=1, unique=True))
    true_labels = st.lists(st.sampled_from(LABELS), max_size=3, unique=True)
    truth = {query: draw(true_labels) for query in queries}
    truth[queries[0]] = truth[queries[0]] or ["1"]
    answer = st.none() | st.tuples(st.sampled_from(LABELS), SCORES)
    answered = draw(st.permutations(queries))[: draw(st.integers(0, len(queries)))]
    return {query: draw(answer) for query in answered}, truth


@settings(max_examples=1000, deadline=None)
@given(contests())
def test_equal_to_a_slow_reference(contest: tuple[dict[str, Any], dict[str, list[str]]]) -> None:
    answers, labels = contest
    submission, truth = make_submission(answers), make_truth(labels)
    for ignore in (False, True):
        result = gap_of_judged(judge(submission, truth), ignore_non_landmark=ignore)
        assert result.value == pytest.approx(slow_gap(answers, labels, ignore), abs=1e-12)
        assert result.gain.sum() == pytest.approx(result.value, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(contests(), st.randoms(use_true_random=False))
def test_invariant_to_monotone_rescale_and_row_order(
    contest: tuple[dict[str, Any], dict[str, list[str]]], random: Any
) -> None:
    answers, labels = contest
    truth = make_truth(labels)
    value = gap_of_judged(judge(make_submission(answers), truth)).value
    rescaled = {
        query: answer and (answer[0], float(np.cbrt(answer[1]) * 7 - 3))
        for query, answer in answers.items()
    }
    assert gap_of_judged(judge(make_submission(rescaled), truth)).value == value
    shuffled = list(answers.items())
    random.shuffle(shuffled)
    assert gap_of_judged(judge(make_submission(dict(shuffled)), truth)).value == value
    upside_down = make_truth(dict(reversed(labels.items())))
    assert gap_of_judged(judge(make_submission(answers), upside_down)).value == value


def test_tie_order_of_the_array_form() -> None:
    confidence, correct = np.array([0.5, 0.5]), np.array([False, True])
    assert gap(confidence, correct, 2).value == 0.25
    assert gap(confidence, correct, 2, tie_order=np.array([1, 0])).value == 0.5


def slow_weighted_gap(
    rows: list[tuple[float, bool, bool, float]],  # confidence, landmark, correct, weight
) -> float:
    ranked = sorted(rows, key=lambda row: -row[0])
    total = 0.0
    for i, (_, _, right, weight) in enumerate(ranked):
        if right:
            ahead = ranked[: i + 1]
            share = sum(w for _, _, r, w in ahead if r) / sum(w for *_, w in ahead)
            total += weight * share
    return total / sum(w for _, landmark, _, w in rows if landmark)


WEIGHTED_ROWS = st.lists(
    st.tuples(SCORES, st.booleans(), st.booleans(), st.floats(0.01, 100)), min_size=1, max_size=30
)


@settings(max_examples=300, deadline=None)
@given(WEIGHTED_ROWS)
def test_weighted_gap_equals_its_definition(rows: list[tuple[float, bool, bool, float]]) -> None:
    rows = [(c, landmark, right and landmark, w) for c, landmark, right, w in rows]
    rows.append((0.0, True, True, 1.0))
    judged = judged_of([(c, landmark, right) for c, landmark, right, _ in rows])
    weights = np.array([w for *_, w in rows])
    result = gap_of_judged(judged, weights=weights)
    assert result.value == pytest.approx(slow_weighted_gap(rows), abs=1e-12)
    equal = gap_of_judged(judged, weights=np.full(len(rows), 3.5))
    assert equal.value == pytest.approx(gap_of_judged(judged).value, abs=1e-12)
    ones = gap_of_judged(judged, weights=np.ones(len(rows)))
    assert ones.value == gap_of_judged(judged).value


def judged_of(rows: list[tuple[float, bool, bool]]) -> Judged:
    return Judged(
        tuple(f"{row:06}" for row in range(len(rows))),
        np.array([landmark for _, landmark, _ in rows]),
        np.ones(len(rows), dtype=bool),
        np.array([right for *_, right in rows]),
        np.array([confidence for confidence, *_ in rows]),
    )


def test_contest_gap_weighs_the_share_without_a_landmark() -> None:
    # Two landmarks, two others; 98 % without: each landmark weighs 2 * .02 / (2 * .98) = 1/49.
    judged = judged_of(
        [(0.9, True, True), (0.8, False, False), (0.7, True, True), (0.6, False, False)]
    )
    weights = contest_weights(judged)
    assert weights[~judged.has_landmark].sum() / weights.sum() == pytest.approx(0.98)
    w = 1 / 49
    assert contest_gap(judged).value == pytest.approx((1 + 2 * w / (2 * w + 1)) / 2)
    assert contest_gap(judged, 0.5).value == pytest.approx(gap_of_judged(judged).value)


def test_contest_gap_needs_both_kinds_of_queries() -> None:
    with pytest.raises(SubmissionError, match="every query shows a landmark"):
        contest_gap(judged_of([(0.5, True, True)]))
    with pytest.raises(SubmissionError, match="no query shows a landmark"):
        contest_gap(judged_of([(0.5, False, False)]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        contest_gap(judged_of([(0.5, True, True), (0.4, False, False)]), 1.0)


@pytest.mark.parametrize("weights", [[0.0], [-1.0], [np.nan], [np.inf], [1.0, 1.0]])
def test_weights_must_be_above_0(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be"):
        gap(np.array([0.5]), np.array([True]), 1, weights=np.array(weights))


def test_judged_refuses_what_cannot_be() -> None:
    yes, no = np.array([True]), np.array([False])
    with pytest.raises(ValueError, match="right where there is no landmark"):
        Judged(("a",), no, yes, yes, np.array([0.5]))
    with pytest.raises(ValueError, match="must rise"):
        Judged(("b", "a"), *(np.zeros(2, dtype=bool),) * 3, np.zeros(2))
    with pytest.raises(ValueError, match="NaN"):
        Judged(("a",), yes, yes, yes, np.array([np.nan]))
    with pytest.raises(ValueError, match="confidence must be"):
        Judged(("a",), yes, yes, yes, np.zeros(2))


@settings(max_examples=300, deadline=None)
@given(contests())
def test_losses_and_gap_sum_to_1(contest: tuple[dict[str, Any], dict[str, list[str]]]) -> None:
    answers, labels = contest
    judged = judge(make_submission(answers), make_truth(labels))
    losses = gap_losses(judged)
    assert losses.sum() + gap_of_judged(judged).value == pytest.approx(1, abs=1e-9)
    assert (losses >= 0).all()
    assert not losses[judged.correct].any()


def test_losses_blame_misses_and_false_alarms() -> None:
    case = GOLDEN["cases"][8]  # G8: a9 wrong, b2 and d3 right, c4 a false alarm, e5 right; M = 4
    judged = judge(make_submission(case["predictions"]), make_truth(case["truth"]))
    a, b, c, d, e = gap_losses(judged)
    assert a == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 5) / 4)
    assert c == pytest.approx(1 / 5 / 4)
    assert (b, d, e) == (0, 0, 0)
