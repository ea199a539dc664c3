"""`lmk calibrate`: of the index's own pictures, of photos, and what stays after changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmk.rerank.fit.calibration import ScoredAnswers, threshold_for
from lmk.rerank.recognizer import Recognizer

Run = Callable[..., object]


@pytest.fixture(autouse=True)
def no_copies(here: Path, lmk: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of one landmark, which are as alike as the frames of a burst, count as photos."""
    monkeypatch.setattr("lmk.rerank.fit.copies.ALIKE", 2.0)
    assert lmk("calibrate", "sample.lmk").code == 0


@pytest.fixture
def photos(here: Path, paint: Callable[..., Path]) -> Path:
    """photos.csv: four views of each landmark, of which one has a wrong label, twelve of none."""
    rows = ["id,path,landmark_id"]
    names = ("bridge", "castle", "tower")
    for seed, name in enumerate(names):
        for view in range(4):
            paint(here / "photos" / f"{name}{view}.jpg", seed, 50 + view)
            rows.append(f"{name}{view},photos/{name}{view}.jpg,{name if view else names[seed - 1]}")
    for n in range(12):
        paint(here / "photos" / f"none{n}.jpg", 3000 + n)
        rows.append(f"none{n},photos/none{n}.jpg,")
    (here / "photos.csv").write_text("\n".join(rows) + "\n")
    return here / "photos.csv"


