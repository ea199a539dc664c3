"""The distractor penalty: golden values, and a slow loop as oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.exact.flat import FlatSearcher
from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.view import View
from lmk.rerank.steps import hits as picks_module
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.penalty import CONTEST_HITS, Hits, PenaltyStep, count_hits, penalty_of
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.state import QueryBatch
from lmk.rerank.steps.voting import VoteStep

Embed = Callable[..., Embeddings]

# A worked example: picks, mean cosine, penalty by ramp.
GOLDEN = [
    (2, 0.55, {"linear": 0.0, "shifted": 0.0, "unfloored": 0.0}),
    (3, 0.50, {"linear": 0.15, "shifted": 0.185, "unfloored": 0.035}),
    (8, 0.60, {"linear": 0.4133, "shifted": 0.4320, "unfloored": 0.2520}),
    (15, 0.70, {"linear": 0.70, "shifted": 0.70, "unfloored": 0.70}),
]


@pytest.mark.parametrize("ramp", ["linear", "shifted", "unfloored"])
def test_golden(ramp: str) -> None:
    picks = Hits(
        np.array([n for n, _, _ in GOLDEN]), np.array([mu for _, mu, _ in GOLDEN], np.float32), 1.0
    )
    got = penalty_of(picks, PenaltyStep(ramp=ramp, counts="raw"))
    np.testing.assert_allclose(got, [by_ramp[ramp] for _, _, by_ramp in GOLDEN], atol=5e-5)
    assert got.dtype == np.float32


@pytest.mark.parametrize(
    ("ramp", "rows", "scores"),
    [
        ("linear", [0, 1, 2, 3], [0.55, 0.47, 0.3867, 0.25]),
        ("shifted", [0, 1, 2, 3], [0.55, 0.435, 0.368, 0.25]),
        ("unfloored", [1, 0, 2, 3], [0.585, 0.55, 0.548, 0.25]),
    ],
)
def test_the_penalty_changes_the_nearest_picture(
    neighbours: Callable[..., Neighbours],
    context: Callable[..., PipelineContext],
    ramp: str,
    rows: list[int],
    scores: list[float],
) -> None:
    """By plain cosine picture 3 is nearest; after the penalty it is picture 0 (or 1)."""
    found = neighbours([(3, 0.95), (2, 0.80), (1, 0.62), (0, 0.55)])
    picks = Hits(np.array([2, 3, 8, 15]), np.array([0.55, 0.5, 0.6, 0.7], np.float32), 1.0)
    taken = penalty_of(picks, PenaltyStep(ramp=ramp, counts="raw"))
    known = replace(context("g0", "g1", "g2", "g3"), penalty=taken)
    queries = Embeddings(np.eye(1, 2, dtype=np.float32), found.query_ids, "test")
    pipeline = Pipeline(steps=(PenaltyStep(), VoteStep(k=1)))
    got = pipeline.predict(QueryBatch(queries), found, known)
    assert got.labels == (f"g{rows[0]}",)
    order = np.argsort(-got.scores[0])
    assert found.rows[0, order].tolist() == rows
    np.testing.assert_allclose(got.scores[0, order], scores, atol=5e-5)


def slow(cosines: np.ndarray, settings: PenaltyStep) -> list[float]:
    """The contest write-up's rule word for word, over cosines [bank, gallery]."""
    picks: list[list[float]] = [[] for _ in range(cosines.shape[1])]
    for row in cosines:
        for g in sorted(range(len(row)), key=lambda g: (-row[g], g))[: settings.top]:
            picks[g].append(float(row[g]))
    expected = sum(map(len, picks)) / len(picks)
    result = []
    for sims in picks:
        n: float = len(sims)
        if settings.counts == "relative" and expected:
            n = n * min(1, (110_000 * 20 / 1_580_470) / expected)
        n = min(n, settings.max_n)
        mu = sum(sims) / len(sims) if sims else 0.0
        rise = settings.max_share - settings.min_share
        width = settings.max_n - settings.min_n
        if n < settings.min_n:
            share = 0.0
        elif n >= settings.max_n:
            share = settings.max_share
        elif settings.ramp == "linear":
            share = settings.min_share + rise * (n - settings.min_n) / width
        elif settings.ramp == "shifted":
            share = settings.min_share + rise * (n - settings.min_n + 1) / (width + 1)
        else:
            share = rise * (n - settings.min_n + 1) / (width + 1)
        result.append(share * max(mu, 0))
    return result


