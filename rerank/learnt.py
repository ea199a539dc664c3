"""What was learnt of a gallery: kept with it, and read back for answers and for the next change.

A gallery keeps the penalty and, where its steps need them, the nearest pictures of each picture
and those of the bank. A large one also keeps who picked whom, so that a change costs what changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from lmk.index.gallery import Gallery
from lmk.index.neighbours import NO_ROW
from lmk.index.search import Searcher, searcher_of
from lmk.index.settings import read_setting
from lmk.index.view import View
from lmk.index.writer import GalleryWriter
from lmk.rerank.background import LandmarkSums, Pictures, landmark_sums
from lmk.rerank.calibration import Calibration
from lmk.rerank.copies import CopyRule
from lmk.rerank.facts import GalleryFacts
from lmk.rerank.nearest import NearestTable, Parties
from lmk.rerank.picks import BlockProgress, PickTable, Sides
from lmk.rerank.pipeline import Pipeline
from lmk.rerank.steps import BankPenaltyStep, NeighbourhoodStep

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


Progress = Callable[[str, int, int], None]  # (stage, done, total)


@dataclass(frozen=True, eq=False)
class Tables:
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
    picks: PickTable | None = None
    top: int = 0
    near: NearestTable | None = None
    likeness: NearestTable | None = None

    @classmethod
    def empty(cls, gallery: View) -> Tables:
        """Of no picture: from here all is learnt anew."""
        none = replace(gallery, mask=np.zeros_like(gallery.mask))
        return cls(none, none, LandmarkSums.none(gallery.dim))

    def updated(
        self,
        pipeline: Pipeline,
        gallery: View,
        bank: View,
        progress: Progress = lambda stage, done, total: None,
    ) -> Tables:
        """The tables that the steps of a pipeline need, of a gallery after a change.

        What was learnt with other parameters is learnt anew.

        Args:
            pipeline: whose steps they are for.
            gallery, bank: what there is now, over the vectors of all rows.
            progress: called with (stage, done, total) pictures, for each table where any has to be
                searched.
        """
        penalty, step = pipeline.penalty(), pipeline.step(NeighbourhoodStep)
        of_bank = pipeline.step(BankPenaltyStep)
        before, after = self.gallery.mask, gallery.mask
        among = Parties(before, before), Parties(after, after)
        to_bank = Parties(before, self.bank.mask), Parties(after, bank.mask)
        of_picks, of_near, of_likeness = (
            partial(progress, stage) for stage in (_STAGE_PICKS, _STAGE_NEAR, _STAGE_LIKENESS)
        )
        return Tables(
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

    def renumbered(self, alive: NDArray[np.bool_], gallery: View, bank: View) -> Tables:
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

    def _picked(self, gallery: View, bank: View, top: int, progress: BlockProgress) -> PickTable:
        rows = gallery.stored.rows
        table, sides = self.picks, Sides(self.gallery.mask, self.bank.mask).grown(rows)
        if table is None or self.top != top:
            table, sides = PickTable.empty(rows), Sides.none(rows)
        either = replace(gallery, mask=gallery.mask | sides.gallery)
        return table.updated(
            exact_searcher(either),
            gallery.stored,
            gallery.fingerprint,
            before=sides,
            after=Sides(gallery.mask, bank.mask),
            top=top,
            progress=progress,
        )

    def facts(self, pipeline: Pipeline) -> GalleryFacts:
        """What the steps of the pipeline these tables were made for need of the gallery."""
        labels = self.gallery.labels
        assert labels is not None  # of a gallery or its writer
        pictures, distractors = (int(view.mask.sum()) for view in (self.gallery, self.bank))
        background, penalty = self.sums.mean_cosine(), None
        if self.picks is not None and pictures and distractors:
            picks = self.picks.picks(bank=distractors, gallery=pictures, top=self.top)
            penalty = pipeline.penalty_of(picks, background)
        step = pipeline.step(NeighbourhoodStep)
        near = None
        if self.near is not None and step is not None:
            near = self.near.neighbourhoods(self.gallery.mask, step.weights())
        means = self.likeness.means() if self.likeness is not None and distractors else None
        return GalleryFacts(
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


@dataclass(frozen=True, eq=False)
class Learnt:
    """What was learnt of a gallery, and of which state of it.

    Attributes:
        pipeline: with the threshold.
        calibration: of its answers; None where there was nothing to learn it from.
        tables: of that state.
        weighed: pictures there were when threshold and calibration were learnt.
        changed: rows that came or went since then.
    """

    pipeline: Pipeline
    calibration: Calibration | None
    tables: Tables
    weighed: int
    changed: int


def exact_searcher(view: View) -> Searcher:
    """An exact search for many queries, the fastest for the size of the view."""
    return searcher_of(view, recall=1.0, batch=_MANY)


def copy_rule(tables: Tables) -> CopyRule:
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


def saved_pipeline(gallery: Gallery) -> Pipeline:
    """The pipeline saved with a gallery; the default one where none is."""
    return read_setting(gallery, PIPELINE, Pipeline) or Pipeline()


def saved_calibration(gallery: Gallery | GalleryWriter) -> Calibration | None:
    """The calibration saved with a gallery, if there is one."""
    return read_setting(gallery, CALIBRATION, Calibration)


def saved_bank(gallery: Gallery) -> View:
    """The distractors that were used when the gallery was taught; all where that is not known."""
    used, bank = _array(gallery, _BANK, 1), gallery.view("distractor")
    return bank if used is None else replace(bank, mask=bank.mask & used.astype(np.bool_))


def saved_learning(gallery: Gallery) -> Learnt | None:
    """What was kept with a gallery to go on from; None where nothing was that fits."""
    kept = read_setting(gallery, _LEARNT, _Kept)
    if kept is None:
        return None
    pipeline, view = saved_pipeline(gallery), gallery.view("gallery")
    penalty, table = pipeline.penalty(), None
    if penalty is not None:
        picks, worst = _array(gallery, _PICKS, 2), _array(gallery, _WORST, 1)
        if picks is None or worst is None or picks.shape[1] != 2:
            return None
        table = PickTable(picks[:, 0].astype(np.int64), picks[:, 1].copy(), worst)
    sums = LandmarkSums.of_json(kept.sums, gallery.dim)
    if sums is None or sums.pictures != np.count_nonzero(view.mask):
        return None
    top = 0 if penalty is None else penalty.top
    near, likeness = (_saved_nearest(gallery, name) for name in (_NEIGHBOURS, _LIKENESS))
    tables = Tables(view, saved_bank(gallery), sums, table, top, near, likeness)
    calibration = saved_calibration(gallery)
    return Learnt(pipeline, calibration, tables, kept.weighed, kept.changed)


def saved_facts(gallery: Gallery, pipeline: Pipeline, searcher: Searcher) -> GalleryFacts:
    """What the steps of a pipeline need of an opened gallery.

    It is read where it was learnt with the same parameters; for other steps than the saved ones it
    is learnt now, and kept nowhere.

    Args:
        gallery: opened.
        pipeline: maybe not the saved one.
        searcher: over the gallery's pictures.
    """
    view, bank = gallery.view("gallery"), saved_bank(gallery)
    background = read_setting(gallery, BACKGROUND, Cosine) or 0.0
    step, of_bank = pipeline.step(NeighbourhoodStep), pipeline.step(BankPenaltyStep)
    some = bool(bank.mask.any())
    near = likeness = None
    if step is not None:
        table = _saved_nearest(gallery, _NEIGHBOURS)
        table = _as_long(table, step.n, view, Parties(view.mask, view.mask))
        near = table.neighbourhoods(view.mask, step.weights())
    if of_bank is not None and some:
        table = _saved_nearest(gallery, _LIKENESS)
        likeness = _as_long(table, of_bank.m, view, Parties(view.mask, bank.mask)).means()
    return GalleryFacts(
        gallery.label_names,
        gallery.label_offsets,
        gallery.label_codes,
        _saved_penalty(gallery, pipeline, searcher, bank, background),
        background,
        vectors=gallery.stored,
        neighbourhoods=near,
        bank_means=likeness,
        bank=exact_searcher(bank) if some and pipeline.asks_bank() else None,
        pictures=view.mask,
    )


def save(
    writer: GalleryWriter, learnt: Learnt, penalty: NDArray[np.float32] | None, *, tables: bool
) -> None:
    """Saves what was learnt with the gallery.

    Args:
        writer: of the gallery.
        learnt: all of it.
        penalty: of its tables.
        tables: whether to keep what the next change can go on from.
    """
    kept, calibration = learnt.tables, learnt.calibration
    writer.set(PIPELINE, learnt.pipeline.model_dump(mode="json"))
    writer.set(BACKGROUND, kept.sums.mean_cosine())
    writer.set(CALIBRATION, None if calibration is None else calibration.model_dump(mode="json"))
    _put(writer, PENALTY, penalty)
    labels = kept.bank.labels
    whole = labels is None or np.array_equal(kept.bank.mask, labels.role("distractor"))
    _put(writer, _BANK, None if whole else kept.bank.mask.astype(np.uint8))
    for name, table in ((_NEIGHBOURS, kept.near), (_LIKENESS, kept.likeness)):
        _put(writer, name, None if table is None else table.rows)
        _put(writer, _COSINES.format(name), None if table is None else table.scores)
    picks, state = (kept.picks if tables else None), None
    counted = None if picks is None else np.stack([picks.counts.astype(float), picks.sums], axis=1)
    _put(writer, _PICKS, counted)
    _put(writer, _WORST, None if picks is None else picks.worst)
    if tables:
        state = {"sums": kept.sums.as_json(), "weighed": learnt.weighed, "changed": learnt.changed}
    writer.set(_LEARNT, state)


def forget_learning(writer: GalleryWriter) -> None:
    """Forgets what a gallery was taught, as the settings of another one came into it."""
    for name in (_LEARNT, BACKGROUND, CALIBRATION, CALIBRATED, COPY_COSINE):
        writer.set(name, None)
    lists = (_NEIGHBOURS, _LIKENESS)
    for name in (PENALTY, _BANK, _PICKS, _WORST, *lists, *map(_COSINES.format, lists)):
        writer.drop_array(name)


def _put(writer: GalleryWriter, name: str, array: NDArray[Any] | None) -> None:
    if array is None:
        writer.drop_array(name)
    else:
        writer.put_array(name, array, by_row=True)


def _pictures(view: View) -> Pictures:
    return Pictures(view.mask, view.labels)


def _nearest(
    table: NearestTable | None,
    n: int,
    gallery: View,
    before: Parties,
    after: Parties,
    progress: BlockProgress = lambda done, total: None,
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
        progress=progress,
    )


def _as_long(table: NearestTable | None, n: int, gallery: View, parties: Parties) -> NearestTable:
    """A table as it is where its lists have the length n, else a new one."""
    if table is not None and table.n == n:
        return table
    return _nearest(None, n, gallery, parties, parties)


def _saved_nearest(gallery: Gallery, name: str) -> NearestTable | None:
    rows, scores = _array(gallery, name, 2), _array(gallery, _COSINES.format(name), 2)
    if rows is None or scores is None or rows.shape != scores.shape or rows.dtype.kind != "i":
        return None
    if rows.size and not (rows.min() >= NO_ROW and rows.max() < gallery.rows):
        return None
    return NearestTable(rows.astype(np.int32, copy=False), scores)


def _array(gallery: Gallery, name: str, axes: int) -> NDArray[Any] | None:
    """An array of a gallery; None where there is none of numbers for its rows: it is made anew."""
    array = gallery.array(name)
    if array is None or array.ndim != axes or len(array) != gallery.rows:
        return None
    numbers = array.dtype.kind in "iu" or (array.dtype.kind == "f" and not np.isnan(array).any())
    return array if numbers else None


def _saved_penalty(
    gallery: Gallery, pipeline: Pipeline, searcher: Searcher, bank: View, background: float
) -> NDArray[np.float32] | None:
    if pipeline.penalty() is None:
        return None
    saved: NDArray[np.float32] | None = _array(gallery, PENALTY, 1)
    kept = saved_pipeline(gallery)
    same = kept.penalty() == pipeline.penalty() and kept.rescales() == pipeline.rescales()
    if saved is not None and same:
        return saved
    return pipeline.learn_penalty(
        searcher,
        bank,
        rows=gallery.rows,
        gallery=len(gallery.role_rows("gallery")),
        background=background,
    )
