"""The threshold of "none of these": leave-one-out on galleries with a known answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings
from lmk.eval.tune.calibration_cv import of_rows
from lmk.index.exact.flat import FlatSearcher
from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.view import View
from lmk.rerank.fit import leave_one_out
from lmk.rerank.fit.calibration import ScoredAnswers
from lmk.rerank.fit.copies import CopyRule
from lmk.rerank.fit.leave_one_out import LeaveOneOut
from lmk.rerank.fit.threshold import _cut, fit_threshold
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.penalty import PenaltyStep
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.state import QueryBatch
from lmk.rerank.steps.voting import VoteStep

Embed = Callable[..., Embeddings]
Facts = Callable[..., PipelineContext]
TOP1 = Pipeline(steps=(VoteStep(k=1, power=1),))
NO_COPIES = CopyRule(1.1)  # vectors in a plane are alike


def fit(
    gallery: Embeddings, context: PipelineContext, bank: Embeddings, pipeline: Pipeline = TOP1
) -> float:
    known, others = View.of_embeddings(gallery), View.of_embeddings(bank)
    searcher = FlatSearcher(known)
    asked = LeaveOneOut(pipeline, searcher, context, known, others, lambda rows: context, NO_COPIES)
    return fit_threshold(asked.answers())


def at(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.fixture
def no_bank(embed: Embed) -> Embeddings:
    return embed(np.zeros((0, 2)))


class TestLearn:
    def test_between_right_and_wrong(
        self, embed: Embed, context: Facts, no_bank: Embeddings
    ) -> None:
        """Pairs 10 degrees apart, landmarks 60: right ones at cos 10, wrong ones at cos 50."""
        got = fit(embed(at(0, 10, 60, 70)), context("a", "a", "b", "b"), no_bank)
        assert np.cos(np.radians(50)) < got < np.cos(np.radians(10))
        middle = (np.cos(np.radians(50)) + np.cos(np.radians(10))) / 2
        assert got == pytest.approx(middle, abs=1e-6)

    def test_the_bank_raises_it(self, embed: Embed, context: Facts, no_bank: Embeddings) -> None:
        gallery, labels = embed(at(0, 10, 60, 70)), context("a", "a", "b", "b")
        bank = embed(at(-20, -20, 90), "d")
        got = fit(gallery, labels, bank)
        assert np.cos(np.radians(20)) < got < np.cos(np.radians(10))

    def test_the_picture_itself_is_left_out(self, embed: Embed, context: Facts) -> None:
        """With itself every right answer would be at 1, and the threshold above cos 40."""
        bank = embed(at(180, 200), "d")
        got = fit(embed(at(0, 40, 100, 140)), context("a", "a", "b", "b"), bank)
        assert got < np.cos(np.radians(40))

    def test_wrong_answers_do_not_count_as_right(
        self, embed: Embed, context: Facts, no_bank: Embeddings
    ) -> None:
        """Each is nearest to the other landmark (1 degree); right ones do not exist."""
        got = fit(embed(at(0, 1, 90, 91)), context("a", "b", "a", "b"), no_bank)
        assert got == pytest.approx(np.cos(np.radians(1)), abs=1e-6)

    def test_an_unlabelled_picture_is_a_neighbour_and_not_asked(
        self, embed: Embed, context: Facts, no_bank: Embeddings
    ) -> None:
        gallery = embed(at(0, 10, 60, 70, 32))
        labels = context("a", "a", "b", "b", "")
        seen: list[np.ndarray] = []

        class Watched(Pipeline):
            def predict(
                self, queries: QueryBatch, neighbours: Neighbours, context: PipelineContext
            ) -> Predictions:
                seen.append(neighbours.rows)
                return super().predict(queries, neighbours, context)

        fit(gallery, labels, no_bank, Watched(steps=TOP1.steps))
        alone, unknown_landmark = seen
        assert all(i not in row for i, row in enumerate(alone))
        assert [sorted(row[row >= 0].tolist()) for row in unknown_landmark] == [
            [2, 3, 4],
            [2, 3, 4],
            [0, 1, 4],
            [0, 1, 4],
        ]

    def test_a_landmark_of_more_pictures_than_candidates(
        self, embed: Embed, context: Facts, no_bank: Embeddings
    ) -> None:
        """Leaving it out must not leave the query without neighbours."""
        gallery = embed(at(*np.linspace(0, 10, 20), *np.linspace(60, 70, 20)))
        labels = context(*["a"] * 20, *["b"] * 20)
        pipeline = Pipeline(steps=TOP1.steps, candidates=3)
        got = fit(gallery, labels, no_bank, pipeline)
        assert np.cos(np.radians(50)) < got < np.cos(np.radians(0.5))

    def test_several_labels(self, embed: Embed, context: Facts, no_bank: Embeddings) -> None:
        """A stranger to a picture of two landmarks is one of neither."""
        gallery = embed(at(0, 10, 20, 80, 90))
        got = fit(gallery, context("a", "a b", "b", "c", "c"), no_bank)
        assert np.cos(np.radians(60)) < got < np.cos(np.radians(10))

    @pytest.mark.parametrize(("labels", "bank"), [(("a", "a", "a"), []), (("", "", ""), [180])])
    def test_nothing_to_learn_from(
        self, embed: Embed, context: Facts, labels: tuple[str, ...], bank: list[float]
    ) -> None:
        others = embed(at(*bank) if bank else np.zeros((0, 2)), "d")
        assert fit(embed(at(0, 10, 20)), context(*labels), others) == float("-inf")

    def test_one_landmark_and_a_bank(self, embed: Embed, context: Facts) -> None:
        got = fit(embed(at(0, 10, 20)), context("a", "a", "a"), embed(at(90, 100), "d"))
        assert np.cos(np.radians(70)) < got < np.cos(np.radians(10))

    def test_one_picture(self, embed: Embed, context: Facts) -> None:
        assert fit(embed(at(0)), context("a"), embed(at(90), "d")) == pytest.approx(0, abs=1e-6)

    def test_landmarks_of_one_picture_each(self, embed: Embed, context: Facts) -> None:
        """Strangers at 50 degrees and a bank at 80: what refuses 95 % of both is the nearer."""
        got = fit(embed(at(0, 50, 100)), context("a", "b", "c"), embed(at(180), "d"))
        assert got == pytest.approx(np.cos(np.radians(50)), abs=1e-6)

    def test_a_sample_is_enough(
        self, embed: Embed, context: Facts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rng = np.random.default_rng(0)
        centres = np.repeat(np.arange(0, 360, 36), 20)
        gallery = embed(at(*(centres + rng.uniform(-4, 4, 200))))
        labels = context(*(f"p{c}" for c in centres))
        bank = embed(at(*(np.arange(18, 360, 36) + rng.uniform(-4, 4, 10))), "d")
        whole = fit(gallery, labels, bank)
        monkeypatch.setattr(leave_one_out, "SAMPLE", 17)
        assert fit(gallery, labels, bank) == pytest.approx(whole, abs=0.05)

    def test_the_penalty_is_part_of_it(self, embed: Embed, context: Facts) -> None:
        gallery = embed(at(0, 10, 60, 70))
        bank = embed(at(-20, 90), "d")
        free = context("a", "a", "b", "b", penalty=[0.0] * 4)
        taken = context("a", "a", "b", "b", penalty=[0.5] * 4)
        pipeline = Pipeline(steps=(PenaltyStep(), *TOP1.steps))
        low, high = (fit(gallery, known, bank, pipeline) for known in (taken, free))
        assert low == pytest.approx(high - 0.5, abs=1e-6)


class TestYouden:
    def slow(self, right: np.ndarray, wrong: np.ndarray, weight: np.ndarray, cut: float) -> float:
        return float((right >= cut).mean() + weight[wrong < cut].sum() / weight.sum())

    @pytest.mark.parametrize("seed", range(20))
    def test_no_cut_is_better(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        right = rng.integers(3, 12, rng.integers(1, 9)).astype(np.float32)
        wrong = rng.integers(0, 9, rng.integers(1, 15)).astype(np.float32)
        weight = rng.uniform(0.1, 3, len(wrong))
        got = self.slow(right, wrong, weight, _cut(right, wrong, weight, np.ones(len(right))))
        best = max(self.slow(right, wrong, weight, cut) for cut in np.arange(-0.5, 13))
        # Cuts above every value refuse all; that is no better than to keep all.
        assert got == pytest.approx(max(best, got)) and got >= best - 1e-9

    def test_nothing(self) -> None:
        some, none = np.ones(2, np.float32), np.zeros(0, np.float32)
        assert (
            _cut(some, none, none, np.ones(len(some)))
            == _cut(none, none, none, none)
            == float("-inf")
        )

    def test_wrong_ones_alone(self) -> None:
        wrong = np.arange(101, dtype=np.float32)
        assert _cut(wrong[:0], wrong, np.ones(101), np.ones(0)) == 95.5  # 96 of 101 are below
        weight = np.where(wrong < 50, 9.0, 1.0)  # 450 of 501, so that 26 of the 51 others
        assert _cut(wrong[:0], wrong, weight, np.ones(0)) == 75.5
        assert _cut(wrong[:0], wrong[:1], weight[:1], np.ones(0)) == 0


class TestSmoothed:
    """From 30 answers of each kind on."""

    def answers(self, count: int) -> ScoredAnswers:
        rng = np.random.default_rng(3)
        landmark = np.arange(2 * count) < count
        confidence = rng.normal(np.where(landmark, 0.7, 0.3), 0.12).astype(np.float32)
        return ScoredAnswers.of(confidence, landmark, landmark)

    def test_it_lies_where_the_distributions_cross(self) -> None:
        assert fit_threshold(self.answers(2000)) == pytest.approx(0.5, abs=0.01)

    def test_no_single_answer_moves_it_far(self) -> None:
        """The maximum of the raw curve moves by 0.041."""
        answers = self.answers(60)
        keep = ~np.eye(len(answers), dtype=np.bool_)
        found = [fit_threshold(of_rows(answers, mask)) for mask in keep]
        assert np.ptp(found) < 0.01

    def test_copies_of_an_answer_that_count_as_one_change_nothing(self) -> None:
        answers = self.answers(60)
        rows = np.concatenate([np.zeros(9, np.int64), np.arange(120)])
        weight = np.where(rows == 0, 0.1, 1.0)
        copied = replace(of_rows(answers, rows), weight=weight)
        assert fit_threshold(copied) == pytest.approx(fit_threshold(answers), abs=1e-6)

    def test_few_answers_and_equal_ones_are_not_smoothed(self) -> None:
        few = self.answers(29)
        right = few.confidence[few.right]
        wrong = few.confidence[~few.right]
        assert fit_threshold(few) == _cut(right, wrong, np.ones(29), np.ones(len(right)))
        equal = np.repeat(np.array([0.8, 0.2], np.float32), 40)
        shown = equal > 0.5
        assert fit_threshold(ScoredAnswers.of(equal, shown, shown)) == pytest.approx(0.5)
