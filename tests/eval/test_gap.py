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
from lmk.eval.gap import gap, gap_of
from lmk.eval.judged import judge
from lmk.eval.submission import Submission
from lmk.eval.truth import Truth

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gap.json").read_text())


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
    result = gap_of(submission, truth)
    assert result.value == pytest.approx(case["gap"], abs=1e-12)
    assert result.gain.sum() == pytest.approx(case["gap"], abs=1e-12)
    if "gap_ignoring_non_landmark" in case:
        ignoring = gap_of(submission, truth, ignore_non_landmark=True)
        assert ignoring.value == pytest.approx(case["gap_ignoring_non_landmark"], abs=1e-12)


def test_the_parts_of_a_result_are_named_by_query() -> None:
    case = GOLDEN["cases"][8]  # G8
    submission, truth = make_submission(case["predictions"]), make_truth(case["truth"])
    judged, result = judge(submission, truth), gap_of(submission, truth)
    assert judged.query_ids == ("a", "b", "c", "d", "e")
    assert [judged.query_ids[row] for row in result.order] == ["a", "b", "d", "c", "e"]
    assert result.precision.tolist() == pytest.approx([0, 1 / 2, 2 / 3, 2 / 4, 3 / 5])
    assert result.gain.tolist() == pytest.approx([0, 1 / 8, 0, 1 / 6, 3 / 20])
    assert result.recall().tolist() == pytest.approx([0, 1 / 4, 2 / 4, 2 / 4, 3 / 4])
    assert (result.positives, result.predictions) == (4, 5)
    assert judged.accuracy() == pytest.approx(3 / 4)


def test_an_unknown_id_is_refused_with_its_place() -> None:
    with pytest.raises(SubmissionError, match="unknown query id z"):
        gap_of(make_submission({"z": ("1", 0.5)}), make_truth({"a": ["1"]}))


def test_a_row_left_out_counts_as_blank() -> None:
    truth = make_truth({"a": ["1"], "b": ["2"]})
    left_out = gap_of(make_submission({"a": ("1", 0.5)}), truth)
    blank = gap_of(make_submission({"a": ("1", 0.5), "b": None}), truth)
    assert left_out.value == blank.value == 0.5


def test_usages_are_ranked_apart_and_ignored_rows_count_nowhere() -> None:
    usage = {"a": "Public", "b": "Private", "c": "Ignored", "d": "Public"}
    truth = make_truth({"a": ["1"], "b": ["2"], "c": [], "d": []}, usage)
    submission = make_submission(
        {"a": ("1", 0.3), "b": ("9", 0.5), "c": ("5", 0.9), "d": ("5", 0.1)}
    )
    assert gap_of(submission, truth, "Public").value == 1.0
    assert gap_of(submission, truth, "Private").value == 0.0
    assert gap_of(submission, truth).value == 0.25  # behind b, not behind c
    assert gap_of(submission, truth).predictions == 3


def test_no_landmark_query_or_no_such_usage_raises() -> None:
    with pytest.raises(SubmissionError, match="not defined"):
        gap_of(make_submission({"a": ("1", 0.5)}), make_truth({"a": []}))
    with pytest.raises(UsageError, match="no row of usage Public"):
        gap_of(make_submission({}), make_truth({"a": ["1"]}), "Public")


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
        result = gap_of(submission, truth, ignore_non_landmark=ignore)
        assert result.value == pytest.approx(slow_gap(answers, labels, ignore), abs=1e-12)
        assert result.gain.sum() == pytest.approx(result.value, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(contests(), st.randoms(use_true_random=False))
def test_invariant_to_monotone_rescale_and_row_order(
    contest: tuple[dict[str, Any], dict[str, list[str]]], random: Any
) -> None:
    answers, labels = contest
    truth = make_truth(labels)
    value = gap_of(make_submission(answers), truth).value
    rescaled = {
        query: answer and (answer[0], float(np.cbrt(answer[1]) * 7 - 3))
        for query, answer in answers.items()
    }
    assert gap_of(make_submission(rescaled), truth).value == value
    shuffled = list(answers.items())
    random.shuffle(shuffled)
    assert gap_of(make_submission(dict(shuffled)), truth).value == value
    upside_down = make_truth(dict(reversed(labels.items())))
    assert gap_of(make_submission(answers), upside_down).value == value


def test_tie_order_of_the_array_form() -> None:
    confidence, correct = np.array([0.5, 0.5]), np.array([False, True])
    assert gap(confidence, correct, 2).value == 0.25
    assert gap(confidence, correct, 2, tie_order=np.array([1, 0])).value == 0.5
