"""Augmentation of the short list, against augmented galleries built on purpose."""

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
from lmk.index.vectors.view import View
from lmk.rerank.steps import augmentation
from lmk.rerank.steps.augmentation import Neighbourhoods
from lmk.rerank.steps.expansion import augmentation_weights
from lmk.rerank.steps.ranking import ranked

Embed = Callable[..., Embeddings]
Scan = Callable[[Embeddings], Searcher]


def augmented(embed: Embed, scan: Scan, known: Embeddings, weights: np.ndarray) -> Embeddings:
    """A gallery of augmented vectors: each picture first, then its nearest."""
    total = np.zeros((len(known), known.dim))
    for i, row in enumerate(scan(known).search(known, len(known) or 1).rows):
        near = [i, *(j for j in row.tolist() if j not in (i, -1))]
        total[i] = sum(w * known.vectors[j] for w, j in zip(weights, near, strict=False))
    return embed(total)


def rerank(
    made: Neighbourhoods,
    asked: Embeddings,
    found: Neighbours,
    vectors: Vectors,
    k: int | None = None,
    *,
    without: list[np.ndarray] | None = None,
) -> Neighbours:
    cosines = made.cosines(asked, found, vectors, without=without)
    return ranked(found.rows, cosines, found.query_ids, k)


@given(
    seed=st.integers(0, 10_000),
    gallery=st.integers(0, 12),
    n=st.integers(1, 5),
    k=st.integers(1, 14),
)
def test_a_whole_list_is_a_search_in_the_augmented_gallery(
    embed: Embed, scan: Scan, seed: int, gallery: int, n: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    known = embed(rng.standard_normal((gallery, 4)).reshape(gallery, 4))
    asked = embed(rng.standard_normal((2, 4)), "q")
    weights = augmentation_weights(n)
    made = Neighbourhoods.build(scan(known), View.of_embeddings(known), weights)
    found = scan(known).search(asked, 14)
    got = rerank(made, asked, found, Vectors.of_array(known.vectors), k)
    expected = scan(augmented(embed, scan, known, weights)).search(asked, k)
    assert got.rows.tolist() == expected.rows.tolist()
    np.testing.assert_allclose(got.scores, expected.scores, atol=2e-6)


@given(seed=st.integers(0, 10_000), gallery=st.integers(2, 12), n=st.integers(1, 5))
def test_leaving_one_out_is_a_gallery_without_it(
    embed: Embed, scan: Scan, seed: int, gallery: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    known = embed(rng.standard_normal((gallery, 4)))
    weights, out = augmentation_weights(n), int(rng.integers(gallery))
    made = Neighbourhoods.build(scan(known), View.of_embeddings(known), weights)
    asked = embed(known.vectors[out : out + 1], "q")
    found = scan(known).search(asked, gallery)
    assert found.rows[0, 0] == out
    vectors = Vectors.of_array(known.vectors)
    got = rerank(made, asked, found, vectors, gallery - 1, without=[np.array([out])])
    kept = np.delete(np.arange(gallery), out)
    smaller = augmented(embed, scan, embed(known.vectors[kept]), weights)
    expected = scan(smaller).search(asked, gallery - 1)
    assert got.rows.tolist() == kept[expected.rows].tolist()
    np.testing.assert_allclose(got.scores, expected.scores, atol=2e-6)


def test_it_matters_to_leave_it_out(embed: Embed, scan: Scan) -> None:
    """A picture asked of its own gallery lends its neighbours its own likeness."""
    rng = np.random.default_rng(0)
    known = embed(rng.standard_normal((30, 16)))
    made = Neighbourhoods.build(scan(known), View.of_embeddings(known))
    asked, vectors = embed(known.vectors, "q"), Vectors.of_array(known.vectors)
    found = scan(known).search(asked, 30)
    itself = [np.array([i]) for i in range(30)]
    honest = rerank(made, asked, found, vectors, 1, without=itself).scores
    flattered = rerank(made, asked, found, vectors)
    second = np.array(
        [
            s[r != i][0]
            for i, (r, s) in enumerate(zip(flattered.rows, flattered.scores, strict=True))
        ]
    )
    assert (second - honest[:, 0]).mean() > 0.1


def test_a_whole_landmark_left_out(embed: Embed, scan: Scan) -> None:
    known = embed([[1, 0, 0], [0.9, 0.1, 0], [0.6, 0.8, 0], [0, 0, 1]])
    made = Neighbourhoods.build(scan(known), View.of_embeddings(known), augmentation_weights(3))
    asked = embed([[1, 0, 0]], "q")
    found, vectors = scan(known).search(asked, 4), Vectors.of_array(known.vectors)
    got = rerank(made, asked, found, vectors, without=[np.array([0, 1])])
    assert got.rows.tolist() == [[2, 3, -1, -1]]
    first, second = augmentation_weights(3)[:2]
    expected = (first * known.vectors[2] + second * known.vectors[3])[0]
    assert got.scores[0, 0] == pytest.approx(expected / np.hypot(first, second), abs=1e-6)


def test_blocks_and_rows_of_no_picture(
    embed: Embed, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = embed(np.random.default_rng(0).standard_normal((7, 3)))
    view = View.of_embeddings(known)
    whole = Neighbourhoods.build(scan(known), view).rows
    assert whole[:, 0].tolist() == list(range(7)) and (whole[:, 7:] == -1).all()
    monkeypatch.setattr(augmentation, "_BLOCK", 3)
    assert np.array_equal(Neighbourhoods.build(scan(known), view).rows, whole)
    view.mask[[1, 4]] = False
    some = Neighbourhoods.build(scan(known), view).rows
    assert (some[[1, 4]] == -1).all() and np.array_equal(some[[0, 6]], whole[[0, 6]])


def test_what_cannot_be(embed: Embed, neighbours: Callable[..., Neighbours]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Neighbourhoods(np.zeros((3, 4), np.int64), augmentation_weights(4))
    made = Neighbourhoods(np.zeros((1, 2), np.int64), augmentation_weights(1))
    vectors, found = Vectors.of_array(embed([[1, 0]]).vectors), neighbours([(0, 1.0)])
    with pytest.raises(ValueError, match="other queries"):
        rerank(made, embed([[1, 0]], "x"), found, vectors)
    with pytest.raises(ValueError, match="other queries"):
        rerank(made, embed([[1, 0]], "q"), found, vectors, without=[np.array([0])] * 2)


def test_a_search_that_misses_the_picture_itself(embed: Embed, scan: Scan) -> None:
    """An approximate one may; the picture counts first all the same."""
    known = embed([[1, 0], [0.6, 0.8], [0, 1]])

    class Others:
        reason = ""

        def search(self, queries: Embeddings, k: int, allow: object = None) -> Neighbours:
            return scan(known).search(queries, k, np.array([False, True, True]))

    made = Neighbourhoods.build(Others(), View.of_embeddings(known), np.array([0.75, 0.25]))
    assert made.rows[0].tolist() == [0, 1, 2]
