"""The base class of the steps of a pipeline, and the registry of their names.

A step is data (a pydantic model) with a method `apply` that takes a RankingState and returns the
next one. A subclass registers itself under the name in its field `step`. It declares its place in
the order and the inputs that it needs, so that a pipeline never has to know the classes of its
steps:

    hits                   how often distractors hit each gallery picture (the penalty)
    neighbours             the nearest pictures of each gallery picture
    distractor_similarity  mean similarity of each gallery picture to the distractors
    distractors            the largest cosines of each query to the distractors
    background             the mean cosine of two pictures of different landmarks
    local_features         local features of queries and gallery pictures
    all_queries            the answers to all queries at once
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from lmk.embed.local.features import Extractor
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.state import RankingState

# Names of steps in pipelines that an older lmk saved, and the names now.
OLD_NAMES = {"neighbourhood": "dba", "bank_penalty": "distractor_similarity"}
REMOVED_PARAMETER = "removed_parameter"  # the type of the validation error

TABLE_NEEDS = frozenset({"hits", "neighbours", "distractor_similarity"})
_CONTEXT_NEEDS = TABLE_NEEDS | {"local_features"}
NEEDS = _CONTEXT_NEEDS | {"distractors", "background", "all_queries"}


class Place(IntEnum):
    """The place of a step in a pipeline. Steps of one place may be in any order."""

    NEIGHBOURS = 0
    RESCALE = 1
    SCORES = 2
    VOTE = 3
    CONFIDENCE = 4
    ALL_ANSWERS = 5
    THRESHOLD = 6


class Step(BaseModel):
    """A step of a pipeline.

    The parameters of a step must be hashable, because `lmk tune` collects pipelines in a dict. A
    parameter is therefore a tuple instead of a list or a dict.

    Attributes:
        needs: inputs of the step (see the module). A step whose input is missing does nothing.
        place: where in a pipeline the step may be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    needs: ClassVar[frozenset[str]] = frozenset()
    place: ClassVar[Place]
    registry: ClassVar[dict[str, type[Step]]] = {}

    if TYPE_CHECKING:  # each subclass declares the field with its own name as the only value
        step: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        name = cls.model_fields["step"].default
        if not cls.needs <= NEEDS:
            raise TypeError(f"the step {name} needs {sorted(cls.needs - NEEDS)}, which is unknown")
        if Step.registry.setdefault(name, cls) is not cls:
            raise TypeError(f"two steps have the name {name}")

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Returns the state after this step."""
        raise NotImplementedError

    @property
    def needs_tables(self) -> bool:
        """Whether the step reads something of the context that is specific to its parameters."""
        return bool(self.needs & _CONTEXT_NEEDS)

    def table_size(self) -> int:
        """Returns the length of the lists in the fitted table that the step needs."""
        return 0

    def context_values(self, table: Any, background: float) -> dict[str, Any]:
        """Returns the values of a PipelineContext that the step makes from its fitted table.

        Args:
            table: the value of the table (FittedTable.value in rerank/fit/table_kinds.py).
            background: the value that rescales scores; 0 if scores are not rescaled.
        """
        return {}

    def distractor_depth(self) -> int:
        """Returns how many cosines of a query to distractors the step needs."""
        return 0

    def answer_threshold(self) -> float | None:
        """Returns the threshold of an answer that the step sets, if it sets one."""
        return None

    def local_extractor(self) -> Extractor | None:
        """Returns the extractor of the local features that the step needs, if it needs any."""
        return None

    def gain(self, inliers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns how much the step raises the scores of neighbours with so many inliers."""
        return np.zeros(inliers.shape, np.float32)

    def runs_twice(self, state: RankingState, context: PipelineContext) -> bool:
        """Returns whether the pipeline answers once without this step and then again with it."""
        return False

    def second_pass(
        self, state: RankingState, answered: RankingState, context: PipelineContext
    ) -> RankingState:
        """Returns the state from which a step that runs twice begins its second pass.

        Args:
            state: the state before this step.
            answered: the result of the first pass.
            context: the context of the gallery.
        """
        return state

    def revise(
        self, labels: Sequence[str | None], confidence: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Returns the confidences float32 [q] of the answers to all queries.

        Args:
            labels: the labels of all answers; None for no answer.
            confidence: float [q].
        """
        return confidence.astype(np.float32)


def read_step(value: Any) -> Step:
    """Returns the step that JSON describes; a step is returned as it is.

    Raises:
        ValueError: no step has that name. A wrong parameter is pydantic's ValidationError.
    """
    if isinstance(value, Step):
        return value
    if not isinstance(value, dict) or "step" not in value:
        raise PydanticCustomError("no_step", 'a step must be like {"step": "vote"}')
    kind = Step.registry.get(value["step"]) if isinstance(value["step"], str) else None
    if kind is None:
        details = {"name": repr(value["step"]), "known": ", ".join(step_names())}
        raise PydanticCustomError("unknown_step", "there is no step {name}; use {known}", details)
    return kind.model_validate(value)


def step_names() -> list[str]:
    """Returns the names of all steps, in the order of their places."""
    return sorted(Step.registry, key=lambda name: Step.registry[name].place)


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


def without_removed(settings: Any, names: Sequence[str]) -> Any:
    """Returns the JSON of a step without parameters that older versions of lmk had.

    Raises:
        PydanticCustomError: one of them has a value other than null.
    """
    if not isinstance(settings, dict):
        return settings
    for name in names:
        if settings.get(name) is not None:
            details = {"name": name, "step": str(settings.get("step"))}
            what = "the parameter {name} of the step {step} was removed from lmk"
            raise PydanticCustomError(REMOVED_PARAMETER, what, details)
    return {name: value for name, value in settings.items() if name not in names}


def digest_text(settings: BaseModel) -> str:
    """Returns the JSON of steps in its first form, so that digests stay valid."""
    text = settings.model_dump_json()
    for old, new in OLD_NAMES.items():
        text = text.replace(f'{{"step":"{new}"', f'{{"step":"{old}"')
    text = text.replace(',"own_below":0', "")
    vote = r'("step":"vote","k":[^,]+,"power":[^,]+),("prior":[^,}]+)'
    return re.sub(vote, r'\1,"temperature":null,\2,"most":null', text)
