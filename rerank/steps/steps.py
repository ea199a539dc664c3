"""The steps of a pipeline. A step is data; it takes a RankingState and returns the next one.

Rescaled scores are no longer cosines. A penalty is rescaled in the same way, so the parameters of a
step mean the same with and without rescaling. A new step is a new subclass of Step in this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator

from lmk.embed.local.features import Extractor, RootSift, XFeat
from lmk.index.vectors.neighbours import NO_ROW
from lmk.rerank.steps.augmentation import Neighbourhoods
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.distractor_similarity import (
    demote_overpredicted,
    mean_of,
    thresholded_demotion,
)
from lmk.rerank.steps.expansion import augmentation_weights
from lmk.rerank.steps.geometry import GeometrySettings, check, fused, in_doubt
from lmk.rerank.steps.penalty import PenaltySettings, penalty_of, rescaled
from lmk.rerank.steps.ranking import MOST, order_of, ranked
from lmk.rerank.steps.state import RankingState
from lmk.rerank.steps.step import Place, Step, without_removed
from lmk.rerank.steps.voting import class_prior, labelled, vote_best


class DbaStep(Step):
    """Compares each candidate together with its own nearest gallery pictures.

    Scores become the cosines of the augmented pictures (augmentation.py). The neighbours stay those
    of the search.

    Attributes:
        n: pictures that are added up, the candidate among them.
        spread: the last weighs 10 ** -spread of the first.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset({"neighbours"})
    place: ClassVar[Place] = Place.NEIGHBOURS

    step: Literal["dba"] = "dba"
    n: int = Field(default=10, ge=1, le=MOST)
    spread: float = Field(default=1.5, ge=0)

    def table_size(self) -> int:
        """Returns the number of pictures that are added up."""
        return self.n

    def context_values(self, table: Any, background: float) -> dict[str, Any]:
        """Returns the neighbourhoods of rows int32 [rows, n + 1]."""
        weights = augmentation_weights(self.n, self.spread)
        return {"neighbourhoods": Neighbourhoods(table, weights)}

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Replaces `scores`."""
        if context.neighbourhoods is None or context.vectors is None:
            return state
        asked = state.queries
        scores = context.neighbourhoods.cosines(
            asked.embeddings, state.neighbours, context.vectors, without=asked.without
        )
        return replace(state, scores=scores)


class RescaleStep(Step):
    """Rescales scores to (cosine - background) / (1 - background).

    Two unrelated photos can have a cosine near .5. A vote by powers of such cosines would let many
    distant pictures outvote a near one. After rescaling, pictures of different landmarks have 0 on
    average, whatever the embedder.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"background"})
    place: ClassVar[Place] = Place.RESCALE

    step: Literal["rescale"] = "rescale"

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Replaces `scores`."""
        scores = rescaled(state.scores, context.background).astype(np.float32)
        return replace(state, scores=scores, background=context.background)


class PenaltyStep(PenaltySettings, Step):
    """Subtracts the penalty of each gallery row from its score (see penalty.py)."""

    needs: ClassVar[frozenset[str]] = frozenset({"hits"})
    place: ClassVar[Place] = Place.SCORES

    step: Literal["penalty"] = "penalty"

    def table_size(self) -> int:
        """Returns the number of gallery pictures that each distractor hits."""
        return self.top

    def context_values(self, table: Any, background: float) -> dict[str, Any]:
        """Returns the penalty of each row for Hits."""
        return {"penalty": penalty_of(table, self, background=background)}

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Lowers `scores` and adds to `penalty`; does nothing without distractors."""
        return state if context.penalty is None else _with_penalty(state, context.penalty)


class DistractorSimilarityStep(Step):
    """Subtracts each gallery picture's own similarity to the distractors.

    The similarity is B(g), the mean of the m largest cosines of the picture to distractors. The
    first place of the Google Landmark Recognition contest of 2020 had m 5 and factor 1.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset({"distractor_similarity"})
    place: ClassVar[Place] = Place.SCORES

    step: Literal["distractor_similarity"] = "distractor_similarity"
    m: int = Field(default=5, ge=1, le=MOST)
    factor: float = Field(default=1.0, ge=0)

    def table_size(self) -> int:
        """Returns the number of distractors of each mean."""
        return self.m

    def context_values(self, table: Any, background: float) -> dict[str, Any]:
        """Returns the mean of each row of cosines float32 [rows, m]."""
        return {"distractor_similarity": mean_of(table, self.m)}

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Lowers `scores` and adds to `penalty`; does nothing without distractors."""
        if context.distractor_similarity is None:
            return state
        penalty = np.float32(self.factor) * rescaled(
            context.distractor_similarity, state.background
        )
        return _with_penalty(state, penalty)


