"""Calibration of confidences to probabilities, and thresholds that reach a precision.

An answer is right if the query shows a landmark and the answer names this landmark. A calibration
is fitted to answers with verdicts (`ScoredAnswers`). The photos should resemble the later queries.
Without such photos a gallery answers its own pictures (`ScoredAnswers.of_gallery`).
`ScoredAnswers.at_share` gives non-landmarks the weight of their expected share of queries: in a
contest 98 of 100 queries show no landmark.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lmk.embed.errors import UsageError

Method = Literal["isotonic", "logistic"]
_REMEDY = "give more photos with known answers, of landmarks and of none"


@dataclass(frozen=True, eq=False)
class AskedPhotos:
    """Photos with the confidences of a gallery's answers to them.

    Attributes:
        confidence: float32 [n], the confidences of the answers.
        photo: int64 [n], number of the photo, from 0; copies of one photo have the same number.
    """

    confidence: NDArray[np.float32]
    photo: NDArray[np.int64]

    def weight(self) -> NDArray[np.float64]:
        """Returns the weight of each photo, float64 [n]; the weights of copies have the sum 1."""
        return 1 / np.bincount(self.photo)[self.photo]


@dataclass(frozen=True, eq=False)
class ScoredAnswers:
    """Answers with their verdicts.

    Attributes:
        confidence: float32 [n]; -inf for a query without an answer.
        right: bool [n], whether the answer is right.
        landmark: bool [n], whether the query shows a landmark of the gallery.
        weight: float64 [n], the weight of the answer; above 0.
        photo: int64 [n], number of the query's photo; copies of one photo have the same number.
            Default: a different number for each query.

    Raises:
        ValueError: a shape is wrong, a confidence is NaN, a weight is not above 0, or an answer is
            right although the query shows no landmark.
    """

    confidence: NDArray[np.float32]
    right: NDArray[np.bool_]
    landmark: NDArray[np.bool_]
    weight: NDArray[np.float64]
    photo: NDArray[np.int64] = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        if self.photo is None:
            object.__setattr__(self, "photo", np.arange(len(self.confidence)))
        arrays = (self.confidence, self.right, self.landmark, self.weight, self.photo)
        shapes = {a.shape for a in arrays}
        if len(shapes) != 1 or self.confidence.ndim != 1:
            raise ValueError(
                f"confidence, right, landmark and the others must be [n], got {shapes}"
            )
        if np.isnan(self.confidence).any() or np.isposinf(self.confidence).any():
            raise ValueError("a confidence is NaN or infinite")
        if (self.right & ~(self.landmark & np.isfinite(self.confidence))).any():
            raise ValueError("an answer is right though there is no landmark or no answer")
        if not (np.isfinite(self.weight) & (self.weight > 0)).all():
            raise ValueError("a weight is not above 0")

    def __len__(self) -> int:
        return len(self.confidence)

    @classmethod
    def of(
        cls, confidence: NDArray[np.float32], right: NDArray[np.bool_], landmark: NDArray[np.bool_]
    ) -> ScoredAnswers:
        """Returns answers with equal weights."""
        return cls(confidence, right, landmark, np.ones(len(confidence)))

    @classmethod
    def of_gallery(
        cls,
        known: AskedPhotos,
        right: NDArray[np.bool_],
        unknown_landmark: AskedPhotos,
        distractors: AskedPhotos,
    ) -> ScoredAnswers:
        """Returns leave-one-out answers; non-landmarks of both kinds have equal weights.

        The weights of the copies of one photo have the sum 1.

        Args:
            known: gallery pictures, each answered by the gallery without itself.
            right: whether each of these answers was right.
            unknown_landmark: the same pictures, each answered without its whole landmark.
            distractors: answered by the gallery.
        """
        parts = (known, unknown_landmark, distractors)
        weights = [part.weight() for part in parts]
        of_unknown, of_distractors = weights[1].sum(), weights[2].sum()
        if len(unknown_landmark.photo) and len(distractors.photo):
            others = of_unknown + of_distractors
            weights[1] *= others / 2 / of_unknown
            weights[2] *= others / 2 / of_distractors
        shown = len(known.photo)
        confidence = np.concatenate([part.confidence for part in parts]).astype(np.float32)
        verdict = np.concatenate([right, np.zeros(len(confidence) - shown, np.bool_)])
        landmark = np.arange(len(confidence)) < shown
        first = max(int(part.photo.max(initial=-1)) for part in parts[:2]) + 1
        photo = np.concatenate([known.photo, unknown_landmark.photo, first + distractors.photo])
        return cls(confidence, verdict, landmark, np.concatenate(weights), photo)

    def at_share(self, none: float) -> ScoredAnswers:
        """Returns the answers with weights that give non-landmarks the share `none` of all.

        Raises:
            UsageError: all queries show a landmark, or none does.
            ValueError: the share is not between 0 and 1.
        """
        if not 0 < none < 1:
            raise ValueError(f"the share of non-landmarks must be between 0 and 1, got {none}")
        with_, without = self.weight[self.landmark].sum(), self.weight[~self.landmark].sum()
        if not with_ or not without:
            kind = "without a landmark" if with_ else "with a landmark"
            raise UsageError(f"there is no answer to a query {kind} to weigh", remedy=_REMEDY)
        factor = np.where(self.landmark, (1 - none) / with_, none / without)
        return replace(self, weight=self.weight * factor * len(self))


class Calibration(BaseModel):
    """The function from a confidence to the probability that the answer is right.

    Attributes:
        method: "isotonic" (isotonic regression with linear interpolation) or "logistic" (Platt
            scaling).
        confidence, probability: for isotonic, the points of the curve, both rising. The curve is
            linear between two points and constant beyond the ends.
        slope, intercept: for logistic, probability = 1 / (1 + exp(-(slope * c + intercept))).
        answers: number of answers to which the calibration was fitted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Method
    confidence: tuple[float, ...] = ()
    probability: tuple[float, ...] = ()
    slope: float = Field(default=0.0, ge=0)
    intercept: float = 0.0
    answers: int = Field(ge=1)

    @model_validator(mode="after")
    def _rising(self) -> Calibration:
        if len(self.confidence) != len(self.probability):
            raise ValueError("as many confidences as probabilities are needed")
        if self.method == "isotonic" and not self.confidence:
            raise ValueError("an isotonic calibration needs points")
        if (np.diff(self.confidence) <= 0).any() or (np.diff(self.probability) < 0).any():
            raise ValueError("confidences must rise and probabilities must not fall")
        if any(not 0 <= p <= 1 for p in self.probability):
            raise ValueError("a probability is not between 0 and 1")
        return self

    def probabilities(self, confidence: NDArray[np.floating]) -> NDArray[np.float64]:
        """Returns probabilities, float64 with the shape of `confidence`.

        The probability is 0 for -inf, and never decreases as the confidence rises.
        """
        wide = confidence.astype(np.float64)
        there = np.isfinite(wide)
        finite = np.where(there, wide, 0)
        if self.method == "isotonic":
            value = np.interp(finite, self.confidence, self.probability)
        else:
            exponent = np.clip(self.slope * finite + self.intercept, -700, 700)
            value = 1 / (1 + np.exp(-exponent))
        return np.where(there, value, 0.0)


