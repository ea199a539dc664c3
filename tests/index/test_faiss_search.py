from __future__ import annotations

from pathlib import Path
from types import ModuleType

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import EmbedderMismatch, UsageError
from lmk.index import faiss_search
from lmk.index.faiss_search import FlatSearcher
from lmk.index.gallery import Gallery
from lmk.index.neighbours import NO_ROW
from lmk.index.search import choose
from lmk.index.writer import GalleryWriter


def embeddings(vectors: np.ndarray, fingerprint: str = "f") -> Embeddings:
    return Embeddings(unit_rows(vectors), tuple(map(str, range(len(vectors)))), fingerprint)


def by_numpy(stored: Embeddings, queries: Embeddings, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All scores in float64, rounded to float32; a stable sort keeps equal ones in row order."""
    products = queries.vectors.astype(np.float64)[:, None, :] * stored.vectors.astype(np.float64)
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
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, 32))
    stored = embeddings(np.concatenate([rng.normal(size=(500, 32)), np.repeat(one, 900, axis=0)]))
    searcher = FlatSearcher.of_embeddings(stored)
    depths = []
    real = searcher._index.search

    class Shuffled:
        """FAISS may give any of the equal ones; this gives the highest rows first."""

        def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
            depths.append(depth)
            scores, rows = real(queries, len(stored))
            order = np.lexsort((-rows, -scores))[:, :depth]
            return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

        d = 32

    monkeypatch.setattr(searcher, "_index", Shuffled())
    monkeypatch.setattr(faiss_search, "_RESCORE_ROWS", 100)
    found = searcher.search(embeddings(one), 5)
    assert found.rows.tolist() == [[500, 501, 502, 503, 504]]
    assert depths == [37, 148, 592, 1400]


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
    monkeypatch.setattr(faiss_search, "_BLOCK_QUERIES", 4)
    np.testing.assert_array_equal(searcher.search(queries, 3).rows, whole.rows)


def test_the_setting_of_faiss_is_set_back() -> None:
    before = faiss.cvar.distance_compute_blas_threshold
    stored = embeddings(np.eye(40))
    FlatSearcher.of_embeddings(stored).search(stored, 1)
    assert faiss.cvar.distance_compute_blas_threshold == before
    with faiss_search._blas(1):
        assert faiss.cvar.distance_compute_blas_threshold == before
    with faiss_search._blas(16):
        assert faiss.cvar.distance_compute_blas_threshold == 1


@pytest.fixture
def gallery(tmp_path: Path, scenario: ModuleType):
    with GalleryWriter(tmp_path / "g.lmk", create=True) as writer:
        writer.reset(scenario.A, 8)
        writer.append(*scenario.batch(range(1000, 1010)), role="distractor")
        writer.append(*scenario.batch(range(20)))
        writer.commit()
    with Gallery.open(tmp_path / "g.lmk") as gallery:
        yield gallery


def test_choose_searches_one_role_by_gallery_rows(
    gallery: Gallery, scenario: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_search, "_BLOCK_ROWS", 7)
    queries, _ = scenario.batch([3, 1004])
    found = choose(gallery).search(queries, 25)
    assert found.rows[0, 0] == 13
    assert set(found.rows[1]) == {NO_ROW, *range(10, 30)}
    distractors = choose(gallery, "distractor")
    assert distractors.search(queries, 1).rows[1].tolist() == [4]
    assert distractors.reason == "exact search: 10 vectors are compared with each query"


def test_a_searcher_outlives_its_gallery(gallery: Gallery, scenario: ModuleType) -> None:
    searcher = choose(gallery)
    gallery.close()
    assert searcher.search(scenario.batch([7])[0], 1).rows.tolist() == [[17]]


def test_no_rows_and_no_queries(tmp_path: Path, scenario: ModuleType) -> None:
    with GalleryWriter(tmp_path / "e", create=True) as writer:
        writer.reset(scenario.A, 8)
        writer.commit()
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
