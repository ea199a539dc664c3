from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import EmbedderMismatch, UsageError
from lmk.index.exact import flat
from lmk.index.exact.flat import FlatSearcher
from lmk.index.gallery.gallery import Gallery
from lmk.index.search.choose import choose
from lmk.index.search.settings import SearchSettings
from lmk.index.vectors import rescoring
from lmk.index.vectors.neighbours import NO_ROW
from lmk.index.vectors.vectors import Vectors
from lmk.index.vectors.view import View


def embeddings(vectors: np.ndarray, fingerprint: str = "f") -> Embeddings:
    return Embeddings(unit_rows(vectors), tuple(map(str, range(len(vectors)))), fingerprint)


def by_numpy(stored: Embeddings, queries: Embeddings, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All scores in float64, rounded to float32; a stable sort keeps equal ones in row order."""
    vectors = Vectors.of_array(stored.vectors).read(np.arange(len(stored)))
    products = queries.vectors.astype(np.float64)[:, None, :] * vectors.astype(np.float64)
    scores = products.sum(axis=2).astype(np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, axis=1)


@pytest.mark.parametrize(
    ("n", "d", "q", "k"), [(2000, 64, 40, 10), (300, 512, 3, 100), (5, 8, 1, 5)]
)
def test_the_answer_is_the_exact_one(n: int, d: int, q: int, k: int) -> None:
    rng = np.random.default_rng(n)
    stored, queries = embeddings(rng.normal(size=(n, d))), embeddings(rng.normal(size=(q, d)))
    found = FlatSearcher.of_embeddings(stored).search(queries, k)
    rows, scores = by_numpy(stored, queries, k)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.query_ids == queries.ids


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 150), k=st.integers(1, 160))
def test_ties_go_to_the_lower_row_also_at_the_last_place(seed: int, n: int, k: int) -> None:
    """Few different vectors, so that most scores are equal, more of them than the margin."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(-1, 2, size=(3, 16)) + rng.normal(size=(3, 16)) * (seed % 2)
    stored = embeddings(kinds[rng.integers(0, 3, size=n)])
    queries = embeddings(np.concatenate([kinds, rng.normal(size=(17, 16))]))
    found = FlatSearcher.of_embeddings(stored).search(queries, k)
    rows, scores = by_numpy(stored, queries, k)
    kept = min(k, n)
    np.testing.assert_array_equal(found.rows[:, :kept], rows)
    np.testing.assert_array_equal(found.scores[:, :kept], scores)
    assert (found.rows[:, kept:] == NO_ROW).all()
    assert np.isneginf(found.scores[:, kept:]).all()


def test_more_equal_scores_than_the_margin_are_all_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FAISS may propose any of the equal ones; here it proposes the highest rows."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 32))
    stored = embeddings(np.concatenate([rng.normal(size=(500, 32)), np.repeat(one, 900, axis=0)]))
    real = faiss.knn

    def highest_rows(queries: np.ndarray, vectors: np.ndarray, depth: int, metric: int):
        scores, places = real(queries, vectors, len(vectors), metric)
        order = np.lexsort((-places, -scores))[:, :depth]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)

    monkeypatch.setattr(faiss, "knn", highest_rows)
    monkeypatch.setattr(flat, "_BLOCK_ROWS", 700)
    monkeypatch.setattr(rescoring, "_PAIRS", 100)
    found = FlatSearcher.of_embeddings(stored).search(embeddings(np.repeat(one, 20, axis=0)), 5)
    assert found.rows.tolist() == [[500, 501, 502, 503, 504]] * 20


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_only_allowed_rows_are_found(
    monkeypatch: pytest.MonkeyPatch, share: float, hold: bool
) -> None:
    monkeypatch.setattr(flat, "_BLOCK_ROWS", 64)
    rng = np.random.default_rng(3)
    stored, queries = embeddings(rng.normal(size=(900, 16))), embeddings(rng.normal(size=(20, 16)))
    view = View.of_embeddings(stored)
    searcher = FlatSearcher(replace(view, mask=rng.random(900) < 0.9), hold=hold)
    allow = rng.random(900) < share
    rows = np.flatnonzero(allow & searcher._view.mask)
    for _ in range(2):  # the second search has the copy that the first one made
        found = searcher.search(queries, 30, allow)
        kept = min(30, len(rows))
        expected = Embeddings(stored.vectors[rows], tuple(map(str, rows)), "f")
        places, scores = by_numpy(expected, queries, 30)
        np.testing.assert_array_equal(found.rows[:, :kept], rows[places])
        np.testing.assert_array_equal(found.scores[:, :kept], scores)
        assert (found.rows[:, kept:] == NO_ROW).all()
        assert (searcher._held is not None) == (hold and share > 0.25)


