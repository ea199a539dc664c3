"""Cells: all of them are exact search, some of them are exact search in those; kept and damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import GalleryDamaged
from lmk.index.ann import cells, cells_build
from lmk.index.ann import searcher as ann_searcher
from lmk.index.ann.cells import CellIndex
from lmk.index.ann.cells_build import Cells
from lmk.index.ann.faiss_factory import number_of_cells
from lmk.index.ann.index_files import PreviousResult, SearchFilter
from lmk.index.ann.searcher import ApproximateSearcher
from lmk.index.exact import tiles
from lmk.index.vectors.derived_files import DerivedFiles
from lmk.index.vectors.neighbours import NO_ROW
from lmk.index.vectors.vectors import VectorPart, Vectors
from lmk.index.vectors.view import View

pytestmark = pytest.mark.skipif(
    not tiles.INT8_LANES, reason="this processor does not multiply and add bytes"
)
DIM = 24


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """FAISS's threads wait for each other where other tests run beside."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def pictures(n: int, seed: int, dim: int = DIM, noise: float = 0.6) -> np.ndarray:
    """Pictures of 60 landmarks, those of any other seed."""
    centres = np.random.default_rng(0).normal(size=(60, dim))
    rng = np.random.default_rng(seed)
    return unit_rows(centres[rng.integers(60, size=n)] + noise * rng.normal(size=(n, dim)))


def view_of(vectors: np.ndarray, cut: int = 0, folder: Path | None = None) -> View:
    """A part in half precision and, after the cut, one in single precision."""
    parts = [VectorPart(0, vectors[: cut or None].astype("f2"), "a" if folder else "")]
    if cut:
        parts.append(VectorPart(cut, vectors[cut:].astype("f4"), "b" if folder else ""))
    mask = np.ones(len(vectors), np.bool_)
    stored = Vectors(tuple(parts), vectors.shape[1])
    return View(stored, mask, "f", derived=DerivedFiles(folder))


def index_of(view: View) -> CellIndex:
    return CellIndex(view, lambda _: None)


