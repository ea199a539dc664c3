"""Thresholds of tags, chosen on validation pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lmk.embed.tags.hierarchy import RelationGraph
from lmk.eval.scores.tags import (
    PrecisionRecallCurve,
    check_tag_table,
    lower_precision,
    precision_recall,
    score_decisions,
    tag_support,
)
from lmk.rerank.tags.thresholds import TagThreshold, TagThresholds, close_given


@dataclass(frozen=True)
class Threshold:
    """The threshold of one tag, with its precision and recall.

    Attributes:
        value: the threshold; None if no threshold reaches the wanted precision.
        precision, recall: the values of the tag at this threshold; both 0 without a threshold.
        feasible: whether the threshold also reaches the wanted recall, and the precision with the
            wanted confidence.
    """

    value: float | None
    precision: float
    recall: float
    feasible: bool


def choose_threshold(
    curve: PrecisionRecallCurve,
    min_precision: float,
    min_recall: float,
    confidence: float | None = None,
) -> Threshold:
    """Returns the threshold of largest recall among those that reach a precision.

    The pictures of the curve must not be scored afterwards. If recalls are equal, the higher
    threshold is chosen.

    Args:
        curve: from `precision_recall`.
        min_precision: the wanted precision, 0 to 1.
        min_recall: the wanted recall, 0 to 1; the choice is marked infeasible below it.
        confidence: the probability that other pictures reach the precision too, between .5 and 1.
            None uses the measured precision, which is uncertain if there are few pictures. If no
            threshold has both the confidence and the recall, the choice is the threshold without
            confidence, marked infeasible.

    Raises:
        ValueError: a target or the confidence is out of range.
    """
    if confidence is not None and not 0.5 < confidence < 1:
        raise ValueError(f"the confidence must be between .5 and 1, got {confidence}")
    if not (0 <= min_precision <= 1 and 0 <= min_recall <= 1):
        raise ValueError(f"targets must be 0 to 1, got {min_precision} and {min_recall}")
    low = lower_precision(curve.precision, curve.given, confidence)
    certain = _largest_recall(curve, low >= min_precision, min_recall)
    if certain.feasible or confidence is None:
        return certain
    measured = _largest_recall(curve, curve.precision >= min_precision, min_recall)
    return replace(measured, feasible=False)


def _largest_recall(
    curve: PrecisionRecallCurve, reached: NDArray[np.bool_], min_recall: float
) -> Threshold:
    places = np.flatnonzero(reached)
    if not places.size:
        return Threshold(None, 0.0, 0.0, False)
    best = places[np.argmax(curve.recall[places])]  # the first, so the highest threshold
    precision, recall = float(curve.precision[best]), float(curve.recall[best])
    return Threshold(float(curve.threshold[best]), precision, recall, recall >= min_recall)


def fit_thresholds(
    scores: NDArray[np.floating],
    truth: NDArray[np.bool_],
    names: Sequence[str],
    *,
    min_precision: float = 0.9,
    min_recall: float = 0.5,
    confidence: float | None = None,
    relations: RelationGraph | None = None,
    tagger: str = "",
    tiles: bool = False,
) -> TagThresholds:
    """Returns a threshold for each tag by `choose_threshold`, and whether it reaches the targets.

    A tag that no picture has keeps the default threshold. A tag for which no threshold reaches the
    precision is never assigned by its score. Precision and recall are measured on the tags that all
    thresholds assign together, since a tag above its threshold also assigns its ancestors.

    Args:
        scores: float [n, t].
        truth: bool [n, t].
        names: the t tags.
        min_precision, min_recall: the targets for each tag.
        confidence: see choose_threshold.
        relations: the hierarchy of tags. Ancestors are first added to scores and truth; otherwise
            a parent that the truth leaves out would get a wrong recall.
        tagger, tiles: see TagThresholds.

    Raises:
        ValueError: shapes or dtypes are wrong, a score is NaN, the number of names differs, no
            picture has a true tag, or a target is outside 0 to 1.
    """
    relations = relations or RelationGraph({})
    check_tag_table(scores, truth)
    scores = relations.close_scores(scores, names)
    truth = close_given(truth, names, relations)
    tags = {}
    for tag, pictures in enumerate(tag_support(scores, truth, names).tolist()):
        if not pictures:
            tags[names[tag]] = TagThreshold(value=TagThresholds().default, pictures=0)
            continue
        curve = precision_recall(scores[:, tag], truth[:, tag])
        best = choose_threshold(curve, min_precision, min_recall, confidence)
        tags[names[tag]] = TagThreshold(
            value=best.value,
            pictures=pictures,
            precision=best.precision,
            recall=best.recall,
            reached=best.feasible,
        )
    thresholds = TagThresholds(
        min_precision=min_precision,
        min_recall=min_recall,
        confidence=confidence,
        tags=tags,
        parents=relations.parents,
        tagger=tagger,
        tiles=tiles,
    )
    return _measured(thresholds, scores, truth, names) if relations.parents else thresholds


def _measured(
    thresholds: TagThresholds,
    scores: NDArray[np.floating],
    truth: NDArray[np.bool_],
    names: Sequence[str],
) -> TagThresholds:
    """Returns the thresholds with their precision and recall when ancestors are assigned too."""
    given = thresholds.given(scores, names)
    decisions = score_decisions(given, truth, names)
    lowest = lower_precision(decisions.precision, given.sum(axis=0), thresholds.confidence)
    tags = dict(thresholds.tags)
    for name, precision, recall, low in zip(
        names, decisions.precision.tolist(), decisions.recall.tolist(), lowest.tolist(), strict=True
    ):
        if tags[name].pictures:
            reached = low >= thresholds.min_precision and recall >= thresholds.min_recall
            measured = {"precision": precision, "recall": recall, "reached": reached}
            tags[name] = tags[name].model_copy(update=measured)
    return thresholds.model_copy(update={"tags": tags})
