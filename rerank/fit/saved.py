"""Saves the values that were fitted to a gallery in its folder, and reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from lmk.embed.errors import GalleryDamaged, UsageError
from lmk.embed.progress import no_count_of_total
from lmk.index.catalog.settings import read_setting
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.files import REBUILD
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.fit.background import LandmarkSums
from lmk.rerank.fit.calibration import Calibration
from lmk.rerank.fit.table_kinds import KINDS, Change, FittedTable
from lmk.rerank.fit.tables import (
    BACKGROUND,
    CALIBRATED,
    CALIBRATION,
    COPY_COSINE,
    DISTRACTORS,
    FITTED,
    PIPELINE,
    Cosine,
    FitTables,
    SavedFit,
    context_of,
    exact_searcher,
    needed_tables,
    saved_array,
)
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.hits import Sides
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.step import REMOVED_PARAMETER


@dataclass(frozen=True, eq=False)
class FittedState:
    """The fit of one state of a gallery.

    Attributes:
        pipeline: the steps with the threshold.
        calibration: the calibration of the answers, or None if the answers allow no calibration.
        tables: the tables of this state.
        weighed: number of pictures when threshold and calibration were fitted.
        changed: number of rows that were added or removed since then.
    """

    pipeline: Pipeline
    calibration: Calibration | None
    tables: FitTables
    weighed: int
    changed: int


def saved_pipeline(gallery: Gallery) -> Pipeline:
    """Returns the pipeline saved with a gallery, or the default pipeline.

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
    """Returns the calibration saved with a gallery, or None."""
    return read_setting(gallery, CALIBRATION, Calibration)


def saved_distractors(gallery: Gallery) -> View:
    """Returns the distractors that the gallery was fitted with. Default: all distractors."""
    used, distractors = saved_array(gallery, DISTRACTORS, 1), gallery.view("distractor")
    if used is None:
        return distractors
    return replace(distractors, mask=distractors.mask & used.astype(np.bool_))


def saved_state(gallery: Gallery) -> FittedState | None:
    """Returns the state that was saved for the next change, or None without a valid one."""
    fit = read_setting(gallery, FITTED, SavedFit)
    if fit is None:
        return None
    pipeline, view = saved_pipeline(gallery), gallery.view("gallery")
    tables = {}
    for need, kind, size in needed_tables(pipeline):
        table = _saved_table(gallery, kind, size)
        if table is not None:
            tables[need] = table
        elif kind.only_for_changes:
            return None
    sums = LandmarkSums.of_json(fit.sums, gallery.dim)
    if sums is None or sums.pictures != np.count_nonzero(view.mask):
        return None
    fitted = FitTables(view, saved_distractors(gallery), sums, tables)
    return FittedState(pipeline, saved_calibration(gallery), fitted, fit.weighed, fit.changed)


def saved_context(
    gallery: Gallery, pipeline: Pipeline, searcher: Searcher, *, batch: int | None = None
) -> PipelineContext:
    """Returns the context of an opened gallery for the steps of a pipeline.

    Values that were fitted with the same parameters are read. For other steps than the saved ones
    the values are computed and not saved.

    Args:
        gallery: the opened gallery.
        pipeline: the steps, which may differ from the saved ones.
        searcher: a search over the pictures of the gallery.
        batch: number of queries at a time, if known, for the search of the distractors.
    """
    view, distractors = gallery.view("gallery"), saved_distractors(gallery)
    tables: dict[str, FittedTable] = {}
    values: dict[str, NDArray[Any]] = {}
    for need, kind, size in needed_tables(pipeline):
        ready = _saved_values(gallery, kind, pipeline)
        table = None if kind.only_for_changes else _saved_table(gallery, kind, size)
        if ready:
            values |= ready
        elif table is not None:
            tables[need] = table
        else:
            change = Change(Sides.none(0), view, distractors, exact_searcher, searcher)
            tables[need] = kind.empty(size).updated(change, no_count_of_total)
    background = read_setting(gallery, BACKGROUND, Cosine) or 0.0
    return context_of(pipeline, view, distractors, background, tables, values, batch=batch)


def save(
    writer: GalleryWriter, fitted: FittedState, context: PipelineContext, *, tables: bool
) -> None:
    """Saves the fitted state of a gallery.

    Args:
        writer: the writer of the gallery.
        fitted: the fitted state.
        context: the context of its tables.
        tables: whether to save the values that only the next change reads.
    """
    fit, calibration = fitted.tables, fitted.calibration
    writer.set(PIPELINE, fitted.pipeline.model_dump(mode="json"))
    writer.set(BACKGROUND, fit.sums.mean_cosine())
    writer.set(CALIBRATION, None if calibration is None else calibration.model_dump(mode="json"))
    labels = fit.distractors.labels
    whole = labels is None or np.array_equal(fit.distractors.mask, labels.role("distractor"))
    _put(writer, DISTRACTORS, None if whole else fit.distractors.mask.astype(np.uint8))
    for need, kind in KINDS.items():
        table = fit.tables.get(need) if tables or not kind.only_for_changes else None
        arrays = [None] * len(kind.arrays) if table is None else table.to_arrays()
        for name, array in zip(kind.arrays, arrays, strict=True):
            _put(writer, name, array)
        for value, name in kind.saved_values.items():
            _put(writer, name, getattr(context, value))
    state = None
    if tables:
        state = {"sums": fit.sums.as_json(), "weighed": fitted.weighed, "changed": fitted.changed}
    writer.set(FITTED, state)


def forget_fit(writer: GalleryWriter) -> None:
    """Removes all fitted values of a gallery, which came with the settings of another one."""
    for name in (FITTED, BACKGROUND, CALIBRATION, CALIBRATED, COPY_COSINE):
        writer.set(name, None)
    writer.drop_array(DISTRACTORS)
    for kind in KINDS.values():
        for name in (*kind.arrays, *kind.saved_values.values()):
            writer.drop_array(name)


def _put(writer: GalleryWriter, name: str, array: NDArray[Any] | None) -> None:
    if array is None:
        writer.drop_array(name)
    else:
        writer.put_array(name, array, by_row=True)


def _saved_table(gallery: Gallery, kind: type[FittedTable], size: int) -> FittedTable | None:
    """Returns the table saved with a gallery, or None without one of that size."""
    arrays = [saved_array(gallery, name, axes) for name, axes in kind.arrays.items()]
    whole = [array for array in arrays if array is not None]
    return kind.of_arrays(whole, size) if len(whole) == len(arrays) else None


def _saved_values(
    gallery: Gallery, kind: type[FittedTable], pipeline: Pipeline
) -> dict[str, NDArray[Any]]:
    """Returns the saved values of the context that the pipeline's step would make."""
    saved = saved_pipeline(gallery)
    one, other = (each.step_that_needs(kind.need) for each in (saved, pipeline))
    if one != other or saved.rescales() != pipeline.rescales():
        return {}
    arrays = {value: saved_array(gallery, name, 1) for value, name in kind.saved_values.items()}
    return {value: array for value, array in arrays.items() if array is not None}
