"""The picks of a bank, brought up to date, are what a fresh count gives."""

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
from lmk.rerank.steps import hits as picks_module
from lmk.rerank.steps.hits import HitTable, Sides

TOP = 3


class Counting:
    """A flat search that counts the queries it was asked."""

    reason = "a test"

    def __init__(self, view: View) -> None:
        self._searcher = FlatSearcher(view)
        self.asked = 0

    def search(self, queries: Embeddings, k: int, allow: Allow | None = None) -> Neighbours:
        self.asked += len(queries)
        return self._searcher.search(queries, k, allow)


def updated(
    table: HitTable, vectors: np.ndarray, before: Sides, after: Sides, top: int = TOP
) -> tuple[HitTable, int]:
    stored = Vectors.of_array(vectors)
    before = before.grown(len(vectors))
    searcher = Counting(View(stored, before.gallery | after.gallery, "f"))
    new = table.updated(searcher, stored, "f", before=before, after=after, top=top)
    return new, searcher.asked


def anew(vectors: np.ndarray, sides: Sides, top: int = TOP) -> HitTable:
    rows = len(vectors)
    return updated(HitTable.empty(rows), vectors, Sides.none(rows), sides, top)[0]


def slow(vectors: np.ndarray, sides: Sides, top: int = TOP) -> tuple[list[int], list[float]]:
    counts, sums = [0] * len(vectors), [0.0] * len(vectors)
    vectors = Vectors.of_array(vectors).read(np.arange(len(vectors)))
    gallery = np.flatnonzero(sides.gallery)
    for row in np.flatnonzero(sides.distractors):
        cosines = (vectors[gallery].astype(float) @ vectors[row].astype(float)).astype(np.float32)
        for at in sorted(range(len(gallery)), key=lambda i: (-cosines[i], i))[:top]:
            counts[gallery[at]] += 1
            sums[gallery[at]] += float(cosines[at])
    return counts, sums


def sides_of(kinds: list[int]) -> Sides:
    """0: removed, 1: gallery, 2: bank."""
    array = np.array(kinds)
    return Sides(array == 1, array == 2)


@st.composite
def histories(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]]]:
    """Vectors, many of them equal, and the kinds of the rows there are after each of some steps."""
    rows = draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = unit_rows(rng.integers(-1, 2, (rows, 3)) + 0.01 * rng.integers(0, 2, (rows, 3)))
    steps, kinds = [], []  # type: ignore[var-annotated]
    for _ in range(draw(st.integers(1, 4))):
        more = draw(st.integers(0, rows - len(kinds)))
        kinds = [kind if rng.random() < 0.8 else 0 for kind in kinds]
        kinds += [int(kind) for kind in rng.integers(0, 3, more)]
        steps.append(list(kinds))
    return vectors, steps


@settings(max_examples=150, deadline=None)
@given(history=histories(), top=st.integers(1, 5), batch=st.integers(1, 5))
def test_after_any_history(
    history: tuple[np.ndarray, list[list[int]]], top: int, batch: int
) -> None:
    vectors, steps = history
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picks_module, "_BATCH", batch)
        table, before = HitTable.empty(0), Sides.none(0)
        for kinds in steps:
            after = sides_of(kinds)
            if not kinds:
                continue
            there = vectors[: len(kinds)]
            table, _ = updated(table, there, before, after, top)
            counts, sums = slow(there, after, top)
            assert table.counts.tolist() == counts
            np.testing.assert_allclose(table.sums, sums, atol=1e-9)
            fresh = anew(there, after, top)
            np.testing.assert_array_equal(
                table.worst[after.distractors], fresh.worst[after.distractors]
            )
            before = after


@pytest.fixture
def large() -> tuple[np.ndarray, Sides]:
    """400 pictures and 300 distractors on a circle, so that each has a neighbourhood."""
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 700)
    vectors = unit_rows(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    return vectors, sides_of([1] * 400 + [2] * 300)


def test_few_are_asked_again(large: tuple[np.ndarray, Sides]) -> None:
    """One picture of 400 comes or goes: some of the 300 distractors pick anew, most do not."""
    vectors, sides = large
    table = anew(vectors, sides)
    gone = replace(sides, gallery=sides.gallery & (np.arange(700) != 7))
    after, asked = updated(table, vectors, sides, gone)
    assert 0 < asked < 40
    np.testing.assert_array_equal(after.counts, anew(vectors, gone).counts)
    back, asked = updated(after, vectors, gone, sides)
    assert 0 < asked < 40
    np.testing.assert_array_equal(back.counts, table.counts)
    np.testing.assert_allclose(back.sums, table.sums, atol=1e-9)
    same, asked = updated(table, vectors, sides, sides)
    assert asked == 0
    np.testing.assert_array_equal(same.counts, table.counts)


def test_a_distractor_that_comes_or_goes_asks_once(large: tuple[np.ndarray, Sides]) -> None:
    vectors, sides = large
    fewer = replace(sides, distractors=sides.distractors & (np.arange(700) != 500))
    table, asked = updated(anew(vectors, fewer), vectors, fewer, sides)
    assert asked == 1
    np.testing.assert_array_equal(table.counts, anew(vectors, sides).counts)
    table, asked = updated(table, vectors, sides, fewer)
    assert asked == 1
    np.testing.assert_array_equal(table.counts, anew(vectors, fewer).counts)


def test_progress_counts_the_distractors_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes its picks back and picks anew counts twice."""
    monkeypatch.setattr(picks_module, "_BATCH", 4)
    vectors = unit_rows(np.random.default_rng(0).standard_normal((16, 3)))
    searcher = Counting(View(Vectors.of_array(vectors), np.arange(16) < 6, "f"))
    told: list[tuple[int, int]] = []

    def update(table: HitTable, before: Sides, after: Sides) -> HitTable:
        return table.updated(
            searcher,
            Vectors.of_array(vectors),
            "f",
            before=before,
            after=after,
            top=TOP,
            on_progress=lambda *step: told.append(step),
        )

    sides = sides_of([1] * 6 + [2] * 10)
    table = update(HitTable.empty(16), Sides.none(16), sides)
    assert told == [(4, 10), (8, 10), (10, 10)]
    told.clear()
    update(table, sides, sides)
    assert told == [], "nobody has to ask"
    searcher.asked = 0
    update(table, sides, sides_of([0] + [1] * 5 + [2] * 10))
    assert searcher.asked > 0 and searcher.asked % 2 == 0
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (searcher.asked, searcher.asked)
    told.clear()
    update(table, sides, sides_of([1] * 6 + [0] * 5 + [2] * 5))
    assert told == [(4, 5), (5, 5)], "those that go take their picks back"
