"""Answers of a gallery to its own pictures: what is left out, and who is taught without whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings
from lmk.index.exact.flat import FlatSearcher
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.fit import leave_one_out
from lmk.rerank.fit.calibration import ScoredAnswers
from lmk.rerank.fit.copies import CopyRule
from lmk.rerank.fit.leave_one_out import LeaveOneOut
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.distractor_similarity import OverpredictedStep, QueryPenaltyStep
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.voting import VoteStep

Embed = Callable[..., Embeddings]
Facts = Callable[..., PipelineContext]
Scan = Callable[[Embeddings], Searcher]
TOP1 = Pipeline(steps=(VoteStep(k=1, power=1),))
NO_COPIES = CopyRule(1.1)  # vectors in a plane are alike


def at(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def answers(
    gallery: Embeddings,
    context: PipelineContext,
    bank: Embeddings,
    pipeline: Pipeline = TOP1,
    taught_without: Callable[[np.ndarray], PipelineContext] | None = None,
    rule: CopyRule = NO_COPIES,
) -> ScoredAnswers:
    known, others = View.of_embeddings(gallery), View.of_embeddings(bank)
    without = taught_without or (lambda rows: context)
    searcher = FlatSearcher(known)
    return LeaveOneOut(pipeline, searcher, context, known, others, without, rule).answers()


def test_by_hand(embed: Embed, context: Facts) -> None:
    """Pairs 10 degrees apart, a landmark of one picture, a distractor."""
    got = answers(embed(at(0, 10, 60, 70, 180)), context("a", "a", "b", "b", "c"),
                  embed(at(270), "d"))  # fmt: skip
    degrees = [10, 10, 10, 10, *(60, 50, 50, 60, 110), 90]
    np.testing.assert_allclose(got.confidence, np.cos(np.radians(degrees)), atol=1e-6)
    assert got.right.tolist() == [True] * 4 + [False] * 6
    assert got.landmark.tolist() == [True] * 4 + [False] * 6
    np.testing.assert_allclose(got.weight, [1] * 4 + [6 / 2 / 5] * 5 + [6 / 2])


@pytest.mark.parametrize("labels", [("", ""), ()])
def test_no_landmark_no_answers(embed: Embed, context: Facts, labels: tuple[str, ...]) -> None:
    gallery = embed(at(0, 10)[: len(labels)])
    assert len(answers(gallery, context(*labels), embed(at(90), "d"))) == 0


@pytest.mark.parametrize("size", [0, 1, 2, 7, 9])
def test_the_bank_is_asked_of_those_who_do_not_know_it(
    embed: Embed, context: Facts, scan: Scan, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every distractor once, and never beside itself; of a large bank a sample at once."""
    monkeypatch.setattr(leave_one_out, "SAMPLE", 4)
    rng = np.random.default_rng(0)
    gallery, bank = embed(rng.standard_normal((6, 8))), embed(rng.standard_normal((size, 8)), "d")
    known, taken = context(*"aabbcc"), []

    def taught_without(rows: np.ndarray) -> PipelineContext:
        taken.append(rows.tolist())
        left = np.delete(np.arange(size), rows)
        return replace(
            known, distractor_searcher=scan(embed(bank.vectors[left])) if left.size else None
        )

    steps = (*TOP1.steps, QueryPenaltyStep(m=1, factor=1), OverpredictedStep(limit=1))
    whole = replace(known, distractor_searcher=scan(bank) if size else None)
    got = answers(gallery, whole, bank, Pipeline(steps=steps), taught_without)
    asked = [row for part in taken for row in part]
    if size <= 8:
        assert sorted(asked) == list(range(size))
        assert all(abs(len(part) - size / 2) < 1 for part in taken)
    else:
        assert len(taken) == 1 and len(asked) == 4
    expected = []
    for part in taken:
        left = np.delete(bank.vectors, part, axis=0)
        for row in part:
            likeness = (left @ bank.vectors[row]).max(initial=-1) if len(left) else 0
            expected.append((gallery.vectors @ bank.vectors[row]).max() - likeness)
    np.testing.assert_allclose(got.confidence[8:], expected, atol=1e-6)


def test_halves_do_not_depend_on_the_order_of_the_bank(
    embed: Embed, context: Facts, scan: Scan
) -> None:
    rng = np.random.default_rng(1)
    gallery, bank = embed(rng.standard_normal((6, 8))), rng.standard_normal((9, 8))
    known, results = context(*"aabbcc"), []
    for order in (np.arange(9), rng.permutation(9)):
        others = embed(bank[order], "d")

        def taught_without(rows: np.ndarray, others: Embeddings = others) -> PipelineContext:
            return replace(
                known, distractor_searcher=scan(embed(np.delete(others.vectors, rows, axis=0)))
            )

        steps = (*TOP1.steps, QueryPenaltyStep(m=2))
        whole = replace(known, distractor_searcher=scan(others))
        got = answers(gallery, whole, others, Pipeline(steps=steps), taught_without)
        results.append(np.sort(got.confidence))
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)
