"""Tuning, on an index whose recall is known: it finds each neighbour with a chance of its own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.ann import recall as ann_recall
from lmk.index.ann.recall import Tuned, tune
from lmk.index.vectors.view import View

ROWS, DIM = 1200, 16
EFFORTS = (1, 2, 4, 8, 16, 32, 64)


@pytest.fixture(scope="module")
def view() -> View:
    vectors = unit_rows(np.random.default_rng(0).normal(size=(ROWS, DIM)))
    return View.of_embeddings(Embeddings(vectors, tuple(map(str, range(ROWS))), "f"))


class Index:
    """Finds the first rows of a true order of which it cannot see some.

    Args:
        view: searched.
        seen: the share of rows it sees, by the query's hardness (0 or 1) and the effort.
        shuffle: places by which a candidate may stand off its rank.
    """

    def __init__(self, view: View, seen: object, shuffle: int = 0) -> None:
        self.vectors = view.stored.read(np.arange(ROWS))
        self.seen, self.shuffle = seen, shuffle
        self.asked: list[tuple[int, int]] = []

    def __call__(self, queries: np.ndarray, depth: int, effort: int) -> np.ndarray:
        self.asked.append((effort, depth))
        found = np.full((len(queries), depth), -1)
        for i, scores in enumerate(queries @ self.vectors.T):
            order = np.argsort(-scores, kind="stable")
            rng = np.random.default_rng(int(order[0]))  # of the query: more effort sees more
            chance, off = rng.random(ROWS), rng.integers(0, self.shuffle + 1, ROWS)
            hard = bool(queries[i, 0] < 0)
            order = order[np.argsort(np.arange(ROWS) + off, kind="stable")]
            got = order[chance[order] < self.seen(hard, effort)][:depth]  # type: ignore[operator]
            found[i, : len(got)] = got
        return found


def recall(view: View, index: Index, tuned: Tuned, k: int) -> float:
    """By brute force, over all rows as queries, each without itself."""
    hits = 0
    vectors = view.stored.read(np.arange(ROWS))
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    first = index(vectors, k * tuned.factor + 1, tuned.effort)
    second = index(vectors, k * tuned.factor + 1, tuned.second_effort)
    for row in range(ROWS):
        best = np.argsort(-scores[row], kind="stable")[:k]
        got = first[row][(first[row] != row) & (first[row] >= 0)]
        if np.sort(scores[row, got])[::-1][:k][-1] < tuned.rescore_below:
            got = second[row]
        hits += np.isin(best, got).sum()
    return hits / (k * ROWS)


def test_one_effort_where_queries_are_alike(view: View) -> None:
    index = Index(view, lambda hard, effort: min(1, 0.7 + effort / 25))
    ten, hundred = tune(view, index, EFFORTS, 0.98)
    assert (ten.effort, ten.second_effort, ten.factor) == (8, 8, 1) and ten.second_share == 0
    assert (ten.k, hundred.k) == (10, 100)
    assert ten.recall == hundred.recall == 1
    assert {effort for effort, _ in index.asked} == {1, 2, 4, 8}  # none harder than is needed
    assert {depth for _, depth in index.asked} == {641, ROWS}


@pytest.mark.parametrize("goal", [0.8, 0.9, 0.97])
def test_the_recall_told_is_that_of_the_whole_gallery(view: View, goal: float) -> None:
    index = Index(view, lambda hard, effort: 0.6 + 0.4 * effort / 64, shuffle=20)
    for tuned in tune(view, index, EFFORTS, goal):
        assert tuned.recall >= goal
        assert recall(view, index, tuned, tuned.k) == pytest.approx(tuned.recall, abs=0.015)


def test_candidates_out_of_order_take_more_of_them(view: View) -> None:
    straight, _ = tune(view, Index(view, lambda hard, effort: 1), EFFORTS, 0.99)
    shuffled, _ = tune(view, Index(view, lambda hard, effort: 1, shuffle=30), EFFORTS, 0.99)
    assert straight.factor == 1 and 3 <= shuffled.factor <= 4
    assert straight.effort == shuffled.effort == 1


def test_only_hard_queries_are_searched_again() -> None:
    """Half of the rows lie in tight groups; the others, far from all, are found with effort."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(30, DIM))
    easy = np.repeat(centres, 20, axis=0) + 0.05 * rng.normal(size=(600, DIM))
    vectors = unit_rows(np.concatenate([easy, rng.normal(size=(600, DIM))]))
    vectors[:600, 0], vectors[600:, 0] = np.abs(vectors[:600, 0]), -np.abs(vectors[600:, 0])
    view = View.of_embeddings(Embeddings(vectors, tuple(map(str, range(ROWS))), "f"))
    index = Index(view, lambda hard, effort: effort / 64 if hard else 1)
    ten = tune(view, index, EFFORTS, 0.99)[0]
    assert ten.effort == 1 and ten.second_effort == 64 and 0.4 < ten.second_share < 0.65
    assert 0 < ten.rescore_below < 1 and ten.recall >= 0.99
    assert recall(view, index, ten, 10) >= 0.99


