"""FAISS files beside a gallery: when they are used, and that damage never changes an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import UsageError
from lmk.index.ann import faiss_build, index_files
from lmk.index.ann import recall as ann_recall
from lmk.index.ann import searcher as ann_searcher
from lmk.index.ann.searcher import ApproximateSearcher
from lmk.index.exact import searcher as exact_search
from lmk.index.exact.searcher import ExactSearcher
from lmk.index.vectors.derived_files import DerivedFiles
from lmk.index.vectors.vectors import VectorPart, Vectors
from lmk.index.vectors.view import View

DIM = 16
KIND = "IVF8,SQ8"
RNG = np.random.default_rng(0)
POOL = unit_rows(RNG.normal(size=(3000, DIM))).astype(np.float16)
QUERIES = Embeddings(unit_rows(RNG.normal(size=(20, DIM))), tuple(map(str, range(20))), "f")


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ann_searcher, "FEW_ROWS", 10)
    monkeypatch.setattr(index_files, "_SOME_BESIDE", 50)
    monkeypatch.setattr(ann_recall, "SAMPLE", 64)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def view_of(folder: Path, *sizes: int, mask: np.ndarray | None = None, salt: str = "") -> View:
    """Parts of these sizes, of the vectors of the pool; a part's key says what it holds."""
    parts, first = [], 0
    for size in sizes:
        key = f"{salt}{first}:{size}"
        parts.append(VectorPart(first, POOL[first : first + size], key))
        first += size
    mask = np.ones(first, np.bool_) if mask is None else mask
    return View(Vectors(tuple(parts), DIM), mask, "f", derived=DerivedFiles(folder / "search"))


class Told(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)

    @property
    def built(self) -> bool:
        return any(text.startswith("training") for text in self)

    @property
    def measured(self) -> bool:
        return any(text.startswith("measuring") for text in self)


def open_(view: View, kind: str = KIND, recall: float = 0.99) -> tuple[ApproximateSearcher, Told]:
    told = Told()
    return ApproximateSearcher(view, kind, recall=recall, on_message=told), told


def check_answers(searcher: ApproximateSearcher, view: View) -> None:
    found = searcher.search(QUERIES, 10)
    rows = np.flatnonzero(view.mask)
    scores = QUERIES.vectors.astype(np.float64) @ view.stored.read(rows).T.astype(np.float64)
    best = rows[np.argsort(-scores, axis=1)[:, :10]]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(best, found.rows, strict=True)]) > 0.9
    assert view.mask[found.rows].all()


def names(view: View, ending: str = ".index") -> list[str]:
    return [name for name in view.derived.names() if name.endswith(ending)]


def test_a_second_searcher_neither_builds_nor_measures(tmp_path: Path) -> None:
    view = view_of(tmp_path, 1500)
    first, told = open_(view)
    assert told.built and told.measured
    assert told[0] == "training IVF8,SQ8 with 1500 of 1500 vectors"
    second, told = open_(view)
    assert not told and second.reason == first.reason
    np.testing.assert_array_equal(first.search(QUERIES, 10).rows, second.search(QUERIES, 10).rows)
    check_answers(second, view)


def test_another_goal_is_measured_with_the_same_index(tmp_path: Path) -> None:
    view = view_of(tmp_path, 1500)
    low, _ = open_(view, recall=0.5)
    high, told = open_(view, recall=0.99)
    assert told.measured and not told.built
    assert low.tuned[0].effort < high.tuned[0].effort
    assert "asked for" in low.reason and low.tuned[0].recall >= 0.5


def test_few_new_rows_are_searched_beside(tmp_path: Path) -> None:
    open_(view_of(tmp_path, 1000, 500))
    for more in (1, 50):
        view = view_of(tmp_path, 1000, 500, more)
        searcher, told = open_(view)
        assert not told.built
        check_answers(searcher, view)
        own = Embeddings(view.stored.read(np.array([1500])), ("new",), "f")
        assert searcher.search(own, 1).rows.tolist() == [[1500]]
        assert searcher.search(own, 3, np.arange(1500 + more) >= 1500).rows[0, 0] == 1500


