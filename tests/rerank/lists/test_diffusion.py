"""Diffusion against a dense solution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.embed.embeddings import Embeddings
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.lists import diffusion
from lmk.rerank.lists.diffusion import NeighbourGraph

Embed = Callable[..., Embeddings]
Scan = Callable[[Embeddings], Searcher]


def slow_transition(vectors: np.ndarray, neighbours: int, gamma: float) -> np.ndarray:
    n = len(vectors)
    cosines = np.float32(vectors.astype(np.float64) @ vectors.T.astype(np.float64))
    lists = [
        sorted((j for j in range(n) if j != i), key=lambda j, i=i: (-cosines[i, j], j))[:neighbours]
        for i in range(n)
    ]
    affinity = np.zeros((n, n))
    for i in range(n):
        for j in lists[i]:
            if i in lists[j]:
                affinity[i, j] = max(float(cosines[i, j]), 0) ** gamma
    degree = affinity.sum(axis=1)
    scale = np.array([d**-0.5 if d > 0 else 0 for d in degree])
    return scale[:, None] * affinity * scale


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    gallery=st.integers(0, 14),
    neighbours=st.integers(1, 6),
    sources=st.integers(1, 4),
    k=st.integers(1, 16),
)
def test_against_a_dense_solution(
    embed: Embed, scan: Scan, seed: int, gallery: int, neighbours: int, sources: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    known = embed(rng.standard_normal((gallery, 3)).reshape(gallery, 3))
    searcher = scan(known)
    graph = NeighbourGraph.build(searcher, View.of_embeddings(known), neighbours=neighbours)
    dense = slow_transition(known.vectors, neighbours, 3)
    np.testing.assert_allclose(graph.transition.toarray(), dense, atol=1e-6)
    assert not graph.transition.diagonal().any()
    found = searcher.search(embed(rng.standard_normal((2, 3)), "q"), k)
    got = graph.rerank(found, sources=sources, tolerance=1e-12, iterations=200, alpha=0.9)
    for i, row in enumerate(found.rows):
        listed = row[row >= 0]
        start = np.zeros(len(listed))
        start[:sources] = np.maximum(found.scores[i, : len(listed)], 0)[:sources] ** 3
        system = np.eye(len(listed)) - 0.9 * dense[np.ix_(listed, listed)]
        flow = np.linalg.solve(system, start)
        expected = dict(zip(listed.tolist(), flow, strict=True))
        assert sorted(got.rows[i][got.rows[i] >= 0]) == sorted(expected)
        want = [expected[row] for row in got.rows[i] if row >= 0]
        np.testing.assert_allclose(got.scores[i, : len(want)], want, atol=1e-5)


def test_it_walks_along_a_chain(embed: Embed, scan: Scan) -> None:
    """Views of one place, 20 degrees apart, reach further than a stranger who is nearer."""
    degrees = np.radians([0, 20, 40, 60, -50, -52])
    known = embed(np.stack([np.cos(degrees), np.sin(degrees)], axis=1))
    searcher = scan(known)
    found = searcher.search(embed([[1, 0]], "q"), 6)
    assert found.rows[0].tolist() == [0, 1, 2, 4, 5, 3]
    graph = NeighbourGraph.build(searcher, View.of_embeddings(known), neighbours=2)
    got = graph.rerank(found, sources=1)
    assert set(got.rows[0, :4].tolist()) == {0, 1, 2, 3}
    assert got.rows[0, 4:].tolist() == [4, 5], "what nothing reaches stays in its order"


def test_pictures_without_friends(embed: Embed, scan: Scan) -> None:
    known = embed(np.eye(3))
    searcher = scan(known)
    graph = NeighbourGraph.build(searcher, View.of_embeddings(known))
    assert graph.transition.nnz == 0
    found = searcher.search(embed([[0.8, 0.6, 0]], "q"), 5)
    assert graph.rerank(found).rows.tolist() == [[0, 1, 2, -1, -1]]
    away = searcher.search(embed([[-1, 0, 0]], "q"), 3)
    assert graph.rerank(away).rows.tolist() == away.rows.tolist()


def test_rows_that_are_not_searched(embed: Embed, scan: Scan) -> None:
    """Blocks, and rows of distractors in between, which have no neighbours."""
    known = embed(np.random.default_rng(0).standard_normal((9, 3)))
    view, rows = View.of_embeddings(known), np.array([0, 2, 3, 5, 8])
    view.mask[[1, 4, 6, 7]] = False

    class Some:
        reason = ""

        def search(self, queries: Embeddings, k: int, allow: object = None) -> object:
            return scan(known).search(queries, k, np.isin(np.arange(9), rows))

    graph = NeighbourGraph.build(Some(), view, neighbours=2)
    dense = slow_transition(known.vectors[rows], 2, 3)
    np.testing.assert_allclose(graph.transition.toarray()[np.ix_(rows, rows)], dense, atol=1e-6)
    assert graph.transition.shape == (9, 9)
    assert graph.transition.toarray()[[1, 4, 6, 7]].sum() == 0


def test_blocks_change_nothing(embed: Embed, scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    known = embed(np.random.default_rng(0).standard_normal((9, 3)))
    given_ = (scan(known), View.of_embeddings(known))
    whole = NeighbourGraph.build(*given_, neighbours=3).transition.toarray()
    monkeypatch.setattr(diffusion, "_BLOCK", 4)
    assert np.array_equal(NeighbourGraph.build(*given_, neighbours=3).transition.toarray(), whole)
