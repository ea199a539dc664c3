"""Votes for tags against a slow count, and the edges: ties, nobody, pictures without tags."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.index.vectors.neighbours import NO_ROW
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.tags.votes import tag_votes

Facts = Callable[..., PipelineContext]


def votes(context: PipelineContext, rows: object, scores: object, **options: float) -> np.ndarray:
    return tag_votes(
        np.asarray(rows, np.int64),
        np.asarray(scores, np.float32),
        context.label_offsets,
        context.label_codes,
        len(context.label_names),
        **options,  # type: ignore[arg-type]
    )


def test_a_neighbour_votes_for_all_its_tags(context: Facts) -> None:
    got = votes(context("cat sofa", "cat", "dog"), [[0, 1, 2]], [[0.5, 0.3, 0.2]])
    np.testing.assert_allclose(got, [[0.8, 0.2, 0.5]], rtol=1e-6)


def test_one_without_tags_votes_against_all(context: Facts) -> None:
    np.testing.assert_allclose(
        votes(context("cat", ""), [[0, 1]], [[0.6, 0.4]]), [[0.6]], rtol=1e-6
    )


def test_only_the_k_best_vote_and_of_equal_ones_the_lower_row(context: Facts) -> None:
    got = votes(context("cat", "dog", "cow"), [[2, 1, 0]], [[0.5, 0.5, 0.9]], k=2)
    np.testing.assert_allclose(got, [[0.9 / 1.4, 0, 0.5 / 1.4]], rtol=1e-6)


def test_nobody_near_is_nothing_known(context: Facts) -> None:
    got = votes(context("cat", "dog"), [[0, 1], [NO_ROW, NO_ROW]], [[0, -0.4], [-np.inf, -np.inf]])
    assert got.tolist() == [[0, 0], [0, 0]]
    assert votes(context("", ""), [[0, 1]], [[0.5, 0.4]]).shape == (1, 0)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 9), power=st.sampled_from([1.0, 2.0, 0.5]))
def test_against_a_slow_count(seed: int, k: int, power: float) -> None:
    rng = np.random.default_rng(seed)
    labels = [tuple(n for n in "abc" if rng.random() < 0.4) for _ in range(8)]
    context = PipelineContext.of_labels(labels)
    rows = np.stack([rng.permutation(8)[:6] for _ in range(5)])
    rows[rng.random(rows.shape) < 0.2] = NO_ROW
    scores = rng.integers(-3, 6, rows.shape).astype(np.float32) / 5
    scores[rows == NO_ROW] = -np.inf
    got = votes(context, rows, scores, k=k, power=power)
    for i in range(5):
        near = sorted((-s, r) for r, s in zip(rows[i], scores[i], strict=True) if r != NO_ROW)[:k]
        weights = {r: max(-s, 0.0) ** power for s, r in near}
        whole = sum(weights.values())
        for t, name in enumerate(context.label_names):
            own = sum(w for r, w in weights.items() if name in labels[r])
            assert got[i, t] == pytest.approx(own / whole if whole else 0, abs=1e-6)
