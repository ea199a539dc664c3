"""Query expansion and augmentation against loops, and what they are for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.embeddings import Embeddings
from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.vectors import Vectors
from lmk.rerank.steps import expansion
from lmk.rerank.steps.expansion import augmentation_weights, expand

Embed = Callable[..., Embeddings]
Scan = Callable[[Embeddings], Searcher]


def slow_expand(query: np.ndarray, gallery: np.ndarray, n: int, alpha: float) -> np.ndarray:
    cosines = sorted(((float(query @ x), -i) for i, x in enumerate(gallery)), reverse=True)
    total = query.astype(np.float64).copy()
    for cosine, minus_row in cosines[:n]:
        if cosine > 0:
            total += cosine**alpha * gallery[-minus_row]
    return total / np.linalg.norm(total)


@given(
    seed=st.integers(0, 10_000),
    gallery=st.integers(0, 12),
    n=st.integers(1, 15),
    alpha=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_expansion_against_a_loop(
    embed: Embed, scan: Scan, seed: int, gallery: int, n: int, alpha: float
) -> None:
    rng = np.random.default_rng(seed)
    known = embed(rng.standard_normal((gallery, 4)).reshape(gallery, 4))
    asked = embed(rng.standard_normal((3, 4)), "q")
    found = scan(known).search(asked, 12)
    got = expand(asked, found, Vectors.of_array(known.vectors), n=n, alpha=alpha)
    expected = [slow_expand(q, known.vectors, min(n, 12), alpha) for q in asked.vectors]
    np.testing.assert_allclose(got.vectors, expected, atol=2e-6)
    assert got.ids == asked.ids and got.fingerprint == asked.fingerprint


def test_expansion_reaches_the_other_side(embed: Embed, scan: Scan) -> None:
    """A query at 0 degrees finds pictures at 30; with them it prefers 60 to a stranger at -55."""
    angles = np.radians([30, 30.5, 60, -55])
    known = embed(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    asked = embed([[1, 0]], "q")
    searcher, vectors = scan(known), Vectors.of_array(known.vectors)
    assert searcher.search(asked, 4).rows.tolist() == [[0, 1, 3, 2]]
    moved = expand(asked, searcher.search(asked, 2), vectors, n=2)
    assert searcher.search(moved, 4).rows.tolist() == [[0, 1, 2, 3]] and moved.ids == ("q0",)


def test_blocks_change_nothing(embed: Embed, scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    known, asked = embed(rng.standard_normal((9, 5))), embed(rng.standard_normal((7, 5)), "q")
    vectors, searcher = Vectors.of_array(known.vectors), scan(known)
    found = searcher.search(asked, 4)
    whole = expand(asked, found, vectors).vectors
    monkeypatch.setattr(expansion, "_BLOCK", 2)
    assert np.array_equal(expand(asked, found, vectors).vectors, whole)


def test_golden_weights() -> None:
    got = augmentation_weights()
    assert got.sum() == pytest.approx(1) and got[0] / got[9] == pytest.approx(10**1.5)
    np.testing.assert_allclose(got[:3], [0.325726, 0.221915, 0.151189], atol=1e-6)
    assert augmentation_weights(1).tolist() == [1]


def test_neighbours_of_other_queries(embed: Embed, neighbours: Callable[..., Neighbours]) -> None:
    vectors = Vectors.of_array(embed([[1, 0]]).vectors)
    found = neighbours([(0, 1.0)])
    with pytest.raises(ValueError, match="other queries"):
        expand(embed([[1, 0]], "x"), found, vectors)
