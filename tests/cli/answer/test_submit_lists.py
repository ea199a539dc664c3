"""Retrieval lists: their steps come from the index or from a file, and are refused when wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.index.gallery.gallery import Gallery
from lmk.rerank.lists.retrieval import Retrieval, saved_retrieval

Run = Callable[..., object]
LISTS = ("submit", "queries", "-i", "sample.lmk", "-o", "s.csv", "--task", "retrieval")
TWO = {"steps": [{"step": "dba", "n": 2}], "k": 2}


def lists(path: Path) -> dict[str, list[str]]:
    with path.open(newline="") as file:
        return {id_: cell.split() for id_, cell in list(csv.reader(file))[1:]}


def test_a_list_begins_with_the_landmark_and_is_plain_without_steps(lmk: Run, here: Path) -> None:
    assert lmk(*LISTS).code == 0
    labelled = lists(here / "s.csv")
    assert lmk(*LISTS, "--retrieval-steps", "none").code == 0
    plain = lists(here / "s.csv")
    assert labelled.keys() == plain.keys()
    moved = 0
    for query, found in labelled.items():
        assert sorted(found) == sorted(plain[query]), "the index is smaller than a list"
        landmarks = [id_.partition("/")[0] for id_ in found]
        assert len(set(landmarks[:4])) == 1, "the four pictures of the landmark come first"
        moved += found != plain[query]
    assert moved, "photos of no landmark have mixed neighbours"


def test_an_index_keeps_its_steps_until_the_default_comes_back(lmk: Run, here: Path) -> None:
    (here / "steps.json").write_text(json.dumps(TWO))
    done = lmk("index", "set", "sample.lmk", "--retrieval-steps", "steps.json", "--json")
    assert json.loads(done.out)["retrieval"] == Retrieval.model_validate(TWO).model_dump(
        mode="json"
    )
    assert "dba (n 2" in lmk("info", "sample.lmk").out
    assert lmk(*LISTS).code == 0
    kept = lists(here / "s.csv")
    assert {len(found) for found in kept.values()} == {2}
    assert lmk(*LISTS, "--retrieval-steps", "default").code == 0
    assert {len(found) for found in lists(here / "s.csv").values()} == {12}
    assert lmk(*LISTS, "--retrieval-steps", "steps.json").code == 0
    assert lists(here / "s.csv") == kept
    assert lmk("index", "set", "sample.lmk", "--retrieval-steps", "default").code == 0
    with Gallery.open("sample.lmk") as gallery:
        assert saved_retrieval(gallery) == Retrieval()
        assert gallery.setting("retrieval") is None
        assert gallery.setting("search") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["steps.json: cannot be read", "none or default"]),
        ("{", ["is no JSON"]),
        ("[]", ["steps.json", "must be like"]),
        ('{"steps": [{"step": "shuffle"}]}', ["steps.0", "shuffle"]),
        ('{"steps": [{"step": "expand", "m": 3}]}', ["steps.0.expand.m", "not permitted"]),
        ('{"steps": [{"step": "sort_by_label"}, {"step": "expand"}]}', ["in this order"]),
        ('{"k": 101}', ["lists of 101", "set its k to 100"]),
    ],
)
def test_steps_that_cannot_be(lmk: Run, here: Path, text: str | None, words: list[str]) -> None:
    if text is not None:
        (here / "steps.json").write_text(text)
    lmk(*LISTS, "--retrieval-steps", "steps.json").refused(2, *words)
    assert not (here / "s.csv").exists()


def test_steps_of_lists_are_not_for_recognition(lmk: Run, here: Path) -> None:
    recognition = ("submit", "queries", "-o", "s.csv", "--retrieval-steps", "none")
    lmk(*recognition).refused(2, "--task retrieval")
