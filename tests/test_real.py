"""The default as shipped, on real photos: what docs/results.md promises must hold."""

import csv
import json
import os
from pathlib import Path

import pytest

from lmk.cli.main import main

DATA = Path(os.environ.get("LMK_REAL_DATA", "no-real-photos")).resolve()

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (DATA / "gallery.csv").exists(),
        reason="no real photos: LMK_REAL_DATA names no folder with a gallery.csv",
    ),
]


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def write(path: Path, rows: list[dict[str, str]], columns: tuple[str, ...]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_default_recognises_real_landmarks_and_refuses_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(name: str) -> list[dict[str, str]]:
        with (DATA / name).open(newline="") as file:
            return list(csv.DictReader(file))

    distractors = read("distractors.csv")
    bank = [row for row in distractors if row["half"] == "bank"]
    asked = read("queries.csv") + [row for row in distractors if row["half"] == "query"]
    truth = [{"id": row["id"], "landmarks": row.get("landmark_id", "")} for row in asked]
    write(tmp_path / "bank.csv", bank, ("id", "path"))
    write(tmp_path / "asked.csv", asked, ("id", "path"))
    write(tmp_path / "truth.csv", truth, ("id", "landmarks"))
    index, submission = tmp_path / "g.lmk", tmp_path / "submission.csv"

    gallery = DATA / "gallery.csv"
    build = ("build-index", gallery, "--distractors", tmp_path / "bank.csv", "--root", DATA)
    assert run(*build, "-o", index) == 0
    assert run("submit", tmp_path / "asked.csv", "--root", DATA, "-i", index, "-o", submission) == 0
    capsys.readouterr()
    assert run("eval", "gap", submission, tmp_path / "truth.csv", "--json") == 0
    score = json.loads(capsys.readouterr().out)["all"]

    assert score["queries"] == 1818 and score["with_landmark"] == 633
    assert score["gap"] >= 0.88
    assert score["right"] / score["with_landmark"] >= 0.9


@pytest.mark.skipif(not (DATA / "tags.csv").exists(), reason="no tags.csv beside the gallery")
def test_the_tagger_knows_everyday_things(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (DATA / "tags.csv").open(newline="", encoding="utf-8-sig") as file:
        asked = [row for row in csv.DictReader(file) if row["split"] == "test"]
    write(tmp_path / "asked.csv", asked, ("id", "path", "tags"))
    found = tmp_path / "found.csv"
    assert run("tag", tmp_path / "asked.csv", "--root", DATA, "-o", found) == 0
    capsys.readouterr()
    assert run("eval", "tags", found, tmp_path / "asked.csv", "--json") == 0
    score = json.loads(capsys.readouterr().out)

    assert score["pictures"] == 1086 and score["macro_map"] >= 0.7
    assert score["given"]["micro"]["precision"] >= 0.85