def test_a_recall_out_of_reach_gets_the_most_there_is(view: View) -> None:
    index = Index(view, lambda hard, effort: 0.5)
    ten, _ = tune(view, index, EFFORTS, 0.9)
    assert (ten.effort, ten.second_effort, ten.factor, ten.rescore_below) == (64, 64, 64, -2.0)
    assert 0.4 < ten.recall < 0.6


def test_nothing_is_found(view: View) -> None:
    ten, _ = tune(view, Index(view, lambda hard, effort: 0), EFFORTS, 0.9)
    assert ten.recall == 0


@pytest.mark.parametrize("rows", [2, 9, 200])
def test_few_rows(rows: int) -> None:
    vectors = unit_rows(np.random.default_rng(0).normal(size=(rows, DIM)))
    few = View.of_embeddings(Embeddings(vectors, tuple(map(str, range(rows))), "f"))

    def every(queries: np.ndarray, depth: int, effort: int) -> np.ndarray:
        return np.argsort(-(queries @ vectors.T), axis=1)[:, :depth]

    (ten,) = tune(few, every, (1,), 0.99)
    assert ten.recall == 1 and ten.factor == 1


def test_equal_scores_at_the_last_place_are_as_good() -> None:
    """Each row has 15 equals; an index that gives the higher ones of them misses nothing."""
    vectors = np.repeat(unit_rows(np.random.default_rng(0).normal(size=(80, DIM))), 15, axis=0)
    view = View.of_embeddings(Embeddings(vectors, tuple(map(str, range(ROWS))), "f"))

    def higher(queries: np.ndarray, depth: int, effort: int) -> np.ndarray:
        scores = (queries.astype(np.float64) @ vectors.T.astype(np.float64)).round(9)
        return np.argsort(-scores[:, ::-1], axis=1, kind="stable")[:, :depth] * -1 + ROWS - 1

    assert tune(view, higher, (1,), 0.99)[0].recall == 1


def test_a_sample_is_seeded_and_its_halves_are_apart(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann_recall, "SAMPLE", 20)
    first, second = ann_recall._Sample(view), ann_recall._Sample(view)
    np.testing.assert_array_equal(first.rows, second.rows)
    assert len(set(first.rows)) == 40
    assert (first.true != first.rows[:, None]).all() and (np.diff(first.scores) <= 0).all()


def test_an_index_that_scores_what_it_looks_at_needs_no_spare_candidates(view: View) -> None:
    """And of pairs of efforts with about as much work, that in which most wait for less."""
    index = Index(view, lambda hard, effort: effort / 64 if hard else min(1, 0.9 + effort / 100))
    ten, hundred = tune(view, index, EFFORTS, 0.9, scored=True)
    assert (ten.factor, hundred.factor) == (1, 1)
    assert {depth for _, depth in index.asked} == {11, 101}
    assert ten.recall >= 0.9 and recall(view, index, ten, 10) >= 0.88


@pytest.mark.parametrize(
    ("again", "work"), [(0.4, 10 + 0.4 * 90 + 10), (0.41, 10 + 0.41 * 90 + 100)]
)
def test_the_work_of_going_on(again: float, work: float) -> None:
    trials = SimpleNamespace(scored=True)
    assert ann_recall._work(trials, 10, 100, again, 20) == pytest.approx(work)  # type: ignore[arg-type]
    trials.scored = False
    assert ann_recall._work(trials, 10, 100, 0.5, 20) == 30 + 60  # type: ignore[arg-type]


def test_the_saved_form_keeps_its_names() -> None:
    saved = {
        "k": 10,
        "effort": 2,
        "more": 8,
        "sure": 0.5,
        "factor": 3,
        "again": 0.25,
        "recall": 1.0,
    }
    tuned = Tuned(10, 2, 8, 0.5, 3, 0.25, 1.0)
    assert tuned.to_json() == saved
    assert Tuned.from_json(saved) == tuned
