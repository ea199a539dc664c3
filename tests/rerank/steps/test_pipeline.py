"""The pipeline: steps as data, and the answers they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.vectors.neighbours import Neighbours
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.penalty import Hits, PenaltyStep, RescaleStep, penalty_of
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.state import QueryBatch
from lmk.rerank.steps.voting import ThresholdStep, VoteStep

Facts = Callable[..., PipelineContext]
Near = Callable[..., Neighbours]
TOP1 = VoteStep(k=1, power=1)


def ask(pipeline: Pipeline, found: Neighbours, known: PipelineContext) -> Predictions:
    """For steps that do not look at the queries themselves."""
    asked = Embeddings(unit_rows(np.ones((len(found), 2))), found.query_ids, "f")
    return pipeline.predict(QueryBatch(asked), found, known)


class TestAsData:
    @pytest.mark.parametrize(
        "pipeline",
        [
            Pipeline(),
            Pipeline(steps=()),
            Pipeline(steps=(PenaltyStep(ramp="linear", top=5), VoteStep(k=3)), candidates=7),
            Pipeline().with_threshold(0.25),
        ],
    )
    def test_round_trip(self, pipeline: Pipeline) -> None:
        assert Pipeline.model_validate(pipeline.model_dump(mode="json")) == pipeline
        assert Pipeline.model_validate_json(pipeline.model_dump_json()) == pipeline

    @pytest.mark.parametrize(
        "steps",
        [
            [{"step": "magic"}],
            [{"k": 3}],
            [{"step": "vote", "k": 0}],
            [{"step": "vote", "power": 0}],
            [{"step": "vote", "more": 1}],
            [{"step": "threshold"}],
            [{"step": "penalty", "min_n": 13}],
            [{"step": "vote"}, {"step": "rescale"}],
        ],
    )
    def test_unknown_or_wrong_steps(self, steps: list[dict[str, object]]) -> None:
        with pytest.raises(ValidationError):
            Pipeline.model_validate({"steps": steps})

    def test_with_threshold_replaces_the_old_one(self) -> None:
        pipeline = Pipeline().with_threshold(0.1).with_threshold(0.2)
        assert pipeline.steps == (*Pipeline().steps, ThresholdStep(value=0.2))
        assert Pipeline(steps=(TOP1,)).step_that_needs("hits") is None
        assert pipeline.step_that_needs("hits") == PenaltyStep()
        assert pipeline.threshold() == 0.2
        assert pipeline.with_threshold(None) == Pipeline()
        assert Pipeline().threshold() is None


@pytest.mark.parametrize(
    ("ramp", "answer", "confidence"),
    [("linear", "g1", 0.55), ("shifted", "g1", 0.55), ("unfloored", "g2", 0.585)],
)
def test_golden_answer(
    context: Facts, neighbours: Near, ramp: str, answer: str, confidence: float
) -> None:
    """Worked by hand: without a penalty g4 at .95; the ramp changes the landmark itself."""
    picks = Hits(np.array([2, 3, 8, 15]), np.array([0.55, 0.5, 0.6, 0.7], np.float32), 1.0)
    penalty = penalty_of(picks, PenaltyStep(counts="raw"))
    found = neighbours([(0, 0.55), (1, 0.62), (2, 0.80), (3, 0.95)])
    plain = ask(Pipeline(steps=(TOP1,)), found, context("g1", "g2", "g3", "g4"))
    assert plain.labels == ("g4",) and plain.confidence[0] == pytest.approx(0.95)
    step = PenaltyStep(ramp=ramp, counts="raw")
    penalty = penalty_of(picks, step)
    known = context("g1", "g2", "g3", "g4", penalty=penalty.tolist())
    got = ask(Pipeline(steps=(step, TOP1)), found, known)
    assert got.labels == (answer,) and got.confidence[0] == pytest.approx(confidence, abs=1e-6)
    np.testing.assert_allclose(got.penalty[0], penalty[[3, 2, 1, 0]])
    assert got.neighbours is found


class TestVote:
    def test_the_sum_of_powers(self, context: Facts, neighbours: Near) -> None:
        known = context("a", "b", "b", "a b", "")
        found = neighbours([(0, 0.9), (1, 0.8), (2, 0.7), (3, 0.5), (4, 0.95)])
        got = ask(Pipeline(steps=(VoteStep(k=5, power=2),)), found, known)
        assert got.labels == ("b",)
        assert got.confidence[0] == pytest.approx(((0.64 + 0.49 + 0.25) / 5) ** 0.5)
        np.testing.assert_allclose(got.votes[0], [0, 0, 0.64, 0.49, 0.25], rtol=1e-6)
        steep = ask(Pipeline(steps=(VoteStep(k=5, power=9),)), found, known)
        assert steep.labels == ("a",)

    def test_the_penalty_changes_who_votes(self, context: Facts, neighbours: Near) -> None:
        labels = ("hub", "hub", "b", "b")
        found = neighbours([(0, 0.9), (1, 0.85), (2, 0.6), (3, 0.5)])
        pipeline = Pipeline(steps=(PenaltyStep(), VoteStep(k=2, power=1)))
        assert ask(pipeline, found, context(*labels)).labels == ("hub",)
        got = ask(pipeline, found, context(*labels, penalty=[0.6, 0.6, 0, 0]))
        assert got.labels == ("b",) and got.confidence[0] == pytest.approx((0.6 + 0.5) / 2)
        np.testing.assert_allclose(got.votes[0], [0, 0, 0.6, 0.5], rtol=1e-6)
        np.testing.assert_allclose(got.penalty[0], [0.6, 0.6, 0, 0], rtol=1e-6)

    def test_neighbours_beyond_the_candidates_are_shown_but_do_not_vote(
        self, context: Facts, neighbours: Near
    ) -> None:
        """Row 2 would win after the penalty of the others, but there are two candidates only."""
        known = context("a", "a", "b", penalty=[0.5, 0.5, 0.0])
        pipeline = Pipeline(steps=(PenaltyStep(), TOP1), candidates=2)
        near = [(0, 0.9), (1, 0.8), (2, 0.7)]
        few, more = (ask(pipeline, neighbours(near[:k]), known) for k in (2, 3))
        assert few.labels == more.labels == ("a",)
        assert few.confidence == more.confidence == pytest.approx(0.4)
        np.testing.assert_allclose(more.scores, [[0.4, 0.3, 0.7]], rtol=1e-6)
        assert more.votes[0, 2] == 0

    def test_equal_scores_go_by_row(self, context: Facts, neighbours: Near) -> None:
        known = context("z", "a", penalty=[0.25, 0.0])
        found = neighbours([(0, 0.75), (1, 0.5)])
        got = ask(Pipeline(steps=(PenaltyStep(), TOP1)), found, known)
        assert got.labels == ("z",)

    def test_one_neighbour_among_ten_is_less_sure(self, context: Facts, neighbours: Near) -> None:
        known = context(*["a"] * 10)
        ten = neighbours([(row, 0.8) for row in range(10)])
        one = neighbours([(0, 0.8)])
        step = Pipeline(steps=(VoteStep(k=10, power=6),))
        assert ask(step, ten, known).confidence[0] == pytest.approx(0.8)
        assert ask(step, one, known).confidence[0] == pytest.approx(0.8 * 0.1 ** (1 / 6))

    def test_nobody_above_zero(self, context: Facts, neighbours: Near) -> None:
        found = neighbours([(0, -0.2), (1, -0.5)], [(0, 0.0), (1, -0.1)])
        got = ask(Pipeline(), found, context("a", "b"))
        assert got.labels == ("a", "a")
        np.testing.assert_allclose(got.confidence, [-0.2, 0.0])
        assert not got.votes.any()

    def test_no_labels_no_neighbours_no_queries(self, context: Facts, neighbours: Near) -> None:
        got = ask(Pipeline().with_threshold(-5), neighbours([(0, 0.9)], []), context("", "a"))
        assert got.labels == got.answers() == (None, None)
        assert np.isneginf(got.confidence).all()
        empty = Neighbours(np.zeros((0, 4), np.int64), np.zeros((0, 4), np.float32), ())
        assert len(ask(Pipeline(), empty, context("a"))) == 0


class TestRescale:
    def test_strangers_are_at_zero(self, context: Facts, neighbours: Near) -> None:
        known = replace(context("a", "b", "c"), background=0.6)
        found = neighbours([(0, 1.0), (1, 0.8), (2, 0.6)], [(2, 0.5)])
        got = ask(Pipeline(steps=(RescaleStep(), TOP1)), found, known)
        np.testing.assert_allclose(got.confidence, [1, -0.25], atol=1e-6)
        three = ask(Pipeline(steps=(RescaleStep(), VoteStep(k=3, power=1))), found, known)
        np.testing.assert_allclose(three.votes[0], [1, 0, 0], atol=1e-6)
        assert three.neighbours is found  # evidence keeps the plain cosines

    def test_many_distant_pictures_do_not_outvote_a_near_one(
        self, context: Facts, neighbours: Near
    ) -> None:
        known = context("near", "far", "far", "far", "far")
        found = neighbours([(0, 0.9), *((row, 0.8) for row in range(1, 5))])
        vote = VoteStep(k=5, power=9)
        assert ask(Pipeline(steps=(vote,)), found, known).labels == ("far",)
        rescaled = Pipeline(steps=(RescaleStep(), vote))
        assert rescaled.rescales() and not Pipeline(steps=(vote,)).rescales()
        got = ask(rescaled, found, replace(known, background=0.6))
        assert got.labels == ("near",)

    def test_the_penalty_comes_off_the_rescaled_score(
        self, context: Facts, neighbours: Near
    ) -> None:
        known = replace(context("a", penalty=[0.25]), background=0.5)
        pipeline = Pipeline(steps=(RescaleStep(), PenaltyStep(), TOP1))
        got = ask(pipeline, neighbours([(0, 0.9)]), known)
        assert got.confidence[0] == pytest.approx(0.8 - 0.25)


def test_the_threshold_changes_answers_not_ranks(context: Facts, neighbours: Near) -> None:
    found = neighbours([(0, 0.9)], [(1, 0.3)])
    pipeline = Pipeline(steps=(TOP1,))
    plain = ask(pipeline, found, context("a", "b"))
    cut = ask(pipeline.with_threshold(0.5), found, context("a", "b"))
    assert plain.answers() == ("a", "b") and cut.answers() == ("a", None)
    assert cut.labels == plain.labels and (cut.confidence == plain.confidence).all()
    at = float(plain.confidence[1])
    exact = ask(pipeline.with_threshold(at), found, context("a", "b"))
    assert exact.answers() == ("a", "b")  # at the threshold it is an answer


def test_no_steps_no_answers(context: Facts, neighbours: Near) -> None:
    got = ask(Pipeline(steps=()), neighbours([(0, 0.9)]), context("a"))
    assert got.labels == (None,) and np.isneginf(got.confidence).all()


class TestPredictions:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"labels": ()}, "1 queries, 0 labels"),
            ({"confidence": np.zeros(2, np.float32)}, r"\(2,\)"),
            ({"confidence": np.full(1, np.nan, np.float32)}, "NaN"),
            ({"penalty": np.zeros((1, 1), np.float32)}, "penalty must be"),
            ({"votes": np.ones((1, 2), np.float32)}, "votes must be 0"),
            ({"inliers": np.zeros((1, 1), np.int64)}, "inliers must be"),
            ({"query_penalty": np.zeros(2, np.float32)}, "query_penalty must be"),
            ({"probability": np.zeros(2)}, "probability must be"),
        ],
    )
    def test_built_wrong(self, neighbours: Near, change: dict[str, object], says: str) -> None:
        found = Neighbours(np.array([[0, -1]]), np.array([[0.5, -np.inf]], np.float32), ("q",))
        zeros = np.zeros((1, 2), np.float32)
        none, one = np.full((1, 2), -1), np.zeros(1, np.float32)
        right = Predictions(
            labels=("a",), confidence=np.ones(1, np.float32), threshold=0.0, neighbours=found,
            scores=found.scores, penalty=zeros, votes=zeros, query_penalty=one, inliers=none,
            geometry_seconds=np.zeros(1), matches={},
        )  # fmt: skip
        assert right.query_ids == ("q",)
        with pytest.raises(ValueError, match=says):
            replace(right, **change)
