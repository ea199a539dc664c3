"""Differences that sum up, and blends by their stated rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.embed.errors import SubmissionError
from lmk.eval.files.submission import Submission
from lmk.eval.files.truth import Truth
from lmk.eval.scores.compare import blend, compare
from lmk.eval.scores.gap import gap_of_judged
from lmk.eval.scores.judged import judge


def make_submission(answers: dict[str, Any]) -> Submission:
    return Submission(
        tuple(answers),
        tuple(answer and answer[0] for answer in answers.values()),
        np.array([answer[1] if answer else -np.inf for answer in answers.values()], dtype=float),
    )


QUERIES = ("a", "b", "c", "d")
TRUTH = Truth(QUERIES, (("1",), ("2",), (), ("3", "4")), (None,) * 4)
ANSWERS = st.dictionaries(
    st.sampled_from(QUERIES),
    st.none() | st.tuples(st.sampled_from("12345"), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
)


@settings(max_examples=300, deadline=None)
@given(ANSWERS, ANSWERS)
def test_changes_sum_to_the_difference(first: dict[str, Any], second: dict[str, Any]) -> None:
    a, b = make_submission(first), make_submission(second)
    result = compare(a, b, TRUTH)
    assert result.first_gap == gap_of_judged(judge(a, TRUTH)).value
    assert result.second_gap == gap_of_judged(judge(b, TRUTH)).value
    assert result.change.sum() == pytest.approx(result.difference, abs=1e-12)


def test_the_query_that_made_the_difference_is_named() -> None:
    first = make_submission({"a": ("1", 0.9), "b": ("2", 0.8), "c": ("9", 0.95), "d": ("9", 0.1)})
    second = make_submission({"a": ("1", 0.9), "b": ("2", 0.8), "c": ("9", 0.01), "d": ("4", 0.1)})
    result = compare(first, second, TRUTH)
    assert [result.first.query_ids[row] for row in result.largest(10)] == ["d", "c"]
    assert result.change.tolist() == pytest.approx([0, 0, (1 / 2 + 1 / 3) / 3, 1 / 3])
    assert result.largest(1).tolist() == [3]
    assert compare(first, first, TRUTH).largest(10).tolist() == []
    with pytest.raises(SubmissionError, match="unknown query id z"):
        compare(first, make_submission({"z": ("1", 1.0)}), TRUTH)


def test_blend_by_rank() -> None:
    # Places: a 3/3, b 2/3, c 1/3 in the first; b 2/2, a 1/2 in the second, on another scale.
    first = make_submission({"a": ("1", 0.9), "b": ("2", 0.8), "c": ("3", -5.0), "d": None})
    second = make_submission({"a": ("7", 100.0), "b": ("2", 200.0), "e": None})
    result = blend([first, second])
    assert result.query_ids == ("a", "b", "c", "d", "e")
    assert result.labels == ("1", "2", "3", None, None)
    assert result.confidence[:3].tolist() == pytest.approx([1 / 2, (2 / 3 + 1) / 2, 1 / 6])
    assert np.isneginf(result.confidence[3:]).all()
    heavier = blend([first, second], [1, 3])
    assert heavier.labels[0] == "7"
    assert heavier.confidence[0] == pytest.approx(3 * (1 / 2) / 4)


def test_ties_in_a_blend() -> None:
    level = make_submission({"a": ("1", 0.5), "b": ("2", 0.5), "c": ("3", 0.1)})
    assert blend([level]).confidence.tolist() == pytest.approx([2.5 / 3, 2.5 / 3, 1 / 3])
    other = make_submission({"a": ("0", 0.5), "b": ("2", 0.5), "c": ("3", 0.1)})
    assert blend([level, other]).labels == ("0", "2", "3")  # the smaller label


def test_blend_by_score() -> None:
    first = make_submission({"a": ("1", 0.9), "b": ("2", 0.2)})
    second = make_submission({"a": ("1", 0.5), "b": ("3", 0.4)})
    result = blend([first, second], [2, 1], "score")
    assert result.labels == ("1", "2")  # 2 * .2 against .4: the smaller label
    assert result.confidence.tolist() == pytest.approx([2.3 / 3, 0.4 / 3])


@settings(max_examples=100, deadline=None)
@given(ANSWERS.filter(lambda answers: any(answers.values())))
def test_a_blend_with_itself_keeps_the_gap(answers: dict[str, Any]) -> None:
    submission = make_submission(answers)
    for rule in ("rank", "score"):
        both = blend([submission, submission], [1, 2], rule)  # type: ignore[arg-type]
        assert both.labels == submission.labels
        assert gap_of_judged(judge(both, TRUTH)).value == pytest.approx(
            gap_of_judged(judge(submission, TRUTH)).value
        )


def test_refusals() -> None:
    one = make_submission({"a": ("1", -0.5)})
    with pytest.raises(ValueError, match="no submission"):
        blend([])
    with pytest.raises(ValueError, match="1 weights above 0"):
        blend([one], [1, 2])
    for weight in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="1 weights above 0"):
            blend([one], [weight])
    with pytest.raises(ValueError, match="not negative"):
        blend([one], rule="score")
    with pytest.raises(ValueError, match="not negative"):
        blend([make_submission({"a": ("1", math.inf)})], rule="score")
    with pytest.raises(ValueError, match="the rule must be"):
        blend([one], rule="mean")  # type: ignore[arg-type]
