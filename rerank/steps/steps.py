"""The steps of a pipeline, as data: each takes a RankingState and returns the next one.

Rescaled scores are no cosines any more; a penalty is rescaled alike, so that the parameters of a
step mean the same with and without rescaling.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from lmk.embed.local.features import Extractor, RootSift, XFeat
from lmk.index.vectors.neighbours import NO_ROW
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.distractor_similarity import (
    demote_overpredicted,
    mean_of,
    thresholded_demotion,
)
from lmk.rerank.steps.expansion import augmentation_weights
from lmk.rerank.steps.geometry import GeometrySettings, check, fused, in_doubt
from lmk.rerank.steps.penalty import PenaltySettings, rescaled
from lmk.rerank.steps.ranking import MOST, order_of, ranked
from lmk.rerank.steps.state import RankingState
from lmk.rerank.steps.voting import class_prior, labelled, vote_best

REMOVED_FROM_VOTE = ("temperature", "most")  # parameters that older versions of lmk saved
REMOVED_PARAMETER = "removed_parameter"  # the type of the validation error


class DbaStep(BaseModel):
    """Each candidate is compared together with its own nearest gallery pictures.

    Scores become the cosines of the augmented pictures (neighbourhoods.py); the neighbours stay
    those that were searched.

    Attributes:
        n: pictures that are added up, the candidate among them.
        spread: the last weighs 10 ** -spread of the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    step: Literal["dba"] = "dba"
    n: int = Field(default=10, ge=1, le=MOST)
    spread: float = Field(default=1.5, ge=0)

    def weights(self) -> NDArray[np.float64]:
        """float64 [n], of the picture itself and its nearest."""
        return augmentation_weights(self.n, self.spread)

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Replaces `scores`."""
        if context.neighbourhoods is None or context.vectors is None:
            return state
        asked = state.queries
        scores = context.neighbourhoods.cosines(
            asked.embeddings, state.neighbours, context.vectors, without=asked.without
        )
        return replace(state, scores=scores)


class RescaleStep(BaseModel):
    """Scores become (cosine - background) / (1 - background).

    Raw features of photos are alike to start with (two unrelated ones have a cosine near .5), and
    a vote that weighs by powers of the cosine would let many distant pictures outvote a near one.
    Rescaled, 0 is what strangers have, whatever the embedder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Literal["rescale"] = "rescale"

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Replaces `scores`."""
        scores = rescaled(state.scores, context.background).astype(np.float32)
        return replace(state, scores=scores, background=context.background)


class PenaltyStep(PenaltySettings):
    """Takes the penalty of each gallery row off its score (see penalty.py)."""

    step: Literal["penalty"] = "penalty"

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Adds to `penalty`; does nothing where the gallery has no bank."""
        return state if context.penalty is None else _taken_off(state, context.penalty)


class DistractorSimilarityStep(BaseModel):
    """Takes off each gallery picture's own likeness to the bank.

    That is B(g), the mean of the m largest cosines of the picture to distractors. From the first
    place of the Google Landmark Recognition contest of 2020, with m 5 and factor 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    step: Literal["distractor_similarity"] = "distractor_similarity"
    m: int = Field(default=5, ge=1, le=MOST)
    factor: float = Field(default=1.0, ge=0)

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Adds to `penalty`; does nothing where the gallery has no bank."""
        if context.bank_means is None:
            return state
        taken = np.float32(self.factor) * rescaled(context.bank_means, state.background)
        return _taken_off(state, taken)


