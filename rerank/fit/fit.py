"""Learns what a gallery's answers need: tables for its steps, threshold and calibration.

Where it takes about a second, all of it is learnt anew after each change. In a larger gallery the
tables are brought up to date for what changed, with the same result (see picks.py, nearest.py,
background.py), and threshold and calibration are kept until a tenth of the pictures has changed:
they are read off a sample of a few thousand, which one picture does not move. Where they were
learnt of photos that the gallery does not have (save_calibration) no change to it replaces them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import UsageError
from lmk.embed.progress import Progress, no_progress
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.view import View
from lmk.rerank.fit.calibration import AskedPhotos, Calibration, ScoredAnswers, calibrate
from lmk.rerank.fit.leave_one_out import SAMPLE, answers_of_distractors, answers_of_gallery
from lmk.rerank.fit.saved import FittedState, save, saved_calibration, saved_pipeline, saved_state
from lmk.rerank.fit.tables import (
    CALIBRATED,
    CALIBRATION,
    COPY_COSINE,
    PIPELINE,
    SHARD,
    FitTables,
    copy_rule,
    exact_searcher,
    needed_tables,
)
from lmk.rerank.fit.threshold import fit_threshold
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.pipeline import Pipeline

STAGE = "penalty and threshold"
CHEAP = 1e11  # products of components: a second or two on two cores
KEPT_THRESHOLD = 0.1  # of the pictures may have changed


def fit(
    writer: GalleryWriter,
    pipeline: Pipeline,
    *,
    before: FittedState | None = None,
    on_progress: Progress = no_progress,
) -> FittedState:
    """Learns from the gallery as it is inside the writer's transaction, and saves it there.

    Args:
        writer: with all pictures of the transaction.
        pipeline: its threshold is learnt, unless it was learnt of photos.
        before: what was learnt of the state before the transaction, to go on from it where
            learning anew would take long.
        on_progress: called with (stage, done, total): of each table the pictures that are searched,
            a block at a time, and in the end the stage STAGE.
    """
    gallery, bank = _views(writer)
    cheap = _is_cheap(gallery, bank, pipeline)
    if before is None or cheap:
        before = FittedState(pipeline, None, FitTables.empty(gallery), 0, 1)
    tables = before.tables.updated(pipeline, gallery, bank, on_progress)
    on_progress(STAGE, 0, 1)
    context = tables.context(pipeline)
    changed = before.changed + sum(
        _changed(old, new)
        for old, new in ((before.tables.gallery, gallery), (before.tables.distractors, bank))
    )
    kept = changed <= KEPT_THRESHOLD * before.weighed and _same_rule(before.pipeline, pipeline)
    if kept or writer.setting(CALIBRATED) == "photos":
        threshold = (before.pipeline if kept else pipeline).threshold()
        calibration, weighed = saved_calibration(writer), before.weighed
    else:
        threshold, calibration = _weigh(own_answers(pipeline, context, tables))
        writer.set(CALIBRATED, "gallery")
        weighed, changed = int(gallery.mask.sum()), 0
    learnt = FittedState(pipeline.with_threshold(threshold), calibration, tables, weighed, changed)
    save(writer, learnt, context, tables=not cheap)
    writer.set(COPY_COSINE, copy_rule(tables).cosine)
    on_progress(STAGE, 1, 1)
    return learnt


def fit_change(
    writer: GalleryWriter,
    old: Gallery,
    *,
    changed: bool,
    compacted: bool = False,
    on_progress: Progress = no_progress,
) -> float | None:
    """Learns after a change to a gallery, and returns the threshold.

    Args:
        writer: with all pictures of the transaction.
        old: the gallery before it.
        changed: without a change nothing is learnt.
        compacted: whether the change is that the removed rows are gone and the others renumbered.
        on_progress: called with (stage, done, total).
    """
    pipeline = saved_pipeline(old)
    if not changed or old.setting(SHARD) is not None:  # of a part nothing is learnt
        return pipeline.threshold()
    before = saved_state(old)
    if before is not None and compacted:
        tables = before.tables.renumbered(old.alive, *_views(writer))
        before = replace(before, tables=tables)
    return fit(writer, pipeline, before=before, on_progress=on_progress).pipeline.threshold()


def save_pipeline(
    path: Path,
    pipeline: Pipeline,
    *,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> FittedState:
    """Saves other steps with a gallery and learns what they need; the same ones are learnt anew.

    Threshold and calibration are learnt of the gallery, whatever they were learnt of before.

    Args:
        path: the gallery.
        pipeline: its threshold does not matter.
        wait: seconds to wait for another writer.
        on_progress: called with (stage, done, total).

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: as the folder is.
        UsageError: for a part of a gallery, of which nothing is learnt.
    """
    with GalleryWriter(path, wait=wait) as writer, Gallery.open(path) as old:
        if old.setting(SHARD) is not None:
            raise UsageError(
                "is one part of a gallery, of which nothing is learnt",
                where=path,
                remedy="join the parts with lmk index merge",
            )
        before = saved_state(old)
        if before is not None:
            before = replace(before, weighed=0, changed=1)
        writer.set(CALIBRATED, None)
        learnt = fit(writer, pipeline, before=before, on_progress=on_progress)
        writer.commit()
    return learnt


def save_calibration(
    path: Path, calibration: Calibration | None, threshold: float | None, *, wait: float = 0.0
) -> None:
    """Saves a calibration and a threshold that were learnt of photos the gallery does not have.

    A later change to the gallery keeps both; save_pipeline learns them of the gallery again.

    Args:
        path: the gallery.
        calibration: of its answers; None for none.
        threshold: below it an answer is "none of these"; None answers everything.
        wait: seconds to wait for another writer.

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: as the folder is.
    """
    with GalleryWriter(path, wait=wait) as writer, Gallery.open(path) as old:
        pipeline = saved_pipeline(old).with_threshold(threshold)
        writer.set(PIPELINE, pipeline.model_dump(mode="json"))
        value = None if calibration is None else calibration.model_dump(mode="json")
        writer.set(CALIBRATION, value)
        writer.set(CALIBRATED, "photos")
        writer.commit()


def _views(writer: GalleryWriter) -> tuple[View, View]:
    """The gallery's pictures, and the distractors but those whose content one of them has."""
    gallery = writer.uncommitted.view("gallery")
    labels = gallery.labels
    assert labels is not None  # a writer's view has them
    used = labels.role("distractor")
    used[writer.uncommitted.shared()] = False
    return gallery, replace(gallery, mask=used)


