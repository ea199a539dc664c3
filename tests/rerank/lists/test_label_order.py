"""Label-aware order: worked examples of the contests, and lists as oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.index.vectors.neighbours import Neighbours
from lmk.rerank.lists.label_order import (
    SoftLabels,
    boost_by_tags,
    insert_by_label,
    soft_labels,
    sort_by_label,
    tags_of,
)

Make = Callable[..., Neighbours]


def labels(*pairs: tuple[int, float]) -> SoftLabels:
    return SoftLabels(
        np.array([code for code, _ in pairs], np.int64),
        np.array([score for _, score in pairs], np.float32),
    )


@pytest.fixture
def train() -> tuple[np.ndarray, np.ndarray]:
    """Rows 0 to 5 of the train set have the labels 0 0 1 1 2 none."""
    return np.array([0, 1, 2, 3, 4, 5, 5]), np.array([0, 0, 1, 1, 2], np.int32)


def test_soft_labels(neighbours: Make, train: tuple[np.ndarray, np.ndarray]) -> None:
    found = neighbours(
        [(0, 0.9), (2, 0.6), (3, 0.6), (1, 0.5)],  # .9 against 1.2: label 1, and the 4th is late
        [(4, 0.8), (5, 0.7)],  # one vote of three
        [(5, 0.7)],
        [(0, -0.5)],  # unlike: label, but no score
    )
    got = soft_labels(found, *train)
    assert got.codes.tolist() == [1, 2, -1, 0]
    np.testing.assert_allclose(got.scores, [1.2 / 3, 0.8 / 3, 0, 0], rtol=1e-6)


def test_sort(neighbours: Make) -> None:
    found = neighbours([(0, 0.9), (1, 0.8), (2, 0.7), (3, 0.6)], [(0, 0.5)], [(1, 0.4)])
    index = labels((5, 1), (7, 1), (-1, 0), (7, 0.1))
    got = sort_by_label(found, labels((7, 0.2), (-1, 0), (7, 1)), index)
    assert got.rows.tolist() == [[1, 3, 0, 2], [0, -1, -1, -1], [1, -1, -1, -1]]
    np.testing.assert_allclose(got.scores[0], [2.8, 2.6, 0.9, 0.7], rtol=1e-6)
    assert got.scores[1, 0] == np.float32(0.5), "no label of its own, nothing moves"


def test_insert(neighbours: Make) -> None:
    found = neighbours([(0, 0.9), (1, 0.8), (2, 0.7)])
    index = labels((5, 1), (7, 1), (5, 1), (7, 0.1), (7, 0.5), (7, 0.4), (7, 0.45))
    got = insert_by_label(found, labels((7, 0.2)), index, k=6)
    # .2 + .4 is not above .6 (float32 would say so of .6000000238; the sum is compared as it is)
    assert got.rows.tolist() == [[1, 4, 6, 0, 2, -1]]
    np.testing.assert_allclose(got.scores[0, :5], [4.8, 2.5, 2.45, 0.9, 0.7], rtol=1e-6)
    assert insert_by_label(found, labels((7, 0.2)), index, k=2).rows.tolist() == [[1, 4]]
    nothing = insert_by_label(found, labels((-1, 0.9)), index, k=3)
    assert nothing.rows.tolist() == [[0, 1, 2]], "no label: not the row without label either"


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 10),
    k=st.integers(1, 8),
    cut=st.integers(1, 12),
    sure=st.sampled_from([0.0, 0.6, 2.0]),
)
def test_against_lists(seed: int, rows: int, k: int, cut: int, sure: float) -> None:
    rng = np.random.default_rng(seed)
    cosines = np.round(rng.uniform(-1, 1, rows), 1).astype(np.float32)
    order = sorted(range(rows), key=lambda r: (-cosines[r], r))[:k]
    found = np.full((1, k), -1, np.int64), np.full((1, k), -np.inf, np.float32)
    found[0][0, : len(order)], found[1][0, : len(order)] = order, cosines[order]
    lists = Neighbours(*found, ("q",))
    codes = rng.integers(-1, 3, rows)
    index = SoftLabels(codes, np.round(rng.uniform(0, 1, rows), 1).astype(np.float32))
    query = labels((int(rng.integers(-1, 3)), round(float(rng.uniform(0, 1)), 1)))
    label = int(query.codes[0])
    front = [r for r in order if label >= 0 and codes[r] == label]
    rest = [r for r in order if r not in front]
    got = sort_by_label(lists, query, index).rows[0]
    assert [r for r in got if r >= 0] == front + rest
    missed = [r for r in range(rows) if label >= 0 and codes[r] == label and r not in order]
    missed = [r for r in missed if query.scores[0] + index.scores[r] > sure]
    missed.sort(key=lambda r: (-index.scores[r], r))
    got = insert_by_label(lists, query, index, sure=sure, k=cut).rows[0]
    assert [r for r in got if r >= 0] == (front + missed + rest)[:cut] and len(got) == cut


def test_moving_ties_nothing() -> None:
    """Two cosines a last bit apart are equal after + 2; the nearer one stays in front."""
    high = np.float32(0.3)
    low = np.nextafter(high, np.float32(0))
    assert high + np.float32(2) == low + np.float32(2)
    found = Neighbours(np.array([[1, 0]]), np.array([[high, low]]), ("q",))
    got = sort_by_label(found, labels((3, 1)), labels((3, 1), (3, 1)))
    assert got.rows.tolist() == [[1, 0]]


def test_an_empty_index() -> None:
    found = Neighbours(np.full((1, 2), -1, np.int64), np.full((1, 2), -np.inf, np.float32), ("q",))
    empty = labels()
    assert sort_by_label(found, labels((0, 1)), empty).rows.tolist() == [[-1, -1]]
    assert insert_by_label(found, labels((0, 1)), empty, k=3).rows.tolist() == [[-1, -1, -1]]


def test_tags(neighbours: Make, train: tuple[np.ndarray, np.ndarray]) -> None:
    found = neighbours([(0, 0.9), (2, 0.6), (3, 0.3), (4, 0.2)], [(5, 0.5)], [(4, 0.5)], [(4, -1)])
    tags = tags_of(found, *train)
    assert tags.query.tolist() == [0, 0, 2] and tags.code.tolist() == [0, 1, 2]
    np.testing.assert_allclose(tags.share, [0.5, 0.5, 1], rtol=1e-6)


def test_the_worked_example_of_the_soft_form(neighbours: Make) -> None:
    """.7 + alpha * .7 + beta * .9: label share .7, country share .9."""
    train = neighbours([(0, 0.7), (1, 0.2), (2, 0.1)])
    landmarks = tags_of(train, np.arange(4), np.array([0, 1, 2], np.int32))
    countries = tags_of(train, np.arange(4), np.array([0, 0, 1], np.int32))
    found = neighbours([(1, 0.9), (0, 0.7), (2, 0.75)])
    got = boost_by_tags(found, landmarks, np.array([0, 5, -1]))
    assert got.rows.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(got.scores, [[1.4, 0.9, 0.75]], rtol=1e-6)
    got = boost_by_tags(got, countries, np.array([0, 9, 1]), weight=0.1)
    np.testing.assert_allclose(got.scores, [[0.7 + 0.7 + 0.1 * 0.9, 0.9, 0.76]], rtol=1e-6)


@given(seed=st.integers(0, 10_000), q=st.integers(0, 4), k=st.integers(1, 5))
def test_the_soft_form_against_a_loop(seed: int, q: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.argsort(rng.random((q, 7)), axis=1)[:, :k]
    scores = -np.sort(-rng.random((q, k)), axis=1).astype(np.float32)
    found = Neighbours(rows, scores, tuple(map(str, range(q))))
    row_codes = rng.integers(-1, 4, 7)
    known = Neighbours(
        np.argsort(rng.random((q, 5)), axis=1)[:, :3],
        -np.sort(-rng.random((q, 3)), axis=1).astype(np.float32),
        found.query_ids,
    )
    label = rng.integers(0, 5, 5).astype(np.int32)
    tags = tags_of(known, np.arange(6), label)
    got = boost_by_tags(found, tags, row_codes, weight=0.5)
    for i in range(q):
        whole = known.scores[i].astype(float).sum()
        for row, score in zip(got.rows[i], got.scores[i], strict=True):
            votes = known.scores[i][label[known.rows[i]] == row_codes[row]].astype(float).sum()
            before = float(scores[i][rows[i].tolist().index(row)])
            assert score == pytest.approx(before + 0.5 * votes / whole, abs=1e-6)
