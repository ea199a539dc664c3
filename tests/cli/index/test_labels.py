"""Landmarks of pictures that an index holds: the same file under two, none, another, renamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.index.gallery.gallery import Gallery

Run = Callable[..., object]


def first_line(done: object) -> str:
    """The line that says what a change did; the line below it counts the landmarks."""
    return done.out.splitlines(keepends=True)[0]  # type: ignore[attr-defined,no-any-return]


def labels(index: str = "sample.lmk") -> dict[str, tuple[str, ...]]:
    """The labels of each picture by id, without distractors."""
    with Gallery.open(index) as gallery:
        return {p.id: p.labels for p in gallery.pictures(gallery.role_rows("gallery"))}


def landmarks(index: str = "sample.lmk") -> set[str]:
    return {name for own in labels(index).values() for name in own}


def copy_to(here: Path, source: str, *names: str) -> None:
    for name in names:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here / source, here / name)


# --- the same file under two landmarks ----------------------------------------------------------


@pytest.mark.parametrize("command", ["build", "add", "sync"])
def test_the_same_file_under_two_landmarks(lmk: Run, here: Path, tiny: Path, command: str) -> None:
    copy_to(here, "gallery/tower/0.jpg", "gallery/arch/a.jpg", "gallery/castle/t.jpg")
    words = {
        "build": ("build-index", "gallery", "-o", "sample.lmk", "--model", tiny),
        "add": ("index", "add", "sample.lmk", "gallery"),
        "sync": ("index", "sync", "sample.lmk", "gallery"),
    }[command]
    done = lmk(*words)
    assert done.code == 0
    told = [line for line in done.complaints if "under another landmark (" in line]
    assert len(told) == 2 and all("both are kept" in line for line in told)
    assert any("arch" in line for line in told) and any("castle" in line for line in told)
    assert "lmk: arch has no picture that is not also under another landmark" in done.complaints
    assert "lmk: 2 pictures under another landmark as well" in done.err
    held = labels()
    assert held["arch/a.jpg"] == ("arch",) and held["castle/t.jpg"] == ("castle",)
    assert held["tower/0.jpg"] == ("tower",) and len(held) == 14
    again = lmk("index", "sync", "sample.lmk", "gallery")
    assert "14 unchanged" in again.out and "another landmark" not in again.err


def test_of_many_conflicts_some_are_named(lmk: Run, here: Path) -> None:
    for n, file in enumerate(sorted((here / "gallery").rglob("*.jpg"))):
        copy_to(here, str(file), f"more/all/{n:02}.jpg")
    done = lmk("index", "add", "sample.lmk", "more")
    assert sum("both are kept" in line for line in done.complaints) == 10
    assert "lmk: 2 more are the same file under another landmark" in done.complaints
    sync = ("index", "sync", "sample.lmk", "gallery", "--allow-removals", "--json")
    facts = json.loads(lmk(*sync).out)
    assert facts["removed"] == 12 and facts["conflicts"] == []


def test_a_dry_run_of_sync_counts_as_the_sync_does(lmk: Run, here: Path) -> None:
    copy_to(here, "gallery/tower/0.jpg", "gallery/arch/a.jpg", "gallery/tower/copy.jpg")
    dry = lmk("index", "sync", "sample.lmk", "gallery", "--dry-run").out
    assert "add      arch/a.jpg\n" in dry and "copy" not in dry
    done = lmk("index", "sync", "sample.lmk", "gallery")
    assert (
        first_line(done).split(": ", 1)[1]
        == dry.splitlines()[-1].split("nothing is changed: ")[1] + "\n"
    )


# --- a landmark's own folder --------------------------------------------------------------------


@pytest.fixture
def taj(here: Path, paint: Callable[..., Path]) -> Path:
    """photos/taj mahal: five pictures, of one landmark."""
    for view in range(5):
        paint(here / "photos" / "taj mahal" / f"{view}.jpg", 7, view)
    return here / "photos" / "taj mahal"


def test_pictures_without_a_landmark_are_told_and_take_one_later(lmk: Run, taj: Path) -> None:
    done = lmk("index", "add", "sample.lmk", "photos/taj mahal")
    assert done.code == 0
    assert first_line(done) == "sample.lmk: 5 pictures added, 0 were there unchanged\n"
    (told,) = done.complaints
    assert "photos/taj mahal: no picture has a landmark" in told
    retry = "lmk index add sample.lmk 'photos/taj mahal' --label 'taj mahal'"
    assert told.endswith(retry)
    assert labels()["0"] == ()

    done = lmk("index", "add", "sample.lmk", "photos/taj mahal", "--label", "taj mahal")
    assert first_line(done) == (
        "sample.lmk: 0 pictures added, 5 with other landmarks, 0 were there unchanged\n"
    )
    assert done.complaints[0] == (
        "lmk: taj_mahal/0.jpg is taj_mahal now instead of no landmark, and was called 0"
    )
    held = labels()
    assert len(held) == 17 and held["taj_mahal/4.jpg"] == ("taj_mahal",) and "0" not in held
    for words in (("photos/taj mahal", "--label", "taj mahal"), ("photos",)):
        again = lmk("index", "add", "sample.lmk", *words)
        assert (first_line(again), again.err) == (
            "sample.lmk: 0 pictures added, 5 were there unchanged\n",
            "",
        )
    answer = json.loads(lmk("query", taj / "0.jpg", "-i", "sample.lmk", "--json").out)
    assert answer["best"] == "taj_mahal"


def test_the_folder_above_gives_the_landmark_too(lmk: Run, taj: Path) -> None:
    lmk("index", "add", "sample.lmk", "photos/taj mahal")
    done = lmk("index", "add", "sample.lmk", "photos")
    assert "5 with other landmarks" in done.out and len(labels()) == 17
    synced = lmk("index", "sync", "sample.lmk", "photos", "--allow-removals")
    assert "12 removed, 5 unchanged" in synced.out


def test_another_label_of_the_same_picture_replaces_the_old(lmk: Run, here: Path) -> None:
    (here / "new.csv").write_text(
        "id,path,landmark_id\ntower/0.jpg,gallery/tower/0.jpg,spire\n"
        "tower/1.jpg,gallery/tower/1.jpg,\n"
    )
    done = lmk("index", "add", "sample.lmk", "new.csv")
    assert first_line(done) == (
        "sample.lmk: 0 pictures added, 1 with other landmarks, 1 were there unchanged\n"
    )
    assert done.complaints == ["lmk: tower/0.jpg is spire now instead of tower"]
    assert (labels()["tower/0.jpg"], labels()["tower/1.jpg"]) == (("spire",), ("tower",))


def test_a_label_for_a_table_keeps_its_ids(lmk: Run, taj: Path) -> None:
    Path("t.csv").write_text("id,path\nx1,photos/taj mahal/0.jpg\n")
    assert lmk("index", "add", "sample.lmk", "t.csv", "--label", "Taj Mahal").code == 0
    assert labels()["x1"] == ("Taj_Mahal",)


def test_labels_that_are_none(lmk: Run, taj: Path) -> None:
    lmk("index", "add", "sample.lmk", taj, "--label", " ").refused(2, "--label", "empty")
    lmk("index", "add", "sample.lmk", taj, "--label", "x", "--distractors").refused(2, "--label")
    assert len(labels()) == 12


def test_a_sync_with_a_flat_folder_tells_that_nothing_has_a_landmark(lmk: Run, taj: Path) -> None:
    done = lmk("index", "sync", "sample.lmk", taj, "--allow-removals")
    assert "no picture has a landmark" in done.err


def test_query_says_that_no_picture_has_a_landmark_only_where_none_has(lmk: Run, taj: Path) -> None:
    ids = [id_ for id_, own in labels().items() if own]
    lmk("index", "relabel", "sample.lmk", *ids[1:], "--no-label")
    with Gallery.open("sample.lmk") as gallery:
        assert gallery.has_labels
    lmk("index", "relabel", "sample.lmk", ids[0], "--no-label")
    with Gallery.open("sample.lmk") as gallery:
        assert not gallery.has_labels
    assert "(no picture in the index has a landmark)" in lmk("query", taj / "0.jpg").out


# --- relabel -------------------------------------------------------------------------------------


def test_relabel_by_ids(lmk: Run, here: Path) -> None:
    done = lmk(
        "index", "relabel", "sample.lmk", "tower/0.jpg", "tower/1.jpg", "--label", "My Spire"
    )
    assert (done.code, done.err) == (0, "")
    assert done.out == "sample.lmk: 2 pictures with other landmarks, 0 had them already\n"
    assert labels()["tower/0.jpg"] == ("My_Spire",) == labels()["tower/1.jpg"]
    assert len(labels()) == 12
    again = lmk(
        "index", "relabel", "sample.lmk", "tower/0.jpg", "tower/1.jpg", "--label", "My Spire"
    )
    assert again.out == "sample.lmk: 0 pictures with other landmarks, 2 had them already\n"
    facts = json.loads(
        lmk(
            "index",
            "relabel",
            "sample.lmk",
            "tower/0.jpg",
            "--label",
            "a",
            "--label",
            "b",
            "--json",
        ).out
    )
    assert (facts["relabelled"], facts["unchanged"], facts["emptied"]) == (1, 0, [])
    assert labels()["tower/0.jpg"] == ("a", "b")
    assert lmk("index", "verify", "sample.lmk").code == 0


def test_relabel_by_a_table_removes_labels_too(lmk: Run, here: Path) -> None:
    rows = [f"tower/{n}.jpg,{'arch' if n else ''}" for n in range(4)]
    (here / "new.csv").write_text("\n".join(["id,landmark_id", *rows]) + "\n")
    done = lmk("index", "relabel", "sample.lmk", "--from", "new.csv")
    assert done.complaints == ["lmk: no picture is left of tower"]
    assert [labels()[f"tower/{n}.jpg"] for n in range(4)] == [(), ("arch",), ("arch",), ("arch",)]
    assert lmk("index", "compact", "sample.lmk").out == "sample.lmk: 4 rows freed, 18 left\n"
    assert labels()["tower/3.jpg"] == ("arch",)
    merged = lmk("index", "merge", "sample.lmk", "-o", "merged.lmk")
    assert merged.code == 0 and labels("merged.lmk") == labels()
    synced = lmk("index", "sync", "sample.lmk", "gallery")  # the folder has the last word
    assert "4 with other landmarks" in synced.out and landmarks() == {"bridge", "castle", "tower"}


def test_a_label_is_removed_from_all_of_its_pictures(lmk: Run, here: Path) -> None:
    lmk("index", "relabel", "sample.lmk", "bridge/0.jpg", "--label", "bridge", "--label", "tower")
    done = lmk("index", "relabel", "sample.lmk", "--remove-label", "tower")
    assert done.out == "sample.lmk: 5 pictures with other landmarks, 0 had them already\n"
    assert labels()["bridge/0.jpg"] == ("bridge",) and labels()["tower/0.jpg"] == ()
    again = lmk("index", "relabel", "sample.lmk", "--remove-label", "tower")
    assert again.code == 0 and again.out.startswith("sample.lmk: 0 pictures")
    lmk("index", "relabel", "sample.lmk", "--remove-label", "towr").refused(2, "'towr'")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "no new landmark is given"),
        (("tower/0.jpg",), 2, "--remove-label, --from"),
        (("--label", "x"), 2, "without ids"),
        (("tower/0.jpg", "--label", "x", "--no-label"), 2, "--label and --no-label"),
        (("tower/0.jpg", "--remove-label", "tower"), 2, "with ids"),
        (("tower/0.jpg", "nothing", "--label", "x"), 1, "nothing: no picture"),
        (("distractor:n0", "--label", "x"), 1, "is a distractor"),
        (("tower/0.jpg", "--label", " "), 2, "empty"),
        (("--from", "gallery.csv"), 2, "no column of landmarks"),
        (("--from", "gone.csv"), 2, "gone.csv"),
    ],
)
def test_wrong_calls_of_relabel_change_nothing(
    lmk: Run, here: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    (here / "gallery.csv").write_text("id,note\ntower/0.jpg,x\n")
    before = labels()
    lmk("index", "relabel", "sample.lmk", *words).refused(code, told)
    assert labels() == before


# --- rename-label --------------------------------------------------------------------------------


def test_a_landmark_is_renamed_once(lmk: Run, here: Path) -> None:
    done = lmk("index", "rename-label", "sample.lmk", "tower", "The Spire")
    assert (done.out, done.err) == ("sample.lmk: tower is The_Spire now (4 pictures)\n", "")
    assert landmarks() == {"bridge", "castle", "The_Spire"}
    again = lmk("index", "rename-label", "sample.lmk", "tower", "The Spire")
    assert (again.code, again.out) == (
        0,
        "sample.lmk: tower was renamed to The_Spire before; nothing is left to do\n",
    )
    assert json.loads(lmk("query", "queries/q_tower.jpg", "--json").out)["best"] == "The_Spire"
    lmk("index", "rename-label", "sample.lmk", "tower", "other").refused(2, "'tower'", "index list")
    lmk("index", "rename-label", "sample.lmk", "bridge", "bridge").refused(2, "bridge")
    lmk("index", "rename-label", "sample.lmk", "bridge", " ").refused(2, "empty")


def test_two_landmarks_are_joined(lmk: Run, here: Path) -> None:
    done = lmk("index", "rename-label", "sample.lmk", "tower", "castle", "--json")
    facts = json.loads(done.out)
    assert (facts["old"], facts["new"], facts["renamed"], facts["merged_into"]) == (
        "tower", "castle", 4, 4,
    )  # fmt: skip
    assert landmarks() == {"bridge", "castle"}
    text = lmk("index", "rename-label", "sample.lmk", "castle", "bridge").out
    assert text == "sample.lmk: 8 pictures of castle joined the 4 of bridge\n"
    synced = lmk("index", "sync", "sample.lmk", "gallery")
    assert "8 with other landmarks" in synced.out and len(landmarks()) == 3
