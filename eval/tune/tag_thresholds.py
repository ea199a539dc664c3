"""Thresholds of tags, chosen on validation pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lmk.embed.tags.hierarchy import RelationGraph
from lmk.eval.scores.tags import (
    PrecisionRecallCurve,
    _check,
    _support,
    _sure,
    precision_recall,
    score_decisions,
)
from lmk.rerank.tags.thresholds import TagThreshold, TagThresholds, close_given


@dataclass(frozen=True)
class Threshold:
    """The threshold chosen for a tag.

    Attributes:
        value: the threshold; None where no threshold reaches the wanted precision.
        precision, recall: there; both 0 where there is none.
        feasible: the wanted recall is reached too, and the precision with the wanted confidence.
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
    """Of the thresholds that reach a precision, the one of largest recall.

    Choose on pictures kept apart for it, not on those that are scored. Of equal recalls the higher
    threshold is taken.

    Args:
        curve: of `precision_recall`.
        min_precision: wanted precision, 0 to 1.
        min_recall: wanted recall, 0 to 1; below it the choice is marked infeasible.
        confidence: with which the precision is to hold on other pictures, .5 to 1 without either;
            None takes the precision on these pictures for it, which of few pictures is luck. Where
            no threshold is so sure and has the recall, the choice is the one without confidence,
            marked infeasible.

    Raises:
        ValueError: a target or the confidence out of range.
    """
    if confidence is not None and not 0.5 < confidence < 1:
        raise ValueError(f"the confidence must be between .5 and 1, got {confidence}")
    if not (0 <= min_precision <= 1 and 0 <= min_recall <= 1):
        raise ValueError(f"targets must be 0 to 1, got {min_precision} and {min_recall}")
    sure = _largest_recall(curve, curve.sure_precision(confidence) >= min_precision, min_recall)
    if sure.feasible or confidence is None:
        return sure
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
    """A threshold for each tag by `choose_threshold`, and which tags do not reach what is wanted.

    A tag that no picture has keeps the default; one that no threshold brings to the precision is
    never given by its score. Precision and recall are those of what the thresholds give together:
    a tag over its threshold brings along what follows from it.

    Args:
        scores: float [n, t].
        truth: bool [n, t].
        names: the t tags.
        min_precision, min_recall: wanted of each tag.
        confidence: see choose_threshold.
        relations: by which scores and truth are closed first, or the recall of a parent that was
            not written down would be measured wrong.
        tagger, tiles: see TagThresholds.

    Raises:
        ValueError: shapes or dtypes, NaN, another number of names, no true tag at all, a target
            outside 0 to 1.
    """
    relations = relations or RelationGraph({})
    _check(scores, truth)
    scores = relations.close_scores(scores, names)
    truth = close_given(truth, names, relations)
    found = {}
    for tag, pictures in enumerate(_support(scores, truth, names).tolist()):
        if not pictures:
            found[names[tag]] = TagThreshold(value=TagThresholds().default, pictures=0)
            continue
        curve = precision_recall(scores[:, tag], truth[:, tag])
        best = choose_threshold(curve, min_precision, min_recall, confidence)
        found[names[tag]] = TagThreshold(
            value=best.value,
            pictures=pictures,
            precision=best.precision,
            recall=best.recall,
            reached=best.feasible,
        )
    learnt = TagThresholds(
        min_precision=min_precision,
        min_recall=min_recall,
        confidence=confidence,
        tags=found,
        parents=relations.parents,
        tagger=tagger,
        tiles=tiles,
    )
    return _together(learnt, scores, truth, names) if relations.parents else learnt


def _together(
    learnt: TagThresholds,
    scores: NDArray[np.floating],
    truth: NDArray[np.bool_],
    names: Sequence[str],
) -> TagThresholds:
    """The same thresholds, with what they reach where tags bring others along."""
    given = learnt.given(scores, names)
    scored = score_decisions(given, truth, names)
    sure = _sure(scored.precision, given.sum(axis=0), learnt.confidence)
    tags = dict(learnt.tags)
    for name, precision, recall, low in zip(
        names, scored.precision.tolist(), scored.recall.tolist(), sure.tolist(), strict=True
    ):
        if tags[name].pictures:
            reached = low >= learnt.min_precision and recall >= learnt.min_recall
            found = {"precision": precision, "recall": recall, "reached": reached}
            tags[name] = tags[name].model_copy(update=found)
    return learnt.model_copy(update={"tags": tags})