def own_answers(pipeline: Pipeline, context: PipelineContext, tables: FitTables) -> ScoredAnswers:
    """What a pipeline answers to the pictures of its own gallery and bank (self_answers.py).

    Args:
        pipeline: its threshold does not matter.
        facts: of these tables.
        tables: learnt for the pipeline.
    """
    gallery, bank = tables.gallery, tables.distractors
    return answers_of_gallery(
        pipeline,
        exact_searcher(gallery),
        context,
        gallery,
        bank,
        _taught_without(pipeline, tables),
        copy_rule(tables),
    )


def distractor_answers(
    pipeline: Pipeline, context: PipelineContext, tables: FitTables
) -> AskedPhotos:
    """Answers to the distractors, each by a gallery that was taught without it.

    Args: as of own_answers.
    """
    return answers_of_distractors(
        pipeline,
        exact_searcher(tables.gallery),
        context,
        tables.distractors,
        _taught_without(pipeline, tables),
        copy_rule(tables),
    )


def _taught_without(
    pipeline: Pipeline, tables: FitTables
) -> Callable[[NDArray[np.int64]], PipelineContext]:
    """Makes the facts that the gallery would have without some rows of its bank."""
    bank = tables.distractors

    def taught(rows: NDArray[np.int64]) -> PipelineContext:
        left = bank.mask.copy()
        left[rows] = False
        return tables.updated(pipeline, tables.gallery, replace(bank, mask=left)).context(pipeline)

    return taught


def _weigh(answers: ScoredAnswers) -> tuple[float | None, Calibration | None]:
    """Threshold and calibration; None for what there is nothing to learn from."""
    threshold = fit_threshold(answers)
    try:
        calibration = calibrate(answers)
    except UsageError:  # all answers are right, or all wrong
        calibration = None
    return threshold if np.isfinite(threshold) else None, calibration


def _is_cheap(gallery: View, bank: View, pipeline: Pipeline) -> bool:
    """Whether learning everything anew takes no longer than a user would wait for it."""
    pictures, distractors = int(gallery.mask.sum()), int(bank.mask.sum())
    asked = min(pictures, SAMPLE) + min(distractors, 2 * SAMPLE)
    compared = 2 * min(pictures, SAMPLE) + min(distractors, 2 * SAMPLE)
    compared *= min(pipeline.candidates, pictures)
    costs = (
        kind.cost(size, pictures, distractors, compared)
        for _, kind, size in needed_tables(pipeline)
    )
    return (asked * pictures + sum(costs)) * gallery.dim <= CHEAP


def _same_rule(one: Pipeline, other: Pipeline) -> bool:
    return one.with_threshold(None) == other.with_threshold(None)


def _changed(before: View, after: View) -> int:
    mask = np.zeros_like(after.mask)
    mask[: len(before.mask)] = before.mask
    return int(np.count_nonzero(mask != after.mask))
