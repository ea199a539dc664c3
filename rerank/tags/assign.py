"""The tags that a picture is given: by its tagger, by a detector, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lmk.embed.tags.detector import Box
from lmk.embed.tags.hierarchy import RelationGraph
from lmk.rerank.answers import GivenTag
from lmk.rerank.tags.thresholds import TagThresholds

LEAST_BOX = 0.5  # score of a box that sets a tag


def assign_tags(
    scores: NDArray[np.floating],
    names: Sequence[str],
    thresholds: TagThresholds,
    boxes: Sequence[Sequence[Box]] | None = None,
    tag_of: Mapping[str, str] | None = None,
    *,
    least_box: float = LEAST_BOX,
) -> list[tuple[GivenTag, ...]]:
    """The tags of each picture, by falling score, then name.

    Args:
        scores: float [n, t] of a tagger.
        names: of the t tags.
        thresholds: and relations; of an ancestor that has no column the tag is given too.
        boxes: of each picture, by a detector.
        tag_of: the tag that a box of a class sets (detector.tag_of_class); other classes set none.
        least_box: score from which on a box counts.

    Raises:
        ValueError: shapes do not fit.
    """
    if scores.ndim != 2 or (boxes is not None and len(boxes) != len(scores)):
        raise ValueError(f"scores [n, t] and n lists of boxes are needed, got {scores.shape}")
    closed, values = thresholds.with_ancestors(scores, names), thresholds.values(names)
    result = []
    for i, (own, raised) in enumerate(zip(scores, closed, strict=True)):
        found = {
            names[t]: GivenTag(
                names[t], float(raised[t]), "tagger" if own[t] >= values[t] else "relation"
            )
            for t in np.flatnonzero(raised >= values).tolist()
        }
        best = dict(zip(names, raised.tolist(), strict=True))
        seen = () if boxes is None else boxes[i]
        for tag, score in detected_tags(seen, tag_of or {}, least_box).items():
            sure = tag in found and found[tag].source == "tagger"
            score = max(score, best.get(tag, 0.0))
            found[tag] = GivenTag(tag, score, "tagger" if sure else "detector")
        _add_ancestors(found, thresholds.relations, best)
        result.append(tuple(sorted(found.values(), key=lambda one: (-one.score, one.tag))))
    return result


def _add_ancestors(
    found: dict[str, GivenTag], relations: RelationGraph, best: Mapping[str, float]
) -> None:
    """Adds what follows from the tags there are; no score stays below what it follows from."""
    for one in list(found.values()):
        for parent in relations.ancestors(one.tag):
            before = found.get(parent)
            if before is None:
                score = max(one.score, best.get(parent, 0.0))
                found[parent] = GivenTag(parent, score, "relation")
            elif before.score < one.score:
                found[parent] = replace(before, score=one.score)


def detected_tags(
    boxes: Sequence[Box], tag_of: Mapping[str, str], least: float = LEAST_BOX
) -> dict[str, float]:
    """The tags that boxes of score `least` or more set, and the best box of each."""
    found: dict[str, float] = {}
    for box in boxes:
        tag = tag_of.get(box.label)
        if tag is not None and box.score >= least:
            found[tag] = max(box.score, found.get(tag, 0.0))
    return found
