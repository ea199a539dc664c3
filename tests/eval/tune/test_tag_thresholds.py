"""Thresholds learnt for all tags at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lmk.embed.tags.hierarchy import RelationGraph
from lmk.eval.tune.tag_thresholds import fit_thresholds

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "tags.json").read_text())["thresholds"]
SCORES, TRUTH = np.array(GOLDEN["scores"]), np.array(GOLDEN["truth"], np.bool_)


@pytest.mark.parametrize("target", GOLDEN["targets"])
def test_golden_thresholds(target: dict[str, float]) -> None:
    learnt = fit_thresholds(
        SCORES[:, None], TRUTH[:, None], ["a"],
        min_precision=target["precision"], min_recall=target["recall"],
    )  # fmt: skip
    one = learnt.tags["a"]
    assert one.value == target["threshold"]
    assert one.reached == target["feasible"]
    assert learnt.failed == (() if target["feasible"] else ("a",))


def test_a_tag_of_no_picture_keeps_the_default_and_is_named() -> None:
    scores = np.array([[0.9, 0.8], [0.2, 0.7]])
    truth = np.array([[True, False], [False, False]])
    learnt = fit_thresholds(scores, truth, ["one", "none"], tagger="x")
    assert learnt.tags["one"].model_dump() == {
        "value": 0.9, "pictures": 1, "precision": 1.0, "recall": 1.0, "reached": True,
    }  # fmt: skip
    assert learnt.unseen == ("none",)
    assert learnt.values(["none"]).item() == 0.5
    assert (learnt.failed, learnt.tagger) == ((), "x")


def test_a_tag_that_cannot_be_told_is_never_given() -> None:
    scores = np.array([[0.9], [0.2]])
    learnt = fit_thresholds(scores, np.array([[False], [True]]), ["a"])
    assert learnt.tags["a"].value is None
    assert not learnt.given(scores, ["a"]).any()
    assert learnt.failed == ("a",)


def test_relations_close_scores_and_truth() -> None:
    """The label "tree" is not written down, yet every forest is one."""
    names, relations = ["forest", "tree"], RelationGraph({"forest": ["tree"]})
    scores = np.array([[0.9, 0.1], [0.2, 0.6], [0.1, 0.3]])
    truth = np.array([[True, False], [False, True], [False, False]])
    learnt = fit_thresholds(scores, truth, names, relations=relations)
    assert (learnt.tags["tree"].pictures, learnt.tags["tree"].value) == (2, 0.6)
    assert learnt.given(scores, names).tolist() == [[True, True], [False, True], [False, False]]
    plain = fit_thresholds(scores, truth, names)
    assert plain.tags["tree"].pictures == 1


def test_a_parent_that_is_to_be_sure() -> None:
    """Ten of ten trees, six of them by being forests; six of six is too few for the child."""
    names, relations = ["forest", "tree"], RelationGraph({"forest": ["tree"]})
    scores = np.array([[0.9, 0.2]] * 6 + [[0.1, 0.8]] * 4 + [[0.0, 0.1]] * 10)
    truth = np.array([[True, True]] * 6 + [[False, True]] * 4 + [[False, False]] * 10)
    learnt = fit_thresholds(scores, truth, names, confidence=0.8, relations=relations)
    assert learnt.confidence == 0.8 and learnt.failed == learnt.unsure == ("forest",)
    assert learnt.tags["forest"].value == 0.9 and learnt.tags["tree"].reached
    both = fit_thresholds(scores, truth, names, relations=relations)
    assert both.failed == () and both.confidence is None


def test_what_a_parent_reaches_counts_what_its_children_bring_along() -> None:
    """By its own threshold "tree" is right 3 times of 5; forests add one right and two wrong."""
    names, relations = ["forest", "tree"], RelationGraph({"forest": ["tree"]})
    scores = np.array([[0.9, 0.0]] * 3 + [[0.5, 0.0]] * 3 + [[0.0, 0.95]] * 2)
    truth = np.repeat([[True, True, True, True, False, False, False, False]], 2, axis=0).T
    learnt = fit_thresholds(
        scores, truth, names, min_precision=0.6, min_recall=0.5, relations=relations
    )
    assert learnt.tags["forest"].model_dump() == {
        "value": 0.5, "pictures": 4, "precision": 4 / 6, "recall": 1.0, "reached": True,
    }  # fmt: skip
    assert learnt.tags["tree"].model_dump() == {
        "value": 0.9, "pictures": 4, "precision": 0.5, "recall": 1.0, "reached": False,
    }  # fmt: skip
    given = learnt.given(scores, names)
    assert given[:, 1].sum() == 8 and (given & truth)[:, 1].sum() == 4


def test_what_is_wrong_is_refused() -> None:
    with pytest.raises(ValueError, match="no picture has a true tag"):
        fit_thresholds(SCORES[:, None], np.zeros((6, 1), np.bool_), ["a"])
    with pytest.raises(ValueError, match="targets"):
        fit_thresholds(SCORES[:, None], TRUTH[:, None], ["a"], min_precision=2)
    with pytest.raises(ValueError, match="names"):
        fit_thresholds(SCORES[:, None], TRUTH[:, None], ["a", "b"])