class GeometryStep(GeometrySettings):
    """Scores rise by the points that a neighbour shares with the query (see geometry.py).

    The pipeline answers twice: first without the check; then the queries in doubt are looked at,
    and the steps from here on run again.

    Attributes:
        margin: in doubt is whose confidence lies within it of the threshold; all queries are where
            there is no threshold.
        extractor: "rootsift", or "xfeat" (an extra package), whose points are learnt.
        points: kept of a picture.
        longest: pixels that the longer side of a picture is shrunk to; the extractor's own
            (480 and 640) unless given.
    """

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
        """What finds the points."""
        sizes = {} if self.longest is None else {"longest": self.longest}
        if self.extractor == "xfeat":
            return XFeat(most=self.points, **sizes)
        return RootSift(most=self.points, **sizes)

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Raises `scores` by the inliers there are: none before `look`."""
        return replace(state, scores=fused(state.scores, state.inliers, self))

    def look(
        self, state: RankingState, answered: RankingState, context: PipelineContext
    ) -> RankingState:
        """Fills `inliers`, `matches` and `geometry_seconds` for the queries in doubt.

        Args:
            answering: where this step begins.
            answered: what came of it without the check: whom it doubts, and in which order it
                put the candidates.
            facts: with the local features of gallery rows.
        """
        features = state.queries.features
        if features is None or context.row_features is None:
            return state
        sure = np.isfinite(answered.confidence)
        if np.isfinite(answered.threshold):
            sure = in_doubt(answered.confidence, answered.threshold, self.margin)
        rows = state.neighbours.rows[:, : state.candidates]
        scores = np.where(rows == NO_ROW, -np.inf, answered.scores[:, : state.candidates])
        places = order_of(rows, scores.astype(np.float32))[:, : self.top]
        short = ranked(rows, scores, state.neighbours.query_ids, self.top)
        checked = check(short, sure, features, context.row_features, self)
        inliers = state.inliers.copy()
        np.put_along_axis(inliers, places, checked.inliers, axis=1)
        return replace(
            state, inliers=inliers, matches=checked.matches, geometry_seconds=checked.seconds
        )


class VoteStep(BaseModel):
    """The k best candidates vote for their labels.

    A candidate votes with max(score, 0) ** power. The confidence is (sum of the winner's votes / k)
    ** (1 / power), which ranks as the sum does and reads like a score. Where every neighbour that
    has a label scores at or below 0, the label of the first of them is the answer, and its score
    is the confidence.

    Attributes:
        k: candidates that vote.
        power: of the score.
        prior: votes for a label of n gallery pictures are multiplied by n ** prior.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    step: Literal["vote"] = "vote"
    k: int = Field(default=5, ge=1)
    power: float = Field(default=9.0, gt=0)
    prior: float = 0.0

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, settings: Any) -> Any:
        """Drops parameters of older versions that are null, and refuses them with a value."""
        if not isinstance(settings, dict):
            return settings
        for name in REMOVED_FROM_VOTE:
            if settings.get(name) is not None:
                raise PydanticCustomError(
                    REMOVED_PARAMETER,
                    "the parameter {name} of the step vote was removed from lmk",
                    {"name": name},
                )
        return {name: value for name, value in settings.items() if name not in REMOVED_FROM_VOTE}

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


class QueryPenaltyStep(BaseModel):
    """Takes the query's own likeness to the bank off the confidence.

    That is factor * C(q), the mean of the m largest cosines of the query to distractors; the
    first place of the Google Landmark Recognition contest of 2020 had m 10.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    step: Literal["query_penalty"] = "query_penalty"
    m: int = Field(default=10, ge=1, le=MOST)
    factor: float = Field(default=0.5, ge=0)

    def depth(self) -> int:
        """Cosines to the bank that it needs."""
        return self.m

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Lowers `confidence`; does nothing where there is no bank to ask."""
        if state.distractor_cosines is None:
            return state
        likeness = rescaled(mean_of(state.distractor_cosines, self.m), state.background)
        return _less_sure(state, np.float32(self.factor) * likeness)


class DemoteStep(BaseModel):
    """Takes factor * t off the confidence where t, a query's nth largest cosine to the bank, is
    at least `at`; from the second place of the Google Landmark Recognition contest of 2020.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    step: Literal["demote"] = "demote"
    nth: int = Field(default=3, ge=1, le=MOST)
    at: float = Field(default=0.3, ge=0)
    factor: float = Field(default=1.5, ge=0)

    def depth(self) -> int:
        """Cosines to the bank that it needs."""
        return self.nth

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Lowers `confidence`; does nothing where there is no bank to ask."""
        if state.distractor_cosines is None:
            return state
        likeness = rescaled(state.distractor_cosines, state.background)
        taken = thresholded_demotion(likeness, nth=self.nth, at=self.at, factor=self.factor)
        return _less_sure(state, taken)


