"""`lmk query` about a folder, a table or a list of paths: all are answered, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lmk.cli.answer import query as answer_query
from lmk.cli.answer.query_stream import Table, answered
from lmk.rerank.answers import Answer
from lmk.rerank.recognizer import Recognizer

Run = Callable[..., object]


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def test_a_folder_is_answered_in_a_table(lmk: Run, here: Path) -> None:
    done = lmk("query", "queries")
    assert (done.code, done.err) == (0, "")
    head, *lines = done.out.splitlines()
    assert head.split()[:3] == ["picture", "landmark", "confidence"]
    assert [line.split()[0] for line in lines] == [
        f"q_{name}" for name in ("bridge", "castle", *(f"none{n}" for n in range(6)), "tower")
    ]
    assert {len(line) for line in lines} == {len(head)}
    answers = {line.split()[0]: line for line in lines}
    assert answers["q_tower"].split()[1] == "tower"
    told = [json.loads(line) for line in lmk("query", "queries", "--json").out.splitlines()]
    none = [one["query"] for one in told if one["label"] is None]
    assert none == [name for name, line in answers.items() if "none of these" in line]
    alone = json.loads(lmk("query", "queries/q_tower.jpg", "--json").out)
    assert f"{alone['confidence']:.3f}" in answers["q_tower"]


def test_json_has_what_one_picture_has(lmk: Run, here: Path) -> None:
    lines = [
        json.loads(line) for line in lmk("query", "queries", "--json", "-k", 2).out.splitlines()
    ]
    (tower,) = [line for line in lines if line["query"] == "q_tower"]
    alone = json.loads(lmk("query", "queries/q_tower.jpg", "--json", "-k", 2).out)
    assert Path(tower.pop("path")).samefile("queries/q_tower.jpg")
    for name in tower.keys() - {"query", "geometry_seconds"}:
        if name == "neighbours":
            assert [near["id"] for near in tower[name]] == [near["id"] for near in alone[name]]
        elif isinstance(tower[name], float):
            assert tower[name] == pytest.approx(alone[name], abs=1e-4)
        else:
            assert tower[name] == alone[name]


def test_output_is_a_table_of_all(lmk: Run, here: Path) -> None:
    (here / "queries" / "broken.jpg").write_bytes(b"none")
    done = lmk("query", "queries", "-o", "answers.csv")
    assert done.code == 1
    named = sum(bool(row["landmark"]) for row in rows_of("answers.csv"))
    assert 3 <= named < 9
    assert done.out == (
        f"answers.csv: 9 pictures, {named} of them with a landmark, 1 without an answer\n"
    )
    assert done.complaints == ["lmk: broken: not a picture that can be decoded; it has no answer"]
    rows = {row["query"]: row for row in rows_of("answers.csv")}
    assert len(rows) == 10 and next(iter(rows)) == "broken"
    assert rows["broken"]["error"] and not rows["broken"]["best"]
    tower = rows["q_tower"]
    assert (tower["landmark"], tower["best"], tower["neighbour_landmark"]) == ("tower",) * 3
    assert Path(tower["path"]).samefile("queries/q_tower.jpg")
    assert tower["neighbour"].startswith("tower/") and 0 < float(tower["similarity"]) <= 1.001
    alone = json.loads(lmk("query", "queries/q_tower.jpg", "--json").out)
    assert float(tower["confidence"]) == pytest.approx(alone["confidence"], abs=1e-4)
    assert bool(tower["probability"]) == (alone["probability"] is not None)
    assert all(row["best"] for row in rows.values() if not row["error"])
    for name in ("bridge", "castle", "tower"):
        assert rows[f"q_{name}"]["landmark"] == name
    both = lmk("query", "queries", "-o", "answers.csv", "--json")
    assert len(both.out.splitlines()) == 10 and both.out.count("error") == 1


def test_a_csv_and_a_picture_together(lmk: Run, here: Path) -> None:
    Path("asked.csv").write_text("id,path\nfirst one,q_tower.jpg\nsecond,gone.jpg\n")
    done = lmk(
        "query", "asked.csv", "queries/q_castle.jpg", "--root", "queries", "--html", "a.html"
    )
    assert done.code == 1
    assert done.complaints == ["lmk: second: no such file; it has no answer"]
    first, second = done.out.splitlines()[1:]
    assert first.split()[:2] == ["first_one", "tower"]
    assert second.split()[:2] == ["queries/q_castle.jpg", "castle"]
    page = Path("a.html").read_text()
    assert page.count('alt="the query"') == 2 and "no such file" in page


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
def test_paths_on_stdin(
    lmk: Run, here: Path, stdin: Callable[[bytes], None], separator: bytes
) -> None:
    Path("a b.jpg").write_bytes(Path("queries/q_tower.jpg").read_bytes())
    names = [b"queries/q_bridge.jpg", b"a b.jpg", b"https://a.example/c.jpg", b"a b.jpg", b""]
    stdin(separator.join(names))
    done = lmk("query", "-", "--json")
    assert done.code == 1
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [(line["query"], line.get("label")) for line in lines] == [
        ("queries/q_bridge.jpg", "bridge"),
        ("a b.jpg", "tower"),
        ("https://a.example/c.jpg", None),
    ]
    assert "is a URL" in lines[2]["error"]
    assert len(done.complaints) == 1 and "download" in done.err


def test_nothing_on_stdin(lmk: Run, here: Path, stdin: Callable[[bytes], None]) -> None:
    stdin(b"\n")
    lmk("query", "-").refused(2, "stdin is empty", "one per line")


def test_tag_reads_paths_on_stdin_too(
    lmk: Run, here: Path, tagger: Path, stdin: Callable[[bytes], None]
) -> None:
    stdin(b"queries/q_tower.jpg\n")
    done = lmk("tag", "-", "--tagger", tagger)
    assert done.code == 0 and done.out.startswith("queries/q_tower.jpg: tower")


def test_of_many_bad_pictures_some_are_named(lmk: Run, here: Path) -> None:
    for n in range(13):
        (here / "queries" / f"bad{n:02}.jpg").touch()
    done = lmk("query", "queries", "-o", "answers.csv")
    assert done.code == 1 and len(done.complaints) == 11
    assert done.complaints[-1] == "lmk: 3 more have no answer (see answers.csv)"
    assert sum(bool(row["error"]) for row in rows_of("answers.csv")) == 13


def test_a_page_has_a_limit(lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_query, "_ON_A_PAGE", 2)
    done = lmk("query", "queries", "-o", "answers.csv", "--html", "a.html")
    assert done.complaints == ["lmk: a.html has the first 2 of 9 answers"]
    page = Path("a.html").read_text()
    assert page.count('alt="the query"') == 2 and "shows the first of 9 answers" in page


def test_answers_come_before_all_pictures_are_read(here: Path) -> None:
    """A block at a time, so that memory does not grow with the pictures."""
    files = [(f"{n}", here / "queries" / "q_tower.jpg") for n in range(600)]
    done: list[int] = []
    with Recognizer.open("sample.lmk") as recognizer:
        results = answered(recognizer, files, 1, {"3": "gone"}, lambda own: own, done.append)
        first = [next(results) for _ in range(5)]
        assert [one.query for one in first] == ["0", "1", "2", "3", "4"]
        assert sum(done) < 600
        assert [one.query for one in results] == [name for name, _ in files[5:]]


def test_the_table_has_probabilities_where_there_are_some() -> None:
    answer = Answer("q.jpg", "tower", "tower", 0.8, 0.5, (), probability=0.973)
    names = ["q.jpg", "longer.jpg"]
    with_them, without = (Table(names, ["tower"], calibrated) for calibrated in (True, False))
    assert with_them.head.split() == ["picture", "landmark", "confidence", "probability"]
    assert with_them.line(answer).split() == ["q.jpg", "tower", "0.800", "97", "%"]
    assert without.line(answer).split() == ["q.jpg", "tower", "0.800"]
    refused = replace(answer, label=None, probability=None)
    assert with_them.line(refused).split() == ["q.jpg", "none", "of", "these", "0.800"]
    assert len(with_them.line(refused)) == len(with_them.head)


def test_an_index_without_landmarks_says_so(lmk: Run, here: Path) -> None:
    for name in ("bridge", "castle", "tower"):
        assert lmk("index", "remove", "sample.lmk", "--label", name).code == 0
    for call in (("query", "queries"), ("submit", "queries", "-o", "s.csv")):
        done = lmk(*call, "-i", "sample.lmk")
        assert done.code == 0
        assert done.complaints[0].startswith("lmk: sample.lmk: no picture of the index has a")


@pytest.mark.parametrize("command", ["query", "tag"])
def test_what_a_folder_hides_is_named(lmk: Run, here: Path, command: str) -> None:
    (here / "queries" / "away").symlink_to("/nowhere")
    (here / "queries" / "notes.txt").write_text("x")
    (here / "queries" / "empty").mkdir()
    done = lmk(command, "queries", "--json", *(["-i", "sample.lmk"] if command == "tag" else []))
    noun = "answer" if command == "query" else "tags"
    assert done.code == 1
    assert sorted(done.complaints) == [
        f"lmk: queries/away: a link that leads nowhere; it has no {noun}",
        "lmk: skipped notes.txt: not a picture (.txt)",
    ]
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["error"] for line in lines if "error" in line] == ["a link that leads nowhere"]
    assert len(lines) == 10
