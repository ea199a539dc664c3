"""The other penalties: golden values, loops as oracles, empty banks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.embeddings import Embeddings
from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.searcher import Searcher
from lmk.rerank.steps.distractor_similarity import (
    demote_overpredicted,
    mean_of,
    thresholded_demotion,
)

Embed = Callable[..., Embeddings]
Scan = Callable[[Embeddings], Searcher]
Make = Callable[..., Neighbours]
NONE = -np.inf


@given(
    seed=st.integers(0, 10_000),
    gallery=st.integers(0, 9),
    bank=st.integers(0, 9),
    m=st.integers(1, 6),
)
def test_b_against_a_loop(
    embed: Embed, scan: Scan, seed: int, gallery: int, bank: int, m: int
) -> None:
    rng = np.random.default_rng(seed)
    known = embed(rng.standard_normal((gallery, 3)).reshape(gallery, 3))
    others = embed(rng.standard_normal((bank, 3)).reshape(bank, 3), "d")
    got = mean_of(scan(others).search(known, 6).scores, m)
    for g, x in enumerate(known.vectors):
        largest = sorted((float(x @ d) for d in others.vectors), reverse=True)[:m]
        expected = sum(largest) / len(largest) if largest else 0.0
        assert got[g] == pytest.approx(expected, abs=1e-6)
    assert got.dtype == np.float32 and got.shape == (gallery,)


def test_the_mean_of_what_there_is() -> None:
    cosines = np.array([[0.8, 0.4, NONE], [NONE] * 3, [-0.2, -0.4, -0.6]], np.float32)
    np.testing.assert_allclose(mean_of(cosines, 3), [0.6, 0, -0.4], atol=1e-7)
    np.testing.assert_allclose(mean_of(cosines, 1), [0.8, 0, -0.2], atol=1e-7)
    for m in (0, 4):
        with pytest.raises(ValueError, match="largest of 3"):
            mean_of(cosines, m)


def test_demotion_by_the_third() -> None:
    cosines = np.array(
        [[0.9, 0.8, 0.29], [0.5, 0.4, 0.3], [0.9, 0.9, 0.6], [0.9, 0.9, NONE], [NONE] * 3],
        np.float32,
    )
    got = thresholded_demotion(cosines)
    # .3 is below its float32: it counts
    np.testing.assert_allclose(got, [0, 0.45, 0.9, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        thresholded_demotion(cosines, nth=1, at=0.6, factor=2), [1.8, 0, 1.8, 1.8, 0], atol=1e-6
    )
    assert thresholded_demotion(np.full((1, 3), -0.5, np.float32), at=0).tolist() == [0]
    with pytest.raises(ValueError, match="largest of 3"):
        thresholded_demotion(cosines, nth=4)


@given(st.lists(st.integers(-1, 3), max_size=30), st.integers(0, 6))
def test_labels_predicted_too_often(winners: list[int], limit: int) -> None:
    confidence = np.linspace(0, 1, len(winners)).astype(np.float32)
    got = demote_overpredicted(np.array(winners, np.int64), confidence, limit=limit)
    for winner, before, after in zip(winners, confidence, got, strict=True):
        count = winners.count(winner)
        assert after == (-count if winner >= 0 and count > limit else before)
