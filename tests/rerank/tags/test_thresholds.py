"""Thresholds of tags: what they give, their file, whose they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lmk.embed.errors import GalleryError, ModelError
from lmk.embed.tags.hierarchy import RelationGraph
from lmk.rerank.tags.thresholds import (
    TagThreshold,
    TagThresholds,
    check_tagger,
    load_thresholds,
    save_thresholds,
)

NAMES = ("forest", "tree", "plant", "sea")


def thresholds(values: dict[str, float | None], **options: object) -> TagThresholds:
    tags = {
        name: TagThreshold(value=value, pictures=3, precision=0.9, recall=0.5)
        for name, value in values.items()
    }
    return TagThresholds(tags=tags, **options)  # type: ignore[arg-type]


def test_a_score_at_the_threshold_gives_the_tag() -> None:
    rules = thresholds({"forest": 0.3, "tree": 0.7, "plant": None})
    got = rules.given(np.array([[0.3, 0.69, 1.0, 0.5], [0.29, 0.7, 0.9, 0.49]]), NAMES)
    assert got.tolist() == [[True, False, False, True], [False, True, False, False]]
    assert rules.values(NAMES).tolist() == [0.3, 0.7, np.inf, 0.5]


def test_what_follows_is_raised_and_given() -> None:
    parents = {"forest": ("tree",), "tree": ("plant",)}
    rules = thresholds({"forest": 0.2, "tree": 0.5, "plant": None}, parents=parents)
    scores = np.array([[0.3, 0.1, 0.0, 0.1], [0.1, 0.6, 0.0, 0.9], [0.1, 0.2, 0.9, 0.1]])
    got = rules.given(scores, NAMES)
    # plant is never given by its own score, and follows from a tree all the same
    assert got.tolist() == [
        [True, True, True, False], [False, True, True, True], [False] * 4,
    ]  # fmt: skip
    assert rules.with_ancestors(scores, NAMES)[0].tolist() == [0.3, 0.3, 0.3, 0.1]


def test_float32_scores_meet_thresholds_that_were_learnt_of_them() -> None:
    score = np.float32(0.1)
    rules = thresholds({"sea": float(score)})
    assert rules.given(np.array([[score]]), ["sea"]).item()


@given(st.integers(0, 10**6))
def test_closing_never_takes_away_and_twice_is_as_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = {
        NAMES[i]: tuple(NAMES[j] for j in range(i + 1, 4) if rng.random() < 0.5) for i in range(4)
    }
    plain = thresholds(dict(zip(NAMES, rng.random(4).round(1).tolist(), strict=True)))
    closed = plain.with_relations(RelationGraph(edges))
    scores = rng.random((6, 4)).round(1)
    before, after = plain.given(scores, NAMES), closed.given(scores, NAMES)
    assert (after >= before).all()
    for row in after:
        own = [name for name, yes in zip(NAMES, row, strict=True) if yes]
        assert set(closed.relations.close(own)) == set(own)


def test_the_file_keeps_every_digit(tmp_path: Path) -> None:
    rules = thresholds({"sea": 1 / 3}, parents={"sea": ("water",)}, tagger="x", tiles=True)
    save_thresholds(rules, tmp_path / "t.json")
    again = load_thresholds(tmp_path / "t.json")
    assert again is not None
    assert again.model_dump() == rules.model_dump()
    assert again.relations.ancestors("sea") == ("water",)
    assert load_thresholds(tmp_path / "none.json") is None
    for text in ("{", '{"parents": {"a": ["b"], "b": ["a"]}}', '{"other": 1}'):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(ModelError, match="no file of thresholds"):
            load_thresholds(tmp_path / "t.json")


def test_names_in_another_unicode_form(tmp_path: Path) -> None:
    saved = thresholds({"cafe\u0301": 0.9}, parents={"cafe\u0301": ("place",)})
    save_thresholds(saved, tmp_path / "t.json")
    found = load_thresholds(tmp_path / "t.json")
    assert found is not None
    assert found.values(["caf\xe9"]).item() == 0.9
    assert found.relations.ancestors("caf\xe9") == ("place",)


def test_those_of_another_tagger_are_refused() -> None:
    check_tagger(thresholds({}), "mine", Path("here"))
    check_tagger(thresholds({}, tagger="mine"), "mine", Path("here"))
    with pytest.raises(GalleryError, match="tag-thresholds"):
        check_tagger(thresholds({}, tagger="other"), "mine", Path("here"))


def test_failed_and_unseen() -> None:
    tags = {
        "sea": TagThreshold(value=0.2, pictures=4, precision=1, recall=0.9, reached=True),
        "tree": TagThreshold(value=None, pictures=4, precision=0, recall=0),
        "plant": TagThreshold(value=0.5, pictures=0),
    }
    rules = TagThresholds(tags=tags)
    assert (rules.failed, rules.unseen) == (("tree",), ("plant",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": 0.5, "pictures": 3},
        {"value": 0.5, "pictures": 0, "precision": 1.0, "recall": 1.0},
        {"value": None, "pictures": 3, "precision": 0.5, "recall": 0.0, "reached": True},
        {"value": float("nan"), "pictures": 0},
    ],
)
def test_thresholds_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        TagThreshold(**wrong)  # type: ignore[arg-type]
