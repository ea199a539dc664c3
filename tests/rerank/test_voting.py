"""Votes against a slow count."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmk.rerank.voting import vote


def slow(
    rows: list[list[int]], weights: list[list[float]], labels: list[list[int]]
) -> list[tuple[int, float, list[float]]]:
    results = []
    for query, given_ in zip(rows, weights, strict=True):
        sums: dict[int, float] = {}
        for row, weight in zip(query, given_, strict=True):
            for label in labels[row] if row >= 0 else []:
                sums[label] = sums.get(label, 0.0) + weight
        if sums:
            winner = min(sums, key=lambda label: (-sums[label], label))
            shares = [
                weight if row >= 0 and winner in labels[row] else 0.0
                for row, weight in zip(query, given_, strict=True)
            ]
            results.append((winner, sums[winner], shares))
        else:
            results.append((-1, 0.0, [0.0] * len(query)))
    return results


@st.composite
def votes(draw: st.DrawFn) -> tuple[list[list[int]], list[list[float]], list[list[int]]]:
    gallery = draw(st.integers(0, 6))
    code = st.lists(st.integers(0, 4), unique=True, max_size=3).map(sorted)
    labels = draw(st.lists(code, min_size=gallery, max_size=gallery))
    k = draw(st.integers(0, 6))
    row, weight = st.integers(-1, gallery - 1), st.sampled_from([0.0, 0.25, 0.5, 1.0])
    q = draw(st.integers(0, 4))
    rows = [draw(st.lists(row, min_size=k, max_size=k)) for _ in range(q)]
    weights = [draw(st.lists(weight, min_size=k, max_size=k)) for _ in range(q)]
    return rows, weights, labels


@given(votes())
def test_against_a_slow_count(
    case: tuple[list[list[int]], list[list[float]], list[list[int]]],
) -> None:
    """Weights are powers of two, so that sums and ties are exact."""
    rows, weights, labels = case
    k = len(rows[0]) if rows else 0
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in labels])]).astype(np.int64)
    codes = np.array([code for row in labels for code in row], np.int32)
    got = vote(
        np.array(rows, np.int64).reshape(len(rows), k),
        np.array(weights, np.float64).reshape(len(rows), k),
        offsets,
        codes,
    )
    expected = slow(rows, weights, labels)
    assert got.winner.tolist() == [winner for winner, _, _ in expected]
    assert got.total.tolist() == [total for _, total, _ in expected]
    assert got.shares.shape == (len(rows), k)
    assert got.shares.tolist() == [shares for _, _, shares in expected]


def test_a_tie_goes_to_the_smaller_code() -> None:
    got = vote(
        np.array([[0, 1]]), np.array([[1.0, 1.0]]), np.array([0, 1, 2]), np.array([7, 3], np.int32)
    )
    assert got.winner.tolist() == [3] and got.shares.tolist() == [[0, 1]]