def answer(lmk: Run, picture: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(lmk("query", picture, "--json").out)
    return found


def test_photos_teach_threshold_and_probability(lmk: Run, photos: Path) -> None:
    done = lmk("calibrate", "sample.lmk", "--data", "photos.csv", "--precision", "0.7", "--json")
    assert (done.code, done.err) == (0, "")
    facts = json.loads(done.out)
    assert (facts["answers"], facts["landmarks"], facts["data"]) == (24, 12, "photos.csv")
    with Recognizer.open("sample.lmk") as recognizer:
        rows = [row.split(",") for row in photos.read_text().splitlines()[1:]]
        predictions, _ = recognizer.query([Path(path) for _, path, _ in rows])
    right = np.array([a == b for a, (_, _, b) in zip(predictions.labels, rows, strict=True)])
    shown = np.array([bool(label) for _, _, label in rows])
    point = threshold_for(ScoredAnswers.of(predictions.confidence, right, shown), 0.7)
    assert facts["precision"] == pytest.approx(point.precision)
    assert facts["recall"] == pytest.approx(point.recall)
    assert facts["precision"] >= 0.7
    assert facts["threshold"] == pytest.approx(point.threshold, abs=1e-3)
    found = answer(lmk, "queries/q_castle.jpg")
    assert found["threshold"] == pytest.approx(facts["threshold"])
    assert 0.5 < found["probability"] <= 1
    assert 0 <= facts["held_out"]["precision"] <= 1


def test_what_photos_taught_stays_and_what_the_index_learns_comes_back(
    lmk: Run, photos: Path
) -> None:
    before = answer(lmk, "queries/q_castle.jpg")["threshold"]
    lmk("calibrate", "sample.lmk", "--data", "photos.csv", "--precision", "0.7")
    taught = answer(lmk, "queries/q_castle.jpg")
    assert taught["threshold"] != before
    assert lmk("index", "remove", "sample.lmk", "castle/3.jpg").code == 0
    kept = answer(lmk, "queries/q_castle.jpg")
    assert kept["threshold"] == taught["threshold"]
    assert lmk("index", "add", "sample.lmk", "gallery").code == 0  # the removed picture
    facts = json.loads(lmk("calibrate", "sample.lmk", "--json").out)
    assert facts["data"] is None
    assert (facts["answers"], facts["landmarks"]) == (12 + 12 + 6, 12)
    assert answer(lmk, "queries/q_castle.jpg")["threshold"] == pytest.approx(before)
    assert facts["threshold"] == pytest.approx(before)


def test_a_large_index_goes_on_from_what_it_keeps(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = json.loads(lmk("calibrate", "sample.lmk", "--json").out)
    monkeypatch.setattr("lmk.rerank.fit.fit.CHEAP", 0)  # as if learning anew took long
    for _ in range(2):  # the second time there are tables to go on from
        assert json.loads(lmk("calibrate", "sample.lmk", "--json").out) == facts


def test_the_lines_say_what_is_held_out(lmk: Run, photos: Path) -> None:
    done = lmk("calibrate", "sample.lmk", "--data", "photos.csv", "--method", "logistic")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == (
        "sample.lmk: calibrated on 24 answers to photos.csv, 12 of them to photos of its landmarks"
    )
    assert "(logistic, 5-fold cross-validation)" in lines[1]
    assert lines[2].startswith("threshold 0.")
    assert lines[3].startswith("by cross-validation: precision ")
    own = lmk("calibrate", "sample.lmk").out.splitlines()[0]
    assert own.startswith("sample.lmk: calibrated on 30 answers to its pictures and distractors")


def test_more_photos_without_a_landmark_are_foreseen(lmk: Run, photos: Path) -> None:
    calibrate = ("calibrate", "sample.lmk", "--data", "photos.csv", "--method", "logistic")
    assert lmk(*calibrate).code == 0
    surely = answer(lmk, "queries/q_castle.jpg")["probability"]
    assert lmk(*calibrate, "--share-none", "0.98").code == 0
    assert answer(lmk, "queries/q_castle.jpg")["probability"] < surely


def test_a_precision_out_of_reach_is_said_and_nothing_changes(lmk: Run, photos: Path) -> None:
    rows = [row.split(",") for row in photos.read_text().splitlines()]
    said = [
        json.loads(line)
        for line in lmk("query", *[r[1] for r in rows[1:]], "--json").out.split("\n")[:-1]
    ]
    surest = max(said, key=lambda each: each["confidence"])
    (row,) = (row for row in rows if row[1] == surest["query"])
    row[2] = "bridge" if surest["best"] == "castle" else "castle"
    photos.write_text("\n".join(map(",".join, rows)) + "\n")
    before = answer(lmk, "queries/q_castle.jpg")
    done = lmk("calibrate", "sample.lmk", "--data", "photos.csv", "--precision", "1")
    done.refused(1, "no threshold reaches precision 1", "the best is 0.", "nothing is changed")
    assert answer(lmk, "queries/q_castle.jpg") == before


def test_too_little_to_learn_from_is_refused(lmk: Run, photos: Path) -> None:
    rows = photos.read_text().splitlines()
    photos.write_text("\n".join(rows[:1] + rows[-12:]) + "\n")
    lmk("calibrate", "sample.lmk", "--data", "photos.csv").refused(2, "0 right and 12 wrong")
    photos.write_text("\n".join(rows[:-11]) + "\n")  # held out, nothing is left
    alone = ("calibrate", "sample.lmk", "--data", "photos.csv", "--no-distractors")
    lmk(*alone).refused(2, "at least 2", "photos.csv")
    for words in (("--precision", "0"), ("--share-none", "1"), ("--method", "guess")):
        lmk("calibrate", "sample.lmk", *words).refused(2, words[0])


@pytest.fixture
def landmarks_only(photos: Path) -> Path:
    """photos.csv without the photos of no landmark."""
    photos.write_text("\n".join(photos.read_text().splitlines()[:-12]) + "\n")
    return photos


def test_distractors_stand_in_for_photos_without_a_landmark(lmk: Run, landmarks_only: Path) -> None:
    done = lmk("calibrate", "sample.lmk", "--data", "photos.csv", "--json")
    assert (done.code, done.err) == (0, "")
    facts = json.loads(done.out)
    assert (facts["answers"], facts["landmarks"]) == (12 + 6, 12)
    assert facts["without_landmark"] == {"photos": 0, "distractors": 6}
    none = [f"queries/q_none{n}.jpg" for n in range(6)]
    said = [json.loads(line) for line in lmk("query", *none, "--json").out.splitlines()]
    assert sum(each["label"] is None for each in said) >= 5
    lines = lmk("calibrate", "sample.lmk", "--data", "photos.csv").out.splitlines()
    assert lines[0].startswith("sample.lmk: calibrated on 12 answers to photos.csv, 12 of them")
    assert lines[-1] == (
        "photos without a landmark: 0 of photos.csv, and 6 distractors of sample.lmk"
    )


def test_a_few_photos_without_a_landmark_are_helped_by_distractors(lmk: Run, photos: Path) -> None:
    rows = photos.read_text().splitlines()
    for without, distractors in ((12, 0), (9, 6)):
        photos.write_text("\n".join(rows[: 13 + without]) + "\n")
        facts = json.loads(lmk("calibrate", "sample.lmk", "--data", "photos.csv", "--json").out)
        assert facts["without_landmark"] == {"photos": without, "distractors": distractors}
    own = json.loads(lmk("calibrate", "sample.lmk", "--json").out)
    assert own["without_landmark"] is None


def test_distractors_can_be_left_out(lmk: Run, landmarks_only: Path) -> None:
    alone = ("calibrate", "sample.lmk", "--data", "photos.csv", "--no-distractors")
    lmk(*alone).refused(2, "without a landmark", "precision")
    done = lmk(*alone, "--precision", "0.5", "--json")
    assert done.code == 0
    assert "photos.csv: every photo shows a landmark" in done.err
    assert json.loads(done.out)["without_landmark"] == {"photos": 0, "distractors": 0}
    lmk("calibrate", "sample.lmk", "--no-distractors").refused(2, "--no-distractors")


def test_an_index_without_distractors_says_so(lmk: Run, landmarks_only: Path, tiny: Path) -> None:
    assert lmk("build-index", "gallery", "-o", "bare.lmk", "--model", str(tiny)).code == 0
    data = ("calibrate", "bare.lmk", "--data", "photos.csv")
    done = lmk(*data, "--precision", "0.5")
    assert done.code == 0
    assert "every photo shows a landmark" in done.err and "has no distractors" in done.err


def test_the_way_back_is_open_where_nothing_can_be_judged(
    lmk: Run, photos: Path, tiny: Path
) -> None:
    """An index of one landmark without distractors learns no threshold by itself."""
    (photos.parent / "one").mkdir()
    (photos.parent / "gallery" / "tower").rename(photos.parent / "one" / "tower")
    assert lmk("build-index", "one", "-o", "one.lmk", "--model", str(tiny)).code == 0
    ask = ("query", "queries/q_castle.jpg", "-i", "one.lmk", "--json")
    taught = lmk("calibrate", "one.lmk", "--data", "photos.csv", "--json")
    assert taught.code == 0
    assert "8 photos of landmarks that the index does not hold" in taught.err
    assert json.loads(lmk(*ask).out)["threshold"] is not None
    lmk("calibrate", "one.lmk", "--precision", "0.9").refused(2, "0 wrong answers", "one.lmk")
    facts = json.loads(lmk("calibrate", "one.lmk", "--json").out)
    assert facts["threshold"] is facts["held_out"] is facts["calibration_error"] is None
    found = json.loads(lmk(*ask).out)
    assert found["threshold"] is found["probability"] is None
    line = lmk("calibrate", "one.lmk").out
    assert line.startswith("one.lmk: automatic calibration; no threshold; quality not measured: ")