def calibrate(answers: ScoredAnswers, method: Method = "isotonic") -> Calibration:
    """Returns a calibration that scikit-learn fits to answers.

    Platt's targets (n + 1) / (n + 2) and 1 / (n + 2) keep the probabilities of the logistic curve
    away from 0 and 1 when right and wrong answers do not overlap (Platt, "Probabilistic outputs for
    support vector machines", 1999). n is a number of answers and ignores the weights.

    Raises:
        UsageError: all answers are right, or all are wrong.
    """
    given = np.isfinite(answers.confidence)
    confidence = answers.confidence[given].astype(np.float64)
    right, weight = answers.right[given], answers.weight[given]
    if right.all() or not right.any():
        kind = "right" if len(right) and right.all() else "wrong"
        raise UsageError(f"nothing to learn a calibration from: all answers are {kind}",
                         remedy=_REMEDY)  # fmt: skip
    if method == "isotonic":
        return _isotonic(confidence, right, weight)
    return _logistic(confidence, right, weight)


def _isotonic(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], weight: NDArray[np.float64]
) -> Calibration:
    from sklearn.isotonic import IsotonicRegression  # takes a second to import

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    fitted.fit(confidence, right.astype(np.float64), sample_weight=weight)
    return Calibration(
        method="isotonic",
        confidence=tuple(fitted.X_thresholds_.tolist()),
        probability=tuple(np.clip(fitted.y_thresholds_, 0, 1).tolist()),
        answers=len(confidence),
    )


