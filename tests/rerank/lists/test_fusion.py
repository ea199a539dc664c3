"""Several embedders as one, against a search in the concatenated vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.embeddings import Embeddings
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.vectors import Vectors
from lmk.rerank.lists.fusion import fuse

Embed = Callable[..., Embeddings]
Scan = Callable[[Embeddings], Searcher]


@given(
    seed=st.integers(0, 10_000),
    gallery=st.integers(0, 9),
    weights=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=1, max_size=3),
    k=st.integers(1, 11),
)
def test_it_is_a_search_in_concatenated_vectors(
    embed: Embed, scan: Scan, seed: int, gallery: int, weights: list[float], k: int
) -> None:
    rng = np.random.default_rng(seed)
    known = [embed(rng.standard_normal((gallery, 3)).reshape(gallery, 3)) for _ in weights]
    asked = [embed(rng.standard_normal((2, 3)), "q") for _ in weights]
    found = [scan(g).search(q, 9) for g, q in zip(known, asked, strict=True)]
    vectors = [Vectors.of_array(g.vectors) for g in known]
    got = fuse(asked, found, vectors, weights, k)
    scale = np.sqrt(np.array(weights) / sum(weights))
    one_known = embed(np.concatenate([s * g.vectors for s, g in zip(scale, known, strict=True)], 1))
    one_asked = embed(
        np.concatenate([s * q.vectors for s, q in zip(scale, asked, strict=True)], 1), "q"
    )
    expected = scan(one_known).search(one_asked, k)
    assert got.rows.tolist() == expected.rows.tolist()
    np.testing.assert_allclose(got.scores, expected.scores, atol=1e-6)


def test_a_row_one_of_them_missed(embed: Embed, scan: Scan) -> None:
    """Each finds one picture; both get both cosines."""
    first, second = embed([[1, 0], [0.6, 0.8]]), embed([[0.6, 0.8], [1, 0]])
    asked = embed([[1, 0]], "q")
    found = [scan(first).search(asked, 1), scan(second).search(asked, 1)]
    assert [n.rows.tolist() for n in found] == [[[0]], [[1]]]
    vectors = [Vectors.of_array(e.vectors) for e in (first, second)]
    got = fuse([asked, asked], found, vectors, [3, 1], 3)
    assert got.rows.tolist() == [[0, 1, -1]]
    np.testing.assert_allclose(got.scores[0, :2], [0.9, 0.7], atol=1e-6)


def test_what_cannot_be(embed: Embed, scan: Scan) -> None:
    known, asked = embed([[1, 0]]), embed([[1, 0]], "q")
    found, vectors = scan(known).search(asked, 1), Vectors.of_array(known.vectors)
    with pytest.raises(ValueError, match="of each embedder"):
        fuse([asked], [found], [vectors], [1, 1], 1)
    with pytest.raises(ValueError, match="of each embedder"):
        fuse([], [], [], [], 1)
    with pytest.raises(ValueError, match="above 0"):
        fuse([asked], [found], [vectors], [0], 1)
    with pytest.raises(ValueError, match="different queries"):
        fuse([asked, embed([[1, 0]], "x")], [found, found], [vectors] * 2, [1, 1], 1)
