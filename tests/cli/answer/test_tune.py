"""`lmk tune`: what it compares, what it refuses, what it saves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmk.eval.tune.grid import choose, name_of
from lmk.eval.tune.scores import PLAIN
from lmk.index.gallery.writer import GalleryWriter
from lmk.rerank.steps.pipeline import Pipeline

Run = Callable[..., object]
GRID = [[{"step": "rescale"}], [None, {"step": "penalty"}], [{"step": "vote", "k": 3}]]
NAMES = ("gap", "accuracy", "contest_gap")


@pytest.fixture
def photos(here: Path, paint: Callable[..., Path]) -> Path:
    """photos.csv: three views of each landmark and six photos of none; grid.json."""
    rows = ["id,path,landmark_id"]
    for seed, name in enumerate(("bridge", "castle", "tower")):
        for view in range(3):
            paint(here / "photos" / f"{name}{view}.jpg", seed, 50 + view)
            rows.append(f"{name}{view},photos/{name}{view}.jpg,{name}")
    for n in range(6):
        paint(here / "photos" / f"none{n}.jpg", 3000 + n)
        rows.append(f"none{n},photos/none{n}.jpg,")
    (here / "photos.csv").write_text("\n".join(rows) + "\n")
    (here / "grid.json").write_text(json.dumps(GRID))
    return here / "photos.csv"


TUNE = ("tune", "sample.lmk", "--data", "photos.csv", "--grid", "grid.json", "--folds", "3")


def test_the_saved_the_plain_and_the_grids_pipelines_are_compared(lmk: Run, photos: Path) -> None:
    done = lmk(*TUNE, "--json")
    assert (done.code, done.err) == (0, "")
    facts = json.loads(done.out)
    assert (facts["photos"], facts["folds"], facts["applied"]) == (15, 3, False)
    assert [each["name"] for each in facts["pipelines"]] == [
        name_of(Pipeline()),
        name_of(PLAIN),
        "rescale, vote k=3",
        "rescale, penalty, vote k=3",
    ]
    for each in facts["pipelines"]:
        folds = each["gap_of_folds"]
        assert each["gap"] == pytest.approx(np.mean(folds))
        assert each["gap_sd"] == pytest.approx(np.std(folds, ddof=1))
    assert facts["saved"]["gap"] == facts["pipelines"][0]["gap"]
    assert facts["plain"]["gap"] == facts["pipelines"][1]["gap"]
    scores = np.array([each["gap_of_folds"] for each in facts["pipelines"]])
    best = facts["pipelines"][choose(scores, current=0).best]
    assert {name: facts["best"][name] for name in ("name", "gap")} == {
        name: best[name] for name in ("name", "gap")
    }
    assert len(facts["choices"]) == 3
    for name in NAMES:
        assert 0 <= facts["tuned"][name] <= 1


def test_the_scores_are_those_of_submit_and_eval(lmk: Run, photos: Path) -> None:
    """On all photos; tune's are means over folds, so --test is what can be compared."""
    rows = photos.read_text().splitlines()
    (photos.parent / "half.csv").write_text("\n".join(r for r in rows if "0," not in r) + "\n")
    held = [row for row in rows[1:] if "0," in row]
    (photos.parent / "rest.csv").write_text("\n".join([rows[0], *held]) + "\n")
    tune = ("tune", "sample.lmk", "--data", "half.csv", "--grid", "grid.json", "--folds", "2")
    tested = json.loads(lmk(*tune, "--test", "rest.csv", "--json").out)["test"]
    assert tested["photos"] == len(held) == 4
    assert lmk("submit", "rest.csv", "-i", "sample.lmk", "-o", "s.csv").code == 0
    lines = ["id,landmarks", *(",".join(row.split(",")[::2]) for row in held)]
    (photos.parent / "truth.csv").write_text("\n".join(lines) + "\n")
    scores = json.loads(lmk("eval", "gap", "s.csv", "truth.csv", "--json").out)["all"]
    assert {name: tested["saved"][name] for name in NAMES} == pytest.approx(
        {name: scores[name] for name in NAMES}
    )


def test_the_table_has_the_unbiased_line(lmk: Run, photos: Path) -> None:
    done = lmk(*TUNE)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "15 photos, mean over 3 folds (seed 0), sd of GAP over them"
    assert lines[1].split() == ["GAP", "sd", "acc@1", "GAP", "at", "98", "%", "without"]
    firsts = ["nearest picture alone", "the index's steps", "tuned (", "the best ("]
    for line, first in zip(lines[2:6], firsts, strict=True):
        assert line.startswith(first)
    assert lines[7].startswith("the best: ")


def test_the_text_has_the_test_and_what_was_saved(lmk: Run, photos: Path) -> None:
    rows = photos.read_text().splitlines()
    (photos.parent / "rest.csv").write_text("\n".join(r for r in rows if "1" not in r) + "\n")
    (photos.parent / "some.csv").write_text(
        "\n".join([rows[0], *(row for row in rows if "1" in row)]) + "\n"
    )
    tune = ("tune", "sample.lmk", "--data", "rest.csv", "--grid", "grid.json", "--folds", "2")
    done = lmk(*tune, "--test", "some.csv", "--apply")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    place = lines.index("4 photos of --test")
    assert lines[place + 1].split() == ["GAP", "acc@1", "GAP", "at", "98", "%", "without"]
    firsts = [line.partition("  ")[0] for line in lines[place + 2 : place + 5]]
    assert firsts == ["nearest picture alone", "the index's steps", "the best"]
    assert lines[-1].startswith("sample.lmk: the best steps are saved; threshold 0.")


