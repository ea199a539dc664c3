"""`lmk eval gap --report`: one page that needs nothing else, with the right numbers on it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.eval.files.submission import Submission
from lmk.eval.files.truth import Truth
from lmk.eval.report.report import Report, report_of
from lmk.eval.scores.gap import gap_of_judged
from lmk.eval.scores.judged import judge
from lmk.index.gallery.writer import GalleryWriter
from lmk.rerank.recognizer import Recognizer

Run = Callable[..., Any]
VOID = {"meta", "img", "br", "wbr"}
SECTIONS = ("scores", "losses", "ranking", "sizes", "confusions", "false-positives", "misses")


class Page(HTMLParser):
    """A page as text, images and SVG; every element must be closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> in {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def svgs(self) -> list[ET.Element]:
        return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", self.source, re.S)]

    def section(self, name: str) -> Page:
        found = re.search(rf'<section id="{name}">.*?</section>', self.source, re.S)
        assert found, name
        return Page(found.group())

    def images(self) -> list[str]:
        return [str(attributes["src"]) for tag, attributes in self.elements if tag == "img"]


@pytest.fixture
def submission(lmk: Run, here: Path) -> Path:
    """The sample answered by its index, a landmark mistaken, one blank, a false positive on top."""
    lmk("submit", "queries", "-i", "sample.lmk", "-o", "right.csv")
    read = Submission.read("right.csv")
    rows = {
        query: (label, value)
        for query, label, value in zip(read.query_ids, read.labels, read.confidence, strict=True)
    }
    rows["q_tower"] = ("bridge", rows["q_tower"][1])
    rows["q_none0"] = ("castle", 2.0)
    rows["q_castle"] = (None, -np.inf)
    Submission(
        tuple(rows),
        tuple(label for label, _ in rows.values()),
        np.array([value for _, value in rows.values()]),
    ).write("answers.csv")
    return here / "answers.csv"


def make_page(lmk: Run, here: Path, *options: object) -> Page:
    done = lmk("eval", "gap", "answers.csv", "solution.csv", "--report", "out", *options)
    assert done.code == 0, done.err
    assert done.complaints[-1] == "lmk: wrote out/report.html"
    assert [path.name for path in (here / "out").iterdir()] == ["report.html"]
    return Page((here / "out" / "report.html").read_text(encoding="utf-8"))


def expected() -> Report:
    sizes = {"bridge": 4, "castle": 4, "tower": 4}
    return report_of(Submission.read("answers.csv"), Truth.read("solution.csv"), class_sizes=sizes)


@pytest.mark.usefixtures("submission")
def test_the_page_stands_alone(lmk: Run, here: Path) -> None:
    page = make_page(lmk, here, "-i", "sample.lmk", "--queries", "queries")
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "data", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/jpeg;base64,")
    assert "http" not in re.sub(r"http-equiv", "", page.source)
    assert "url(" not in page.source
    assert "@import" not in page.source
    assert 'name="viewport"' in page.source
    assert "prefers-color-scheme: dark" in page.source
    assert all(attributes.get("alt") for tag, attributes in page.elements if tag == "img")


@pytest.mark.usefixtures("submission")
def test_every_section_and_its_numbers(lmk: Run, here: Path) -> None:
    page = make_page(lmk, here, "-i", "sample.lmk", "--queries", "queries")
    report = expected()
    for name in SECTIONS:
        page.section(name)
    value = gap_of_judged(judge(Submission.read("answers.csv"), Truth.read("solution.csv"))).value
    assert f"GAP {value:.4f}" in page.text
    losses = page.section("losses").text
    for share in (report.losses.confused, report.losses.blank, report.losses.no_landmark):
        assert f"{share:.4f}" in losses
    for name in ("all", "Public", "Private"):
        assert name in page.section("scores").text
    rows = [
        [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", page.section("confusions").source)
    ]
    assert [row for row in rows if row] == [
        [
            each.truth[0] if each.truth else "no landmark",
            each.answer or "(blank)",
            str(each.queries),
            f"{each.loss:.5f}",
        ]
        for each in report.confusions
    ]
    for section, cases in (("false-positives", report.false_positives), ("misses", report.misses)):
        assert cases
        text = page.section(section).text
        for case in cases:
            assert f"costs {case.cost:.5f} GAP" in text
            assert case.query in text
            if case.rank:
                assert f"rank {case.rank}, confidence {case.confidence:.4g}" in text


@pytest.mark.usefixtures("submission")
def test_plots_are_xml_with_titles_and_the_right_places(lmk: Run, here: Path) -> None:
    page = make_page(lmk, here, "-i", "sample.lmk", "--queries", "queries")
    svgs = page.svgs()
    assert len(svgs) == 4  # the curve, two histograms, class sizes
    names: set[str] = set()
    for svg in svgs:
        width, height = map(float, svg.attrib["viewBox"].split()[2:])
        labelled = svg.attrib["aria-labelledby"].split()
        inner = {element.attrib["id"]: element for element in svg if "id" in element.attrib}
        assert [inner[name].tag for name in labelled] == ["title", "desc"]
        assert all((inner[name].text or "").strip() for name in labelled)
        assert not names & set(inner)
        names |= set(inner)
        for element in svg.iter():
            for name in ("x", "x1", "x2", "cx"):
                if "transform" not in element.attrib:
                    assert 0 <= float(element.attrib.get(name, 0)) <= width
            for name in ("y", "y1", "y2", "cy"):
                assert 0 <= float(element.attrib.get(name, 0)) <= height
    report = expected()
    best, curve = svgs[0].findall("polyline")
    places = [tuple(map(float, point.split(","))) for point in curve.attrib["points"].split()]
    assert len(places) == len(report.curve.ranks)
    tops = {round(y, 1) for (_, y), p in zip(places, report.curve.precision, strict=True) if p == 0}
    assert tops <= {216.0}  # precision 0 lies on the axis: the false positive stands first
    assert places[0][1] == 216.0
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert best.attrib["points"] != curve.attrib["points"]
    sorts = [rect.attrib["class"] for svg in svgs[1:3] for rect in svg.iter("rect")]
    assert {"right", "wrong", "no-landmark"} == set(sorts)
    (dot,) = svgs[3].iter("circle")  # all three landmarks have 4 pictures
    assert float(dot.attrib["cx"]) == pytest.approx(92 + 230 * (1 / 3), abs=0.1)


@pytest.mark.usefixtures("submission")
def test_sheets_show_the_query_and_its_neighbours(lmk: Run, here: Path) -> None:
    page = make_page(lmk, here, "-i", "sample.lmk", "--queries", "queries")
    misses = page.section("misses")
    report, answers = expected(), Submission.read("answers.csv")
    cases = [case.query for case in (*report.false_positives, *report.misses)]
    with Recognizer.open("sample.lmk") as recognizer:
        predictions, _ = recognizer.query([Path(f"queries/{query}.jpg") for query in cases], k=12)
        place = cases.index("q_tower")
        scores = predictions.neighbours.scores[place]
        rows = predictions.neighbours.rows[place, :5].tolist()
        labels = [recognizer.gallery.labels(row) for row in rows]
    others = sum(
        answers.labels[answers.row_of[query]] != label
        for query, label in zip(cases, predictions.labels, strict=True)
    )
    assert others >= 2  # q_tower and q_castle
    voted = sum(
        int((predictions.votes[n] > 0).sum())
        for n, query in enumerate(cases)
        if answers.labels[answers.row_of[query]] == predictions.labels[n]
    )
    assert page.source.count('<figure class="voted">') == voted
    assert len(report.misses) == 2  # q_tower taken for the bridge, q_castle blank
    shown = [n for n, each in enumerate(labels) if each == ("tower",)]
    assert shown  # so no sixth picture is needed
    assert len(misses.images()) == 2 * (1 + 5)
    assert f"1: {scores[0]:.3f} {labels[0][0]}" in misses.text
    assert f"For {others} of the pictures shown the index now gives another answer" in misses.text
    assert "--queries" not in page.text


@pytest.mark.usefixtures("submission")
def test_without_index_and_queries_the_page_says_what_to_give(lmk: Run, here: Path) -> None:
    page = make_page(lmk, here)
    assert "--index INDEX" in page.section("sizes").text
    assert "--queries FOLDER_OR_CSV" in page.section("misses").text
    assert "--queries FOLDER_OR_CSV" in page.section("false-positives").text
    assert page.images() == []
    assert len(page.svgs()) == 3
    for case in expected().misses:
        assert case.query in page.section("misses").text


@pytest.mark.parametrize("count", [29, 30])
def test_few_queries_are_said_to_be_few(lmk: Run, here: Path, count: int) -> None:
    rows = [f"q{n},tower" for n in range(count)]
    (here / "solution.csv").write_text("\n".join(["id,landmarks", *rows]) + "\n")
    (here / "answers.csv").write_text("id,landmarks\n" + "".join(f"{row} 1\n" for row in rows))
    scores = make_page(lmk, here).section("scores").text
    note = "Only 29 queries show a landmark, so the scores are uncertain. Use the intervals"
    assert (note in scores) == (count < 30)
    assert ("are uncertain" in scores) == (count < 30)


@pytest.mark.usefixtures("submission")
def test_an_index_alone_gives_class_sizes(lmk: Run, here: Path) -> None:
    page = make_page(lmk, here, "-i", "sample.lmk", "--resamples", 0)
    assert len(page.svgs()) == 4
    assert page.images() == []
    assert "Intervals were switched off" in page.text
    assert "Only 3 queries show a landmark, so the scores are uncertain. The" in page.text


@pytest.mark.usefixtures("submission")
def test_queries_alone_give_their_pictures(lmk: Run, here: Path) -> None:
    (here / "queries" / "q_none0.jpg").write_bytes(b"no picture")
    (here / "queries" / "q_castle.jpg").unlink()
    page = make_page(lmk, here, "--queries", "queries")
    report = expected()
    cases = len(report.misses) + len(report.false_positives)
    assert "cannot be read" in page.section("false-positives").text
    assert "not in --queries" in page.section("misses").text
    assert len(page.images()) == cases - 2
    assert "--index INDEX" in page.section("misses").text


@pytest.mark.usefixtures("submission")
def test_a_query_that_cannot_be_read_has_no_neighbours(lmk: Run, here: Path) -> None:
    (here / "queries" / "q_tower.jpg").write_bytes(b"no picture")
    (here / "queries.csv").write_text("id,path\nq_tower,queries/q_tower.jpg\n")
    page = make_page(lmk, here, "-i", "sample.lmk", "--queries", "queries.csv", "--root", ".")
    assert "cannot be read" in page.section("misses").text
    assert "not in --queries" in page.section("misses").text
    assert page.images() == []


def test_a_perfect_submission_has_nothing_to_show(lmk: Run, here: Path) -> None:
    rows = ["id,landmarks", *(f"q_{name},{name} 1" for name in ("bridge", "castle", "tower"))]
    (here / "answers.csv").write_text("\n".join(rows) + "\n")
    page = make_page(lmk, here)
    assert "every answer is right" in page.section("confusions").text
    assert "There are no costs" in page.section("false-positives").text
    assert "every landmark query has a right answer" in page.section("misses").text


def test_a_submission_of_blanks_has_a_page(lmk: Run, here: Path) -> None:
    (here / "answers.csv").write_text("id,landmarks\nq_bridge,\n")
    page = make_page(lmk, here)
    assert "No query was answered" in page.section("ranking").text
    assert "GAP 0.0000" in page.text
    assert "(blank)" in page.section("misses").text


def test_odd_names_do_no_harm(lmk: Run, here: Path) -> None:
    (here / "solution.csv").write_text('id,landmarks\n<b>q&,"<i>a</i>"\nr,\n')
    (here / "answers.csv").write_text(
        'id,landmarks\n<b>q&,"<script>alert(1)</script> inf"\nr,x 1\n'
    )
    page = make_page(lmk, here)
    assert "<script" not in page.source
    assert "<script>alert(1)</script>" in page.text
    assert "<b>q&" in page.text
    assert "Infinite confidences are in no bin: 1" in page.text


def test_where_the_page_cannot_go(lmk: Run, here: Path) -> None:
    (here / "answers.csv").write_text("id,landmarks\nq_bridge,bridge 1\n")
    (here / "out" / "report.html").mkdir(parents=True)
    lmk("eval", "gap", "answers.csv", "solution.csv", "--report", "out").refused(
        2, "out/report.html: is not a plain file"
    )


@pytest.mark.usefixtures("submission")
def test_the_same_call_writes_the_same_page(lmk: Run, here: Path) -> None:
    options = ("-i", "sample.lmk", "--queries", "queries")
    first = make_page(lmk, here, *options).source
    assert make_page(lmk, here, *options).source == first


@pytest.mark.usefixtures("submission")
def test_a_true_landmark_far_down_is_shown_behind_the_nearest(lmk: Run, here: Path) -> None:
    """q_tower is said to be the bridge by the solution, and to show a place the gallery lacks."""
    (here / "answers.csv").write_text("id,landmarks\nq_tower,tower 0.9\nq_castle,castle 0.8\n")
    (here / "solution.csv").write_text("id,landmarks\nq_tower,bridge\nq_castle,pyramid\n")
    misses = make_page(lmk, here, "-i", "sample.lmk", "--queries", "queries").section("misses")
    with Recognizer.open("sample.lmk") as recognizer:
        predictions, _ = recognizer.query([Path("queries/q_tower.jpg")], k=12)
        rows = [row for row in predictions.neighbours.rows[0].tolist() if row >= 0]
        labels = [recognizer.gallery.labels(row) for row in rows]
    place = labels.index(("bridge",))
    extra = int(place >= 5)
    assert f"{place + 1}: {predictions.neighbours.scores[0, place]:.3f} bridge" in misses.text
    assert len(misses.images()) == 2 * 6 + extra
    assert "No picture of pyramid is among the 12 nearest." in misses.text
    assert "No picture of bridge" not in misses.text


@pytest.mark.usefixtures("submission")
def test_landmarks_have_the_names_that_the_index_has(lmk: Run, here: Path) -> None:
    before = make_page(lmk, here, "-i", "sample.lmk", "--queries", "queries")
    with GalleryWriter("sample.lmk") as writer:
        writer.set_landmarks([LandmarkDetails("tower", "The <i>Great</i> Tower")])
        writer.commit()
    page = make_page(lmk, here, "-i", "sample.lmk", "--queries", "queries")
    for section in ("confusions", "misses"):
        text = page.section(section).text
        assert "The <i>Great</i> Tower (tower)" in text
        assert text.replace("The <i>Great</i> Tower (tower)", "tower") == (
            before.section(section).text
        )
    assert "<i>" not in page.source
