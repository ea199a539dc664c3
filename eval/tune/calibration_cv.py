"""How good a calibration and a threshold are on answers that they were not learnt on.

A calibration that is looked at on its own answers is perfect, and so is the precision of a
threshold that was chosen on them. Here each fold of the answers is judged by what the other folds
taught; what is kept in the end is learnt of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import UsageError
from lmk.eval.tune.grid import stratified_folds
from lmk.eval.tune.labelled_photos import KnownPhotos
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
from lmk.rerank.fit.fit import distractor_answers, own_answers
from lmk.rerank.fit.saved import saved_distractors, saved_pipeline, saved_state
from lmk.rerank.fit.tables import FitTables
from lmk.rerank.fit.threshold import fit_threshold
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions

ENOUGH = 10  # photos without a landmark: with fewer the distractors of an index count as well

Chooser = Callable[[ScoredAnswers], OperatingPoint]


@dataclass(frozen=True)
class Calibrated:
    """A calibration and a threshold, with what they are worth.

    Attributes:
        calibration: learnt of all answers.
        point: the threshold chosen on all answers, and what it gives on them.
        ece: expected calibration error, each fold by a calibration of the others; 0 is perfect.
        held_out: precision and recall, each fold by a threshold of the others; `threshold` is
            the mean of these, `feasible` is whether any answer was right.
        folds: their number.
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
    """Learns a calibration and a threshold, and judges both by cross-validation.

    Args:
        answers: with their verdicts and weights; copies of one photo stay in one fold.
        choose: a threshold for answers, as `threshold_for` with the precision wanted.
        method: of the calibration.
        folds: stratified by right, wrong and no landmark; fewer where there are fewer answers.
        seed: of the folds.

    Raises:
        UsageError: for fewer than two right or two wrong answers (copies counted once), as nothing
            can be held out.
    """
    given = np.isfinite(answers.confidence)
    right, wrong = (
        len(np.unique(answers.photo[some])) for some in (answers.right, given & ~answers.right)
    )
    if min(right, wrong) < 2:
        raise UsageError(
            f"{right} right and {wrong} wrong answers: at least 2 of each are needed to learn from",
            remedy="give more photos with known answers (--data), of landmarks and of none",
        )
    folds = min(folds, right + wrong, len(np.unique(answers.photo)))
    # Right ones stand together, and so do wrong ones: with two of them no fold has both.
    kinds = 4 * given + 2 * answers.right + answers.landmark
    fold = stratified_folds(kinds.astype(np.int64), folds, seed, answers.photo)
    probability = np.zeros(len(answers))
    threshold = np.zeros(len(answers))
    for number in range(folds):
        held, learnt = fold == number, of_rows(answers, fold != number)
        probability[held] = calibrate(learnt, method).probabilities(answers.confidence[held])
        threshold[held] = choose(learnt).threshold
    return Calibrated(
        calibrate(answers, method),
        choose(answers),
        expected_calibration_error(probability[given], answers.right[given], answers.weight[given]),
        _held_out(answers, threshold),
        folds,
    )


def _held_out(answers: ScoredAnswers, threshold: NDArray[np.float64]) -> OperatingPoint:
    """What thresholds, one for each answer, give; see operating_point."""
    kept = (answers.confidence >= threshold.astype(np.float32)) & np.isfinite(answers.confidence)
    weight = answers.weight[kept].sum()
    right = answers.weight[kept & answers.right].sum()
    return OperatingPoint(
        threshold=float(threshold.mean()),
        precision=float(right / weight) if weight else 1.0,
        recall=float(right / answers.weight[answers.landmark].sum()),
        feasible=bool(right > 0),
    )


def balanced(answers: ScoredAnswers) -> OperatingPoint:
    """The threshold that an index learns by itself: most right answers kept, most others refused.

    Raises:
        UsageError: where no answer is to a query without a landmark; held out, one is not enough.
    """
    threshold = fit_threshold(answers)
    if not np.isfinite(threshold):
        raise UsageError(
            "too few photos without a landmark to learn a threshold from: at least 2 are needed",
            remedy="give such photos too, or a precision to reach",
        )
    return operating_point(answers, threshold)


def answers_of_index(gallery: Gallery) -> ScoredAnswers:
    """What an index answers to its own pictures and distractors, each as if it were not there."""
    pipeline, tables = _taught(gallery)
    return own_answers(pipeline, tables.context(pipeline), tables)


def answers_of_distractors(gallery: Gallery) -> AskedPhotos:
    """Answers of an index to its distractors, each as if it were not there.

    The geometric check is left out: it needs the files.
    """
    pipeline, tables = _taught(gallery)
    return distractor_answers(pipeline, tables.context(pipeline), tables)


def _taught(gallery: Gallery) -> tuple[Pipeline, FitTables]:
    pipeline, learnt = saved_pipeline(gallery), saved_state(gallery)
    if learnt is not None:
        return pipeline, learnt.tables
    view = gallery.view("gallery")
    return pipeline, FitTables.empty(view).updated(pipeline, view, saved_distractors(gallery))


def with_distractors(answers: ScoredAnswers, asked: AskedPhotos) -> ScoredAnswers:
    """Answers to photos together with answers to distractors, which show no landmark.

    All that show no landmark weigh together as much as the photos that show one; the photos
    themselves weigh as they did. Distractors are left out where photos alone weigh as much.
    """
    missing = answers.weight[answers.landmark].sum() - answers.weight[~answers.landmark].sum()
    if not len(asked.photo) or missing <= 0:
        return answers
    weight = asked.weight()
    none = np.zeros(len(asked.photo), np.bool_)
    return ScoredAnswers(
        np.concatenate([answers.confidence, asked.confidence]),
        np.concatenate([answers.right, none]),
        np.concatenate([answers.landmark, none]),
        np.concatenate([answers.weight, weight * missing / weight.sum()]),
        np.concatenate([answers.photo, answers.photo.max(initial=-1) + 1 + asked.photo]),
    )


def answers_of_photos(
    predictions: Predictions, photos: KnownPhotos, landmarks: Collection[str]
) -> ScoredAnswers:
    """Predictions with their verdicts.

    Args:
        predictions: for the photos.
        photos: with what they show.
        landmarks: that the index holds; a photo of another one shows none of them, and "none of
            these" is the right answer to it.
    """
    pairs = list(zip(predictions.labels, photos.labels, strict=True))
    return ScoredAnswers(
        predictions.confidence,
        np.array([given in shown for given, shown in pairs], np.bool_),
        np.array([not set(shown).isdisjoint(landmarks) for _, shown in pairs], np.bool_),
        np.ones(len(photos)),
        photos.photo,
    )


def of_rows(answers: ScoredAnswers, rows: NDArray[np.bool_] | NDArray[np.int64]) -> ScoredAnswers:
    """Some of the answers, by number or mask."""
    return replace(
        answers,
        confidence=answers.confidence[rows],
        right=answers.right[rows],
        landmark=answers.landmark[rows],
        weight=answers.weight[rows],
        photo=answers.photo[rows],
    )
