"""Pipeline: the steps from neighbours to predictions, as data that is saved with the gallery.

[{"step": "rescale"}, {"step": "penalty", ...}, {"step": "vote", ...}, {"step": "threshold"...}]
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, SerializeAsAny, model_validator

from lmk.embed.local.features import Extractor
from lmk.index.vectors.neighbours import Neighbours
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.dba import DbaStep
from lmk.rerank.steps.distractor_similarity import QueryPenaltyStep, mean_of
from lmk.rerank.steps.geometry import GeometryStep  # noqa: F401 - the class registers itself
from lmk.rerank.steps.penalty import PenaltyStep, RescaleStep
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.state import QueryBatch, RankingState, leave_out
from lmk.rerank.steps.step import Place, Step, read_step, step_names, with_new_names
from lmk.rerank.steps.voting import ThresholdStep, VoteStep

# Chosen by cross-validation on real photos, with three networks (docs/results.md).
DEFAULT_STEPS: tuple[Step, ...] = (
    DbaStep(own_below=10),
    RescaleStep(),
    PenaltyStep(),
    VoteStep(k=10, prior=-0.5),
    QueryPenaltyStep(),
)
_LANDMARK = 5  # nearest pictures of gallery and distractors in the landmark score


class Pipeline(BaseModel):
    """A list of steps, applied in order; saved with a gallery as JSON.

    Attributes:
        steps: each at most once, in the order of their places.
        candidates: number of neighbours that are searched for each query and may vote.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[Annotated[SerializeAsAny[Step], PlainValidator(read_step)], ...] = DEFAULT_STEPS
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
        if (np.diff([step.place for step in self.steps]) < 0).any():
            order = ", ".join(step_names())
            raise ValueError(f"steps {', '.join(names)} must be in this order: {order}")
        return self

    def predict(
        self, queries: QueryBatch, neighbours: Neighbours, context: PipelineContext
    ) -> Predictions:
        """Returns the predictions after all steps.

        Args:
            queries: the pictures to be recognised.
            neighbours: the neighbours of these queries in the gallery, at least `candidates`.
            context: the context of the gallery.

        Raises:
            ValueError: the neighbours belong to other queries.
        """
        cosines = self._distractor_cosines(queries, context)
        start = RankingState.of(queries, neighbours, self.candidates, cosines)
        state = self._answered(start, context)
        landmark = None
        if cosines is not None and state.neighbours.k:
            nearest = min(_LANDMARK, state.neighbours.k)
            landmark = mean_of(state.neighbours.scores, nearest) - mean_of(cosines, nearest)
        return Predictions.of_state(
            state,
            labels=tuple(context.label_names[w] if w >= 0 else None for w in state.winner),
            landmark_score=landmark,
        )

    def _answered(self, start: RankingState, context: PipelineContext) -> RankingState:
        twice = [i for i, step in enumerate(self.steps) if step.runs_twice(start, context)]
        if not twice:
            return _applied(self.steps, start, context)
        place = twice[0]
        middle = _applied(self.steps[:place], start, context)
        # The answers to other queries do not say how sure the answer to a query is.
        rest = [step for step in self.steps[place:] if "all_queries" not in step.needs]
        answered = _applied(rest, middle, context)
        middle = self.steps[place].second_pass(middle, answered, context)
        return _applied(self.steps[place:], middle, context)

    def _distractor_cosines(
        self, queries: QueryBatch, context: PipelineContext
    ) -> NDArray[np.float32] | None:
        """Returns the largest cosines of each query to distractors, as many as the steps need."""
        if context.distractor_searcher is None:
            return None
        depth = max([_LANDMARK, *(step.distractor_depth() for step in self.steps)])
        without = queries.without_distractors
        most = max((len(rows) for rows in without or ()), default=0)
        near = context.distractor_searcher.search(queries.embeddings, depth + most)
        return near.scores if without is None else leave_out(near, without, depth).scores

    @property
    def needs(self) -> frozenset[str]:
        """The inputs that the steps need (see rerank/steps/step.py)."""
        return frozenset().union(*(step.needs for step in self.steps))

    def step_that_needs(self, need: str) -> Step | None:
        """Returns the first step with that need, or None."""
        return next((step for step in self.steps if need in step.needs), None)

    def uses_distractors(self) -> bool:
        """Returns whether answers depend on the distractors."""
        return bool(self.needs & {"hits", "distractor_similarity", "distractors"})

    def rescales(self) -> bool:
        """Returns whether scores are rescaled, and the penalty with them."""
        return "background" in self.needs

    def context_key(self) -> Hashable:
        """Returns a key that is equal for two pipelines that can share a PipelineContext."""
        steps = tuple(step for step in self.steps if step.needs_tables)
        return steps, self.rescales(), "distractors" in self.needs

    def local_extractor(self) -> Extractor | None:
        """Returns the extractor of local features that the steps need, or None."""
        return next((e for step in self.steps if (e := step.local_extractor()) is not None), None)

    def gain(self, inliers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns how much the steps raise the scores of neighbours with so many inliers."""
        gains = np.zeros(inliers.shape, np.float32)
        for step in self.steps:
            gains += step.gain(inliers)
        return gains

    def per_query(self) -> Pipeline:
        """Returns the steps that answer each query independently of the others."""
        return self._of(step for step in self.steps if "all_queries" not in step.needs)

    def scoring(self) -> Pipeline:
        """Returns the steps before the vote, without those that need local features."""
        return self._of(
            step
            for step in self.steps
            if step.place < Place.VOTE and "local_features" not in step.needs
        )

    def revise(
        self, labels: Sequence[str | None], confidence: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Returns the confidences float32 [q] after the steps that need all queries.

        Args:
            labels: the labels of the answers of `per_query` to all queries; None for no answer.
            confidence: float [q], the confidences of these answers.
        """
        for step in self.steps:
            confidence = step.revise(labels, confidence)
        return confidence.astype(np.float32)

    def threshold(self) -> float | None:
        """Returns the least confidence of an answer, or None without a threshold."""
        values = [step.answer_threshold() for step in self.steps]
        return next((value for value in values if value is not None), None)

    def with_threshold(self, value: float | None) -> Pipeline:
        """Returns the same steps with another threshold at the end, or with none."""
        steps = [step for step in self.steps if step.place != Place.THRESHOLD]
        return self._of(steps if value is None else [*steps, ThresholdStep(value=value)])

    def _of(self, steps: Iterable[Step]) -> Pipeline:
        return self.model_copy(update={"steps": tuple(steps)})


def _applied(steps: Iterable[Step], state: RankingState, context: PipelineContext) -> RankingState:
    for step in steps:
        state = step.apply(state, context)
    return state
