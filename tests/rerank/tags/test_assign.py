"""The tags given: by whom, with which score, in which order."""

from __future__ import annotations

import numpy as np
import pytest

from lmk.embed.tags.detector import Box
from lmk.rerank.answers import GivenTag
from lmk.rerank.tags.assign import assign_tags, detected_tags
from lmk.rerank.tags.thresholds import TagThreshold, TagThresholds

NAMES = ("car", "cat", "vehicle")
CORNERS = (0.0, 0.0, 1.0, 1.0)


def box(label: str, score: float) -> Box:
    return Box(label, score, CORNERS)


def test_by_score_then_name() -> None:
    (got,) = assign_tags(np.array([[0.6, 0.6, 0.9]]), NAMES, TagThresholds())
    assert [(one.tag, one.score, one.source) for one in got] == [
        ("vehicle", 0.9, "tagger"), ("car", 0.6, "tagger"), ("cat", 0.6, "tagger"),
    ]  # fmt: skip
    assert assign_tags(np.array([[0.1, 0.2, 0.3]]), NAMES, TagThresholds()) == [()]
    assert assign_tags(np.zeros((0, 3)), NAMES, TagThresholds()) == []


def test_relations_raise_parents_and_reach_tags_without_a_column() -> None:
    rules = TagThresholds(parents={"car": ("vehicle",), "vehicle": ("thing",)})
    (got,) = assign_tags(np.array([[0.7, 0.1, 0.6]]), NAMES, rules)
    assert got == (
        GivenTag("car", 0.7, "tagger"),
        GivenTag("thing", 0.7, "relation"),
        GivenTag("vehicle", 0.7, "tagger"),
    )


def test_a_parent_passes_by_a_child_that_does_not_pass_itself() -> None:
    own = TagThreshold(value=0.8, pictures=1, precision=1, recall=1)
    rules = TagThresholds(tags={"car": own}, parents={"car": ("vehicle",)})
    (got,) = assign_tags(np.array([[0.6, 0.1, 0.1]]), NAMES, rules)
    assert got == (GivenTag("vehicle", 0.6, "relation"),)


def test_a_parent_below_its_own_threshold_keeps_its_higher_score() -> None:
    own = TagThreshold(value=0.8, pictures=1, precision=1, recall=1)
    rules = TagThresholds(tags={"vehicle": own}, parents={"car": ("vehicle",)})
    (got,) = assign_tags(np.array([[0.6, 0.1, 0.7]]), NAMES, rules)
    assert got == (GivenTag("vehicle", 0.7, "relation"), GivenTag("car", 0.6, "tagger"))


def test_boxes_set_their_tags_whatever_the_tagger_says() -> None:
    rules = TagThresholds(parents={"car": ("vehicle",)})
    boxes = [[box("auto", 0.5), box("auto", 0.8), box("dog", 0.9)], [box("auto", 0.49)]]
    first, second = assign_tags(
        np.array([[0.2, 0.7, 0.1], [0.3, 0.1, 0.1]]), NAMES, rules, boxes, {"auto": "car"}
    )
    assert first == (
        GivenTag("car", 0.8, "detector"),
        GivenTag("vehicle", 0.8, "relation"),
        GivenTag("cat", 0.7, "tagger"),
    )
    assert second == ()


def test_a_box_beside_the_tagger_and_of_a_new_tag() -> None:
    (got,) = assign_tags(
        np.array([[0.9, 0.0, 0.0]]), NAMES, TagThresholds(), [[box("a", 0.6), box("b", 0.7)]],
        {"a": "car", "b": "bench"},
    )  # fmt: skip
    assert got == (GivenTag("car", 0.9, "tagger"), GivenTag("bench", 0.7, "detector"))
    assert detected_tags([box("b", 0.7)], {"b": "bench"}, 0.8) == {}


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="lists of boxes"):
        assign_tags(np.zeros((2, 3)), NAMES, TagThresholds(), [[]])
    with pytest.raises(ValueError, match="names"):
        assign_tags(np.zeros((2, 2)), NAMES, TagThresholds())
