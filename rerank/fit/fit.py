"""Fits the tables, the threshold and the calibration that the answers of a gallery need.

If a fit takes about a second, everything is fitted again after each change. In a larger gallery
the tables are updated for the rows that changed, with the same result (table_kinds.py,
background.py). The threshold and the calibration stay until a tenth of the pictures has changed,
because they come from a sample of a few thousand pictures, which one picture hardly moves. A
calibration on photos that the gallery does not have (save_calibration) survives every change.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from lmk.embed.errors import UsageError
from lmk.embed.progress import Progress, no_progress
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.view import View
from lmk.rerank.fit.calibration import Calibration, ScoredAnswers, calibrate
from lmk.rerank.fit.leave_one_out import SAMPLE, LeaveOneOut
from lmk.rerank.fit.saved import FittedState, save, saved_calibration, saved_pipeline, saved_state
from lmk.rerank.fit.tables import (
    CALIBRATED,
    CALIBRATION,
    COPY_COSINE,
    PIPELINE,
    SHARD,
    FitTables,
    copy_rule,
    needed_tables,
)
from lmk.rerank.fit.threshold import fit_threshold
from lmk.rerank.steps.pipeline import Pipeline

STAGE = "penalty and threshold"
CHEAP = 1e11  # products of components: a second or two on two cores
KEPT_THRESHOLD = 0.1  # share of the pictures that may change before the threshold is fitted again


def fit(
    writer: GalleryWriter,
    pipeline: Pipeline,
    *,
    before: FittedState | None = None,
    on_progress: Progress = no_progress,
) -> FittedState:
    """Fits the gallery as it is inside the writer's transaction, and saves the result there.

    Args:
        writer: a writer that holds all pictures of the transaction.
        pipeline: the steps. Their threshold is fitted, unless photos gave it (save_calibration).
        before: the fit of the state before the transaction, which is updated if a new fit would
            take long.
        on_progress: called with (stage, done, total): for each table with the searched pictures,
            a block at a time, and at the end with the stage STAGE.
    """
    gallery, distractors = _views(writer)
    cheap = _is_cheap(gallery, distractors, pipeline)
    if before is None or cheap:
        before = FittedState(pipeline, None, FitTables.empty(gallery), 0, 1)
    tables = before.tables.updated(pipeline, gallery, distractors, on_progress)
    on_progress(STAGE, 0, 1)
    context = tables.context(pipeline)
    changed = before.changed + sum(
        _changed(old, new)
        for old, new in ((before.tables.gallery, gallery), (before.tables.distractors, distractors))
    )
    same_steps = before.pipeline.with_threshold(None) == pipeline.with_threshold(None)
    unchanged = same_steps and changed <= KEPT_THRESHOLD * before.weighed
    if unchanged or writer.setting(CALIBRATED) == "photos":
        threshold = (before.pipeline if unchanged else pipeline).threshold()
        calibration, weighed = saved_calibration(writer), before.weighed
    else:
        answers = LeaveOneOut.of_tables(pipeline, tables, context).answers()
        threshold, calibration = _threshold_and_calibration(answers)
        writer.set(CALIBRATED, "gallery")
        weighed, changed = int(gallery.mask.sum()), 0
    fitted = FittedState(pipeline.with_threshold(threshold), calibration, tables, weighed, changed)
    save(writer, fitted, context, tables=not cheap)
    writer.set(COPY_COSINE, copy_rule(tables).cosine)
    on_progress(STAGE, 1, 1)
    return fitted


def fit_change(
    writer: GalleryWriter,
    old: Gallery,
    *,
    changed: bool,
    compacted: bool = False,
    on_progress: Progress = no_progress,
) -> float | None:
    """Fits a gallery after a change, and returns the threshold.

    Args:
        writer: a writer that holds all pictures of the transaction.
        old: the gallery before the transaction.
        changed: whether there is a change; without one nothing is fitted.
        compacted: whether the change deleted removed rows and renumbered the others.
        on_progress: called with (stage, done, total).
    """
    pipeline = saved_pipeline(old)
    if not changed or old.setting(SHARD) is not None:  # a part is not fitted
        return pipeline.threshold()
    before = saved_state(old)
    if before is not None and compacted:
        tables = before.tables.renumbered(old.alive, *_views(writer))
        before = replace(before, tables=tables)
    return fit(writer, pipeline, before=before, on_progress=on_progress).pipeline.threshold()


def save_pipeline(
    path: Path, pipeline: Pipeline, *, wait: float = 0.0, on_progress: Progress = no_progress
) -> FittedState:
    """Saves the steps of a gallery, and fits what they need.

    The threshold and the calibration are fitted to the gallery, even if photos gave them before.

    Args:
        path: the gallery.
        pipeline: the steps; their threshold is ignored.
        wait: seconds to wait for another writer.
        on_progress: called with (stage, done, total).

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: the folder cannot be used.
        UsageError: the gallery is one part of an index, and parts are not fitted.
    """
    with GalleryWriter(path, wait=wait) as writer, Gallery.open(path) as old:
        if old.setting(SHARD) is not None:
            raise UsageError(
                "is one part of an index, and a part has no pipeline of its own",
                where=path,
                remedy="join the parts with lmk index merge",
            )
        before = saved_state(old)
        if before is not None:
            before = replace(before, weighed=0, changed=1)
        writer.set(CALIBRATED, None)
        fitted = fit(writer, pipeline, before=before, on_progress=on_progress)
        writer.commit()
    return fitted


def save_calibration(
    path: Path, calibration: Calibration | None, threshold: float | None, *, wait: float = 0.0
) -> None:
    """Saves a calibration and a threshold that were fitted on photos outside the gallery.

    Both survive later changes to the gallery; save_pipeline fits them to the gallery again.

    Args:
        path: the gallery.
        calibration: the calibration of its answers, or None.
        threshold: the confidence below which an answer is "none of these"; None for no threshold.
        wait: seconds to wait for another writer.

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: the folder cannot be used.
    """
    with GalleryWriter(path, wait=wait) as writer, Gallery.open(path) as old:
        pipeline = saved_pipeline(old).with_threshold(threshold)
        writer.set(PIPELINE, pipeline.model_dump(mode="json"))
        value = None if calibration is None else calibration.model_dump(mode="json")
        writer.set(CALIBRATION, value)
        writer.set(CALIBRATED, "photos")
        writer.commit()


def _views(writer: GalleryWriter) -> tuple[View, View]:
    """Returns the pictures of the gallery, and the distractors that are no gallery pictures."""
    gallery = writer.uncommitted.view("gallery")
    labels = gallery.labels
    assert labels is not None  # a writer's view has them
    used = labels.role("distractor")
    used[writer.uncommitted.shared()] = False
    return gallery, replace(gallery, mask=used)


def _threshold_and_calibration(answers: ScoredAnswers) -> tuple[float | None, Calibration | None]:
    """Returns threshold and calibration; None for a value that the answers cannot give."""
    threshold = fit_threshold(answers)
    try:
        calibration = calibrate(answers)
    except UsageError:  # all answers are right, or all wrong
        calibration = None
    return threshold if np.isfinite(threshold) else None, calibration


def _is_cheap(gallery: View, others: View, pipeline: Pipeline) -> bool:
    """Returns whether a whole new fit takes about a second.

    A search of all distractors in two halves counts for every pipeline, with or without a penalty.
    """
    pictures, distractors = int(gallery.mask.sum()), int(others.mask.sum())
    queries = min(pictures, SAMPLE) + min(distractors, 2 * SAMPLE) + 2 * distractors
    compared = 2 * min(pictures, SAMPLE) + min(distractors, 2 * SAMPLE)
    compared *= min(pipeline.candidates, pictures)
    costs = (
        kind.cost(size, pictures, distractors, compared)
        for _, kind, size in needed_tables(pipeline)
    )
    return (queries * pictures + sum(costs)) * gallery.dim <= CHEAP


def _changed(before: View, after: View) -> int:
    mask = np.zeros_like(after.mask)
    mask[: len(before.mask)] = before.mask
    return int(np.count_nonzero(mask != after.mask))
