"""The distractor penalty: gallery pictures that attract non-landmarks get lower scores.

Each distractor (a picture of no landmark) hits its `top` most similar gallery pictures. A gallery
picture with n hits of mean cosine mu loses

    0                 when n <  min_n       a few hits are chance
    max_share * mu    when n >= max_n
    ramp(n) * mu      between

of every cosine, before neighbours are ordered again. The rule comes from a write-up of the
Google Landmark Recognition contest of 2021 (public GAP .230 -> .244) whose formula for the ramp is
garbled; its readings are named here:

    "linear"     min_share + (max_share - min_share) * (n - min_n) / (max_n - min_n)
    "shifted"    min_share + (max_share - min_share) * (n - min_n + 1) / (max_n - min_n + 1)
    "unfloored"              (max_share - min_share) * (n - min_n + 1) / (max_n - min_n + 1)

"shifted" is the default: it explains both "+ 1" of the fragments and is continuous at max_n.

The counts 3 and 12 belong to that contest: 110,000 distractors x 20 hits over 1,580,470 gallery
pictures, 1.39 hits a picture. Raw counts saturate on a small gallery with many distractors. Where
more hits are expected, counts are therefore divided by the expected number and multiplied by 1.39.
Where fewer are expected they stay as they are: one hit is chance however few the distractors.
`counts="raw"` is the rule to the letter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lmk.index.vectors.neighbours import NO_ROW
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.hits import Hits, HitTable
from lmk.rerank.steps.ranking import MOST
from lmk.rerank.steps.state import RankingState
from lmk.rerank.steps.step import Place, Step

CONTEST_HITS = 110_000 * 20 / 1_580_470

Ramp = Literal["linear", "shifted", "unfloored"]


class RescaleStep(Step):
    """Rescales scores to (cosine - background) / (1 - background).

    Two unrelated photos can have a cosine near .5. A vote by powers of such cosines would let many
    distant pictures outvote a near one. After rescaling, pictures of different landmarks have 0 on
    average, whatever the embedder. Penalties are rescaled in the same way, so the parameters of the
    other steps mean the same with and without this step.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"background"})
    place: ClassVar[Place] = Place.RESCALE

    step: Literal["rescale"] = "rescale"

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Replaces `scores`."""
        scores = rescaled(state.scores, context.background).astype(np.float32)
        return replace(state, scores=scores, background=context.background)


class PenaltyStep(Step):
    """Subtracts the penalty of each gallery row from its score.

    The defaults are those of the contest, except for min_n, which its write-up does not give.

    Attributes:
        top: gallery pictures that each distractor hits.
        min_n, max_n: numbers of hits below which nothing, and from which max_share, is subtracted.
        min_share, max_share: shares of the mean cosine of the hits.
        ramp: how the share grows between them (see the module).
        counts: "relative" to the expected number of hits, or "raw".
    """

    needs: ClassVar[frozenset[str]] = frozenset({"hits"})
    place: ClassVar[Place] = Place.SCORES

    top: int = Field(default=20, ge=1, le=MOST)
    min_n: float = Field(default=3, ge=0)
    max_n: float = Field(default=12, gt=0)
    min_share: float = Field(default=0.3, ge=0)
    max_share: float = Field(default=1.0, ge=0)
    ramp: Ramp = "shifted"
    counts: Literal["relative", "raw"] = "relative"
    step: Literal["penalty"] = "penalty"  # the last field, as in saved digests

    @model_validator(mode="after")
    def _ordered(self) -> PenaltyStep:
        if self.max_n <= self.min_n or self.max_share < self.min_share:
            raise ValueError("max_n must be above min_n, and max_share not below min_share")
        return self

    def table_size(self) -> int:
        """Returns the number of gallery pictures that each distractor hits."""
        return self.top

    def context_values(self, table: Any, background: float) -> dict[str, Any]:
        """Returns the penalty of each row for Hits."""
        return {"penalty": penalty_of(table, self, background=background)}

    def apply(self, state: RankingState, context: PipelineContext) -> RankingState:
        """Lowers `scores` and adds to `penalty`; does nothing without distractors."""
        return state if context.penalty is None else with_penalty(state, context.penalty)


def count_hits(searcher: Searcher, distractors: View, *, rows: int, gallery: int, top: int) -> Hits:
    """Returns the hits of each distractor on its `top` nearest gallery rows.

    Args:
        searcher: a search over the gallery pictures.
        distractors: the distractors.
        rows: length of the arrays returned, above all row numbers of the searcher.
        gallery: number of gallery pictures.
        top: number of hits of each distractor.
    """
    table = HitTable.empty(rows, distractors.stored.rows)
    queries = np.flatnonzero(distractors.mask)
    table.count(searcher, distractors, queries, top=top)
    return table.hits(distractors=len(queries), gallery=gallery, top=top)


def rescaled(cosines: NDArray[np.float32], background: float) -> NDArray[np.float32]:
    """Returns (cosine - background) / (1 - background): 0 for different landmarks on average."""
    return (cosines - np.float32(background)) / np.float32(1 - background)


def with_penalty(state: RankingState, penalty: NDArray[np.float32]) -> RankingState:
    """Returns the state with the penalty of each gallery row, float32 [rows], subtracted."""
    rows = state.neighbours.rows
    penalty = penalty.take(rows, mode="wrap")  # NO_ROW takes the last one, and
    penalty[rows == NO_ROW] = 0
    return replace(state, scores=state.scores - penalty, penalty=state.penalty + penalty)


def penalty_of(
    hits: Hits, settings: PenaltyStep, *, background: float = 0.0
) -> NDArray[np.float32]:
    """Returns the penalty of each row: float32 [rows], never negative.

    Args:
        hits: the hits of the distractors.
        settings: the parameters of the penalty.
        background: the background of rescaled cosines (see `rescaled`); 0 for plain cosines.
    """
    n = hits.counts.astype(np.float64)
    if settings.counts == "relative" and hits.expected > 0:
        n *= min(1.0, CONTEST_HITS / hits.expected)
    n = np.minimum(n, settings.max_n)
    share = np.where(n < settings.min_n, 0.0, _ramp(n, settings))
    share = np.where(n >= settings.max_n, settings.max_share, share)
    mean = np.maximum(rescaled(hits.mean, background), 0)
    return (share * mean).astype(np.float32)


def _ramp(n: NDArray[np.float64], settings: PenaltyStep) -> NDArray[np.float64]:
    width, rise = settings.max_n - settings.min_n, settings.max_share - settings.min_share
    if settings.ramp == "linear":
        return settings.min_share + rise * (n - settings.min_n) / width
    floor = settings.min_share if settings.ramp == "shifted" else 0.0
    return floor + rise * (n - settings.min_n + 1) / (width + 1)
