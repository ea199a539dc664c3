"""The nearest of each row, brought up to date, are what a fresh search gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.exact.flat import FlatSearcher
from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.vectors import Vectors
from lmk.index.vectors.view import Allow, View
from lmk.rerank.fit.neighbour_table import NearestTable
from lmk.rerank.steps import hits as picks_module
from lmk.rerank.steps.distractor_similarity import mean_of
from lmk.rerank.steps.hits import Sides


class Counting:
    """A flat search that counts the queries it was asked."""

    reason = "a test"

    def __init__(self) -> None:
        self.asked = 0

    def of(self, view: View) -> Counting:
        self._searcher = FlatSearcher(view)
        return self

    def search(self, queries: Embeddings, k: int, allow: Allow | None = None) -> Neighbours:
        self.asked += len(queries)
        return self._searcher.search(queries, k, allow)


def updated(
    table: NearestTable, vectors: np.ndarray, before: Sides, after: Sides
) -> tuple[NearestTable, int]:
    searcher = Counting()
    stored = Vectors.of_array(vectors)
    new = table.updated(searcher.of, stored, "f", before=before, after=after, among="distractors")
    return new, searcher.asked


def anew(vectors: np.ndarray, sides: Sides, n: int) -> NearestTable:
    none = np.zeros(0, np.bool_)
    return updated(NearestTable.empty(0, n), vectors, Sides(none, none), sides)[0]


def slow(vectors: np.ndarray, sides: Sides, n: int) -> list[list[int]]:
    vectors = Vectors.of_array(vectors).read(np.arange(len(vectors)))
    lists = [[-1] * n for _ in vectors]
    for row in np.flatnonzero(sides.gallery):
        others = [i for i in np.flatnonzero(sides.distractors) if i != row]
        cosines = (vectors.astype(float) @ vectors[row].astype(float)).astype(np.float32)
        best = sorted(others, key=lambda i: (-cosines[i], i))[:n]
        lists[row][: len(best)] = best
    return lists


@st.composite
def histories(draw: st.DrawFn) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Vectors, many of them equal, and who asks and is found after each of some steps."""
    rows = draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = unit_rows(rng.integers(-1, 2, (rows, 3)) + 0.01 * rng.integers(0, 2, (rows, 3)))
    steps, there = [], 0
    asking, found = np.zeros(0, np.bool_), np.zeros(0, np.bool_)
    for _ in range(draw(st.integers(1, 4))):
        more = draw(st.integers(0, rows - there))
        asking, found = (
            np.concatenate([side ^ (rng.random(there) < 0.15), rng.random(more) < 0.6])
            for side in (asking, found)
        )
        there += more
        if there:
            steps.append((asking, found))
    return vectors, steps


@settings(max_examples=150, deadline=None)
@given(history=histories(), n=st.integers(1, 4), batch=st.integers(1, 5))
def test_after_any_history(
    history: tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]], n: int, batch: int
) -> None:
    vectors, steps = history
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picks_module, "_BATCH", batch)
        none = np.zeros(0, np.bool_)
        table, before = NearestTable.empty(0, n), Sides(none, none)
        for asking, found in steps:
            after, there = Sides(asking, found), vectors[: len(asking)]
            table, _ = updated(table, there, before, after)
            assert table.rows.tolist() == slow(there, after, n)
            fresh = anew(there, after, n)
            np.testing.assert_array_equal(table.rows, fresh.rows)
            np.testing.assert_array_equal(table.scores, fresh.scores)
            before = after


def test_few_are_asked_again() -> None:
    """One picture of 400 comes or goes: some ask anew, most do not."""
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 400)
    vectors = unit_rows(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    all_ = np.ones(400, np.bool_)
    whole = Sides(all_, all_)
    some = all_ & (np.arange(400) != 7)
    table = anew(vectors, whole, 3)
    less, asked = updated(table, vectors, whole, Sides(some, some))
    assert 0 < asked < 15
    np.testing.assert_array_equal(less.rows, anew(vectors, Sides(some, some), 3).rows)
    back, asked = updated(less, vectors, Sides(some, some), whole)
    assert 0 < asked < 15
    np.testing.assert_array_equal(back.rows, table.rows)
    assert updated(table, vectors, whole, whole)[1] == 0


def test_progress_counts_the_rows_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picks_module, "_BATCH", 4)
    vectors = unit_rows(np.random.default_rng(0).standard_normal((12, 3)))
    asking, found = np.arange(12) < 9, np.arange(12) > 1
    told: list[tuple[int, int]] = []

    def update(table: NearestTable, before: Sides, after: Sides) -> NearestTable:
        return table.updated(
            Counting().of,
            Vectors.of_array(vectors),
            "f",
            before=before,
            after=after,
            among="distractors",
            on_progress=lambda *step: told.append(step),
        )

    none, sides = np.zeros(0, np.bool_), Sides(asking, found)
    table = update(NearestTable.empty(0, 3), Sides(none, none), sides)
    assert told == [(0, 9), (4, 9), (8, 9), (9, 9)]
    told.clear()
    update(table, sides, sides)
    assert told == [], "nobody has to ask"
    one = asking | (np.arange(12) == 11)
    update(table, sides, Sides(one, found))
    assert told == [(0, 1), (1, 1)]


def test_means_and_neighbourhoods() -> None:
    vectors = unit_rows([[1, 0], [0.6, 0.8], [0, 1], [0.8, 0.6]])
    asking = np.array([True, True, False, False])
    table = anew(vectors, Sides(asking, ~asking), 3)
    assert table.rows.tolist() == [[3, 2, -1], [3, 2, -1], [-1] * 3, [-1] * 3]
    np.testing.assert_allclose(mean_of(table.scores, 3), [0.4, 0.88, 0, 0], atol=1e-6)
    lists = table.itself_first(asking)
    assert lists.tolist() == [[0, 3, 2, -1], [1, 3, 2, -1], [-1] * 4, [-1] * 4]
    alone = replace(table, rows=np.full((4, 3), -1, np.int32))
    assert alone.itself_first(asking)[0].tolist() == [0, -1, -1, -1]
