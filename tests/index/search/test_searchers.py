"""One suite for every kind of search: the same rules, whatever finds the candidates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import faiss
import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import EmbedderMismatch, UsageError
from lmk.index.ann import searcher as ann_searcher
from lmk.index.exact.flat import FlatSearcher
from lmk.index.exact.tiles import INT8_LANES
from lmk.index.search.choose import searcher_of
from lmk.index.vectors.labels import Membership
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.vectors import VectorPart, Vectors
from lmk.index.vectors.view import View

DIM, ROWS, PER_LABEL = 24, 2000, 20
EXACT = ("flat", "exact", "auto")
IVF = ("ivf",) if INT8_LANES else ()
# with inverted lists and without, a graph, one that cannot search among chosen positions, one with
# a rotation before it, one that refines by itself
INDEXES = (*IVF, "ivfpq", "hnsw", "IVF16,SQ8", "PQ12x4fs", "OPQ6,IVF8,PQ6x4", "IVF8,PQ6x4fs,RFlat")
KINDS = EXACT + INDEXES


def pictures(n: int, seed: int) -> np.ndarray:
    """Pictures of 100 landmarks, in order; the landmarks are those of any other seed."""
    centres = np.random.default_rng(0).normal(size=(ROWS // PER_LABEL, DIM))
    noise = np.random.default_rng(seed).normal(size=(n, DIM))
    landmark = np.arange(n) // PER_LABEL % len(centres)
    return unit_rows(centres[landmark] + 0.6 * noise)


def asked(n: int = 30, fingerprint: str = "f") -> Embeddings:
    vectors = pictures(ROWS, 2)[:: ROWS // n][:n]
    return Embeddings(vectors, tuple(f"q{i}" for i in range(n)), fingerprint)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """FAISS's threads wait for each other where other tests run beside."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@pytest.fixture(scope="module")
