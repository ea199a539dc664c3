"""Calibrations and thresholds with their quality by cross-validation.

A calibration and a threshold look too good on the answers that they were fitted on. Each fold of
the answers is therefore scored with a calibration and a threshold that were fitted on the other
folds. The calibration and the threshold that are returned are fitted on all answers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import UsageError
from lmk.eval.tune.grid import stratified_folds
from lmk.eval.tune.labelled_photos import LabelledPhotos
from lmk.index.gallery.gallery import Gallery
from lmk.rerank.fit.calibration import (
    AskedPhotos,
    Calibration,
    Method,
    OperatingPoint,
    ScoredAnswers,
    calibrate,
    expected_calibration_error,
    operating_point,
)
from lmk.rerank.fit.leave_one_out import LeaveOneOut
from lmk.rerank.fit.saved import saved_distractors, saved_pipeline, saved_state
from lmk.rerank.fit.tables import FitTables
from lmk.rerank.fit.threshold import fit_threshold
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions

ENOUGH = 10  # photos without a landmark; distractors of the index are added if there are fewer

Chooser = Callable[[ScoredAnswers], OperatingPoint]


@dataclass(frozen=True)
class Calibrated:
    """A calibration and a threshold with their measured quality.

    Attributes:
        calibration: fitted on all answers.
        point: the threshold chosen on all answers, with precision and recall on these answers.
        ece: expected calibration error, each fold with a calibration of the others; 0 is perfect.
        held_out: precision and recall, each fold with a threshold of the others. Its `threshold` is
            the mean of these thresholds; `feasible` is true if any answer was right.
        folds: the number of folds.
    """

    calibration: Calibration
    point: OperatingPoint
    ece: float
    held_out: OperatingPoint
    folds: int


def calibrated(
    answers: ScoredAnswers,
    choose: Chooser,
    method: Method = "isotonic",
    *,
    folds: int = 5,
    seed: int = 0,
) -> Calibrated:
    """Returns a calibration and a threshold with their scores by cross-validation.

    Args:
        answers: the answers with verdicts and weights; copies of one photo stay in one fold.
        choose: returns a threshold for answers, as `threshold_for` with the wanted precision.
        method: the method of the calibration.
        folds: the number of folds, stratified by right, wrong and no landmark; fewer if there are
            fewer answers.
        seed: random seed for the folds.

    Raises:
        UsageError: there are fewer than two right or two wrong answers (copies counted once), so
            that no answer can be held out.
    """
    given = np.isfinite(answers.confidence)
    right, wrong = (
        len(np.unique(answers.photo[some])) for some in (answers.right, given & ~answers.right)
    )
    if min(right, wrong) < 2:
        raise UsageError(
            f"{right} right and {wrong} wrong answers: calibration needs at least 2 of each",
            remedy="give more labelled photos (--data), with and without a landmark",
        )
    folds = min(folds, right + wrong, len(np.unique(answers.photo)))
    # Stratification separates two answers of the same kind: no fold contains both.
    kinds = 4 * given + 2 * answers.right + answers.landmark
    fold = stratified_folds(kinds.astype(np.int64), folds, seed, answers.photo)
    probability = np.zeros(len(answers))
    threshold = np.zeros(len(answers))
    for number in range(folds):
        held, others = fold == number, of_rows(answers, fold != number)
        probability[held] = calibrate(others, method).probabilities(answers.confidence[held])
        threshold[held] = choose(others).threshold
    return Calibrated(
        calibrate(answers, method),
        choose(answers),
        expected_calibration_error(probability[given], answers.right[given], answers.weight[given]),
        _held_out(answers, threshold),
        folds,
    )


def _held_out(answers: ScoredAnswers, threshold: NDArray[np.float64]) -> OperatingPoint:
    """Returns precision and recall with a threshold for each answer; see operating_point."""
    accepted = (answers.confidence >= threshold.astype(np.float32)) & np.isfinite(
        answers.confidence
    )
    weight = answers.weight[accepted].sum()
    right = answers.weight[accepted & answers.right].sum()
    return OperatingPoint(
        threshold=float(threshold.mean()),
        precision=float(right / weight) if weight else 1.0,
        recall=float(right / answers.weight[answers.landmark].sum()),
        feasible=bool(right > 0),
    )


def balanced(answers: ScoredAnswers) -> OperatingPoint:
    """Returns the threshold that an index fits by itself (fit_threshold).

    Raises:
        UsageError: no query without a landmark has an answer; with held-out folds, one such answer
            is not enough.
    """
    threshold = fit_threshold(answers)
    if not np.isfinite(threshold):
        raise UsageError(
            "too few photos without a landmark: a threshold needs at least 2",
            remedy="add photos without a landmark, or give a precision to reach",
        )
    return operating_point(answers, threshold)


def answers_of_index(gallery: Gallery) -> ScoredAnswers:
    """Returns leave-one-out answers of an index to its own pictures and distractors."""
    return LeaveOneOut.of_tables(*_fitted(gallery)).answers()


def answers_of_distractors(gallery: Gallery) -> AskedPhotos:
    """Returns leave-one-out answers of an index to its distractors.

    The geometric check is left out, since it needs the files.
    """
    return LeaveOneOut.of_tables(*_fitted(gallery)).answers_to_distractors()


def _fitted(gallery: Gallery) -> tuple[Pipeline, FitTables]:
    pipeline, state = saved_pipeline(gallery), saved_state(gallery)
    if state is not None:
        return pipeline, state.tables
    view = gallery.view("gallery")
    return pipeline, FitTables.empty(view).updated(pipeline, view, saved_distractors(gallery))


def with_distractors(answers: ScoredAnswers, distractors: AskedPhotos) -> ScoredAnswers:
    """Returns answers to photos together with answers to distractors, which show no landmark.

    The weights of the photos do not change. The distractors are weighted so that all answers
    without a landmark have the same total weight as those with one. Distractors are left out if
    the photos alone reach this weight.
    """
    missing = answers.weight[answers.landmark].sum() - answers.weight[~answers.landmark].sum()
    if not len(distractors.photo) or missing <= 0:
        return answers
    weight = distractors.weight()
    none = np.zeros(len(distractors.photo), np.bool_)
    return ScoredAnswers(
        np.concatenate([answers.confidence, distractors.confidence]),
        np.concatenate([answers.right, none]),
        np.concatenate([answers.landmark, none]),
        np.concatenate([answers.weight, weight * missing / weight.sum()]),
        np.concatenate([answers.photo, answers.photo.max(initial=-1) + 1 + distractors.photo]),
    )


def answers_of_photos(
    predictions: Predictions, photos: LabelledPhotos, landmarks: Collection[str]
) -> ScoredAnswers:
    """Returns predictions with their verdicts.

    Args:
        predictions: the predictions for the photos.
        photos: the photos with their labels.
        landmarks: the landmarks of the index; the right answer to a photo of any other landmark is
            "none of these".
    """
    pairs = list(zip(predictions.labels, photos.labels, strict=True))
    return ScoredAnswers(
        predictions.confidence,
        np.array([answer in labels for answer, labels in pairs], np.bool_),
        np.array([not set(labels).isdisjoint(landmarks) for _, labels in pairs], np.bool_),
        np.ones(len(photos)),
        photos.photo,
    )


def of_rows(answers: ScoredAnswers, rows: NDArray[np.bool_] | NDArray[np.int64]) -> ScoredAnswers:
    """Returns some of the answers, by row number or mask."""
    return ScoredAnswers(**{name: array[rows] for name, array in vars(answers).items()})