def brute(view: View, queries: np.ndarray, k: int, inside: np.ndarray) -> tuple[np.ndarray, ...]:
    """The k nearest by the rule of scores, of the rows that each query may find, bool [q, rows]."""
    vectors = view.stored.read(np.arange(view.stored.rows)).astype(np.float64)
    scores = (queries.astype(np.float64) @ vectors.T).astype(np.float32)
    scores = np.where(inside, scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    rows = np.where(best == -np.inf, NO_ROW, order)
    missing = ((0, 0), (0, max(0, k - rows.shape[1])))
    return (
        np.pad(rows, missing, constant_values=NO_ROW),
        np.pad(best, missing, constant_values=-np.inf),
    )


def check_same(found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    """The same scores within the last bit of float64 sums, and the same rows but for those."""
    np.testing.assert_allclose(found[1], expected[1], rtol=2e-7)
    differ = found[0] != expected[0]
    assert np.mean(differ) < 0.01 or not differ.any()


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 700),
    dim=st.sampled_from([1, 2, 7, 24, 65]),
    queries=st.sampled_from([1, 3, 13, 260]),
    k=st.sampled_from([1, 10, 40]),
    share=st.sampled_from([1.0, 0.5, 0.02]),
    copies=st.sampled_from([1, 1, 50]),
    seed=st.integers(0, 99),
)
def test_all_cells_are_exact_search(
    rows: int, dim: int, queries: int, k: int, share: float, copies: int, seed: int
) -> None:
    vectors = np.repeat(pictures(-(-rows // copies), seed, dim), copies, axis=0)[:rows]
    view = view_of(vectors, cut=rows // 3)
    index = index_of(view)
    allowed = np.random.default_rng(seed).random(rows) < share
    among = SearchFilter.of(index.built, allowed)
    asked = pictures(queries, seed + 1, dim)
    found = index.nearest(asked, k, k, index.efforts[-1], among)
    expected = brute(view, asked, k, allowed[None].repeat(queries, 0))
    if dim > 1:
        check_same(found, expected)
    np.testing.assert_array_equal(found[1], expected[1].astype(np.float32))


def visited(index: CellIndex, asked: np.ndarray, effort: int) -> np.ndarray:
    """Which rows lie in the `effort` most promising cells of each query, bool [q, rows]."""
    known = index.built.index
    promise = asked @ known.means.T + cells._REACH * known.spreads
    chosen = np.argsort(-promise, axis=1)[:, :effort]
    cell_of = np.empty(len(index.built.rows), np.int64)
    for cell in range(len(known)):
        rows = known.rows[known.firsts[cell] : known.firsts[cell + 1]].reshape(-1)
        cell_of[rows[rows != NO_ROW]] = cell
    inside = np.zeros((len(asked), len(cell_of)), np.bool_)
    for i, some in enumerate(chosen):
        inside[i] = np.isin(cell_of, some)
    return inside


@pytest.mark.parametrize("effort", [1, 3, 7])
@pytest.mark.parametrize("queries", [1, 5, 40, 500])
def test_some_cells_are_exact_search_in_those(effort: int, queries: int) -> None:
    view = view_of(pictures(1500, 1), cut=500)
    index = index_of(view)
    asked = pictures(queries, 2)
    inside = visited(index, asked, effort)
    found = index.nearest(asked, 10, 10, effort, SearchFilter.of(index.built, view.mask))
    check_same(found, brute(view, asked, 10, inside))
    assert 0 < inside.mean() < 0.6


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_going_on_is_searching_with_more_effort(share: float) -> None:
    view = view_of(pictures(1500, 1))
    index = index_of(view)
    among = SearchFilter.of(index.built, np.random.default_rng(0).random(1500) < share)
    asked = pictures(200, 2)
    first = index.nearest(asked, 30, 30, 2, among)
    more = index.nearest(asked, 30, 30, 9, among, PreviousResult(*first, 2))
    at_once = index.nearest(asked, 30, 30, 9, among)
    np.testing.assert_array_equal(more[0], at_once[0])
    np.testing.assert_array_equal(more[1], at_once[1])
    assert (first[1][:, -1] < at_once[1][:, -1]).any()


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(pictures(1500, 1), cut=700)
    index = index_of(view)
    among = SearchFilter.of(index.built, view.mask)
    asked = pictures(300, 2)
    one = index.nearest(asked, 10, 10, 4, among)
    monkeypatch.setattr(cells, "_LEAST_VISITS", 1)
    for number in (2, 5):
        faiss.omp_set_num_threads(number)
        several = index.nearest(asked, 10, 10, 4, among)
        faiss.omp_set_num_threads(1)
        np.testing.assert_array_equal(one[0], several[0])
        np.testing.assert_array_equal(one[1], several[1])


def test_queries_in_blocks_where_much_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(pictures(1500, 1))
    index = index_of(view)
    among = SearchFilter.of(index.built, view.mask)
    asked = pictures(100, 2)
    whole = index.nearest(asked, 10, 10, 4, among)
    onward = index.nearest(asked, 10, 10, 9, among, PreviousResult(*whole, 4))
    monkeypatch.setattr(cells, "_MEMORY", 12 * cells._room(10) * 7)
    np.testing.assert_array_equal(index.nearest(asked, 10, 10, 4, among), whole)
    known = PreviousResult(*whole, 4)
    np.testing.assert_array_equal(index.nearest(asked, 10, 10, 9, among, known), onward)


def test_clustered_vectors_take_few_cells_for_a_recall() -> None:
    view = view_of(pictures(4000, 1))
    searcher = ApproximateSearcher(view, "ivf", recall=0.99)
    tuned = searcher.tuned[0]
    assert tuned.recall >= 0.99 and tuned.factor == 1
    assert tuned.effort + tuned.second_share * tuned.second_effort < 0.5 * len(
        searcher._built.index
    )
    asked = pictures(200, 2)
    queries = Embeddings(asked, tuple(map(str, range(200))), "f")
    expected = brute(view, asked, 10, np.ones((200, 4000), np.bool_))[0]
    found = searcher.search(queries, 10).rows
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(expected, found, strict=True)])
    assert recall >= 0.97
    assert searcher.factory == f"Cells{number_of_cells(4000)}"
    assert searcher.reason.startswith(f"ivf ({searcher.factory}): {tuned.effort} of ")
    assert "candidates" not in searcher.reason


def test_a_cell_is_its_vectors_mean_and_spread(tmp_path: Path) -> None:
    view = replace(view_of(pictures(1500, 1), folder=tmp_path), mask=np.arange(1500) % 3 > 0)
    known: Cells = index_of(view).built.index
    assert known.whole and known.file is not None
    assert sorted(known.rows[known.rows != NO_ROW]) == np.flatnonzero(view.mask).tolist()
    for cell in range(len(known)):
        rows = known.rows[known.firsts[cell] : known.firsts[cell + 1]].reshape(-1)
        rows = rows[rows != NO_ROW]
        assert len(rows) and (np.diff(rows) > 0).all()
        vectors = view.stored.read(rows)
        mean = vectors.mean(axis=0)
        np.testing.assert_allclose(known.means[cell], mean, atol=1e-6)
        spread = np.sqrt(((vectors - mean) ** 2).sum(axis=1).mean())
        assert known.spreads[cell] == pytest.approx(spread, abs=1e-3)


class Told(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)

    @property
    def built(self) -> bool:
        return any(text.startswith("training") for text in self)


def open_(view: View) -> tuple[np.ndarray, bool]:
    """The rows that a searcher finds, and whether it made the cells."""
    told = Told()
    searcher = ApproximateSearcher(view, "ivf", recall=0.95, on_message=told)
    queries = Embeddings(pictures(50, 2), tuple(map(str, range(50))), "f")
    return searcher.search(queries, 10).rows, told.built


def test_cells_are_kept_and_are_those_made_in_memory(tmp_path: Path) -> None:
    vectors = pictures(1500, 1)
    view = view_of(vectors, 600, tmp_path)
    first, made = open_(view)
    second, again = open_(view)
    assert made and not again
    np.testing.assert_array_equal(first, second)
    known, other = (index_of(one).built.index for one in (view, view_of(vectors, 600)))
    assert other.file is None and other.whole
    for name in ("codes", "scales", "errors", "rows", "firsts", "means"):
        np.testing.assert_array_equal(getattr(known, name), getattr(other, name))


def test_new_rows_are_searched_beside_and_removed_ones_left_out(tmp_path: Path) -> None:
    vectors = pictures(1500, 1)
    open_(view_of(vectors[:1450], folder=tmp_path))
    parts = (
        VectorPart(0, vectors[:1450].astype("f2"), "a"),
        VectorPart(1450, vectors[1450:].astype("f2"), "new"),
    )
    mask = np.arange(1500) % 7 > 0
    view = View(Vectors(parts, DIM), mask, "f", derived=DerivedFiles(tmp_path))
    found, made = open_(view)
    assert not made and mask[found].all() and (found >= 1450).any()
    expected = brute(view, pictures(50, 2), 10, mask[None].repeat(50, 0))[0]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(expected, found, strict=True)]) > 0.9


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "cut", "one bit", "foreign", "longer", "other size"]
)
def test_damaged_files_are_made_again(tmp_path: Path, damage: str) -> None:
    view = view_of(pictures(1500, 1), folder=tmp_path)
    expected, _ = open_(view)
    (name,) = [name for name in view.derived.names() if name.endswith(".index")]
    path = tmp_path / name
    data = path.read_bytes()
    changed = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "one bit": data[:999] + bytes([data[999] ^ 4]) + data[1000:],
        "foreign": b"IxFI" + bytes(100),
        "longer": data + b"\0",
    }
    if damage == "missing":
        path.unlink()
    elif damage == "other size":  # whole, but not of these rows
        fewer = view_of(pictures(1400, 1), folder=tmp_path / "other")
        (other,) = [n for n in _built(fewer).derived.names() if n.endswith(".index")]
        whole = (tmp_path / "other" / other).read_bytes()
        view.derived.save(name, lambda to: to.write_bytes(whole))
    else:
        path.write_bytes(changed[damage])
    found, made = open_(view)
    assert made
    np.testing.assert_array_equal(found, expected)
    assert not open_(view)[1]


