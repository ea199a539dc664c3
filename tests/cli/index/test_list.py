"""`lmk index list` and `lmk index info`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., object]


def test_landmarks_with_their_counts(lmk: Run, here: Path) -> None:
    done = lmk("index", "list", "sample.lmk")
    assert (done.code, done.err) == (0, "")
    assert done.out == "4  bridge\n4  castle\n4  tower\n"
    found = [
        json.loads(line) for line in lmk("index", "list", "sample.lmk", "--json").out.splitlines()
    ]
    assert found == [
        {"label": "bridge", "pictures": 4},
        {"label": "castle", "pictures": 4},
        {"label": "tower", "pictures": 4},
    ]
    assert lmk("index", "list", "sample.lmk", "--label", "tower").out == "4  tower\n"


def test_pictures_without_a_landmark_and_with_two(lmk: Run, here: Path, tiny: Path) -> None:
    rows = ["id,path,landmarks", "a,gallery/tower/0.jpg,tower", "b,gallery/tower/1.jpg,"]
    rows += ["c,gallery/bridge/0.jpg,bridge tower"]
    (here / "few.csv").write_text("\n".join(rows) + "\n")
    assert lmk("build-index", "few.csv", "--model", tiny).code == 0
    done = lmk("index", "list", "few.lmk")
    assert done.out == "1  bridge\n2  tower\n1  (no landmark)\n"
    found = lmk("index", "list", "few.lmk", "--json").out.splitlines()
    assert json.loads(found[-1]) == {"label": None, "pictures": 1}
    assert lmk("index", "list", "few.lmk", "--label", "bridge").out == "1  bridge\n"
    file = here / "gallery"
    assert lmk("index", "list", "few.lmk", "--pictures").out == (
        f"a\ttower\t{file}/tower/0.jpg\n"
        f"b\t(no landmark)\t{file}/tower/1.jpg\n"
        f"c\tbridge tower\t{file}/bridge/0.jpg\n"
    )


def test_pictures_and_distractors(lmk: Run, here: Path) -> None:
    done = lmk("index", "list", "sample.lmk", "--pictures")
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [line[0] for line in lines[:4]] == [f"bridge/{n}.jpg" for n in range(4)]
    assert [line[1] for line in lines] == ["bridge"] * 4 + ["castle"] * 4 + ["tower"] * 4 + [
        "(distractor)"
    ] * 6
    done = lmk("index", "list", "sample.lmk", "--pictures", "--json")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [each["row"] for each in found] == list(range(18))
    assert [each["role"] for each in found] == ["gallery"] * 12 + ["distractor"] * 6
    assert found[4]["id"] == "castle/0.jpg" and found[4]["labels"] == ["castle"]
    assert Path(found[4]["file"]).name == "0.jpg" and found[4]["size"] > 0
    only = lmk("index", "list", "sample.lmk", "--pictures", "--label", "castle", "--json").out
    assert [json.loads(line) for line in only.splitlines()] == found[4:8]


def test_a_label_nobody_has_and_a_folder_that_is_none(lmk: Run, here: Path) -> None:
    lmk("index", "list", "sample.lmk", "--label", "towr").refused(2, "'towr'", "lmk index list")
    lmk("index", "list", "gallery").refused(2, "gallery: this folder is no gallery")
    lmk("index", "list").refused(2, "Missing argument 'INDEX'", "lmk index list --help")


def test_index_info_is_info(lmk: Run, here: Path) -> None:
    for words in ((), ("--json",)):
        short, long = lmk("info", "sample.lmk", *words), lmk("index", "info", "sample.lmk", *words)
        assert short == long and short.code == 0
    facts = json.loads(lmk("index", "info", "sample.lmk", "--json").out)
    assert (facts["removed"], facts["precision"]) == (0, "f16")
    assert facts["cache_bytes"] > 0
    assert "exact" in facts["search"]
    lines = {line[:14].rstrip(): line[15:] for line in lmk("info", "sample.lmk").out.splitlines()}
    assert lines["search"] == facts["search"]
    assert lines["removed rows"] == "0"
    assert "of it cache" in lines["size"]
