"""k-reciprocal re-ranking against the published algorithm, written with sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.vectors import Vectors
from lmk.rerank.lists.k_reciprocal import distances, k_reciprocal

Embed = Callable[..., Embeddings]
Scan = Callable[[Embeddings], Searcher]


def slow(pool: np.ndarray, k1: int, k2: int, share: float) -> list[float]:
    """Distances of pool[0] to all, step by step as in the paper's code."""
    m = len(pool)
    dist = [[2 - 2 * float(a @ b) for b in pool] for a in pool]
    dist = [[d if d > 1e-6 else 0.0 for d in row] for row in dist]  # copies, but for rounding
    dist = [[d / max(row) if max(row) > 0 else 0.0 for d in row] for row in dist]
    ranks = [sorted(range(m), key=lambda j, i=i: (j != i, dist[i][j], j)) for i in range(m)]

    def mutual(i: int, k: int) -> set[int]:
        return {j for j in ranks[i][: k + 1] if i in ranks[j][: k + 1]}

    encodings = []
    for i in range(m):
        members = set(mutual(i, k1))
        for j in mutual(i, k1):
            theirs = mutual(j, round(k1 / 2))
            if len(theirs & mutual(i, k1)) > 2 / 3 * len(theirs):
                members |= theirs
        weights = [np.exp(-dist[i][j]) if j in members else 0.0 for j in range(m)]
        encodings.append([w / sum(weights) for w in weights])
    if k2 > 1:
        encodings = [
            np.mean([encodings[j] for j in ranks[i][:k2]], axis=0).tolist() for i in range(m)
        ]
    final = []
    for i in range(m):
        least = sum(min(a, b) for a, b in zip(encodings[0], encodings[i], strict=True))
        most = sum(max(a, b) for a, b in zip(encodings[0], encodings[i], strict=True))
        final.append((1 - share) * (1 - least / most) + share * dist[0][i])
    return final


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    m=st.integers(1, 14),
    k1=st.integers(1, 8),
    k2=st.integers(1, 4),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_against_the_paper(seed: int, m: int, k1: int, k2: int, share: float) -> None:
    pool = unit_rows(np.random.default_rng(seed).standard_normal((m, 3)))
    got = distances(pool, k1, k2, share)
    np.testing.assert_allclose(got, slow(pool.astype(np.float64), k1, k2, share), atol=1e-9)
    assert got[0] == pytest.approx(0, abs=1e-12) and (got <= 1 + 1e-9).all()


def test_copies_are_at_distance_nothing() -> None:
    pool = unit_rows(np.ones((4, 3)))
    np.testing.assert_allclose(distances(pool, k1=2), 0, atol=1e-12)


def test_who_has_friends_of_his_own_falls_behind(embed: Embed, scan: Scan) -> None:
    """The stranger is nearer to the query than its four friends, but knows others better."""
    c, s = np.cos(np.radians(25)), np.sin(np.radians(25))
    friends = [[c, 0, s, 0], [c, 0, -s, 0], [c, 0, 0, s], [c, 0, 0, -s]]
    crowd = np.radians([20, 32, 33, 34, 35, 36, 37])
    known = embed(friends + [[np.cos(a), np.sin(a), 0, 0] for a in crowd])
    asked = embed([[1, 0, 0, 0]], "q")
    found = scan(known).search(asked, 11)
    assert found.rows[0, :5].tolist() == [4, 0, 1, 2, 3], "plain cosine answers with the stranger"
    got = k_reciprocal(asked, found, Vectors.of_array(known.vectors), k1=5, k2=3)
    assert sorted(got.rows[0, :4]) == [0, 1, 2, 3]
    assert sorted(got.rows[0]) == sorted(found.rows[0])
    assert (got.scores <= 1).all() and (got.scores >= 0).all()


def test_the_share_of_one_keeps_the_order(embed: Embed, scan: Scan) -> None:
    rng = np.random.default_rng(0)
    known, asked = embed(rng.standard_normal((8, 4))), embed(rng.standard_normal((3, 4)), "q")
    found = scan(known).search(asked, 10)
    got = k_reciprocal(asked, found, Vectors.of_array(known.vectors), share=1)
    assert np.array_equal(got.rows, found.rows), "and the ends without a row stay"


def test_nothing_found(embed: Embed, scan: Scan) -> None:
    known, asked = embed(np.zeros((0, 4))), embed(np.eye(4)[:2], "q")
    found = scan(known).search(asked, 3)
    got = k_reciprocal(asked, found, Vectors.of_array(known.vectors))
    assert (got.rows == -1).all() and got.query_ids == ("q0", "q1")
    with pytest.raises(ValueError, match="other queries"):
        k_reciprocal(embed(np.eye(4)[:2], "x"), found, Vectors.of_array(known.vectors))