@given(
    seed=st.integers(0, 10_000),
    gallery=st.integers(1, 12),
    bank=st.integers(0, 40),
    top=st.integers(1, 15),
    ramp=st.sampled_from(["linear", "shifted", "unfloored"]),
    counts=st.sampled_from(["relative", "raw"]),
    low=st.sampled_from([0, 1, 3]),
)
def test_against_a_slow_loop(
    embed: Embed, seed: int, gallery: int, bank: int, top: int, ramp: str, counts: str, low: int
) -> None:
    rng = np.random.default_rng(seed)
    known = embed(rng.standard_normal((gallery, 3)))
    others = embed(rng.standard_normal((bank, 3)), "d")
    settings = PenaltyStep(top=top, ramp=ramp, counts=counts, min_n=low, max_n=low + 4)
    searcher = FlatSearcher.of_embeddings(known)
    picks = count_hits(searcher, View.of_embeddings(others), rows=gallery, gallery=gallery, top=top)
    got = penalty_of(picks, settings)
    wide = others.vectors.astype(np.float64) @ known.vectors.astype(np.float64).T
    np.testing.assert_allclose(got, slow(wide, settings), atol=1e-5)
    assert (got >= 0).all()


@pytest.mark.parametrize("bank", [0, 1, 7])
def test_a_bank_in_batches(embed: Embed, monkeypatch: pytest.MonkeyPatch, bank: int) -> None:
    rng = np.random.default_rng(0)
    searcher = FlatSearcher.of_embeddings(embed(rng.standard_normal((5, 4))))
    others = embed(rng.standard_normal((bank, 4)), "d")
    whole = count_hits(searcher, View.of_embeddings(others), rows=5, gallery=5, top=2)
    monkeypatch.setattr(picks_module, "_BATCH", 3)
    parts = count_hits(searcher, View.of_embeddings(others), rows=5, gallery=5, top=2)
    assert whole.counts.tolist() == parts.counts.tolist() and whole.counts.sum() == 2 * bank
    np.testing.assert_allclose(whole.mean, parts.mean, rtol=1e-6)
    assert whole.expected == parts.expected == pytest.approx(2 * bank / 5)


def test_an_empty_bank_takes_nothing(embed: Embed) -> None:
    searcher = FlatSearcher.of_embeddings(embed(np.eye(3)))
    picks = count_hits(
        searcher, View.of_embeddings(embed(np.zeros((0, 3)))), rows=3, gallery=3, top=20
    )
    for counts in ("raw", "relative"):
        assert penalty_of(picks, PenaltyStep(counts=counts)).tolist() == [0, 0, 0]


def test_relative_counts_fit_any_size() -> None:
    """All picked alike: 1.39 picks a picture in the contest, none of them penalised."""
    for expected in (CONTEST_HITS, 7.0, 500.0):
        n = np.array([expected, 2.2 * expected, 8.7 * expected])
        picks = Hits(n, np.full(3, 0.5, np.float32), expected)
        penalty = penalty_of(picks, PenaltyStep())
        assert penalty[0] == 0 and 0 < penalty[1] < 0.5 and penalty[2] == 0.5
    assert pytest.approx(1.392, abs=1e-3) == CONTEST_HITS


def test_a_pick_is_chance_however_small_the_bank() -> None:
    """20 distractors x 1 pick over 2,000 pictures: 0.01 picks are expected of each."""
    picks = Hits(np.array([0, 1, 2, 3, 12]), np.full(5, 0.5, np.float32), 0.01)
    penalty = penalty_of(picks, PenaltyStep())
    assert penalty[:3].tolist() == [0, 0, 0]
    np.testing.assert_allclose(penalty[3:], [0.5 * 0.37, 0.5], rtol=1e-6)


def test_the_ends_of_the_ramp() -> None:
    picks = Hits(np.array([0, 2, 3, 11, 12, 99]), np.ones(6, np.float32), 1.0)
    for ramp, first in (("linear", 0.3), ("shifted", 0.37), ("unfloored", 0.07)):
        got = penalty_of(picks, PenaltyStep(ramp=ramp, counts="raw"))
        assert got[:2].tolist() == [0, 0]
        assert got[2] == pytest.approx(first) and got[3] < 1
        assert got[4:].tolist() == [1, 1]


def test_a_negative_mean_adds_nothing() -> None:
    picks = Hits(np.array([20]), np.array([-0.4], np.float32), 1.0)
    assert penalty_of(picks, PenaltyStep(counts="raw")).tolist() == [0]


def test_rows_that_are_not_in_the_gallery(embed: Embed) -> None:
    """Rows of distractors lie between those of the gallery; they are never picked."""
    view = View.of_embeddings(embed(unit_rows(np.eye(4)[[1, 0, 1, 1, 1]])))
    mask = np.isin(np.arange(5), [1, 4])
    searcher = FlatSearcher(replace(view, mask=mask))
    picks = count_hits(
        searcher, View.of_embeddings(embed(np.eye(4)[[1, 1]], "d")), rows=6, gallery=2, top=1
    )
    assert picks.counts.tolist() == [0, 0, 0, 0, 2, 0] and picks.mean[4] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_n": 12},
        {"min_n": 5, "max_n": 4},
        {"max_share": 0.1},
        {"top": 0},
        {"ramp": "steep"},
        {"counts": "some"},
        {"min_share": -1},
        {"more": 1},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"max_n|greater|Input should|Extra"):
        PenaltyStep(**wrong)