def view() -> View:
    """Two parts, of which one in ten rows is not in the view; one label for each landmark."""
    vectors = pictures(ROWS, 1).astype(np.float16)
    vectors[51] = vectors[50]  # equal scores
    parts = (VectorPart(0, vectors[:1500], "a"), VectorPart(1500, vectors[1500:], "b"))
    mask = np.arange(ROWS) % 10 != 7
    labels = Membership(
        distractor=np.zeros(ROWS, np.bool_),
        alive=np.ones(ROWS, np.bool_),
        names=tuple(f"l{i:03}" for i in range(ROWS // PER_LABEL)),
        offsets=np.arange(ROWS + 1),
        codes=(np.arange(ROWS) // PER_LABEL).astype(np.int32),
    )
    return View(Vectors(parts, DIM), mask, "f", labels)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def searchers() -> dict[str, Searcher]:
    return {}


@pytest.fixture
def searcher(
    kind: str, view: View, searchers: dict[str, Searcher], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Searcher]:
    monkeypatch.setattr(ann_searcher, "FEW_ROWS", 30)
    if kind not in searchers:
        searchers[kind] = searcher_of(view, kind, recall=0.98)
    yield searchers[kind]


def truth(view: View, mask: np.ndarray, queries: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """All rows of the mask, best first, by the rule of scores."""
    rows = np.flatnonzero(mask)
    vectors = view.stored.read(rows).astype(np.float64)
    scores = (queries.vectors.astype(np.float64) @ vectors.T).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")
    return rows[order], np.take_along_axis(scores, order, axis=1)


def check(
    found: Neighbours, view: View, mask: np.ndarray, queries: Embeddings, k: int, recall: float
) -> None:
    """What every answer must be, and the share of the true neighbours in it."""
    rows, scores = truth(view, mask, queries)
    score_of = [dict(zip(*pair, strict=True)) for pair in zip(rows, scores, strict=True)]
    kept = min(k, rows.shape[1])
    assert found.rows.shape == (len(queries), k) and found.query_ids == queries.ids
    assert (found.rows[:, kept:] == NO_ROW).all() and (found.rows[:, :kept] != NO_ROW).all()
    right = 0
    for i in range(len(queries)):
        got = found.rows[i, :kept]
        assert mask[got].all()
        expected = np.array([score_of[i][row] for row in got], np.float32)
        np.testing.assert_allclose(found.scores[i, :kept], expected, rtol=2e-7)
        order = np.lexsort((got, -found.scores[i, :kept]))
        np.testing.assert_array_equal(order, np.arange(kept))
        right += np.isin(rows[i, :kept], got).sum()
    assert right >= recall * kept * len(queries)


def wanted(kind: str) -> float:
    return 1.0 if kind in EXACT else 0.9


@pytest.mark.parametrize("k", [1, 10, 60, 150])
def test_all_of_the_view(kind: str, searcher: Searcher, view: View, k: int) -> None:
    check(searcher.search(asked(), k), view, view.mask, asked(), k, wanted(kind))


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.004, 0.0])
def test_a_mask(kind: str, searcher: Searcher, view: View, share: float) -> None:
    allow = np.random.default_rng(3).random(ROWS) < share
    found = searcher.search(asked(), 20, allow)
    check(found, view, view.mask & allow, asked(), 20, wanted(kind))


@pytest.mark.parametrize("count", [1, 30])
def test_labels(kind: str, searcher: Searcher, view: View, count: int) -> None:
    """One label (18 rows of the view) is fewer rows than are looked for in an index."""
    names = [f"l{i:03}" for i in range(5, 5 + count)]
    rows = np.arange(ROWS) // PER_LABEL
    mask = view.mask & (rows >= 5) & (rows < 5 + count)
    found = searcher.search(asked(), 25, names)
    check(found, view, mask, asked(), 25, wanted(kind))


def test_as_many_as_are_allowed_are_found(searcher: Searcher, view: View) -> None:
    """More than an index proposes: exact search answers."""
    k = int(view.mask.sum()) + 5
    found = searcher.search(asked(3), k)
    check(found, view, view.mask, asked(3), k, 1.0)


def test_equal_vectors_have_equal_scores_and_rising_rows(searcher: Searcher, view: View) -> None:
    one = Embeddings(view.stored.read(np.array([51])), ("x",), "f")
    found = searcher.search(one, 2)
    assert found.rows.tolist() == [[50, 51]] and found.scores[0, 0] == found.scores[0, 1]


def test_alone_and_in_a_batch(searcher: Searcher) -> None:
    batch = searcher.search(asked(), 10)
    for i in range(0, 30, 7):
        one = Embeddings(asked().vectors[i : i + 1], ("x",), "f")
        found = searcher.search(one, 10)
        np.testing.assert_array_equal(found.rows[0], batch.rows[i])
        np.testing.assert_array_equal(found.scores[0], batch.scores[i])


def test_queries_in_blocks(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = searcher.search(asked(), 10)
    monkeypatch.setattr(ann_searcher, "_BLOCK_QUERIES", 7)
    np.testing.assert_array_equal(searcher.search(asked(), 10).rows, whole.rows)


def test_no_queries(searcher: Searcher) -> None:
    none = Embeddings(np.empty((0, DIM), np.float32), (), "f")
    assert searcher.search(none, 4).rows.shape == (0, 4)


def test_wrong_calls(searcher: Searcher) -> None:
    with pytest.raises(UsageError, match="0 neighbours asked for"):
        searcher.search(asked(), 0)
    with pytest.raises(UsageError, match="no picture has the label 'x'"):
        searcher.search(asked(), 1, ["x"])
    with pytest.raises(ValueError, match="the rows allowed must be bool"):
        searcher.search(asked(), 1, np.ones(3, np.bool_))
    with pytest.raises(EmbedderMismatch, match="lmk build-index"):
        searcher.search(asked(fingerprint="g"), 1)
    with pytest.raises(ValueError, match="queries of 2 components"):
        searcher.search(Embeddings(unit_rows(np.ones((1, 2))), ("x",), "f"), 1)


def test_the_reason_is_one_line(kind: str, searcher: Searcher) -> None:
    assert "\n" not in searcher.reason and len(searcher.reason) < 300
    if kind in INDEXES:
        assert searcher.reason.startswith(kind)
        assert "recall@10 " in searcher.reason and "measured" in searcher.reason
    else:
        assert searcher.reason.startswith("exact search: 1800 vectors")


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 33])
@pytest.mark.parametrize("kind", [*IVF, "ivfpq", "hnsw"])
def test_any_dimension(kind: str, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann_searcher, "FEW_ROWS", 0)
    vectors = unit_rows(np.random.default_rng(dim).normal(size=(1200, dim)))
    stored = Embeddings(vectors, tuple(map(str, range(1200))), "f")
    view = View.of_embeddings(stored)
    queries = Embeddings(vectors[:10], stored.ids[:10], "f")
    found = searcher_of(view, kind).search(queries, 3)
    if dim == 1:
        assert (found.scores == 1).all()
    else:
        exact = FlatSearcher(view).search(queries, 3)
        assert np.mean(found.scores[:, 2] >= exact.scores[:, 2]) >= 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_or_none(kind: str, view: View) -> None:
    few = replace(view, mask=np.arange(ROWS) < 3)
    check(searcher_of(few, kind).search(asked(2), 5), few, few.mask, asked(2), 5, 1.0)
    none = replace(view, mask=np.zeros(ROWS, np.bool_))
    assert (searcher_of(none, kind).search(asked(2), 5).rows == NO_ROW).all()


@pytest.mark.parametrize("kind", [*IVF, "ivfpq", "hnsw", "flat", "exact"])
def test_all_vectors_equal(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann_searcher, "FEW_ROWS", 0)
    stored = Embeddings(
        np.tile(unit_rows(np.ones((1, 8))), (1500, 1)), tuple(map(str, range(1500))), "f"
    )
    queries = Embeddings(stored.vectors[:2], ("a", "b"), "f")
    found = searcher_of(View.of_embeddings(stored), kind).search(queries, 5)
    assert (found.scores == found.scores[0, 0]).all() and (found.rows != NO_ROW).all()
    if kind in EXACT:
        assert found.rows.tolist() == [[0, 1, 2, 3, 4]] * 2