def _logistic(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], weight: NDArray[np.float64]
) -> Calibration:
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    n_right, n_wrong = int(right.sum()), int((~right).sum())
    target = np.where(right, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))
    # A soft target becomes both outcomes with weights.
    middle, spread = confidence.mean(), confidence.std() or 1.0
    inputs = np.tile((confidence - middle) / spread, 2)[:, None]
    outcomes = np.repeat([1, 0], len(confidence))
    weights = np.concatenate([weight * target, weight * (1 - target)])
    fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
    fitted.fit(inputs, outcomes, sample_weight=weights / weights.mean())
    slope = float(fitted.coef_[0, 0]) / spread
    if slope < 0:  # surer answers are worse, so the confidence is not informative
        share = float(np.average(target, weights=weight))
        return Calibration(method="logistic", intercept=float(np.log(share / (1 - share))),
                           answers=len(confidence))  # fmt: skip
    return Calibration(
        method="logistic",
        slope=slope,
        intercept=float(fitted.intercept_[0]) - slope * middle,
        answers=len(confidence),
    )


def expected_calibration_error(
    probability: NDArray[np.float64],
    right: NDArray[np.bool_],
    weight: NDArray[np.float64] | None = None,
    *,
    bins: int = 15,
) -> float:
    """Returns the expected calibration error (ECE).

    The ECE is the mean over answers of |share of right answers - mean probability| in the bin of
    the answer (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). The bins have
    equal width. A probability on a border belongs to the lower bin, 0 to the first bin.

    Args:
        probability: float64 [n], 0 to 1.
        right: bool [n], whether each answer is right.
        weight: float64 [n], the weights of the answers. Default: equal weights.
        bins: the number of bins.

    Returns:
        0 (perfect) to 1; NaN without answers.
    """
    if not len(probability):
        return float("nan")
    weighed = np.ones(len(probability)) if weight is None else weight
    bin_ = np.clip(np.ceil(probability * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(bin_, weighed * (right - probability), minlength=bins)
    return float(np.abs(gap).sum() / weighed.sum())


@dataclass(frozen=True)
class OperatingPoint:
    """Precision and recall of a threshold of "none of these".

    Attributes:
        threshold: an answer with a lower confidence is "none of these"; inf refuses all answers.
        precision: share of right answers among the answers not refused; 1 if all are refused.
        recall: share of right answers among the queries with a landmark.
        feasible: whether the threshold reaches the precision with at least one right answer.
    """

    threshold: float
    precision: float
    recall: float
    feasible: bool


def threshold_for(answers: ScoredAnswers, precision: float) -> OperatingPoint:
    """Returns the threshold with the largest recall among those that reach a precision.

    Among thresholds with equal recall the highest one is returned. A threshold lies between two
    confidences if float32 has a number between them. If no threshold reaches the precision, the
    result has the best precision, then the largest recall, and `feasible` is False.

    Raises:
        UsageError: no query shows a landmark.
        ValueError: the precision is not above 0 and at most 1.
    """
    if not 0 < precision <= 1:
        raise ValueError(f"a precision is above 0 and at most 1, got {precision}")
    landmarks = answers.weight[answers.landmark].sum()
    if not landmarks:
        raise UsageError("no query shows a landmark: recall is not defined", remedy=_REMEDY)
    cuts, right_above, above = _curve(answers)
    if not cuts.size:
        return OperatingPoint(float("inf"), 1.0, 0.0, False)
    reached = right_above / above
    enough = (reached >= precision - 1e-12) & (right_above > 0)
    # cuts fall, so argmax takes the highest of equal thresholds
    if enough.any():
        best = int(np.argmax(np.where(enough, right_above, -1)))
    else:
        best = int(np.lexsort((-right_above, -reached))[0])
    return OperatingPoint(
        threshold=float(cuts[best]),
        precision=float(reached[best]),
        recall=float(right_above[best] / landmarks),
        feasible=bool(enough.any()),
    )


def operating_point(answers: ScoredAnswers, threshold: float) -> OperatingPoint:
    """Returns precision and recall of a threshold on answers that did not determine it.

    `feasible` is True if at least one answer is right.
    """
    above = answers.confidence >= np.float32(threshold)
    weight = answers.weight[above].sum()
    right = answers.weight[above & answers.right].sum()
    landmarks = answers.weight[answers.landmark].sum()
    return OperatingPoint(
        threshold=threshold,
        precision=float(right / weight) if weight else 1.0,
        recall=float(right / landmarks) if landmarks else float("nan"),
        feasible=bool(right > 0),
    )


def _curve(
    answers: ScoredAnswers,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Returns falling thresholds, and the weights of the right and of all answers above each."""
    given = np.isfinite(answers.confidence)
    values, inverse = np.unique(-answers.confidence[given], return_inverse=True)
    values, weight = -values, answers.weight[given]
    above = np.bincount(inverse, weight, len(values))
    right = np.bincount(inverse, weight * answers.right[given], len(values))
    middle = ((values + np.append(values[1:], values[-1:])) / 2).astype(np.float32)
    below = np.append(values[1:], -np.inf)
    return np.where(middle > below, middle, values), np.cumsum(right), np.cumsum(above)
