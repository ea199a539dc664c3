"""What a gallery has learnt, as it is saved in the gallery."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from lmk.embed.errors import GalleryDamaged, UsageError
from lmk.index.catalog.settings import read_setting
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.files import REBUILD
from lmk.index.vectors.neighbours import NO_ROW
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.fit.background import LandmarkSums
from lmk.rerank.fit.calibration import Calibration
from lmk.rerank.fit.neighbour_table import NearestTable, Parties
from lmk.rerank.fit.tables import (
    _BANK,
    _COSINES,
    _LEARNT,
    _LIKENESS,
    _NEIGHBOURS,
    _PICKS,
    _WORST,
    BACKGROUND,
    CALIBRATED,
    CALIBRATION,
    COPY_COSINE,
    PENALTY,
    PIPELINE,
    Cosine,
    FitTables,
    _array,
    _Kept,
    _nearest,
    exact_searcher,
)
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.hits import HitTable
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.steps import REMOVED_PARAMETER, DbaStep, DistractorSimilarityStep


@dataclass(frozen=True, eq=False)
class FittedState:
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
    tables: FitTables
    weighed: int
    changed: int


def saved_pipeline(gallery: Gallery) -> Pipeline:
    """Returns the pipeline saved with a gallery, or the default one where none is saved.

    Raises:
        UsageError: the pipeline has a parameter that was removed from lmk.
        GalleryDamaged: the setting is no pipeline.
    """
    try:
        return read_setting(gallery, PIPELINE, Pipeline) or Pipeline()
    except GalleryDamaged as damage:
        cause = damage.__cause__
        errors = cause.errors() if isinstance(cause, ValidationError) else []
        removed = next((each for each in errors if each["type"] == REMOVED_PARAMETER), None)
        if removed is None:
            raise
        raise UsageError(removed["msg"], where=gallery.path, remedy=REBUILD) from damage


def saved_calibration(gallery: Gallery | GalleryWriter) -> Calibration | None:
    """The calibration saved with a gallery, if there is one."""
    return read_setting(gallery, CALIBRATION, Calibration)


def saved_distractors(gallery: Gallery) -> View:
    """The distractors that were used when the gallery was taught; all where that is not known."""
    used, bank = _array(gallery, _BANK, 1), gallery.view("distractor")
    return bank if used is None else replace(bank, mask=bank.mask & used.astype(np.bool_))


def saved_state(gallery: Gallery) -> FittedState | None:
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
        table = HitTable(picks[:, 0].astype(np.int64), picks[:, 1].copy(), worst)
    sums = LandmarkSums.of_json(kept.sums, gallery.dim)
    if sums is None or sums.pictures != np.count_nonzero(view.mask):
        return None
    top = 0 if penalty is None else penalty.top
    near, likeness = (_saved_nearest(gallery, name) for name in (_NEIGHBOURS, _LIKENESS))
    tables = FitTables(view, saved_distractors(gallery), sums, table, top, near, likeness)
    calibration = saved_calibration(gallery)
    return FittedState(pipeline, calibration, tables, kept.weighed, kept.changed)


def saved_context(gallery: Gallery, pipeline: Pipeline, searcher: Searcher) -> PipelineContext:
    """What the steps of a pipeline need of an opened gallery.

    It is read where it was learnt with the same parameters; for other steps than the saved ones it
    is learnt now, and kept nowhere.

    Args:
        gallery: opened.
        pipeline: maybe not the saved one.
        searcher: over the gallery's pictures.
    """
    view, bank = gallery.view("gallery"), saved_distractors(gallery)
    background = read_setting(gallery, BACKGROUND, Cosine) or 0.0
    step, of_bank = pipeline.step(DbaStep), pipeline.step(DistractorSimilarityStep)
    some = bool(bank.mask.any())
    near = likeness = None
    if step is not None:
        table = _saved_nearest(gallery, _NEIGHBOURS)
        table = _as_long(table, step.n, view, Parties(view.mask, view.mask))
        near = table.neighbourhoods(view.mask, step.weights())
    if of_bank is not None and some:
        table = _saved_nearest(gallery, _LIKENESS)
        likeness = _as_long(table, of_bank.m, view, Parties(view.mask, bank.mask)).means()
    return PipelineContext(
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
    writer: GalleryWriter, learnt: FittedState, penalty: NDArray[np.float32] | None, *, tables: bool
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


def forget_fit(writer: GalleryWriter) -> None:
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
    return pipeline.fit_penalty(
        searcher,
        bank,
        rows=gallery.rows,
        gallery=len(gallery.role_rows("gallery")),
        background=background,
    )