class GeometryStep(GeometrySettings, Step):
    """Raises scores by the points that a neighbour shares with the query (see geometry.py).

    The pipeline answers twice. The first pass is without the check. Then the queries in doubt are
    checked, and the steps from here on run again.

    Attributes:
        margin: a query is in doubt if its confidence differs from the threshold by at most this.
            Without a threshold all queries are in doubt.
        extractor: "rootsift", or "xfeat" (an extra package), a trained network.
        points: points of a picture at most.
        longest: pixels that the longer side of a picture is shrunk to; the extractor's own
            (480 and 640) unless given.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"local_features"})
    place: ClassVar[Place] = Place.SCORES

    step: Literal["geometry"] = "geometry"
    margin: float = Field(default=0.15, ge=0)
    extractor: Literal["rootsift", "xfeat"] = "rootsift"
    points: int = Field(default=1000, ge=1, le=100_000)
    longest: int | None = Field(default=None, ge=32, le=8192)

    @model_validator(mode="after")
    def _matched_by_its_own(self) -> GeometryStep:
        if self.matcher == "lighterglue" and self.extractor != "xfeat":
            raise ValueError("the matcher lighterglue is for the extractor xfeat")
        return self

    def local_extractor(self) -> Extractor:
        """Returns the extractor of the points."""
        sizes = {} if self.longest is None else {"longest": self.longest}
        return (XFeat if self.extractor == "xfeat" else RootSift)(most=self.points, **sizes)

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Raises `scores` by the inliers there are: none before the second pass."""
        return replace(state, scores=fused(state.scores, state.inliers, self))

    def gain(self, inliers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns how much the scores of neighbours with so many inliers rise."""
        return fused(np.zeros(inliers.shape), inliers, self)

    def runs_twice(self, state: RankingState, context: PipelineContext) -> bool:
        """Returns whether there are local features of the queries and the gallery."""
        return state.queries.features is not None and context.row_features is not None

    def second_pass(
        self, state: RankingState, answered: RankingState, context: PipelineContext
    ) -> RankingState:
        """Returns the state with `inliers`, `matches` and `geometry_seconds` of queries in doubt.

        `answered` says which queries are in doubt, and orders their candidates.
        """
        features = state.queries.features
        if features is None or context.row_features is None:
            return state
        doubt = np.isfinite(answered.confidence)
        if np.isfinite(answered.threshold):
            doubt = in_doubt(answered.confidence, answered.threshold, self.margin)
        rows = state.neighbours.rows[:, : state.candidates]
        scores = np.where(rows == NO_ROW, -np.inf, answered.scores[:, : state.candidates])
        places = order_of(rows, scores.astype(np.float32))[:, : self.top]
        short = ranked(rows, scores, state.neighbours.query_ids, self.top)
        checked = check(short, doubt, features, context.row_features, self)
        inliers = state.inliers.copy()
        np.put_along_axis(inliers, places, checked.inliers, axis=1)
        return replace(
            state, inliers=inliers, matches=checked.matches, geometry_seconds=checked.seconds
        )


class VoteStep(Step):
    """Lets the k best candidates vote for their labels.

    A candidate votes with max(score, 0) ** power. The confidence is (sum of the winner's votes / k)
    ** (1 / power), which ranks as the sum does and reads like a score. Where every neighbour that
    has a label scores at or below 0, the label of the first of them is the answer, and its score
    is the confidence.

    Attributes:
        k: candidates that vote.
        power: of the score.
        prior: votes for a label of n gallery pictures are multiplied by n ** prior.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    place: ClassVar[Place] = Place.VOTE

    step: Literal["vote"] = "vote"
    k: int = Field(default=5, ge=1)
    power: float = Field(default=9.0, gt=0)
    prior: float = 0.0

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, settings: Any) -> Any:
        return without_removed(settings, ("temperature", "most"))

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Fills `winner`, `confidence` and `votes`."""
        rows = state.neighbours.rows
        candidates = rows[:, : state.candidates]
        scores = state.scores[:, : state.candidates]
        result = vote_best(
            candidates,
            scores,
            self.k,
            context.label_offsets,
            context.label_codes,
            power=self.power,
            scale=class_prior(context.label_pictures, self.prior) if self.prior else None,
        )
        confidence = (result.total / self.k) ** (1 / self.power)
        silent = result.total <= 0
        known = labelled(candidates[silent], context.label_offsets)
        best = np.where(known, scores[silent], -np.inf).max(axis=1, initial=-np.inf)
        confidence[silent] = np.minimum(best, 0)
        confidence[result.winner < 0] = -np.inf
        beyond = np.zeros((len(rows), rows.shape[1] - scores.shape[1]), np.float32)
        votes = np.concatenate([result.shares, beyond], axis=1) if beyond.size else result.shares
        return replace(
            state,
            winner=result.winner,
            confidence=confidence.astype(np.float32),
            votes=votes,
        )


class QueryPenaltyStep(Step):
    """Subtracts factor * C(q), the query's own similarity to distractors, from the confidence.

    C(q) is the mean of the m largest cosines of the query to distractors. The first place of the
    Google Landmark Recognition contest of 2020 had m 10.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset({"distractors"})
    place: ClassVar[Place] = Place.CONFIDENCE

    step: Literal["query_penalty"] = "query_penalty"
    m: int = Field(default=10, ge=1, le=MOST)
    factor: float = Field(default=0.5, ge=0)

    def distractor_depth(self) -> int:
        """Returns how many cosines of a query to distractors the step needs."""
        return self.m

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Lowers `confidence`; does nothing without distractors."""
        if state.distractor_cosines is None:
            return state
        similarity = rescaled(mean_of(state.distractor_cosines, self.m), state.background)
        return _with_query_penalty(state, np.float32(self.factor) * similarity)


class DemoteStep(Step):
    """Subtracts factor * t from the confidence where t is at least `at`.

    t is the query's nth largest cosine to distractors. The rule comes from the second place of the
    Google Landmark Recognition contest of 2020.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset({"distractors"})
    place: ClassVar[Place] = Place.CONFIDENCE

    step: Literal["demote"] = "demote"
    nth: int = Field(default=3, ge=1, le=MOST)
    at: float = Field(default=0.3, ge=0)
    factor: float = Field(default=1.5, ge=0)

    def distractor_depth(self) -> int:
        """Returns how many cosines of a query to distractors the step needs."""
        return self.nth

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Lowers `confidence`; does nothing without distractors."""
        if state.distractor_cosines is None:
            return state
        similarity = rescaled(state.distractor_cosines, state.background)
        penalty = thresholded_demotion(similarity, nth=self.nth, at=self.at, factor=self.factor)
        return _with_query_penalty(state, penalty)


class OverpredictedStep(Step):
    """Gives answers whose label more than `limit` queries got the confidence -count.

    The step is for contests only, because an answer depends on the other queries. It comes from the
    third place of the Google Landmark Recognition contest of 2019. Code that answers in batches
    leaves the step out (Pipeline.per_query) and calls `revise` in the end.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"all_queries"})
    place: ClassVar[Place] = Place.ALL_ANSWERS

    step: Literal["overpredicted"] = "overpredicted"
    limit: int = Field(default=30, ge=1)

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Replaces `confidence`."""
        confidence = demote_overpredicted(state.winner, state.confidence, limit=self.limit)
        return replace(state, confidence=confidence)

    def revise(
        self, labels: Sequence[str | None], confidence: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Returns the confidences float32 [q] of the answers to all queries."""
        code = {label: i for i, label in enumerate(dict.fromkeys(labels)) if label is not None}
        winner = np.array([-1 if label is None else code[label] for label in labels], np.int64)
        given = confidence.astype(np.float32)
        return demote_overpredicted(winner, given, limit=self.limit)


class ThresholdStep(Step):
    """Turns answers with a confidence below `value` into "none of these"; the ranking stays."""

    place: ClassVar[Place] = Place.THRESHOLD

    step: Literal["threshold"] = "threshold"
    value: float

    def answer_threshold(self) -> float:
        """Returns the threshold."""
        return self.value

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Sets `threshold`."""
        return replace(state, threshold=self.value)


def _with_penalty(state: RankingState, penalty: NDArray[np.float32]) -> RankingState:
    """Returns the state with the penalty of each gallery row, float32 [rows], subtracted."""
    rows = state.neighbours.rows
    penalty = penalty.take(rows, mode="wrap")  # NO_ROW takes the last one, and
    penalty[rows == NO_ROW] = 0
    return replace(state, scores=state.scores - penalty, penalty=state.penalty + penalty)


def _with_query_penalty(state: RankingState, penalty: NDArray[np.float32]) -> RankingState:
    """Returns the state with the penalty of each query, float32 [q], subtracted."""
    return replace(
        state,
        confidence=(state.confidence - penalty).astype(np.float32),
        query_penalty=(state.query_penalty + penalty).astype(np.float32),
    )