class OverpredictedStep(BaseModel):
    """Answers whose label more than `limit` queries got have -count as their confidence.

    For contests only: it needs all queries at once, so that an answer depends on what else is
    asked. From the third place of the Google Landmark Recognition contest of 2019. Who asks in
    batches leaves the step out of them (Pipeline.without) and applies `of_all` in the end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Literal["overpredicted"] = "overpredicted"
    limit: int = Field(default=30, ge=1)

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Replaces `confidence`."""
        confidence = demote_overpredicted(state.winner, state.confidence, limit=self.limit)
        return replace(state, confidence=confidence)

    def of_all(
        self, labels: Sequence[str | None], confidence: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """The confidences float32 [q] of answers to all queries, None for those without one."""
        code = {label: i for i, label in enumerate(dict.fromkeys(labels)) if label is not None}
        winner = np.array([-1 if label is None else code[label] for label in labels], np.int64)
        given = confidence.astype(np.float32)
        return demote_overpredicted(winner, given, limit=self.limit)


class ThresholdStep(BaseModel):
    """Answers with a confidence below `value` are "none of these"; it changes no ranking."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Literal["threshold"] = "threshold"
    value: float

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Sets `threshold`."""
        return replace(state, threshold=self.value)


Step = Annotated[
    DbaStep
    | RescaleStep
    | PenaltyStep
    | DistractorSimilarityStep
    | GeometryStep
    | VoteStep
    | QueryPenaltyStep
    | DemoteStep
    | OverpredictedStep
    | ThresholdStep,
    Field(discriminator="step"),
]

# Names of steps in pipelines that an older lmk saved, and the names now.
OLD_NAMES = {"neighbourhood": "dba", "bank_penalty": "distractor_similarity"}


def with_new_names(settings: Any) -> Any:
    """Returns the JSON of a list of steps with the names that steps have now."""
    if not isinstance(settings, dict) or not isinstance(settings.get("steps"), list | tuple):
        return settings
    steps = [
        step | {"step": OLD_NAMES.get(step["step"], step["step"])}
        if isinstance(step, dict) and isinstance(step.get("step"), str)
        else step
        for step in settings["steps"]
    ]
    return settings | {"steps": steps}


def digest_text(settings: BaseModel) -> str:
    """Returns the JSON of steps in its first form, so that digests stay valid."""
    text = settings.model_dump_json()
    for old, new in OLD_NAMES.items():
        text = text.replace(f'{{"step":"{new}"', f'{{"step":"{old}"')
    vote = r'("step":"vote","k":[^,]+,"power":[^,]+),("prior":[^,}]+)'
    return re.sub(vote, r'\1,"temperature":null,\2,"most":null', text)


# Where in a pipeline each step makes sense; those of one number may change places.
ORDER: dict[type[BaseModel], int] = {
    DbaStep: 0,
    RescaleStep: 1,
    PenaltyStep: 2,
    DistractorSimilarityStep: 2,
    GeometryStep: 2,
    VoteStep: 3,
    QueryPenaltyStep: 4,
    DemoteStep: 4,
    OverpredictedStep: 5,
    ThresholdStep: 6,
}


def _taken_off(state: RankingState, of_rows: NDArray[np.float32]) -> RankingState:
    """Scores without what is taken off each gallery row, float32 [rows]."""
    rows = state.neighbours.rows
    taken = of_rows.take(rows, mode="wrap")  # NO_ROW takes the last one, and
    taken[rows == NO_ROW] = 0
    return replace(state, scores=state.scores - taken, penalty=state.penalty + taken)


def _less_sure(state: RankingState, taken: NDArray[np.float32]) -> RankingState:
    """The confidence without what is taken off each query, float32 [q]."""
    return replace(
        state,
        confidence=(state.confidence - taken).astype(np.float32),
        query_penalty=(state.query_penalty + taken).astype(np.float32),
    )
