"""What was learnt of a gallery: kept with it, and read back for answers and for the next change.

A gallery keeps the penalty and, where its steps need them, the nearest pictures of each picture
and those of the bank. A large one also keeps who picked whom, so that a change costs what changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from lmk.embed.progress import CountOfTotal, Progress, no_count_of_total, no_progress
from lmk.index.gallery.gallery import Gallery
from lmk.index.search.choose import searcher_of
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.fit.background import LandmarkSums, Pictures, landmark_sums
from lmk.rerank.fit.copies import CopyRule
from lmk.rerank.fit.neighbour_table import NearestTable, Parties
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.hits import HitTable, Sides
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.steps import DbaStep, DistractorSimilarityStep

PIPELINE, PENALTY, BACKGROUND = "pipeline", "penalty", "background"
CALIBRATION = "calibration"
CALIBRATED = "calibrated"  # setting: of which answers, those of "photos" or of the "gallery"
COPY_COSINE = "copy cosine"  # setting: the least cosine of two copies of one photo
SHARD = "shard"  # which part of the pictures a gallery holds, where it holds one
_PICKS, _WORST, _LEARNT, _BANK = "picks", "worst picks", "learnt", "bank"
_NEIGHBOURS, _LIKENESS = "neighbours", "likeness"  # each beside its cosines
_COSINES = "{} cosines"
_MANY = 2000  # queries that learning asks at a time
# Stages of what may take long, as progress names them.
_STAGE_PICKS, _STAGE_NEAR = "picks of distractors", "neighbourhoods"
_STAGE_LIKENESS = "likeness to distractors"

Cosine = Annotated[float, Field(ge=-1, le=1)]


class _Kept(BaseModel):
    """The setting _LEARNT: what the next change goes on from."""

    sums: dict[str, Any]
    weighed: Annotated[int, Field(ge=0)]
    changed: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, eq=False)
class FitTables:
    """What is learnt of one state of a gallery, in a form that goes on to the next state.

    Attributes:
        gallery: its pictures.
        bank: its distractors, without those whose content a gallery picture has too: they would
            push down the very landmark.
        sums: for the background.
        picks, top: who was picked by whom, so many by each; None without a penalty.
        near: gallery pictures among each other; None without neighbourhoods.
        likeness: gallery pictures among the bank; None without a penalty by it.
    """

    gallery: View
    bank: View
    sums: LandmarkSums
    picks: HitTable | None = None
    top: int = 0
    near: NearestTable | None = None
    likeness: NearestTable | None = None

    @classmethod
    def empty(cls, gallery: View) -> FitTables:
        """Of no picture: from here all is learnt anew."""
        none = replace(gallery, mask=np.zeros_like(gallery.mask))
        return cls(none, none, LandmarkSums.none(gallery.dim))

    def updated(
        self,
        pipeline: Pipeline,
        gallery: View,
        bank: View,
        on_progress: Progress = no_progress,
    ) -> FitTables:
        """The tables that the steps of a pipeline need, of a gallery after a change.

        What was learnt with other parameters is learnt anew.

        Args:
            pipeline: whose steps they are for.
            gallery, bank: what there is now, over the vectors of all rows.
            on_progress: called with (stage, done, total) pictures, for each table in which any has
                to be searched.
        """
        penalty, step = pipeline.penalty(), pipeline.step(DbaStep)
        of_bank = pipeline.step(DistractorSimilarityStep)
        before, after = self.gallery.mask, gallery.mask
        among = Parties(before, before), Parties(after, after)
        to_bank = Parties(before, self.bank.mask), Parties(after, bank.mask)
        of_picks, of_near, of_likeness = (
            partial(on_progress, stage) for stage in (_STAGE_PICKS, _STAGE_NEAR, _STAGE_LIKENESS)
        )
        return FitTables(
            gallery,
            bank,
            self.sums.updated(
                gallery.stored, before=_pictures(self.gallery), after=_pictures(gallery)
            ),
            None if penalty is None else self._picked(gallery, bank, penalty.top, of_picks),
            0 if penalty is None else penalty.top,
            None if step is None else _nearest(self.near, step.n, gallery, *among, of_near),
            None
            if of_bank is None
            else _nearest(self.likeness, of_bank.m, gallery, *to_bank, of_likeness),
        )

    def renumbered(self, alive: NDArray[np.bool_], gallery: View, bank: View) -> FitTables:
        """The tables of the same pictures when the removed rows are gone for good.

        Args:
            alive: bool [rows], the rows left, numbered from 0 on.
            gallery, bank: over their vectors. What was not used of the bank still is not.
        """
        return replace(
            self,
            gallery=gallery,
            bank=replace(bank, mask=self.bank.mask[alive]),
            picks=None if self.picks is None else self.picks.renumbered(alive),
            near=None if self.near is None else self.near.renumbered(alive),
            likeness=None if self.likeness is None else self.likeness.renumbered(alive),
        )

    def _picked(self, gallery: View, bank: View, top: int, on_progress: CountOfTotal) -> HitTable:
        rows = gallery.stored.rows
        table, sides = self.picks, Sides(self.gallery.mask, self.bank.mask).grown(rows)
        if table is None or self.top != top:
            table, sides = HitTable.empty(rows), Sides.none(rows)
        either = replace(gallery, mask=gallery.mask | sides.gallery)
        return table.updated(
            exact_searcher(either),
            gallery.stored,
            gallery.fingerprint,
            before=sides,
            after=Sides(gallery.mask, bank.mask),
            top=top,
            on_progress=on_progress,
        )

    def context(self, pipeline: Pipeline) -> PipelineContext:
        """What the steps of the pipeline these tables were made for need of the gallery."""
        labels = self.gallery.labels
        assert labels is not None  # of a gallery or its writer
        pictures, distractors = (int(view.mask.sum()) for view in (self.gallery, self.bank))
        background, penalty = self.sums.mean_cosine(), None
        if self.picks is not None and pictures and distractors:
            picks = self.picks.picks(bank=distractors, gallery=pictures, top=self.top)
            penalty = pipeline.penalty_of(picks, background)
        step = pipeline.step(DbaStep)
        near = None
        if self.near is not None and step is not None:
            near = self.near.neighbourhoods(self.gallery.mask, step.weights())
        means = self.likeness.means() if self.likeness is not None and distractors else None
        return PipelineContext(
            labels.names,
            labels.offsets,
            labels.codes,
            penalty,
            background,
            vectors=self.gallery.stored,
            neighbourhoods=near,
            bank_means=means,
            bank=exact_searcher(self.bank) if distractors and pipeline.asks_bank() else None,
            pictures=self.gallery.mask,
        )


def exact_searcher(view: View) -> Searcher:
    """An exact search for many queries, the fastest for the size of the view."""
    return searcher_of(view, recall=1.0, batch=_MANY)


def copy_rule(tables: FitTables) -> CopyRule:
    """Which pictures of a gallery count as copies of one photo.

    Where there are no two landmarks to take the background from, the distractors give it.
    """
    sums, background = tables.sums, tables.sums.mean_cosine(most=1.0)
    if sums.pictures and sums.pairs == sums.pictures**2 and tables.bank.mask.any():
        bank = landmark_sums(tables.bank)
        pairs = sums.pictures * bank.pictures
        background = float(np.clip(sums.total @ bank.total / pairs, 0.0, 1.0))
    return CopyRule.for_background(background)


def saved_copy_rule(gallery: Gallery) -> CopyRule:
    """The rule saved with a gallery; by its background where an older lmk saved none."""
    cosine = gallery.setting(COPY_COSINE)
    if cosine is None:
        return CopyRule.for_background(gallery.setting(BACKGROUND) or 0.0)
    return CopyRule(float(cosine))


def _pictures(view: View) -> Pictures:
    return Pictures(view.mask, view.labels)


def _nearest(
    table: NearestTable | None,
    n: int,
    gallery: View,
    before: Parties,
    after: Parties,
    on_progress: CountOfTotal = no_count_of_total,
) -> NearestTable:
    """The table after a change; made anew where there was none of that length."""
    if table is None or table.n != n:
        none = np.zeros(0, np.bool_)
        table, before = NearestTable.empty(0, n), Parties(none, none)
    return table.updated(
        exact_searcher,
        gallery.stored,
        gallery.fingerprint,
        before=before,
        after=after,
        on_progress=on_progress,
    )


def _array(gallery: Gallery, name: str, axes: int) -> NDArray[Any] | None:
    """An array of a gallery; None where there is none of numbers for its rows: it is made anew."""
    array = gallery.array(name)
    if array is None or array.ndim != axes or len(array) != gallery.rows:
        return None
    numbers = array.dtype.kind in "iu" or (array.dtype.kind == "f" and not np.isnan(array).any())
    return array if numbers else None
