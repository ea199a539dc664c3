"""Assignment of tags to pictures by a tagger, by a detector, and by the relations of tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lmk.embed.tags.detector import Box
from lmk.embed.tags.hierarchy import RelationGraph
from lmk.rerank.answers import GivenTag
from lmk.rerank.tags.thresholds import TagThresholds

LEAST_BOX = 0.5  # lowest score of a box that assigns a tag


def assign_tags(
    scores: NDArray[np.floating],
    names: Sequence[str],
    thresholds: TagThresholds,
    boxes: Sequence[Sequence[Box]] | None = None,
    tag_of: Mapping[str, str] | None = None,
    *,
    least_box: float = LEAST_BOX,
) -> list[tuple[GivenTag, ...]]:
    """Returns the assigned tags of each picture, by descending score, then by name.

    Args:
        scores: float [n, t], the scores of a tagger.
        names: the names of the t tags.
        thresholds: the thresholds and relations. An ancestor outside `names` is assigned too.
        boxes: the boxes of a detector for each picture.
        tag_of: the tag of each class of boxes (detector.tag_of_class). Other classes have no tag.
        least_box: the lowest score of a box that assigns a tag.

    Raises:
        ValueError: the shapes of `scores` and `boxes` are inconsistent.
    """
    if scores.ndim != 2 or (boxes is not None and len(boxes) != len(scores)):
        raise ValueError(f"scores [n, t] and n lists of boxes are needed, got {scores.shape}")
    closed, values = thresholds.with_ancestors(scores, names), thresholds.values(names)
    result = []
    for i, (own, raised) in enumerate(zip(scores, closed, strict=True)):
        assigned = {
            names[t]: GivenTag(
                names[t], float(raised[t]), "tagger" if own[t] >= values[t] else "relation"
            )
            for t in np.flatnonzero(raised >= values).tolist()
        }
        best = dict(zip(names, raised.tolist(), strict=True))
        seen = () if boxes is None else boxes[i]
        for tag, score in detected_tags(seen, tag_of or {}, least_box).items():
            sure = tag in assigned and assigned[tag].source == "tagger"
            score = max(score, best.get(tag, 0.0))
            assigned[tag] = GivenTag(tag, score, "tagger" if sure else "detector")
        _add_ancestors(assigned, thresholds.relations, best)
        result.append(tuple(sorted(assigned.values(), key=lambda one: (-one.score, one.tag))))
    return result


def _add_ancestors(
    assigned: dict[str, GivenTag], relations: RelationGraph, best: Mapping[str, float]
) -> None:
    """Adds the ancestors of tags, and raises each score to at least that of its descendants."""
    for one in list(assigned.values()):
        for parent in relations.ancestors(one.tag):
            before = assigned.get(parent)
            if before is None:
                score = max(one.score, best.get(parent, 0.0))
                assigned[parent] = GivenTag(parent, score, "relation")
            elif before.score < one.score:
                assigned[parent] = replace(before, score=one.score)


def detected_tags(
    boxes: Sequence[Box], tag_of: Mapping[str, str], least: float = LEAST_BOX
) -> dict[str, float]:
    """Returns the best score of each tag among the boxes with a score of at least `least`."""
    assigned: dict[str, float] = {}
    for box in boxes:
        tag = tag_of.get(box.label)
        if tag is not None and box.score >= least:
            assigned[tag] = max(box.score, assigned.get(tag, 0.0))
    return assigned
