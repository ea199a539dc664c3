"""Names, coordinates and links of landmarks in what `lmk query` prints and writes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmk.cli.landmark_names import coordinates_text, map_url, shown_name
from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter

Run = Callable[..., object]
HOSTILE = 'Tower <script>alert("1")</script>\x1b[31m\u202e'
TOWER = LandmarkDetails(
    "tower", HOSTILE, 48.8584, -2.25, "https://example.org/?a=1&b='", "Tall & <b>old</b>"
)
ASKED = ("query", "queries/q_tower.jpg")


def describe(*details: LandmarkDetails) -> None:
    with GalleryWriter("sample.lmk") as writer:
        writer.set_landmarks(details)
        writer.commit()


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str | None] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(page)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "a":
            assert dict(attrs)["rel"] == "noopener noreferrer nofollow"
            self.links.append(dict(attrs)["href"])

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize(
    ("label", "name", "text"),
    [
        ("6347", "Eiffel Tower", "Eiffel Tower (6347)"),
        ("eiffel_tower", "Eiffel Tower", "Eiffel Tower"),
        ("Café_noir", "CAFÉ NOIR", "CAFÉ NOIR"),
        ("tower", "Eiffel Tower", "Eiffel Tower (tower)"),
    ],
)
def test_a_label_that_says_the_same_is_left_out(label: str, name: str, text: str) -> None:
    assert shown_name(label, LandmarkDetails(label, name)) == text
    assert shown_name(label, None) == label


@pytest.mark.parametrize(
    ("latitude", "longitude", "text"),
    [
        (48.8584, 2.2945, "48.8584, 2.2945"),
        (-90.0, 180.0, "-90, 180"),
        (0.0, -0.00000001, "0, 0"),
        (12.3456789, 1e-05, "12.345679, 0.00001"),
    ],
)
def test_coordinates(latitude: float, longitude: float, text: str) -> None:
    details = LandmarkDetails("a", "A", latitude, longitude)
    assert coordinates_text(details) == text
    place = text.replace(", ", "/")
    address = str(map_url(details))
    assert address.startswith("https://www.openstreetmap.org/?mlat=")
    assert address.endswith(f"#map=16/{place}")
    assert map_url(LandmarkDetails("a", "A")) is coordinates_text(LandmarkDetails("a", "A")) is None


def test_text_has_the_name_and_the_place(lmk: Run, here: Path) -> None:
    before = lmk(*ASKED).out.splitlines()
    describe(TOWER, LandmarkDetails("castle", "The Castle"))
    lines = lmk(*ASKED).out.splitlines()
    shown = r'Tower <script>alert("1")</script>\x1b[31m\u202e (tower)'
    assert lines[0] == before[0].replace(": tower ", f": {shown} ")
    assert lines[1] == "  coordinates: 48.8584, -2.25"
    assert lines[2] == "  link: https://example.org/?a=1&b='"
    assert len(lines) == len(before) + 2
    assert f"  {shown}" in lines[3] and lines[3].endswith(before[1].split("  ")[-1])
    other = lmk("query", "queries/q_bridge.jpg", "-k", "12").out
    assert ": bridge  confidence" in other and "  The Castle (castle)" in other
    assert "coordinates" not in other and "link" not in other


def test_a_guess_below_the_threshold_is_named_without_a_place(lmk: Run, here: Path) -> None:
    nothing = [f"queries/q_none{n}.jpg" for n in range(6)]
    answers = [json.loads(line) for line in lmk("query", *nothing, "--json").out.splitlines()]
    answer = next(one for one in answers if one["label"] is None)
    describe(LandmarkDetails(answer["best"], "Some Place", 1.0, 2.0))
    lines = lmk("query", answer["query"]).out.splitlines()
    assert f"the best guess, Some Place ({answer['best']}), has confidence" in lines[0]
    assert "coordinates" not in lines[1]
    facts = json.loads(lmk("query", answer["query"], "--json").out)
    assert (facts["label"], facts["name"], facts["best_name"]) == (None, None, "Some Place")


def test_json_keeps_its_keys_and_has_further_ones(lmk: Run, here: Path) -> None:
    old = json.loads(lmk(*ASKED, "--json").out)
    assert (old["name"], old["best_name"], old["landmarks"]) == ("tower", "tower", {})
    describe(TOWER)
    new = json.loads(lmk(*ASKED, "--json").out)
    assert new["landmarks"] == {"tower": TOWER.as_dict()}
    assert (new["name"], new["best_name"], new["label"]) == (HOSTILE, HOSTILE, "tower")
    further = ("name", "best_name", "landmarks")
    assert {k: v for k, v in new.items() if k not in further} == {
        k: v for k, v in old.items() if k not in further
    }


def test_tables_have_the_name(lmk: Run, here: Path) -> None:
    describe(LandmarkDetails("tower", "The Great Tower of the Town"))
    done = lmk("query", "queries")
    lines = done.out.splitlines()
    tower = next(line for line in lines if line.startswith("q_tower"))
    shown = "The Great Tower of the Town (tower)"
    assert tower[lines[0].index("landmark") :].startswith(f"{shown}  ")
    assert len({len(line) for line in lines}) == 1
    assert lmk("query", "queries", "-o", "answers.csv").code == 0
    with (here / "answers.csv").open(newline="") as file:
        rows = {row["query"]: row for row in csv.DictReader(file)}
    assert (rows["q_tower"]["landmark"], rows["q_tower"]["best"]) == ("tower", "tower")
    assert rows["q_tower"]["landmark_name"] == "The Great Tower of the Town"
    assert rows["q_castle"]["landmark_name"] == rows["q_castle"]["landmark"] == "castle"
    assert not any(row["landmark_name"] for row in rows.values() if not row["landmark"])


def test_the_page_links_the_landmark_and_escapes_every_text(lmk: Run, here: Path) -> None:
    lmk(*ASKED, "--html", "before.html")
    before = Page((here / "before.html").read_text())
    assert before.links == []
    describe(TOWER)
    assert lmk(*ASKED, "--html", "a.html").code == 0
    page = Page((here / "a.html").read_text(encoding="utf-8"))
    assert page.links == [
        "https://example.org/?a=1&b='",
        "https://www.openstreetmap.org/?mlat=48.8584&mlon=-2.25#map=16/48.8584/-2.25",
    ]
    assert page.tags - before.tags == {"a"}
    assert f"{HOSTILE} (tower)" in page.words
    assert "Tall & <b>old</b>" in page.words and "48.8584, -2.25" in page.words


def test_many_names_are_not_all_read_for_the_width_of_a_column(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe(TOWER)
    from lmk.cli.answer import query_stream

    monkeypatch.setattr(query_stream, "_NAMES_READ", 2)
    with Gallery.open("sample.lmk") as gallery:
        assert query_stream.table_names(gallery) == ["bridge", "castle"]