def test_many_new_rows_are_built_in_and_the_old_files_go(tmp_path: Path) -> None:
    old = view_of(tmp_path, 1500)
    open_(old)
    before = names(old)
    view = view_of(tmp_path, 1500, 151)
    searcher, told = open_(view)
    assert told.built and "1651" in told[0]
    check_answers(searcher, view)
    assert len(names(view)) == 1 and names(view) != before
    assert len(view.derived.names()) == 3


def test_an_index_serves_while_the_cells_for_so_many_rows_change(tmp_path: Path) -> None:
    """From 1,248 rows on an index would have twice the cells."""
    old = view_of(tmp_path, 1240)
    first, told = open_(old, "ivfpq")
    assert told.built and "IVF16," in first.factory
    view = view_of(tmp_path, 1240, 10)
    searcher, told = open_(view, "ivfpq")
    assert not told.built and searcher.factory == first.factory in searcher.reason
    check_answers(searcher, view)
    own = Embeddings(view.stored.read(np.array([1245])), ("new",), "f")
    assert searcher.search(own, 1).rows.tolist() == [[1245]]
    before = names(view)
    view = view_of(tmp_path, 1240, 200)
    searcher, told = open_(view, "ivfpq")
    assert told.built and "IVF32," in searcher.factory
    check_answers(searcher, view)
    assert len(names(view)) == 1 and names(view) != before
    assert len(view.derived.names()) == 3


def test_indexes_of_too_many_kinds_go(tmp_path: Path) -> None:
    view = view_of(tmp_path, 1500)
    kinds = [f"IVF{cells},SQ8" for cells in range(4, 4 + index_files._MOST_INDEXES + 2)]
    for kind in kinds:
        open_(view, kind)
    assert len(names(view)) == len(names(view, ".rows.json")) == index_files._MOST_INDEXES
    for kind in kinds[-index_files._MOST_INDEXES :]:
        assert not open_(view, kind)[1]


def test_a_part_that_was_rewritten_is_searched_beside(tmp_path: Path) -> None:
    """As when single pictures are folded into a segment: another key, the same rows."""
    open_(view_of(tmp_path, 1400, 60, 40))
    view = view_of(tmp_path, 1400, 100)
    searcher, told = open_(view)
    assert not told.built
    check_answers(searcher, view)
    assert np.count_nonzero(view.mask & ~searcher._built.covered) == 100


def test_removed_rows_are_not_found_and_many_of_them_build_it_anew(tmp_path: Path) -> None:
    open_(view_of(tmp_path, 1500))
    mask = np.arange(1500) % 5 != 0
    view = view_of(tmp_path, 1500, mask=mask)
    searcher, told = open_(view)
    assert not told.built
    check_answers(searcher, view)
    view = view_of(tmp_path, 1500, mask=np.arange(1500) % 2 == 0)
    searcher, told = open_(view)
    assert told.built
    check_answers(searcher, view)


def test_another_gallery_does_not_use_the_files(tmp_path: Path) -> None:
    open_(view_of(tmp_path, 1500))
    view = view_of(tmp_path, 1500, salt="other")
    searcher, told = open_(view)
    assert told.built
    check_answers(searcher, view)


def test_two_roles_keep_their_own(tmp_path: Path) -> None:
    even = np.arange(3000) % 2 == 0
    open_(view_of(tmp_path, 3000, mask=even))
    open_(view_of(tmp_path, 3000, mask=~even))
    for mask in (even, ~even):
        view = view_of(tmp_path, 3000, mask=mask)
        searcher, told = open_(view)
        assert not told
        check_answers(searcher, view)


@pytest.mark.parametrize("ending", [".index", ".rows.json", ".0.99.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "one bit", "foreign", "longer"])
def test_damaged_files_are_made_again(tmp_path: Path, ending: str, damage: str) -> None:
    view = view_of(tmp_path, 1500)
    expected = open_(view)[0].search(QUERIES, 10)
    (name,) = names(view, ending)
    path = tmp_path / "search" / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]
        other = b"[]" if ending.endswith("json") else b"IxFI" + bytes(100)
        path.write_bytes(
            {"empty": b"", "cut": data[: len(data) // 2], "one bit": flipped, "foreign": other}.get(
                damage, data + b"\0"
            )
        )
    searcher, told = open_(view)
    assert told.measured
    assert told.built == (ending != ".0.99.json")
    np.testing.assert_array_equal(searcher.search(QUERIES, 10).rows, expected.rows)
    assert not open_(view)[1]


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"x", b'[{"k": 10}]', b'{"rows": "many"}'])
@pytest.mark.parametrize("ending", [".rows.json", ".0.99.json", ".index"])
def test_whole_files_of_strange_content_are_made_again(
    tmp_path: Path, ending: str, content: bytes
) -> None:
    """Their checksums are right, so another program, or version, wrote them."""
    view = view_of(tmp_path, 1500)
    open_(view)
    (name,) = names(view, ending)
    view.derived.save(name, lambda path: path.write_bytes(content))
    searcher, told = open_(view)
    assert told.measured == (ending == ".0.99.json") or told.built
    check_answers(searcher, view)


