"""The steps one by one: golden values by hand, loops as oracles, what happens without a fact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.local.features import LocalFeatures, RootSift, XFeat
from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.vectors import Vectors
from lmk.index.vectors.view import View
from lmk.rerank.steps.augmentation import Neighbourhoods
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.dba import DbaStep
from lmk.rerank.steps.distractor_similarity import (
    DemoteStep,
    DistractorSimilarityStep,
    OverpredictedStep,
    QueryPenaltyStep,
)
from lmk.rerank.steps.expansion import augmentation_weights
from lmk.rerank.steps.geometry import GeometryStep
from lmk.rerank.steps.penalty import PenaltyStep, RescaleStep
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.state import Match, QueryBatch, RankingState
from lmk.rerank.steps.step import Place, Step, digest_text
from lmk.rerank.steps.voting import ThresholdStep, VoteStep

Embed = Callable[..., Embeddings]
Facts = Callable[..., PipelineContext]
Near = Callable[..., Neighbours]
Scan = Callable[[Embeddings], Searcher]
TOP1 = VoteStep(k=1, power=1)


def ask(
    found: Neighbours,
    known: PipelineContext,
    *steps: object,
    candidates: int = 100,
    vectors: object = None,
    without: list[np.ndarray] | None = None,
    features: Callable[[int], LocalFeatures | str] | None = None,
) -> Predictions:
    rows = np.ones((len(found), 2)) if vectors is None else vectors
    asked = Embeddings(unit_rows(np.asarray(rows, np.float32)), found.query_ids, "f")
    pipeline = Pipeline(steps=steps, candidates=candidates)  # type: ignore[arg-type]
    return pipeline.predict(QueryBatch(asked, without, features), found, known)


class TestOrder:
    def test_all_of_them(self) -> None:
        steps = (DbaStep(), RescaleStep(), PenaltyStep(), DistractorSimilarityStep(),
                 GeometryStep(), VoteStep(), QueryPenaltyStep(), DemoteStep(),
                 OverpredictedStep(), ThresholdStep(value=1))  # fmt: skip
        whole = Pipeline(steps=steps)
        assert Pipeline.model_validate_json(whole.model_dump_json()) == whole
        assert whole.per_query().with_threshold(None).steps == steps[:-2]
        assert "distractors" in whole.needs and whole.uses_distractors()
        assert not Pipeline(steps=(TOP1,)).uses_distractors()
        assert Pipeline(steps=(DistractorSimilarityStep(), TOP1)).uses_distractors()

    @pytest.mark.parametrize(
        "steps",
        [
            (RescaleStep(), DbaStep()),
            (PenaltyStep(), RescaleStep()),
            (VoteStep(), GeometryStep()),
            (QueryPenaltyStep(), VoteStep()),
            (ThresholdStep(value=0), DemoteStep()),
            (OverpredictedStep(), QueryPenaltyStep()),
            (VoteStep(), VoteStep(k=1)),
        ],
    )
    def test_what_makes_no_sense(self, steps: tuple[object, ...]) -> None:
        with pytest.raises(ValidationError, match=r"order|once"):
            Pipeline(steps=steps)  # type: ignore[arg-type]


class TestWithoutFacts:
    def test_nothing_is_done(self, context: Facts, neighbours: Near) -> None:
        found, known = neighbours([(0, 0.9), (1, 0.5)]), context("a", "b")
        plain = ask(found, known, TOP1)
        steps = (DbaStep(), DistractorSimilarityStep(), GeometryStep(), TOP1,
                 QueryPenaltyStep(), DemoteStep())  # fmt: skip
        got = ask(found, known, *steps, features=lambda i: pytest.fail("no rows to compare with"))
        assert got.labels == plain.labels and got.confidence == plain.confidence
        np.testing.assert_array_equal(got.scores, found.scores)
        assert got.landmark_score is None and got.probability is None
        assert (
            got.query_penalty.tolist() == [0]
            and (got.inliers == -1).all()
            and not got.geometry_seconds.any()
        )

    def test_neighbours_of_other_queries(self, context: Facts, neighbours: Near) -> None:
        asked = Embeddings(unit_rows([[1, 0]]), ("x",), "f")
        with pytest.raises(ValueError, match="other queries"):
            Pipeline().predict(QueryBatch(asked), neighbours([(0, 0.9)]), context("a"))
        with pytest.raises(ValueError, match="1 queries but 2 lists"):
            QueryBatch(asked, [np.zeros(1, np.int64)] * 2)


class TestNeighbourhood:
    def known(
        self, embed: Embed, scan: Scan, labels: PipelineContext, rows: object
    ) -> PipelineContext:
        gallery, step = embed(rows), DbaStep(n=2, spread=0)
        near = Neighbourhoods.build(
            scan(gallery), View.of_embeddings(gallery), augmentation_weights(step.n, step.spread)
        )
        stored = Vectors.of_array(gallery.vectors)
        return replace(labels, vectors=stored, neighbourhoods=near)

    def test_scores_change_and_neighbours_do_not(
        self, embed: Embed, scan: Scan, context: Facts
    ) -> None:
        """Row 0 is nearest alone; rows 1 and 2 surround the query."""
        rows = [[1, 0, 0.2], [0.9, 0.5, 0], [0.9, -0.5, 0], [1, 0, 0.3]]
        known = self.known(embed, scan, context("x", "b", "b", "x"), rows)
        query = embed([[1, 0, 0]], "q")
        found = scan(embed(rows)).search(query, 4)
        got = ask(found, known, DbaStep(n=2, spread=0), TOP1, vectors=[[1, 0, 0]])
        assert got.neighbours is found and found.rows[0, 0] == 0
        mean = unit_rows(unit_rows(rows)[[0, 3]].sum(axis=0, keepdims=True))[0, 0]
        assert got.scores[0, 0] == pytest.approx(mean, abs=1e-6)

    def test_then_it_is_rescaled(self, embed: Embed, scan: Scan, context: Facts) -> None:
        rows = [[1, 0, 0], [0.8, 0.6, 0]]
        known = replace(self.known(embed, scan, context("a", "b"), rows), background=0.5)
        found = scan(embed(rows)).search(embed([[1, 0, 0]], "q"), 2)
        plain = ask(found, known, DbaStep(n=2, spread=0), TOP1, vectors=[[1, 0, 0]])
        got = ask(found, known, DbaStep(n=2, spread=0), RescaleStep(), TOP1, vectors=[[1, 0, 0]])
        np.testing.assert_allclose(got.scores, (plain.scores - 0.5) / 0.5, atol=1e-6)

    def test_what_counts_as_absent(self, embed: Embed, scan: Scan, context: Facts) -> None:
        rows = [[1, 0, 0], [0.8, 0.6, 0], [0, 0.6, 0.8]]
        known = self.known(embed, scan, context("a", "b", "c"), rows)
        found = scan(embed(rows)).search(embed([[1, 0, 0]], "q"), 3)
        step = DbaStep(n=2, spread=0)
        got = ask(found, known, step, TOP1, vectors=[[1, 0, 0]], without=[np.array([0])])
        assert got.neighbours.rows.tolist() == [[1, 2, -1]] and got.labels == ("b",)
        both = unit_rows((unit_rows(rows)[1] + unit_rows(rows)[2])[None])[0, 0]
        np.testing.assert_allclose(got.scores, [[both, both, -np.inf]], atol=1e-6)

    @pytest.mark.parametrize(
        ("labels", "alone"),
        [
            (("a", "b", "b", "c"), [True, False, False, True]),
            (("c", "a b", "b", "d"), [True, False, False, True]),  # 1 and 2 share b
        ],
    )
    def test_pictures_of_one_landmark_alone(
        self, embed: Embed, scan: Scan, labels: tuple[str, ...], alone: list[bool]
    ) -> None:
        """Rows 1 and 2 are the nearest of each other; 0 and 3 are nearest to 1 and 2."""
        rows = [[1, 0.5, 0], [1, 0, 0.1], [1, 0, 0], [1, -0.5, 0]]
        facts = PipelineContext.of_labels([tuple(each.split()) for each in labels])
        known = self.known(embed, scan, facts, rows)
        query = [[0.9, 0.1, 0.3]]
        found = scan(embed(rows)).search(embed(query, "q"), 4)
        step = DbaStep(n=2, spread=0, own_below=10)
        got = ask(found, known, step, TOP1, vectors=query)
        unit = unit_rows(rows)
        both = unit_rows((unit[1] + unit[2])[None])[0]
        expected = [unit[row] if alone[row] else both for row in found.rows[0]]
        np.testing.assert_allclose(got.scores[0], expected @ unit_rows(query)[0], atol=1e-6)

    @pytest.mark.parametrize(
        "labels", [("", "", "", ""), ("a", "a", "a", "b b2 b3"), ("a", "b", "a", "a")]
    )
    def test_other_candidates_are_added_up_with_all(
        self, embed: Embed, scan: Scan, labels: tuple[str, ...]
    ) -> None:
        """Without a landmark, or if any landmark has enough pictures."""
        rows = [[1, 0.5, 0], [1, 0, 0.1], [1, 0, 0], [1, -0.5, 0]]
        facts = PipelineContext.of_labels([tuple(each.split()) for each in labels])
        known, query = self.known(embed, scan, facts, rows), [[0.9, 0.1, 0.3]]
        found = scan(embed(rows)).search(embed(query, "q"), 4)
        plain, own = (
            ask(found, known, DbaStep(n=2, spread=0, own_below=below), TOP1, vectors=query)
            for below in (0, 3)
        )
        np.testing.assert_array_equal(plain.scores, own.scores)

    def test_the_digest_of_older_steps_stays(self) -> None:
        assert "own_below" not in digest_text(Pipeline(steps=(DbaStep(), TOP1)))
        assert "own_below" in digest_text(Pipeline(steps=(DbaStep(own_below=10), TOP1)))

    def test_a_saved_step_without_the_parameter_adds_all(self) -> None:
        saved = Pipeline.model_validate({"steps": [{"step": "dba"}, {"step": "vote"}]})
        assert saved.steps[0] == DbaStep(own_below=0)


class TestBank:
    def test_of_gallery_pictures(self, context: Facts, neighbours: Near) -> None:
        """By hand: B .5 and .1 off .8 and .6; half of it with factor .5."""
        found = neighbours([(0, 0.8), (1, 0.6)])
        known = replace(context("a", "b"), distractor_similarity=np.array([0.5, 0.1], np.float32))
        got = ask(found, known, DistractorSimilarityStep(), TOP1)
        assert got.labels == ("b",) and got.confidence[0] == pytest.approx(0.5)
        np.testing.assert_allclose(got.penalty, [[0.5, 0.1]])
        half = ask(found, known, DistractorSimilarityStep(factor=0.5), TOP1)
        assert half.confidence[0] == pytest.approx(0.55)  # either

    def test_rescaled_it_ranks_as_it_does_without(self, context: Facts, neighbours: Near) -> None:
        found = neighbours([(0, 0.8), (1, 0.6), (2, 0.55)])
        means = np.array([0.5, 0.25, 0.3], np.float32)
        known = replace(context("a", "b", "c"), distractor_similarity=means, background=0.4)
        plain = ask(found, known, DistractorSimilarityStep(), TOP1)
        got = ask(found, known, RescaleStep(), DistractorSimilarityStep(), TOP1)
        np.testing.assert_allclose(got.scores, plain.scores / 0.6, atol=1e-6)

    def test_of_queries(self, embed: Embed, scan: Scan, context: Facts, neighbours: Near) -> None:
        """Cosines to the bank 1, .8 and 0: C of two is .9; the third largest is 0."""
        found = neighbours([(0, 0.8)])
        bank = scan(embed([[1, 0], [0.8, 0.6], [0, 1]], "d"))
        known = replace(context("a"), distractor_searcher=bank)
        got = ask(found, known, TOP1, QueryPenaltyStep(m=2, factor=0.5), vectors=[[1, 0]])
        assert got.confidence[0] == pytest.approx(0.8 - 0.45)
        np.testing.assert_allclose(got.query_penalty, [0.45], atol=1e-6)
        assert got.landmark_score is not None
        assert got.landmark_score[0] == pytest.approx(
            0.8 - 1.0, abs=1e-6
        )  # one neighbour, one of bank
        second = ask(found, known, TOP1, DemoteStep(nth=2, at=0.7, factor=1.5), vectors=[[1, 0]])
        assert second.confidence[0] == pytest.approx(0.8 - 1.2)
        third = ask(found, known, TOP1, DemoteStep(nth=3, at=0.7), vectors=[[1, 0]])
        assert third.confidence[0] == pytest.approx(0.8) and third.query_penalty[0] == 0
        both = ask(found, known, TOP1, QueryPenaltyStep(m=2), DemoteStep(nth=2), vectors=[[1, 0]])
        assert both.query_penalty[0] == pytest.approx(0.45 + 1.2)

    def test_of_rescaled_queries(
        self, embed: Embed, scan: Scan, context: Facts, neighbours: Near
    ) -> None:
        known = replace(
            context("a"), distractor_searcher=scan(embed([[0.8, 0.6]], "d")), background=0.5
        )
        got = ask(
            neighbours([(0, 0.9)]), known, RescaleStep(), TOP1, QueryPenaltyStep(m=1, factor=1),
            vectors=[[1, 0]],
        )  # fmt: skip
        assert got.confidence[0] == pytest.approx(0.8 - 0.6, abs=1e-6)

    def test_no_neighbour_stays_no_answer(
        self, embed: Embed, scan: Scan, context: Facts, neighbours: Near
    ) -> None:
        known = replace(context("a"), distractor_searcher=scan(embed([[1, 0]], "d")))
        got = ask(neighbours([]), known, VoteStep(), QueryPenaltyStep(), DemoteStep())
        assert (
            got.labels == (None,) and np.isneginf(got.confidence[0]) and got.landmark_score is None
        )


class TestVote:
    def test_pictures_without_a_label_do_not_speak(self, context: Facts, neighbours: Near) -> None:
        """Neither as the best nor for how sure an answer is that nothing speaks for."""
        step = VoteStep(k=3)
        found = neighbours([(2, 0.9), (1, -0.1), (0, -0.2)], [(2, -0.1), (1, -0.2), (0, -0.3)])
        got = ask(found, context("a", "b", ""), step)
        assert got.labels == ("b", "b") and not got.votes.any()
        assert got.confidence.tolist() == pytest.approx([-0.1, -0.2])

    def test_prior(self, context: Facts, neighbours: Near) -> None:
        """Four pictures against one: with strength .5 a vote counts twice."""
        found = neighbours([(0, 0.9), (1, 0.5)])
        known = context("a", "b", "b", "b", "b")
        assert ask(found, known, VoteStep(k=2, power=1)).labels == ("a",)
        got = ask(found, known, VoteStep(k=2, power=1, prior=0.5))
        assert got.labels == ("b",) and got.confidence[0] == pytest.approx(2 * 0.5 / 2)
        assert ask(found, known, VoteStep(k=2, power=1, prior=-1)).labels == ("a",)
        unlabelled = ask(found, context("", ""), VoteStep(prior=1))
        assert unlabelled.labels == (None,)

    @given(seed=st.integers(0, 10_000), q=st.integers(1, 20))
    def test_against_a_loop(self, context: Facts, seed: int, q: int) -> None:
        rng = np.random.default_rng(seed)
        labels = [" ".join(sorted(set(rng.choice(list("abc"), rng.integers(0, 3)))))
                  for _ in range(8)]  # fmt: skip
        rows = np.stack([rng.permutation(8)[:6] for _ in range(q)])
        scores = -np.sort(-rng.uniform(-0.2, 1, (q, 6)).astype(np.float32), axis=1)
        found = Neighbours(rows, scores, tuple(f"q{i}" for i in range(q)))
        step = VoteStep(k=4, power=3)
        got = ask(found, context(*labels), step)
        for i in range(q):
            values = scores[i, :4].astype(float)
            own = [v for row, v in zip(rows[i], values, strict=False) if labels[row]]
            if not own or own[0] <= 0:  # nobody votes: the nearest that has a label
                assert got.confidence[i] == pytest.approx(own[0] if own else -np.inf)
                continue
            weights = np.maximum(values, 0) ** 3
            sums: dict[str, float] = {}
            for row, weight in zip(rows[i], weights, strict=False):
                for label in labels[row].split():
                    sums[label] = sums.get(label, 0.0) + weight
            if not sums:
                assert got.labels[i] is None
                continue
            best = (max(sums.values()) / 4) ** (1 / 3)
            assert got.confidence[i] == pytest.approx(best, rel=1e-5)

    def test_removed_parameters_are_read_as_null_and_refused_with_a_value(self) -> None:
        saved = {"step": "vote", "k": 3, "power": 9.0, "prior": 0.5}
        assert VoteStep.model_validate(saved | {"temperature": None, "most": None}) == VoteStep(
            k=3, prior=0.5
        )
        with pytest.raises(ValidationError, match="temperature of the step vote was removed"):
            VoteStep.model_validate(saved | {"temperature": 0.1})
        with pytest.raises(ValidationError, match="most of the step vote was removed"):
            VoteStep.model_validate(saved | {"most": 2})


class TestOverpredicted:
    def test_only_what_is_predicted_too_often(self, context: Facts, neighbours: Near) -> None:
        found = neighbours([(0, 0.9)], [(0, 0.8)], [(1, 0.7)], [(2, 0.9)])
        got = ask(found, context("a", "b", ""), TOP1, OverpredictedStep(limit=1))
        assert got.confidence.tolist() == pytest.approx([-2, -2, 0.7, -np.inf])

    def test_of_all_answers_it_is_the_same(self, context: Facts, neighbours: Near) -> None:
        found = neighbours([(0, 0.9)], [(0, 0.8)], [(1, 0.7)], [(2, 0.9)], [(0, 0.1)])
        step = OverpredictedStep(limit=2)
        at_once = ask(found, context("a", "b", ""), TOP1, step)
        alone = ask(found, context("a", "b", ""), TOP1)
        later = step.revise(alone.labels, alone.confidence.astype(np.float64))
        assert later.dtype == np.float32 and later.tolist() == at_once.confidence.tolist()
        assert later[0] == -3 and step.revise((), np.zeros(0)).shape == (0,)


def _points(seed: int) -> LocalFeatures:
    rng = np.random.default_rng(seed)
    descriptors = unit_rows(rng.standard_normal((40, 16))).astype(np.float16)
    points = rng.uniform(0, 100, (40, 2)).astype(np.float32)
    return LocalFeatures(points, descriptors, 100, 100)


class TestGeometry:
    """Rows 0 and 2 show what query 0 does; the others share nothing."""

    STEP = GeometryStep(top=2, weight=0.3, cap=40, margin=0.1)

    def known(self, context: Facts) -> PipelineContext:
        shown = {0: 1, 1: 2, 2: 0}
        return replace(
            context("a", "b", "c"),
            row_features=lambda row: _points(shown[row]) if row in shown else "gone",
        )

    def test_the_second_pass_changes_the_answer(self, context: Facts, neighbours: Near) -> None:
        """Row 2 is second, has all 40 points of the query and gains .3."""
        found, asked = neighbours([(0, 0.8), (2, 0.7), (1, 0.6)]), []

        def features(query: int) -> LocalFeatures:
            asked.append(query)
            return _points(0)

        got = ask(found, self.known(context), self.STEP, TOP1, features=features)
        assert got.labels == ("c",) and got.confidence[0] == pytest.approx(1.0)
        assert got.inliers.tolist() == [[0, 40, -1]] and asked == [0]
        assert set(got.matches) == {(0, 0), (0, 2)} and isinstance(got.matches[0, 2], Match)
        assert got.geometry_seconds[0] > 0

    def test_only_queries_in_doubt(self, context: Facts, neighbours: Near) -> None:
        found = neighbours([(0, 0.95), (2, 0.7)], [(0, 0.8), (2, 0.7)], [(1, 0.5), (2, 0.4)])
        asked: list[int] = []

        def features(query: int) -> LocalFeatures:
            asked.append(query)
            return _points(0)

        cut = ThresholdStep(value=0.75)
        got = ask(found, self.known(context), self.STEP, TOP1, cut, features=features)
        assert asked == [1] and got.labels == ("a", "c", "b")
        assert (got.inliers[[0, 2]] == -1).all() and got.geometry_seconds[[0, 2]].tolist() == [0, 0]

    def test_how_often_a_label_is_predicted_raises_no_doubt(
        self, context: Facts, neighbours: Near
    ) -> None:
        found = neighbours(*[[(0, 0.8), (2, 0.7)]] * 2)
        got = ask(
            found, self.known(context), self.STEP, TOP1, OverpredictedStep(limit=1),
            ThresholdStep(value=0.75), features=lambda query: _points(0),
        )  # fmt: skip
        assert got.labels == ("c", "c") and got.confidence.tolist() == [-2, -2]

    def test_it_looks_at_what_is_left_after_the_penalty(
        self, context: Facts, neighbours: Near
    ) -> None:
        """Rows 0 and 1 are pushed behind row 2, of which the short list of one is made."""
        known = replace(self.known(context), penalty=np.array([0.5, 0.5, 0], np.float32))
        found = neighbours([(0, 0.9), (1, 0.8), (2, 0.7)])
        step = self.STEP.model_copy(update={"top": 1})
        got = ask(found, known, PenaltyStep(), step, TOP1, features=lambda query: _points(0))
        assert got.inliers.tolist() == [[-1, -1, 40]] and got.labels == ("c",)

    def test_files_that_are_gone(self, context: Facts, neighbours: Near) -> None:
        found = neighbours([(0, 0.8), (2, 0.7)])
        known = replace(self.known(context), row_features=lambda row: "no such file")
        got = ask(found, known, self.STEP, TOP1, features=lambda query: _points(0))
        assert (got.inliers == -1).all() and got.labels == ("a",)
        got = ask(found, self.known(context), self.STEP, TOP1, features=lambda query: "gone")
        assert (got.inliers == -1).all() and got.labels == ("a",)

    def test_who_has_no_answer_is_not_looked_at(self, context: Facts, neighbours: Near) -> None:
        known = replace(context("", "a"), row_features=lambda row: pytest.fail("looked"))
        got = ask(neighbours([(0, 0.9)], []), known, self.STEP, TOP1,
                  features=lambda query: pytest.fail("looked"))  # fmt: skip
        assert got.labels == (None, None)

    def test_extractors(self) -> None:
        assert GeometryStep().local_extractor() == RootSift(1000, 480)
        assert GeometryStep(points=7, longest=99).local_extractor() == RootSift(7, 99)
        assert GeometryStep(extractor="xfeat").local_extractor() == XFeat(1000, 640)


class TestRegistry:
    def test_a_new_step_is_a_class_and_nothing_else(
        self, context: Facts, neighbours: Near, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Step, "registry", dict(Step.registry))

        class HalveStep(Step):
            """Halves all scores."""

            place: ClassVar[Place] = Place.SCORES

            step: Literal["halve"] = "halve"
            factor: float = 0.5

            def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
                return replace(state, scores=state.scores * np.float32(self.factor))

        pipeline = Pipeline.model_validate({"steps": [{"step": "halve"}, {"step": "vote", "k": 1}]})
        assert pipeline.steps[0] == HalveStep()
        assert Pipeline.model_validate_json(pipeline.model_dump_json()) == pipeline
        got = ask(neighbours([(0, 0.8)]), context("a"), *pipeline.steps)
        assert got.labels == ("a",) and got.confidence[0] == pytest.approx(0.4)
        with pytest.raises(ValidationError, match="order"):
            Pipeline(steps=(VoteStep(), HalveStep()))

    def test_a_step_that_there_is_not(self) -> None:
        with pytest.raises(ValidationError, match="there is no step 'votes'; use dba, rescale,"):
            Pipeline.model_validate({"steps": [{"step": "votes"}]})
        with pytest.raises(ValidationError, match=r'a step must be like \{"step": "vote"\}'):
            Pipeline.model_validate({"steps": ["vote"]})

    def test_names_and_needs_are_checked(self) -> None:
        with pytest.raises(TypeError, match="two steps have the name vote"):

            class OtherVote(Step):
                place: ClassVar[Place] = Place.VOTE
                step: Literal["vote"] = "vote"

        with pytest.raises(TypeError, match="needs \\['hitz'\\], which is unknown"):

            class Misspelt(Step):
                needs: ClassVar[frozenset[str]] = frozenset({"hitz"})
                place: ClassVar[Place] = Place.VOTE
                step: Literal["misspelt"] = "misspelt"
