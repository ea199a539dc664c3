"""mAP@k and its siblings: golden values, a slow reference, the contest's edge cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.embed.errors import SubmissionError, UsageError
from lmk.eval.files.submission import RetrievalSubmission
from lmk.eval.files.truth import RetrievalTruth
from lmk.eval.scores.average_precision import (
    RetrievalResult,
    average_precisions,
    judge_neighbours,
    judge_retrieval,
)
from lmk.index.vectors.neighbours import Neighbours

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "average_precision.json").read_text())


def make_truth(images: dict[str, str], usage: dict[str, str] | None = None) -> RetrievalTruth:
    return RetrievalTruth(
        tuple(images),
        tuple(tuple(of.split()) for of in images.values()),
        tuple((usage or {}).get(query) for query in images),
    )


def make_submission(found: dict[str, str]) -> RetrievalSubmission:
    return RetrievalSubmission(tuple(found), tuple(tuple(of.split()) for of in found.values()))


@pytest.mark.parametrize("case", GOLDEN["retrieval"], ids=lambda case: case["name"])
def test_golden_values(case: dict[str, Any]) -> None:
    result = judge_retrieval(make_submission(case["found"]), make_truth(case["truth"]), k=case["k"])
    assert result.mean_average_precision() == pytest.approx(case["map"], abs=1e-12)


def test_cut_at_100() -> None:
    many = " ".join(map(str, range(150)))
    # R4: 150 true pictures, 100 hits.
    full = judge_retrieval(make_submission({"q": many}), make_truth({"q": many}))
    assert full.mean_average_precision() == 1.0
    assert full.recalls(100).tolist() == [100 / 150]
    # R5: the only hit at rank 101.
    late = judge_retrieval(make_submission({"q": many}), make_truth({"q": "100"}))
    assert late.mean_average_precision() == 0.0
    assert late.mean_median_position() == (101.0, 101.0)


def test_siblings_of_average_precision() -> None:
    truth = make_truth({"q1": "10 20", "q2": "10", "q3": "30 40 50", "q4": "30"})
    result = judge_retrieval(make_submission({"q2": "00 10", "q3": "40", "q4": "30 40"}), truth)
    assert result.precisions(2).tolist() == [0, 0.5, 0.5, 0.5]
    assert result.recalls(2).tolist() == pytest.approx([0, 1, 1 / 3, 1])
    assert result.first_hits().tolist() == [101, 2, 1, 1]
    assert result.mean_median_position() == (26.25, 1.5)
    assert result.precisions(1).mean() == 0.5
    assert result.mean_precisions()[:3].tolist() == pytest.approx([2 / 4, 3 / 8, 3 / 12])
    with pytest.raises(ValueError, match="k must be between 1 and 100, got 101"):
        result.precisions(101)
    with pytest.raises(ValueError, match="k must be between"):
        judge_retrieval(make_submission({}), truth, k=0)


def test_usages_unknown_ids_and_nothing_to_score() -> None:
    usage = {"a": "Public", "b": "Private", "c": "Ignored"}
    truth = make_truth({"a": "x", "b": "y", "c": ""}, usage)
    submission = make_submission({"a": "x", "c": "x"})
    assert judge_retrieval(submission, truth, "Public").mean_average_precision() == 1.0
    assert judge_retrieval(submission, truth, "Private").mean_average_precision() == 0.0
    assert judge_retrieval(submission, truth).mean_average_precision() == 0.5
    with pytest.raises(SubmissionError, match="unknown query id z"):
        judge_retrieval(make_submission({"z": "x"}), truth)
    with pytest.raises(SubmissionError, match="every query is Ignored"):
        judge_retrieval(make_submission({}), make_truth({"c": ""}, {"c": "Ignored"}))
    with pytest.raises(UsageError, match="no row of usage Public"):
        judge_retrieval(make_submission({}), make_truth({"c": "x"}), "Public")
    with pytest.raises(ValueError, match="not defined"):
        judge_retrieval(make_submission({}), make_truth({"c": ""}))


def slow_average_precision(found: list[str], true: set[str], k: int) -> float:
    """The definition, word for word."""
    total, seen = 0.0, list[str]()
    for rank, image in enumerate(found[:k], start=1):
        if image in true and image not in seen:
            total += len(true & {*seen, image}) / rank
        seen.append(image)
    return total / min(len(true), k)


IMAGES = st.sampled_from("abcdefgh")


@settings(max_examples=1000, deadline=None)
@given(
    st.dictionaries(
        st.text("pq", max_size=3, min_size=1),
        st.tuples(st.lists(IMAGES, max_size=9), st.sets(IMAGES, min_size=1)),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 10),
)
def test_equal_to_a_slow_reference(queries: dict[str, tuple[list[str], set[str]]], k: int) -> None:
    submission = make_submission({query: " ".join(found) for query, (found, _) in queries.items()})
    truth = make_truth({query: " ".join(true) for query, (_, true) in queries.items()})
    result = judge_retrieval(submission, truth, k=k)
    expected = [slow_average_precision(found, true, k) for found, true in queries.values()]
    assert result.average_precisions().tolist() == pytest.approx(expected, abs=1e-12)


def test_hits_of_a_search() -> None:
    neighbours = Neighbours(
        np.array([[2, 0, 3], [1, -1, -1], [0, 1, 2]]),
        np.array([[0.9, 0.8, 0.1], [0.5, -np.inf, -np.inf], [0.3, 0.2, 0.1]], dtype=np.float32),
        ("p", "q", "r"),
    )
    gallery = [("eiffel",), (), ("eiffel", "paris"), ("louvre",)]
    result = judge_neighbours(neighbours, gallery, [("eiffel",), ("louvre", "paris"), ("big_ben",)])
    assert result.query_ids == ("p", "q")  # nothing in the gallery shows Big Ben
    assert result.hits.tolist() == [[True, True, False], [False, False, False]]
    assert result.relevant.tolist() == [2, 2]
    with pytest.raises(SubmissionError, match="no query shows a landmark of the gallery"):
        judge_neighbours(neighbours, gallery, [(), (), ("big_ben",)])
    with pytest.raises(ValueError, match="3 queries, 1 labels"):
        judge_neighbours(neighbours, gallery, [()])


@pytest.mark.parametrize(
    ("hits", "relevant", "message"),
    [
        ([[True, True]], [1], "more hits than true pictures"),
        ([[False]], [0], "not defined"),
        ([[1.0]], [1], "must be bool"),
        ([[]], [1], "not empty"),
    ],
)
def test_what_has_no_average_precision(hits: Any, relevant: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_precisions(np.array(hits), np.array(relevant))
    with pytest.raises(ValueError, match=message):
        RetrievalResult(("q",), np.array(hits), np.array(relevant))
    with pytest.raises(ValueError, match="2 queries, hits"):
        RetrievalResult(("q", "r"), np.array(hits), np.array(relevant))
