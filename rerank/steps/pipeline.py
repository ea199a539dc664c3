"""The pipeline: the steps from neighbours to predictions, as data that is saved with the gallery.

[{"step": "rescale"}, {"step": "penalty", ...}, {"step": "vote", ...}, {"step": "threshold"...}]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.distractor_similarity import bank_cosines, landmark_score
from lmk.rerank.steps.hits import Hits
from lmk.rerank.steps.penalty import PenaltySettings, penalty_of, pick
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.state import QueryBatch, RankingState, leave_out
from lmk.rerank.steps.steps import (
    ORDER,
    DbaStep,
    DemoteStep,
    DistractorSimilarityStep,
    GeometryStep,
    OverpredictedStep,
    PenaltyStep,
    QueryPenaltyStep,
    RescaleStep,
    Step,
    ThresholdStep,
    VoteStep,
    with_new_names,
)

# Chosen by cross-validation on real photos, with three networks (docs/results.md).
DEFAULT_STEPS: tuple[Step, ...] = (
    DbaStep(),
    RescaleStep(),
    PenaltyStep(),
    VoteStep(k=10, prior=-0.5),
    QueryPenaltyStep(),
)
_LANDMARK = 5  # nearest pictures of gallery and bank that say whether a query shows a landmark

Kind = TypeVar("Kind", bound=BaseModel)


class Pipeline(BaseModel):
    """A list of steps, applied in order; saved with a gallery as JSON.

    Attributes:
        steps: what is done to the neighbours: each kind at most once, in the order of `ORDER`.
        candidates: neighbours that are searched for each query, from which the steps choose; of
            neighbours given beyond that number none votes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[Step, ...] = DEFAULT_STEPS
    candidates: int = Field(default=100, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _with_new_names(cls, settings: Any) -> Any:
        return with_new_names(settings)

    @model_validator(mode="after")
    def _in_order(self) -> Pipeline:
        names = [step.step for step in self.steps]
        if len(set(names)) < len(names):
            raise ValueError(f"each step may be there once, got {', '.join(names)}")
        if (np.diff([ORDER[type(step)] for step in self.steps]) < 0).any():
            known = ", ".join(step.model_fields["step"].default for step in ORDER)
            raise ValueError(f"steps {', '.join(names)} must be in this order: {known}")
        return self

    def predict(
        self, queries: QueryBatch, neighbours: Neighbours, context: PipelineContext
    ) -> Predictions:
        """Applies the steps.

        Args:
            queries: what is asked.
            neighbours: of these queries, in the gallery (`candidates` of them or more).
            facts: of the gallery.

        Raises:
            ValueError: when the neighbours are of other queries.
        """
        likeness = self._likeness(queries, context)
        start = RankingState.of(queries, neighbours, self.candidates, likeness)
        state = self._answered(start, context)
        landmark = None
        if likeness is not None and state.neighbours.k:
            nearest = min(_LANDMARK, state.neighbours.k)
            landmark = landmark_score(state.neighbours.scores, likeness, nearest)
        return Predictions(
            labels=tuple(context.label_names[w] if w >= 0 else None for w in state.winner),
            confidence=state.confidence,
            threshold=state.threshold,
            neighbours=state.neighbours,
            scores=state.scores,
            penalty=state.penalty,
            votes=state.votes,
            query_penalty=state.query_penalty,
            inliers=state.inliers,
            geometry_seconds=state.geometry_seconds,
            probability=None,
            landmark_score=landmark,
            matches=state.matches,
        )

    def _answered(self, start: RankingState, context: PipelineContext) -> RankingState:
        geometry = self.step(GeometryStep)
        if geometry is None or start.queries.features is None or context.row_features is None:
            return _applied(self.steps, start, context)
        place = self.steps.index(geometry)
        middle = _applied(self.steps[:place], start, context)
        # How often a label is predicted says nothing about who is in doubt.
        alone = self.without(OverpredictedStep).steps[place:]
        looked = geometry.look(middle, _applied(alone, middle, context), context)
        return _applied(self.steps[place:], looked, context)

    def _likeness(
        self, queries: QueryBatch, context: PipelineContext
    ) -> NDArray[np.float32] | None:
        """The largest cosines of each query to the bank, as many as the steps need."""
        if context.bank is None:
            return None
        depths = [
            step.depth() for step in self.steps if isinstance(step, QueryPenaltyStep | DemoteStep)
        ]
        depth, without = max([_LANDMARK, *depths]), queries.without_distractors
        if without is None:
            return bank_cosines(context.bank, queries.embeddings, depth)
        most = max((len(rows) for rows in without), default=0)
        found = context.bank.search(queries.embeddings, depth + most)
        return leave_out(found, without, depth).scores

    def step(self, kind: type[Kind]) -> Kind | None:
        """The step of a kind, if there is one."""
        return next((step for step in self.steps if isinstance(step, kind)), None)

    def asks_bank(self) -> bool:
        """Whether a step compares queries with the bank."""
        return any(isinstance(step, QueryPenaltyStep | DemoteStep) for step in self.steps)

    def uses_bank(self) -> bool:
        """Whether answers depend on the bank."""
        of_rows = self.step(PenaltyStep) or self.step(DistractorSimilarityStep)
        return of_rows is not None or self.asks_bank()

    def without(self, *kinds: type[BaseModel]) -> Pipeline:
        """The same steps but those of some kinds."""
        kept = tuple(step for step in self.steps if not isinstance(step, kinds))
        return self.model_copy(update={"steps": kept})

    def for_one(self) -> Pipeline:
        """The steps that answer each query for itself, without the threshold."""
        return self.without(OverpredictedStep, ThresholdStep)

    def penalty(self) -> PenaltySettings | None:
        """The settings of the penalty step, if there is one."""
        return self.step(PenaltyStep)

    def fit_penalty(
        self, searcher: Searcher, bank: View, *, rows: int, gallery: int, background: float
    ) -> NDArray[np.float32] | None:
        """The penalty float32 [rows] of these steps; None without such a step, bank or gallery.

        Args:
            searcher, bank, rows, gallery: as penalty.pick.
            background: of the gallery (PipelineContext).
        """
        settings = self.penalty()
        if settings is None or not bank.mask.any() or not gallery:
            return None
        picks = pick(searcher, bank, rows=rows, gallery=gallery, top=settings.top)
        return self.penalty_of(picks, background)

    def penalty_of(self, picks: Hits, background: float) -> NDArray[np.float32] | None:
        """The penalty float32 [rows] of these steps for known picks; None without such a step."""
        settings = self.penalty()
        if settings is None:
            return None
        return penalty_of(picks, settings, background=background if self.rescales() else 0.0)

    def rescales(self) -> bool:
        """Whether scores are rescaled, and the penalty with them."""
        return self.step(RescaleStep) is not None

    def threshold(self) -> float | None:
        """What an answer needs, or None where everything is answered."""
        step = self.step(ThresholdStep)
        return None if step is None else step.value

    def with_threshold(self, value: float | None) -> Pipeline:
        """The same steps with another threshold at the end, or with none."""
        last = () if value is None else (ThresholdStep(value=value),)
        return self.model_copy(update={"steps": (*self.without(ThresholdStep).steps, *last)})


def _applied(steps: Iterable[Step], state: RankingState, context: PipelineContext) -> RankingState:
    for step in steps:
        state = step.apply(state, context)
    return state
