"""Candidates in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmk.rerank.steps.ranking import order_of, ranked

ROWS = np.array([[5, 3, 9, -1], [1, 2, -1, -1]])
SCORES = np.array([[0.5, 0.5, 0.7, 3.0], [-np.inf, -2.0, 0, 0]])


def test_by_score_then_row() -> None:
    got = ranked(ROWS, SCORES, ("a", "b"))
    assert got.rows.tolist() == [[9, 3, 5, -1], [2, -1, -1, -1]]
    assert got.scores.tolist() == [
        [np.float32(0.7), 0.5, 0.5, -np.inf],
        [-2, -np.inf, -np.inf, -np.inf],
    ]
    assert ranked(ROWS, SCORES, ("a", "b"), 2).rows.tolist() == [[9, 3], [2, -1]]


def test_or_by_score_then_place() -> None:
    got = ranked(ROWS, SCORES, ("a", "b"), keep_order=True)
    assert got.rows.tolist() == [[9, 5, 3, -1], [2, -1, -1, -1]]


def test_scores_tie_as_they_are_kept() -> None:
    """Equal as float32: then the row decides, not a difference nobody can see."""
    got = ranked(np.array([[4, 2]]), np.array([[0.5 + 1e-12, 0.5]]), ("q",))
    assert got.rows.tolist() == [[2, 4]] and got.scores.dtype == np.float32


def test_nothing() -> None:
    assert ranked(np.zeros((0, 3), np.int64), np.zeros((0, 3)), ()).k == 3
    assert ranked(np.zeros((2, 0), np.int64), np.zeros((2, 0)), ("a", "b")).k == 0


@given(seed=st.integers(0, 10_000), q=st.integers(0, 4), n=st.integers(0, 9))
def test_the_order_against_sorting(seed: int, q: int, n: int) -> None:
    """Few different scores, so that there are ties of every kind."""
    rng = np.random.default_rng(seed)
    rows = np.argsort(rng.random((q, 12)), axis=1)[:, :n]
    scores = rng.choice([0.1, 0.2, -0.3, -np.inf], (q, n)).astype(np.float32)
    got = order_of(rows, scores)
    assert got.tolist() == [
        sorted(range(n), key=lambda j, i=i: (-scores[i, j], rows[i, j])) for i in range(q)
    ]
