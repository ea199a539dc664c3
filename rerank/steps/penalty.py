"""The distractor penalty: gallery pictures that attract non-landmarks are pushed down.

Each picture of a bank of non-landmarks (distractors) picks its `top` most similar gallery
pictures. A gallery picture picked n times, with mean cosine mu, loses

    0                 when n <  min_n       a few picks are chance
    max_share * mu    when n >= max_n
    ramp(n) * mu      between

of every cosine, before neighbours are chosen anew. The rule comes from a write-up of the
Google Landmark Recognition contest of 2021 (public GAP .230 -> .244) whose formula for the ramp is
garbled; its readings are named here:

    "linear"     min_share + (max_share - min_share) * (n - min_n) / (max_n - min_n)
    "shifted"    min_share + (max_share - min_share) * (n - min_n + 1) / (max_n - min_n + 1)
    "unfloored"              (max_share - min_share) * (n - min_n + 1) / (max_n - min_n + 1)

"shifted" is the default: it explains both "+ 1" of the fragments and is continuous at max_n.

The counts 3 and 12 belong to that contest: 110,000 distractors x 20 picks over 1,580,470 gallery
pictures, 1.39 picks a picture. Raw counts saturate on a small gallery with a large bank, so where
more picks are expected counts are taken relative to that number, times 1.39. Where fewer are
expected they stay as they are: one pick is chance however small the bank. `counts="raw"` is the
rule to the letter.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.steps.hits import Hits, HitTable
from lmk.rerank.steps.ranking import MOST

CONTEST_PICKS = 110_000 * 20 / 1_580_470

Ramp = Literal["linear", "shifted", "unfloored"]


class PenaltySettings(BaseModel):
    """Parameters of the penalty; the defaults are the contest's, min_n apart (it was not given).

    Attributes:
        top: gallery pictures that each distractor picks.
        min_n, max_n: picks below which nothing, and from which max_share, is taken off.
        min_share, max_share: of the mean cosine of the picks.
        ramp: how the share grows between them (see the module).
        counts: "relative" to the expected number of picks, or "raw".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    top: int = Field(default=20, ge=1, le=MOST)
    min_n: float = Field(default=3, ge=0)
    max_n: float = Field(default=12, gt=0)
    min_share: float = Field(default=0.3, ge=0)
    max_share: float = Field(default=1.0, ge=0)
    ramp: Ramp = "shifted"
    counts: Literal["relative", "raw"] = "relative"

    @model_validator(mode="after")
    def _ordered(self) -> PenaltySettings:
        if self.max_n <= self.min_n or self.max_share < self.min_share:
            raise ValueError("max_n must be above min_n, and max_share not below min_share")
        return self


def pick(searcher: Searcher, bank: View, *, rows: int, gallery: int, top: int) -> Hits:
    """Lets each distractor pick its `top` gallery rows.

    Args:
        searcher: over the gallery pictures.
        bank: the distractors.
        rows: length of the arrays returned (row numbers of the searcher are below it).
        gallery: number of gallery pictures.
        top: picks a distractor has.
    """
    table = HitTable.empty(rows, bank.stored.rows)
    asked = np.flatnonzero(bank.mask)
    table.count(searcher, bank, asked, top=top)
    return table.picks(bank=len(asked), gallery=gallery, top=top)


def rescaled(cosines: NDArray[np.float32], background: float) -> NDArray[np.float32]:
    """(cosine - background) / (1 - background): 0 for strangers, 1 for the same picture."""
    return (cosines - np.float32(background)) / np.float32(1 - background)


def penalty_of(
    picks: Hits, settings: PenaltySettings, *, background: float = 0.0
) -> NDArray[np.float32]:
    """What is taken off the score of each row: float32 [rows], never negative.

    Args:
        background: of scores that are rescaled cosines (see `rescaled`); 0 for plain cosines.
    """
    n = picks.counts.astype(np.float64)
    if settings.counts == "relative" and picks.expected > 0:
        n *= min(1.0, CONTEST_PICKS / picks.expected)
    n = np.minimum(n, settings.max_n)
    share = np.where(n < settings.min_n, 0.0, _ramp(n, settings))
    share = np.where(n >= settings.max_n, settings.max_share, share)
    mean = np.maximum(rescaled(picks.mean, background), 0)
    return (share * mean).astype(np.float32)


def _ramp(n: NDArray[np.float64], settings: PenaltySettings) -> NDArray[np.float64]:
    width, rise = settings.max_n - settings.min_n, settings.max_share - settings.min_share
    if settings.ramp == "linear":
        return settings.min_share + rise * (n - settings.min_n) / width
    floor = settings.min_share if settings.ramp == "shifted" else 0.0
    return floor + rise * (n - settings.min_n + 1) / (width + 1)
