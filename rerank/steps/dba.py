"""The step dba: candidates are compared together with their nearest gallery pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from lmk.rerank.steps.augmentation import Neighbourhoods, OwnLabels
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.expansion import augmentation_weights
from lmk.rerank.steps.ranking import MOST
from lmk.rerank.steps.state import RankingState
from lmk.rerank.steps.step import Place, Step


class DbaStep(Step):
    """Compares each candidate together with its own nearest gallery pictures.

    Scores become the cosines of the augmented pictures (augmentation.py). The neighbours stay those
    of the search.

    Attributes:
        n: pictures that are added up, the candidate among them.
        spread: the last weighs 10 ** -spread of the first.
        own_below: if every landmark has fewer gallery pictures than this, a candidate is added up
            with pictures of its own landmark alone; most of its neighbours show other landmarks.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    needs: ClassVar[frozenset[str]] = frozenset({"neighbours"})
    place: ClassVar[Place] = Place.NEIGHBOURS

    step: Literal["dba"] = "dba"
    n: int = Field(default=10, ge=1, le=MOST)
    spread: float = Field(default=1.5, ge=0)
    own_below: int = Field(default=0, ge=0)

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
        queries = state.queries
        own = None
        if context.label_pictures.max(initial=0) < self.own_below:
            own = OwnLabels(context.label_offsets, context.label_codes, len(context.label_names))
        scores = context.neighbourhoods.cosines(
            queries.embeddings,
            state.neighbours,
            context.vectors,
            without=queries.without,
            own=own,
        )
        return replace(state, scores=scores)