def test_the_copy_is_kept_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "_HELD_ANYHOW", 1000)
    stored = embeddings(np.eye(40))
    monkeypatch.setattr(flat, "free_memory", lambda: 2 * 40 * 40 * 4)
    assert FlatSearcher.of_embeddings(stored)._hold
    monkeypatch.setattr(flat, "free_memory", lambda: 2 * 40 * 40 * 4 - 1)
    assert not FlatSearcher.of_embeddings(stored)._hold
    assert FlatSearcher.of_embeddings(embeddings(np.eye(10)))._hold


def test_free_memory_is_some_share_of_the_machine() -> None:
    assert 2**20 < flat.free_memory() < 2**50


def test_a_query_gets_the_same_answer_alone_and_in_a_batch() -> None:
    rng = np.random.default_rng(1)
    stored = embeddings(np.repeat(rng.normal(size=(400, 100)), 3, axis=0))
    queries = embeddings(rng.normal(size=(33, 100)))
    searcher = FlatSearcher.of_embeddings(stored)
    batch = searcher.search(queries, 20)
    for i in range(len(queries)):
        alone = Embeddings(queries.vectors[i : i + 1], queries.ids[i : i + 1], "f")
        found = searcher.search(alone, 20)
        np.testing.assert_array_equal(found.rows[0], batch.rows[i])
        np.testing.assert_array_equal(found.scores[0], batch.scores[i])


def test_queries_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    stored, queries = embeddings(rng.normal(size=(50, 8))), embeddings(rng.normal(size=(25, 8)))
    searcher = FlatSearcher.of_embeddings(stored)
    whole = searcher.search(queries, 3)
    monkeypatch.setattr(flat, "_BLOCK_QUERIES", 4)
    np.testing.assert_array_equal(searcher.search(queries, 3).rows, whole.rows)


def test_the_setting_of_faiss_is_set_back() -> None:
    before = faiss.cvar.distance_compute_blas_threshold
    stored = embeddings(np.eye(40))
    FlatSearcher.of_embeddings(stored).search(stored, 1)
    assert faiss.cvar.distance_compute_blas_threshold == before
    with flat.blas(1):
        assert faiss.cvar.distance_compute_blas_threshold == before
    with flat.blas(16):
        assert faiss.cvar.distance_compute_blas_threshold == 1


@pytest.fixture
def gallery(tmp_path: Path, scenario: ModuleType):
    with scenario.committing(tmp_path / "g.lmk", create=True) as writer:
        writer.reset(scenario.A, 8)
        writer.append(*scenario.batch(range(1000, 1010)), role="distractor")
        writer.append(*scenario.batch(range(20)))
    with Gallery.open(tmp_path / "g.lmk") as gallery:
        yield gallery


def test_choose_searches_one_role_by_gallery_rows(
    gallery: Gallery, scenario: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat, "_BLOCK_ROWS", 7)
    queries, _ = scenario.batch([3, 1004])
    settings = SearchSettings("flat")
    found = choose(gallery, settings=settings).search(queries, 25)
    assert found.rows[0, 0] == 13
    assert set(found.rows[1]) == {NO_ROW, *range(10, 30)}
    distractors = choose(gallery, "distractor", settings=settings)
    assert distractors.search(queries, 1).rows[1].tolist() == [4]
    assert distractors.reason == "exact search: 10 vectors are compared with each query"


def test_a_searcher_outlives_its_gallery(gallery: Gallery, scenario: ModuleType) -> None:
    searcher = choose(gallery)
    gallery.close()
    assert searcher.search(scenario.batch([7])[0], 1).rows.tolist() == [[17]]


def test_no_rows_and_no_queries(tmp_path: Path, scenario: ModuleType) -> None:
    with scenario.committing(tmp_path / "e", create=True) as writer:
        writer.reset(scenario.A, 8)
    queries, _ = scenario.batch([1, 2])
    with Gallery.open(tmp_path / "e") as empty:
        found = choose(empty).search(queries, 3)
    assert found.rows.tolist() == [[NO_ROW] * 3] * 2
    searcher = FlatSearcher.of_embeddings(queries)
    assert searcher.search(scenario.batch([])[0], 3).rows.shape == (0, 3)


def test_wrong_calls_are_refused(gallery: Gallery, scenario: ModuleType) -> None:
    searcher = choose(gallery)
    queries, _ = scenario.batch([1])
    with pytest.raises(UsageError, match="0 neighbours asked for; ask for at least 1"):
        searcher.search(queries, 0)
    with pytest.raises(EmbedderMismatch, match=r"bbbb for a gallery of embedder aaaa"):
        searcher.search(scenario.batch([1], scenario.B)[0], 1)
    with pytest.raises(ValueError, match="queries of 6 components, vectors of 8"):
        short = Embeddings(scenario.batch([1], scenario.B)[0].vectors, ("x",), scenario.A)
        searcher.search(short, 1)
