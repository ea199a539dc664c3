"""`lmk build-index --landmarks`, `lmk index set --landmarks`, and names in lists of landmarks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.index.gallery.gallery import Gallery

Run = Callable[..., object]
TABLE = """\
landmark_id,name,latitude,longitude,url
tower,Great Tower,48.8584,2.2945,https://example.org/tower
bridge,Bridge,,,
"""


@pytest.fixture
def table(here: Path) -> Path:
    (here / "landmarks.csv").write_text(TABLE)
    return here / "landmarks.csv"


def names(index: str = "sample.lmk") -> dict[str, str]:
    with Gallery.open(index) as gallery:
        return {one.landmark_id: one.name for one in gallery.all_details()}


def test_set_stores_the_details_and_replaces_them(lmk: Run, here: Path, table: Path) -> None:
    done = lmk("index", "set", "sample.lmk", "--landmarks", "landmarks.csv")
    assert (done.code, done.err) == (0, "")
    assert done.out == "sample.lmk: details of 2 of its 3 landmarks\n"
    assert names() == {"tower": "Great Tower", "bridge": "Bridge"}
    table.write_text("landmark_id,name\ncastle,Castle\n")
    done = lmk("index", "set", "sample.lmk", "--landmarks", "landmarks.csv", "--json")
    facts = {"landmarks": {"landmarks": 3, "described": 1, "unknown": []}}
    assert json.loads(done.out) == {"index": "sample.lmk"} | facts
    assert names() == {"castle": "Castle"}
    done = lmk("index", "set", "sample.lmk", "--landmarks", "none")
    assert done.out == "sample.lmk: details of 0 of its 3 landmarks\n"
    assert names() == {}


def test_unknown_landmarks_are_named_in_one_line(lmk: Run, here: Path, table: Path) -> None:
    table.write_text(TABLE + "".join(f"other{n},Other,,,\n" for n in range(12)))
    words = ("index", "set", "sample.lmk", "--landmarks", "landmarks.csv")
    done = lmk(*words)
    assert done.code == 0
    listed = ", ".join(f"other{n}" for n in range(10))
    assert done.err == (
        "lmk: landmarks.csv: 12 of its 14 landmarks are not in sample.lmk and were left out: "
        f"{listed} and 2 more\n"
    )
    done = lmk(*words, "--json")
    assert done.err == ""
    assert json.loads(done.out)["landmarks"]["unknown"] == [f"other{n}" for n in range(12)]
    table.write_text(TABLE + "x\x1b[31m,Other,,,\n")
    done = lmk(*words)
    assert r"1 of its 3 landmarks is not in sample.lmk and was left out: x\x1b[31m" in done.err


def test_a_table_of_other_landmarks_changes_nothing(lmk: Run, here: Path, table: Path) -> None:
    words = ("index", "set", "sample.lmk", "--landmarks", "landmarks.csv")
    assert lmk(*words).code == 0
    table.write_text("landmark_id,name\nTower,Tower\n")
    done = lmk(*words, "--kind", "exact")
    done.refused(2, "landmarks.csv", "'Tower'", "sample.lmk", "differs from others only in form")
    assert names() == {"tower": "Great Tower", "bridge": "Bridge"}
    with Gallery.open("sample.lmk") as gallery:
        assert gallery.setting("search") == {}
    table.write_text("landmark_id,name,url\ntower,Tower,ftp://x\n")
    lmk(*words).refused(2, "landmarks.csv, line 2", "no http or https address")
    lmk("index", "set", "sample.lmk", "--landmarks", "nothing.csv").refused(2, "no such file")
    lmk("index", "set", "sample.lmk", "--landmarks", "gallery").refused(2, "is a directory")
    lmk("index", "set", "sample.lmk").refused(2, "no setting is given", "--landmarks")


def test_a_search_and_names_are_set_in_one_call(lmk: Run, here: Path, table: Path) -> None:
    words = ("index", "set", "sample.lmk", "--landmarks", "landmarks.csv", "--kind", "exact")
    done = lmk(*words)
    assert done.out.splitlines()[1] == "sample.lmk: details of 2 of its 3 landmarks"
    assert "exact" in done.out.splitlines()[0]
    facts = json.loads(lmk(*words, "--json").out)
    assert list(facts) == ["index", "setting", "search", "retrieval", "landmarks"]


def test_several_files_complete_each_other(lmk: Run, here: Path, table: Path) -> None:
    (here / "more.csv").write_text("landmark_id,name,city\ncastle,Castle,Town\ntower,Other,Town\n")
    files = ("--landmarks", "landmarks.csv", "--landmarks", "more.csv")
    assert lmk("index", "set", "sample.lmk", *files).out.endswith("3 of its 3 landmarks\n")
    assert names() == {"tower": "Great Tower", "bridge": "Bridge", "castle": "Castle"}
    with Gallery.open("sample.lmk") as gallery:
        details = gallery.landmark_details("tower")
        assert details is not None and details.extra == (("city", "Town"),)


def test_a_build_takes_the_names(lmk: Run, here: Path, tiny: Path, table: Path) -> None:
    table.write_text(TABLE + "other,Other,,,\n")
    words = ("build-index", "gallery", "-o", "new.lmk", "--model", tiny)
    done = lmk(*words, "--landmarks", "landmarks.csv")
    assert done.code == 0
    line = "lmk: landmarks.csv: 1 of its 3 landmarks is not in gallery and was left out: other\n"
    assert line in done.err
    assert "largest Bridge (4), castle (4), Great Tower (tower) (4)" in done.out
    assert names("new.lmk") == {"tower": "Great Tower", "bridge": "Bridge"}
    facts = json.loads(lmk(*words, "--landmarks", "landmarks.csv", "--json").out)
    assert (facts["described"], facts["unknown_landmarks"]) == (2, ["other"])
    table.write_text("landmark_id,name\nx,X\n")
    lmk(*words, "--landmarks", "landmarks.csv").refused(2, "landmarks.csv", "'x'")
    assert names("new.lmk") == {"tower": "Great Tower", "bridge": "Bridge"}


def test_lists_show_the_names(lmk: Run, here: Path, table: Path) -> None:
    info = {line[:14].strip(): line[15:] for line in lmk("info", "sample.lmk").out.splitlines()}
    assert info["landmarks"] == "3"
    lmk("index", "set", "sample.lmk", "--landmarks", "landmarks.csv")
    done = lmk("index", "list", "sample.lmk")
    assert done.out == "4  Bridge\n4  castle\n4  Great Tower (tower)\n"
    lines = lmk("index", "list", "sample.lmk", "--json").out.splitlines()
    assert json.loads(lines[1]) == {"label": "castle", "pictures": 4}
    assert json.loads(lines[2])["details"]["name"] == "Great Tower"
    info = {line[:14].strip(): line[15:] for line in lmk("info", "sample.lmk").out.splitlines()}
    assert info["landmarks"] == "3 (details of 2)"
    assert json.loads(lmk("info", "sample.lmk", "--json").out)["landmark_details"] == 2


def test_contest_files_keep_the_ids(lmk: Run, here: Path, table: Path) -> None:
    words = ("submit", "queries", "-i", "sample.lmk", "-o")
    assert lmk(*words, "before.csv").code == 0
    lmk("index", "set", "sample.lmk", "--landmarks", "landmarks.csv")
    assert lmk(*words, "after.csv").code == 0
    after = (here / "after.csv").read_text()
    assert after == (here / "before.csv").read_text() and "tower" in after