def test_the_best_steps_are_saved_when_asked_for(lmk: Run, photos: Path) -> None:
    only = [[{"step": "vote", "k": 2, "power": 1.0}]]
    grid = photos.parent / "grid.json"
    grid.write_text(json.dumps(only))
    before = json.loads(lmk("info", "sample.lmk", "--json").out)["steps"]
    facts = json.loads(lmk(*TUNE, "--json").out)
    assert json.loads(lmk("info", "sample.lmk", "--json").out)["steps"] == before
    applied = json.loads(lmk(*TUNE, "--apply", "--json").out)
    assert applied["best"] == facts["best"]
    steps = json.loads(lmk("info", "sample.lmk", "--json").out)["steps"]
    chosen = next(
        each["steps"] for each in facts["pipelines"] if each["name"] == facts["best"]["name"]
    )
    assert [step for step in steps if step["step"] != "threshold"] == chosen
    assert [s["value"] for s in steps if s["step"] == "threshold"] == [applied["threshold"]]


def test_photos_that_the_index_knows_are_refused(lmk: Run, photos: Path) -> None:
    here = photos.parent
    shutil.copy(here / "gallery" / "tower" / "1.jpg", here / "photos" / "tower0.jpg")
    lmk(*TUNE).refused(2, "1 of 15 photos", "are pictures of the index", "tower0.jpg")
    shutil.copy(here / "bank" / "n3.jpg", here / "photos" / "tower0.jpg")
    lmk(*TUNE).refused(2, "distractors", "tower0")


def test_photos_of_unknown_landmarks_only_are_refused(lmk: Run, photos: Path) -> None:
    photos.write_text(photos.read_text().replace(",bridge", ",Bridge").replace(",t", ",T"))
    done = lmk(*TUNE)
    assert (
        "6 photos of landmarks that the index does not hold, such as Bridge: they are always"
        in done.err
    )
    photos.write_text(photos.read_text().replace(",castle", ",Castle"))
    lmk(*TUNE).refused(2, "9 photos", "such as Bridge", "lmk index list sample.lmk")


def test_copies_are_said_and_counted_once(lmk: Run, photos: Path) -> None:
    rows = photos.read_text().splitlines()
    again = [f"again_{row}" for row in rows[1:] if row.startswith("bridge")]
    photos.write_text("\n".join([*rows, *again]) + "\n")
    done = lmk(*TUNE, "--json")
    assert done.code == 0
    assert "3 photos of 18 are copies of others" in done.err
    assert json.loads(done.out)["photos"] == 18
    done = lmk(*TUNE, "--folds", "10")
    assert done.code == 2
    assert "only 9 of 15 photos show a landmark" in done.err


def test_nothing_readable_is_said(lmk: Run, photos: Path) -> None:
    (photos.parent / "gone.csv").write_text("id,path,landmark_id\na,gone.jpg,tower\n")
    for command in (TUNE, ("calibrate", "sample.lmk")):
        done = lmk(*command, "--data", "gone.csv")
        assert (done.code, done.out) == (2, "")
        assert done.complaints[-1].startswith("lmk: gone.csv: no photo can be read")


def test_paths_start_where_root_says(lmk: Run, photos: Path) -> None:
    (photos.parent / "elsewhere").mkdir()
    photos.rename(photos.parent / "elsewhere" / "photos.csv")
    tune = (*TUNE[:3], "elsewhere/photos.csv", *TUNE[4:])
    assert lmk(*tune).code == 2
    assert lmk(*tune, "--root", ".").code == 0
    calibrate = ("calibrate", "sample.lmk", "--root", ".")
    assert lmk(*calibrate, "--data", "elsewhere/photos.csv").code == 0
    lmk(*calibrate).refused(2, "--root is for --data")


def test_an_index_in_use_is_said_before_the_work(lmk: Run, photos: Path) -> None:
    with GalleryWriter("sample.lmk"):
        lmk(*TUNE, "--apply").refused(1, "sample.lmk", "is writing to it")
        lmk("calibrate", "sample.lmk", "--data", "photos.csv").refused(1, "is writing to it")
        assert lmk(*TUNE).code == 0  # which changes nothing


def test_a_test_on_the_same_photos_is_refused(lmk: Run, photos: Path) -> None:
    lmk(*TUNE, "--test", "photos.csv").refused(2, "15 of 15 test photos", "too high")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--folds", "10"), ("--folds 10", "only 9 of 15 photos show a landmark")),
        (("--grid", "none.json"), ("none.json", "no such file")),
        (("--geometry",), ("--geometry", "grid.json")),
        (("--data", "queries"), ("queries", "no photo shows a landmark")),
        (("--folds", "1"), ("--folds",)),
    ],
)
def test_wrong_calls_are_refused(
    lmk: Run, photos: Path, words: tuple[str, ...], said: tuple[str, ...]
) -> None:
    lmk(*TUNE, *words).refused(2, *said)


def test_what_is_odd_is_said(lmk: Run, photos: Path) -> None:
    here = photos.parent
    rows = photos.read_text().splitlines()[:10]
    (here / "photos" / "bridge1.jpg").write_bytes(b"no picture")
    photos.write_text("\n".join([*rows[:-1], "t,photos/tower2.jpg,lighthouse"]) + "\n")
    done = lmk(*TUNE, "--json")
    assert done.code == 0
    assert any("skipped photos/bridge1.jpg" in line for line in done.complaints)
    assert any("1 photo of landmarks that the index does not hold" in c for c in done.complaints)
    assert any("every photo shows a landmark" in line for line in done.complaints)
    facts = json.loads(done.out)
    assert facts["photos"] == 8
    assert facts["tuned"]["contest_gap"] is None