def test_an_index_of_another_size_is_not_used(tmp_path: Path) -> None:
    view = view_of(tmp_path, 1500)
    searcher, _ = open_(view)
    (name,) = names(view)
    smaller = faiss.clone_index(searcher._built.index)
    smaller.remove_ids(np.arange(3))
    view.derived.save(name, lambda path: faiss_build._write(smaller, path))
    searcher, told = open_(view)
    assert told.built
    check_answers(searcher, view)


def test_exact_search_keeps_its_files_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_search, "_SECONDS_BEFORE_COMPILED", 0.0)
    view = view_of(tmp_path, 1500)
    exact = ExactSearcher(view).search(QUERIES, 10)
    others = names(view, "")
    assert others
    searcher, told = open_(view)
    assert told.built
    check_answers(searcher, view)
    assert not open_(view)[1]
    assert set(others) < set(names(view, ""))
    np.testing.assert_array_equal(ExactSearcher(view).search(QUERIES, 10).rows, exact.rows)


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "search").write_text("a file where the folder should be")
    view = view_of(tmp_path, 1500)
    for _ in range(2):
        searcher, told = open_(replace(view, derived=DerivedFiles(None)))
        assert told.built
        check_answers(searcher, view)


def test_a_full_disk_is_an_oserror(tmp_path: Path) -> None:
    index = faiss.index_factory(DIM, "Flat")
    for _ in range(2):  # a little in a buffer, then more
        with pytest.raises(OSError, match=r"No space left|FAISS could not write"):
            faiss_build._write(index, Path("/dev/full"))
        index.add(np.repeat(POOL.astype(np.float32), 10, axis=0))


def test_what_is_kept_says_what_it_was_made_from(tmp_path: Path) -> None:
    view = view_of(tmp_path, 1000, 500)
    open_(view)
    (name,) = names(view, ".rows.json")
    described = json.loads((tmp_path / "search" / name).read_text())
    assert described["factory"] == KIND and described["rows"] == 1500
    assert described["parts"] == [[0, 1000, "0:1000"], [1000, 500, "1000:500"]]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "nonsense",
            r"from 'nonsense' \(could not parse index string nonsense\); choose auto, exact, flat",
        ),
        ("LSH", "FAISS makes no index for dot products from 'LSH'"),
        ("IVF64,SQ8", "'IVF64,SQ8' has 64 cells, and 1500 vectors can train 38; take at most 38"),
        ("PQ8x12", "FAISS cannot build 'PQ8x12' of 1500 vectors"),
        ("PQ5x4fs", r"from 'PQ5x4fs' \('!\(d % M == 0\)' failed: The dimension of the vector"),
        ("HNSW0,Flat", "'HNSW0,Flat' names a size of 0; choose auto"),
        ("IVF0,Flat", "'IVF0,Flat' names a size of 0; choose auto"),
        ("PQ4x4fs_00", "'PQ4x4fs_00' names a size of 0; choose auto"),
        ("HNSW1,Flat", "'HNSW1,Flat' names a graph of less than 2 links a vector; choose auto"),
        ("IVF4_HNSW01,Flat", "names a graph of less than 2 links a vector; choose auto"),
        ("IVF2000000,Flat", "'IVF2000000,Flat' names a size of 2000000; choose auto"),
        ("Pad" + 20 * "9" + ",Flat", "names a size of 999999999; choose auto"),
    ],
)
def test_what_cannot_be_built_is_one_line(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_(view_of(tmp_path, 1500), kind)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert "Error in " not in str(caught.value) and ".cpp" not in str(caught.value)
    assert "; " in str(caught.value)