def _built(view: View) -> View:
    index_of(view)
    return view


@pytest.mark.parametrize("content", [b"", b"x" * 63, b"x" * 64, b"x" * 6400])
def test_whole_files_of_strange_content_are_made_again(tmp_path: Path, content: bytes) -> None:
    view = view_of(pictures(1500, 1), folder=tmp_path)
    expected, _ = open_(view)
    (name,) = [name for name in view.derived.names() if name.endswith(".index")]
    view.derived.save(name, lambda to: to.write_bytes(content))
    found, made = open_(view)
    assert made
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("ending", [".index", "lengths"])
def test_a_file_cut_while_it_is_searched_is_made_again(tmp_path: Path, ending: str) -> None:
    view = view_of(pictures(1500, 1), folder=tmp_path)
    index = index_of(view)
    among = SearchFilter.of(index.built, view.mask)
    asked = pictures(50, 2)
    before = index.nearest(asked, 10, 10, 5, among)
    (name,) = [name for name in view.derived.names() if ending in name]
    with (tmp_path / name).open("r+b") as file:
        file.truncate(100)
    after = index.nearest(asked, 10, 10, 5, among)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


def test_a_damaged_vector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann_searcher, "FEW_ROWS", 0)
    vectors = pictures(1500, 1).astype("f2")
    view = View(Vectors((VectorPart(0, vectors, ""),), DIM), np.ones(1500, np.bool_), "f")
    index = index_of(view)
    own = view.stored.read(np.array([700]))
    vectors[700] *= np.float16(3)
    with pytest.raises(GalleryDamaged, match="the vector of row 700 has length 3"):
        index.nearest(own, 1, 1, index.efforts[-1], SearchFilter.of(index.built, view.mask))
    with pytest.raises(GalleryDamaged, match="the vector of row 700 has length 3"):
        index_of(view)


def test_cells_without_vectors_are_left_out() -> None:
    one = unit_rows(np.ones((1, DIM)))
    near = unit_rows(one + 0.01 * np.random.default_rng(0).normal(size=(100, DIM)))
    stored = Vectors((VectorPart(0, near, ""),), DIM)
    found = cells_build._sorted(stored, np.arange(100), np.concatenate([-one, one]))
    assert found.firsts.tolist() == [0, 4] == [0, len(found.rows)]
    np.testing.assert_allclose(found.means, near.mean(axis=0)[None], atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "number"), [(1, 1), (100, 2), (10_000, 256), (200_000, 1788), (10**6, 4000)]
)
def test_cells_grow_with_the_gallery(rows: int, number: int) -> None:
    assert number_of_cells(rows) == number
