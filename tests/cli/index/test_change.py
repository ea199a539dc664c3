"""`lmk index add|remove|sync|merge|compact`: what they say, and what the index then holds."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter

Run = Callable[..., object]
Paint = Callable[..., Path]
FOUNTAIN = 7  # the seed of its pictures


def first_line(done: object) -> str:
    """The line that says what a change did; the line below it counts the landmarks."""
    return done.out.splitlines(keepends=True)[0]  # type: ignore[attr-defined,no-any-return]


def ids(index: str = "sample.lmk") -> list[str]:
    """The ids of the index, without distractors, in row order."""
    with Gallery.open(index) as gallery:
        return gallery.ids(gallery.role_rows("gallery"))


def rows(lmk: Run, index: str = "sample.lmk") -> dict[str, int]:
    """The row of each picture, as `lmk index list` shows it."""
    lines = lmk("index", "list", index, "--pictures", "--json").out.splitlines()
    return {json.loads(line)["id"]: json.loads(line)["row"] for line in lines}


def best(lmk: Run, query: Path | str, index: str = "sample.lmk") -> str | None:
    done = lmk("query", query, "-i", index, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)["best"]


@pytest.fixture
def more(here: Path, paint: Paint) -> Path:
    """more/: three pictures of a landmark that the index does not know."""
    for view in range(3):
        paint(here / "more" / "fountain" / f"{view}.jpg", FOUNTAIN, view)
    return here / "more"


# --- add ---------------------------------------------------------------------------------------


def test_added_pictures_answer(lmk: Run, here: Path, more: Path, paint: Paint) -> None:
    query = paint(here / "q_fountain.jpg", FOUNTAIN, 99)
    assert best(lmk, query) != "fountain"
    done = lmk("index", "add", "sample.lmk", "more")
    assert (done.code, done.err) == (0, "")
    assert first_line(done) == "sample.lmk: 3 pictures added, 0 were there unchanged\n"
    assert best(lmk, query) == "fountain"
    again = lmk("index", "add", "sample.lmk", "more")
    assert first_line(again) == "sample.lmk: 0 pictures added, 3 were there unchanged\n"
    assert ids()[-3:] == [f"fountain/{n}.jpg" for n in range(3)]


def test_add_json(lmk: Run, here: Path, more: Path) -> None:
    (more / "fountain" / "broken.jpg").write_bytes(b"no picture")
    facts = json.loads(lmk("index", "add", "sample.lmk", "more", "--json").out)
    assert (facts["index"], facts["added"], facts["unchanged"]) == ("sample.lmk", 3, 0)
    assert [skip["path"] for skip in facts["skipped"]] == ["fountain/broken.jpg"]
    assert "skipped        fountain/broken.jpg: " in lmk("info", "sample.lmk").out


def test_a_copy_is_left_out_and_named_unless_asked_for(lmk: Run, here: Path) -> None:
    (here / "copies" / "tower").mkdir(parents=True)
    shutil.copy(here / "gallery" / "tower" / "0.jpg", here / "copies" / "tower" / "copy.jpg")
    done = lmk("index", "add", "sample.lmk", "copies")
    assert first_line(done) == "sample.lmk: 0 pictures added, 0 were there unchanged\n"
    assert done.complaints == ["lmk: left out tower/copy.jpg: the same file as tower/0.jpg"]
    assert "tower/copy.jpg" not in ids()
    done = lmk("index", "add", "sample.lmk", "copies", "--duplicates")
    assert (first_line(done), done.err) == (
        "sample.lmk: 1 picture added, 0 were there unchanged\n",
        "",
    )
    assert ids()[-1] == "tower/copy.jpg"


def test_of_many_copies_some_are_named(lmk: Run, here: Path) -> None:
    for n, file in enumerate(sorted((here / "gallery").rglob("*.jpg"))):
        (here / "copies" / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, here / "copies" / file.parent.name / f"c{n:02}.jpg")
    done = lmk("index", "add", "sample.lmk", "copies")
    assert len(done.complaints) == 11
    assert done.complaints[9] == "lmk: left out tower/c09.jpg: the same file as tower/1.jpg"
    assert done.complaints[10] == "lmk: left out 2 more (--duplicates takes them)"


def test_distractors_can_be_added(lmk: Run, here: Path, paint: Paint) -> None:
    paint(here / "junk" / "a.jpg", 555)
    done = lmk("index", "add", "sample.lmk", "junk", "--distractors")
    assert done.out == "sample.lmk: 1 distractor added, 0 were there unchanged\n"
    facts = json.loads(lmk("info", "sample.lmk", "--json").out)
    assert (facts["pictures"], facts["distractors"]) == (12, 7)


def test_a_changed_picture_is_not_added(lmk: Run, here: Path, paint: Paint) -> None:
    paint(here / "other" / "tower" / "0.jpg", 99)
    lmk("index", "add", "sample.lmk", "other").refused(1, "tower/0.jpg")
    assert len(ids()) == 12


# --- remove and compact ------------------------------------------------------------------------


def test_removed_pictures_are_found_no_more_and_no_row_shifts(lmk: Run, here: Path) -> None:
    before = rows(lmk)
    assert best(lmk, "queries/q_tower.jpg") == "tower"
    done = lmk("index", "remove", "sample.lmk", "bridge/1.jpg", "--label", "tower")
    assert (done.code, done.out, done.err) == (0, "sample.lmk: 5 pictures removed\n", "")
    after = rows(lmk)
    gone = {"bridge/1.jpg", *(f"tower/{n}.jpg" for n in range(4))}
    assert after == {id_: row for id_, row in before.items() if id_ not in gone}
    assert best(lmk, "queries/q_tower.jpg") in ("bridge", "castle")
    assert lmk("index", "list", "sample.lmk").out == "3  bridge\n4  castle\n"
    facts = json.loads(lmk("info", "sample.lmk", "--json").out)
    assert (facts["pictures"], facts["landmarks"], facts["removed"]) == (7, 2, 5)
    assert "removed rows   5 (`lmk index compact` frees them)" in lmk("info", "sample.lmk").out


def test_compact_frees_the_rows_and_answers_the_same(lmk: Run, here: Path) -> None:
    lmk("index", "remove", "sample.lmk", "--label", "bridge")
    before = json.loads(lmk("query", "queries/q_tower.jpg", "--json").out)
    done = lmk("index", "compact", "sample.lmk")
    assert (done.code, done.out, done.err) == (0, "sample.lmk: 4 rows freed, 14 left\n", "")
    assert json.loads(lmk("query", "queries/q_tower.jpg", "--json").out) == before
    assert sorted(rows(lmk).values()) == list(range(14))
    facts = json.loads(lmk("index", "compact", "sample.lmk", "--json").out)
    assert facts["index"] == "sample.lmk" and facts["removed"] == 0


@pytest.mark.parametrize("by", ["file", "stdin"])
def test_ids_come_from_a_file(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    text = "\ufefftower/0.jpg\r\n\r\n  tower/1.jpg\ntower/0.jpg\n"
    (here / "ids.txt").write_bytes(text.encode())
    stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    done = lmk("index", "remove", "sample.lmk", "--from", "ids.txt" if by == "file" else "-")
    assert (done.out, done.err) == ("sample.lmk: 2 pictures removed\n", "")
    facts = lmk("index", "remove", "sample.lmk", "tower/2.jpg", "--json")
    facts = json.loads(facts.out)
    assert -1 < facts.pop("threshold") < 1
    assert facts == {"index": "sample.lmk", "removed": 1, "earlier": []}
    assert set(ids()) == {f"{n}/{i}.jpg" for n in ("bridge", "castle") for i in range(4)} | {
        "tower/3.jpg"
    }


@pytest.mark.parametrize(
    ("words", "code", "complaints"),
    [
        (
            "tower/0.jpg tower/9.jpg",
            1,
            ["tower/9.jpg", "`lmk index list sample.lmk --pictures` shows the ids"],
        ),
        ("tower/0.jpg --label towr", 2, ["'towr'", "lmk index list"]),
        ("", 2, ["no picture is named", "--label or --from"]),
        ("--from nowhere.txt", 2, ["nowhere.txt: cannot be read: no such file"]),
        ("--from gallery", 2, ["'--from'", "'gallery' is a directory"]),
        ("--from queries/q_tower.jpg", 2, ["q_tower.jpg: is not text in UTF-8"]),
        ("tower/0.jpg --wait soon", 2, ["'--wait'", "'soon' is not a valid float"]),
        ("tower/0.jpg --wait -1", 2, ["'--wait'", "-1.0 is not in the range"]),
    ],
)
def test_nothing_is_removed_by_a_wrong_call(
    lmk: Run, here: Path, words: str, code: int, complaints: list[str]
) -> None:
    lmk("index", "remove", "sample.lmk", *words.split()).refused(code, *complaints)
    assert len(ids()) == 12


# --- sync --------------------------------------------------------------------------------------


@pytest.fixture
def changed(here: Path, paint: Paint) -> Path:
    """gallery/ with one picture new, one changed, one moved, one touched and one gone."""
    folder = here / "gallery"
    paint(folder / "fountain" / "0.jpg", FOUNTAIN)
    paint(folder / "tower" / "0.jpg", 2, 50)
    (folder / "castle" / "1.jpg").rename(folder / "castle" / "moved.jpg")
    os.utime(folder / "bridge" / "0.jpg")
    (folder / "bridge" / "3.jpg").unlink()
    return folder


def test_sync_makes_the_index_hold_what_the_folder_holds(
    lmk: Run, here: Path, changed: Path
) -> None:
    before = ids()
    dry = lmk("index", "sync", "sample.lmk", "gallery", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert ids() == before
    facts = json.loads(lmk("index", "sync", "sample.lmk", "gallery", "--json").out)
    foreseen = json.loads(dry.out)
    assert (foreseen.pop("dry_run"), facts.pop("dry_run")) == (True, False)
    counts = {name: facts[name] for name in ("added", "changed", "removed", "unchanged")}
    assert counts == {name: foreseen[name] for name in counts}
    held = {path.relative_to(changed).as_posix() for path in changed.rglob("*.jpg")}
    assert set(ids()) == held
    again = lmk("index", "sync", "sample.lmk", "gallery")
    assert first_line(again) == (
        "sample.lmk: 0 added, 0 changed, 0 moved, 0 with other landmarks, 0 removed, 12 unchanged\n"
    )
    assert json.loads(lmk("info", "sample.lmk", "--json").out)["distractors"] == 6


def test_sync_says_what_it_did(lmk: Run, here: Path) -> None:
    shutil.rmtree(here / "gallery" / "tower")
    (here / "gallery" / "castle" / "0.jpg").rename(here / "gallery" / "bridge" / "x.jpg")
    counts = "0 added, 0 changed, 1 moved, 0 with other landmarks, {} removed, 7 unchanged\n"
    dry = lmk("index", "sync", "sample.lmk", "gallery", "--dry-run")
    assert dry.code == 0 and len(dry.complaints) == 1
    assert "all of tower among them: the sync will stop unless --allow-removals" in dry.err
    *verbs, last = dry.out.splitlines(keepends=True)
    assert last.startswith("sample.lmk: dry run, nothing is changed: 0 added, ")
    assert "move     bridge/x.jpg\n" in verbs
    assert [f"remove   tower/{n}.jpg\n" in verbs for n in range(4)] == [True] * 4
    before = ids()
    lmk("index", "sync", "sample.lmk", "gallery").refused(
        1, "sample.lmk: would lose", "landmark tower", "nothing was changed", "--allow-removals"
    )
    assert ids() == before
    done = lmk("index", "sync", "sample.lmk", "gallery", "--allow-removals")
    assert (done.code, done.err) == (0, "")
    assert first_line(done) == last.replace("dry run, nothing is changed: ", "")
    assert first_line(done).removeprefix("sample.lmk: ") in [counts.format(n) for n in (4, 5)]


def test_sync_keeps_what_it_cannot_look_at(lmk: Run, here: Path) -> None:
    shutil.rmtree(here / "gallery" / "tower")
    (here / "gallery" / "tower").symlink_to("/mnt/nowhere/tower")
    (here / "gallery" / "bridge" / "0.jpg").write_bytes(b"")
    before = ids()
    done = lmk("index", "sync", "sample.lmk", "gallery")
    assert first_line(done) == (
        "sample.lmk: 0 added, 0 changed, 0 moved, 0 with other landmarks, 0 removed, 12 unchanged, "
        "5 of them kept though they could not be looked at\n"
    )
    assert sorted(done.complaints) == [
        "lmk: if these pictures are gone for good, `lmk index remove` removes them",
        "lmk: kept 1 picture of bridge/0.jpg: empty file (0 bytes)",
        "lmk: kept 4 pictures of tower: a link that leads nowhere",
    ]
    assert ids() == before
    facts = json.loads(lmk("index", "sync", "sample.lmk", "gallery", "--json").out)
    tower = {"path": "tower", "reason": "a link that leads nowhere", "pictures": 4}
    assert tower in facts["kept"] and (facts["removed"], facts["asks"]) == (0, False)


def test_sync_with_another_network(lmk: Run, here: Path, make_embedder) -> None:
    call = ("index", "sync", "sample.lmk", "gallery", "--model", str(make_embedder(5)))
    before = ids()
    lmk(*call).refused(2, "has 6 distractors", "--distractors")
    call += ("--distractors", "bank")
    dry = lmk(*call, "--dry-run")
    assert f"sample.lmk: {call[5]} would embed 18 pictures anew\n" in dry.out
    done = lmk(*call)
    assert (done.code, done.err) == (0, "")
    rebuilt = f"12 pictures and 6 distractors embedded anew by {call[5]} (18 newly computed)"
    assert first_line(done) == f"sample.lmk: {rebuilt}\n"
    assert ids() == before
    assert json.loads(lmk(*call, "--json").out)["unchanged"] == 18
    again = lmk(*call)
    assert "uses " in again.err and "only changes are embedded" in again.err


def test_sync_of_distractors(lmk: Run, here: Path, paint: Paint) -> None:
    (here / "bank" / "n0.jpg").unlink()
    paint(here / "bank" / "new.jpg", 4000)
    done = lmk("index", "sync", "sample.lmk", "gallery", "--distractors", "bank")
    assert first_line(done) == (
        "sample.lmk: 1 added, 0 changed, 0 moved, 0 with other landmarks, 1 removed, 17 unchanged\n"
    )


# --- merge and shards --------------------------------------------------------------------------


def test_shards_joined_are_the_index_built_at_once(lmk: Run, here: Path, tiny: Path) -> None:
    build = ("build-index", "gallery", "--distractors", "bank", "--model", tiny)
    for n in (1, 2, 3):
        done = lmk(*build, "--shard", f"{n}/3")
        assert (done.code, done.err) == (0, ""), done.err
        assert done.out.startswith(f"gallery.{n}of3.lmk: ")
    shards = [f"gallery.{n}of3.lmk" for n in (1, 2, 3)]
    assert sorted(id_ for shard in shards for id_ in ids(shard)) == sorted(ids())
    done = lmk("index", "merge", *shards, "-o", "all.lmk")
    assert (done.code, done.err) == (0, "")
    assert done.out == "all.lmk: 12 pictures and 6 distractors of 3 indexes\n"
    assert sorted(ids("all.lmk")) == sorted(ids())
    twice = ("index", "merge", "sample.lmk", shards[0], "-o", "twice.lmk", "--no-whiten")
    facts = json.loads(lmk(*twice, "--json").out)
    assert (facts["pictures"], facts["distractors"]) == (12, 6)
    assert facts["repeated"] == len(rows(lmk, shards[0])) > 0
    said = f"of 2 indexes ({facts['repeated']} in several of them)\n"
    assert lmk(*twice).out == f"twice.lmk: 12 pictures and 6 distractors {said}"
    for query in ("queries/q_tower.jpg", "queries/q_none1.jpg"):
        one, other = (
            json.loads(lmk("query", query, "-i", index, "--json").out)
            for index in ("sample.lmk", "all.lmk")
        )
        assert one["label"] == other["label"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-3)
        assert one["threshold"] == pytest.approx(other["threshold"], abs=1e-3)


@pytest.mark.parametrize(
    ("words", "code", "complaints"),
    [
        ("sample.lmk", 2, ["Missing option '-o'", "lmk index merge --help"]),
        ("-o new.lmk", 2, ["Missing argument 'INDEX...'"]),
        ("sample.lmk nowhere -o new.lmk", 2, ["nowhere: there is no such folder"]),
        ("sample.lmk gallery -o new.lmk", 2, ["gallery: this folder is no gallery"]),
        ("sample.lmk -o gallery", 2, ["gallery: the folder holds something else"]),
        ("sample.lmk strange.lmk -o new.lmk", 1, ["strange.lmk", "embedder"]),
        ("sample.lmk clash.lmk -o new.lmk", 1, ["tower/0.jpg", "sample.lmk", "clash.lmk"]),
    ],
)
def test_what_cannot_be_merged(
    lmk: Run,
    here: Path,
    tiny: Path,
    make_embedder: Callable[[int], Path],
    paint: Paint,
    words: str,
    code: int,
    complaints: list[str],
) -> None:
    if "strange" in words:
        model = make_embedder(1)
        assert lmk("build-index", "gallery", "-o", "strange.lmk", "--model", model).code == 0
    if "clash" in words:
        paint(here / "clash" / "tower" / "0.jpg", 99)
        assert lmk("build-index", "clash", "--model", tiny).code == 0
    lmk("index", "merge", *words.split()).refused(code, *complaints)
    with pytest.raises(Exception, match=r"new\.lmk"), Gallery.open("new.lmk"):
        pass


# --- all of them -------------------------------------------------------------------------------

CHANGES = {
    "add": ("add", "sample.lmk", "more"),
    "remove": ("remove", "sample.lmk", "tower/0.jpg"),
    "sync": ("sync", "sample.lmk", "more", "--allow-removals"),
    "compact": ("compact", "sample.lmk"),
    "repair": ("repair", "sample.lmk"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_second_writer_is_told_of_the_first(lmk: Run, here: Path, more: Path, name: str) -> None:
    with GalleryWriter(here / "sample.lmk"):
        lmk("index", *CHANGES[name]).refused(1, "sample.lmk", f"process {os.getpid()} is writing")
        lmk("index", *CHANGES[name], "--wait", "0.05").refused(1, f"process {os.getpid()}")
    assert lmk("index", *CHANGES[name]).code == 0


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("index", ["nowhere", "gallery", "solution.csv"])
def test_what_is_no_index(lmk: Run, here: Path, more: Path, name: str, index: str) -> None:
    before = sorted(here.rglob("*"))
    words = [index if word == "sample.lmk" else word for word in CHANGES[name]]
    lmk("index", *words).refused(2, index)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("name", CHANGES)
def test_ctrl_c_changes_nothing(
    lmk: Run, here: Path, more: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = rows(lmk)
    with monkeypatch.context() as patch:
        patch.setattr(GalleryWriter, "commit", interrupt)
        patch.setattr(GalleryWriter, "__enter__", interrupt)
        lmk("index", *CHANGES[name]).refused(130, "stopped")
    assert rows(lmk) == before


@pytest.mark.parametrize("name", ["add", "sync"])
@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        ("nowhere", ["nowhere: no such folder or file"]),
        ("sample.lmk", ["sample.lmk"]),
        ("solution.csv", ["solution.csv"]),
        ("queries/q_tower.jpg", ["is one picture"]),
    ],
)
def test_pictures_that_are_none(
    lmk: Run, here: Path, name: str, pictures: str, words: list[str]
) -> None:
    lmk("index", name, "sample.lmk", pictures).refused(2, *words)
    assert len(ids()) == 12
