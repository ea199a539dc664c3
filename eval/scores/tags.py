"""Scores of tagging: a picture has several true tags, and each tag has a score.

Per picture: precision, recall and F1 of the k best tags, averaged over pictures (as in Tencent
ML-Images, Wu et al. 2019). Per tag: average precision and precision-recall curves by scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.eval.scores.bootstrap import wilson_bounds


@dataclass(frozen=True, eq=False)
class PictureScores:
    """Precision, recall and F1 of the k best tags of each picture.

    Attributes:
        k: the number of tags that count.
        rows: int64 [m], the pictures that have a true tag; recall is not defined for the others.
        precision, recall, f1: float64 [m]; F1 is 0 if precision and recall are 0.
        skipped: the number of pictures without a true tag.
    """

    k: int
    rows: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    skipped: int

    def means(self) -> tuple[float, float, float]:
        """Returns mean precision, recall and F1 over pictures (the mean of F1, not F1 of means)."""
        return float(self.precision.mean()), float(self.recall.mean()), float(self.f1.mean())


@dataclass(frozen=True, eq=False)
class TagScores:
    """Average precision of each tag over all pictures, by scikit-learn.

    Attributes:
        names: the t tags.
        support: int64 [t], the number of pictures that truly have the tag.
        average_precision: float64 [t], NaN if the support is 0.
        micro: average precision over all pairs of picture and tag together.
    """

    names: tuple[str, ...]
    support: NDArray[np.int64]
    average_precision: NDArray[np.float64]
    micro: float

    @property
    def macro(self) -> float:
        """The mean average precision over tags with support."""
        return float(np.nanmean(self.average_precision))


@dataclass(frozen=True, eq=False)
class DecisionScores:
    """Precision, recall and F1 of binary tag decisions.

    Attributes:
        names: the t tags.
        support: int64 [t], the number of pictures that truly have the tag.
        precision, recall, f1: float64 [t]; precision is 0 if no picture is assigned the tag; all
            three are NaN if the support is 0.
        macro: the means of the three scores over tags with support.
        micro: the three scores over all pairs of picture and tag together.
    """

    names: tuple[str, ...]
    support: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    macro: tuple[float, float, float]
    micro: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class PrecisionRecallCurve:
    """Precision and recall of a tag at each distinct score; scores >= threshold assign the tag.

    Attributes:
        threshold: float64 [m], descending.
        precision: float64 [m].
        recall: float64 [m], ascending.
        given: int64 [m], the number of pictures that are assigned the tag.
    """

    threshold: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    given: NDArray[np.int64]


def score_pictures(scores: NDArray[np.floating], truth: NDArray[np.bool_], k: int) -> PictureScores:
    """Returns precision (hits / k), recall (hits / true tags) and F1 of each picture's k best tags.

    Args:
        scores: float [n, t]; among equal scores the smaller column ranks first.
        truth: bool [n, t].
        k: at least 1, at most t.

    Raises:
        ValueError: shapes or dtypes are wrong, a score is NaN, k is out of range, or no picture
            has a true tag.
    """
    check_tag_table(scores, truth)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must be between 1 and {scores.shape[1]}, got {k}")
    rows = np.flatnonzero(truth.any(axis=1))
    if not rows.size:
        raise ValueError("no picture has a true tag")
    best = np.argsort(-scores[rows], axis=1, kind="stable")[:, :k]
    hits = np.take_along_axis(truth[rows], best, axis=1).sum(axis=1)
    precision, recall = hits / k, hits / truth[rows].sum(axis=1)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros(len(rows)), where=both > 0)
    return PictureScores(k, rows, precision, recall, f1, len(truth) - len(rows))


def score_tags(
    scores: NDArray[np.floating], truth: NDArray[np.bool_], names: Sequence[str]
) -> TagScores:
    """Returns the average precision of each tag, with macro and micro means.

    Args:
        scores: float [n, t].
        truth: bool [n, t].
        names: the t tags.

    Raises:
        ValueError: as `tag_support`.
    """
    from sklearn.metrics import average_precision_score

    support = tag_support(scores, truth, names)
    each = [
        average_precision_score(truth[:, tag], scores[:, tag]) if support[tag] else np.nan
        for tag in range(len(names))
    ]
    micro = average_precision_score(truth.ravel(), scores.ravel())
    return TagScores(tuple(names), support, np.array(each, dtype=np.float64), float(micro))


def score_decisions(
    given: NDArray[np.bool_], truth: NDArray[np.bool_], names: Sequence[str]
) -> DecisionScores:
    """Returns precision, recall and F1 of binary tag decisions, by tag, macro and micro.

    Args:
        given: bool [n, t], the tags that each picture is assigned.
        truth: bool [n, t].
        names: the t tags.

    Raises:
        ValueError: as `tag_support`.
    """
    from sklearn.metrics import precision_recall_fscore_support

    support = tag_support(given, truth, names)
    tags = np.flatnonzero(support)
    by_tag = np.full((3, len(names)), np.nan)
    for tag in tags:
        by_tag[:, tag] = precision_recall_fscore_support(
            truth[:, tag], given[:, tag], average="binary", zero_division=0
        )[:3]
    micro = precision_recall_fscore_support(
        truth.ravel(), given.ravel(), average="binary", zero_division=0
    )
    macro = by_tag[:, tags].mean(axis=1)
    return DecisionScores(
        tuple(names),
        support,
        by_tag[0],
        by_tag[1],
        by_tag[2],
        (float(macro[0]), float(macro[1]), float(macro[2])),
        (float(micro[0]), float(micro[1]), float(micro[2])),
    )


def precision_recall(
    scores: NDArray[np.floating], truth: NDArray[np.bool_]
) -> PrecisionRecallCurve:
    """Returns the precision-recall curve of one tag.

    The last point of scikit-learn's curve (precision 1, recall 0) belongs to no threshold and is
    removed.

    Args:
        scores: float [n].
        truth: bool [n].

    Raises:
        ValueError: shapes or dtypes are wrong, a score is NaN, or no picture has the tag, so that
            the curve is not defined.
    """
    from sklearn.metrics import precision_recall_curve

    check_tag_table(scores[:, None], truth[:, None])
    if not truth.any():
        raise ValueError("no picture has the tag: its curve is not defined")
    precision, recall, threshold = precision_recall_curve(truth, scores)
    given = len(scores) - np.searchsorted(np.sort(scores), threshold)
    return PrecisionRecallCurve(
        threshold[::-1].astype(np.float64),
        precision[-2::-1],
        recall[-2::-1],
        given[::-1].astype(np.int64),
    )


def lower_precision(
    precision: NDArray[np.float64], given: NDArray[np.int64], confidence: float | None
) -> NDArray[np.float64]:
    """Returns Wilson's lower bound of each precision, float64 [m].

    Args:
        precision: float64 [m]; NaN counts as 0.
        given: int64 [m], the number of pictures that each precision was measured on.
        confidence: the probability that the precision reaches the bound, .5 to 1; None returns
            `precision` unchanged.
    """
    if confidence is None:
        return precision
    from scipy.stats import norm

    right = np.rint(np.nan_to_num(precision) * given).astype(np.int64)
    low, _ = wilson_bounds(right, np.maximum(given, 1), float(norm.ppf(confidence)))
    return low


def tag_support(
    values: NDArray[np.generic], truth: NDArray[np.bool_], names: Sequence[str]
) -> NDArray[np.int64]:
    """Returns int64 [t]: the number of pictures that truly have each tag.

    Args:
        values: float or bool [n, t], scores or decisions.
        truth: bool [n, t].
        names: the t tags.

    Raises:
        ValueError: the number of names differs, or there is no true tag; and as `check_tag_table`.
    """
    check_tag_table(values, truth)
    if len(names) != truth.shape[1]:
        raise ValueError(f"{truth.shape[1]} tags, {len(names)} names")
    support: NDArray[np.int64] = truth.sum(axis=0, dtype=np.int64)
    if not support.any():
        raise ValueError("no picture has a true tag")
    return support


def check_tag_table(values: NDArray[np.generic], truth: NDArray[np.bool_]) -> None:
    """Raises ValueError unless values are float or bool [n, t], not NaN, and truth bool [n, t]."""
    if values.ndim != 2 or values.shape != truth.shape or truth.dtype != np.bool_:
        raise ValueError(
            f"[n, t] and bool [n, t] are needed, got {values.shape} and {truth.dtype} {truth.shape}"
        )
    if values.dtype.kind not in "bf":
        raise ValueError(f"float scores or bool decisions are needed, got {values.dtype}")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ValueError("a score is NaN")
