"""What commands print: data on stdout, the rest on stderr; JSON, pages, pipes and bars."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from lmk.cli.progress import StageProgress
from lmk.cli.render import breakable, counted, human_bytes
from lmk.embed.errors import StorageError

Run = Callable[..., object]


def test_query_names_landmark_confidence_and_neighbours(
    lmk: Run, here: Path, paint: Callable[..., Path]
) -> None:
    paint(here / "queries" / "q_like.jpg", 1000, 1)  # another view of a distractor
    done = lmk("query", "queries/q_castle.jpg", "queries/q_like.jpg", "-k", "3")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) == 8
    named = re.fullmatch(
        r"queries/q_castle.jpg: castle  confidence (0\.\d{3})"
        r" \((0\.\d{3}) is needed; \d+ % likely right\)",
        lines[0],
    )
    assert named
    assert float(named[1]) >= float(named[2])
    for line in lines[1:4]:
        assert re.fullmatch(
            r" +\d+  [01]\.\d{3} -> +-?\d\.\d{3} +\d+ %  castle  gallery/castle/\d\.jpg"
            r"(  \(penalty 0\.\d{3}\))?",
            line,
        ), line
    none = re.fullmatch(
        r"queries/q_like.jpg: none of these  \(the best guess, (\w+), has confidence "
        r"(0\.\d{3}); (0\.\d{3}) is needed; 0\.\d{3} was subtracted for its similarity to "
        r"distractors; \d+ % likely right\)",
        lines[4],
    )
    assert none
    assert float(none[2]) < float(none[3])


def test_query_json_is_one_object_a_line(lmk: Run, here: Path) -> None:
    done = lmk("query", "queries/q_castle.jpg", "queries/q_none0.jpg", "-k", "3", "--json")
    assert (done.code, done.err) == (0, "")
    castle, none = (json.loads(line) for line in done.out.splitlines())
    keys = {"query", "label", "best", "confidence", "threshold", "neighbours"}
    keys |= {"probability", "query_penalty", "landmark_score", "geometry_seconds", "tags"}
    keys |= {"name", "best_name", "landmarks"}
    assert castle.keys() == none.keys() == keys
    assert castle["query"] == "queries/q_castle.jpg"
    assert castle["label"] == castle["best"] == "castle"
    assert none["label"] is None
    assert none["confidence"] < none["threshold"] <= castle["confidence"]
    near = castle["neighbours"][0]
    old = {"id", "path", "labels", "score", "penalty", "vote"}
    new = {"place", "score_before", "score_after", "share", "gain", "inliers"}
    assert near.keys() == old | new
    assert near["id"].startswith("castle/")


def test_who_voted_is_shown_first_wherever_it_is_among_the_nearest(lmk: Run, here: Path) -> None:
    queries = sorted((here / "queries").iterdir())
    every = [
        json.loads(line)
        for line in lmk("query", *queries, "-k", "12", "--json").out.split("\n")[:-1]
    ]
    shown = [json.loads(line) for line in lmk("query", *queries, "--json").out.split("\n")[:-1]]
    for whole, short in zip(every, shown, strict=True):
        near = whole["neighbours"]
        assert short["neighbours"] == near[:5]
        keys = [(-each["vote"], -each["score_after"], each["place"]) for each in near]
        assert keys == sorted(keys)
        assert sorted(each["place"] for each in near) == list(range(1, 13))
        by_place = sorted(near, key=lambda each: each["place"])
        scores = [each["score"] for each in by_place]
        assert scores == sorted(scores, reverse=True)
        voters = [each for each in near if each["vote"] > 0]
        if not voters:  # every score is 0 or below
            assert whole["label"] is None
            continue
        assert len(voters) <= 10
        assert all(whole["best"] in each["labels"] for each in voters)
        assert sum(each["share"] for each in near) == pytest.approx(1)
        given = sum(each["vote"] for each in near)
        assert all(each["share"] == pytest.approx(each["vote"] / given) for each in near)
        # What votes is the score after rescaling and penalty, to the power of 9; all by the
        # root of the number of pictures of the landmark, of which there are 4.
        assert [each["vote"] for each in voters] == pytest.approx(
            [each["score_after"] ** 9 / 2 for each in voters], rel=1e-4
        )


def test_k_is_capped_by_the_gallery_and_said_where_it_was_asked_for(
    lmk: Run, here: Path, tiny: Path
) -> None:
    done = lmk("query", "queries/q_castle.jpg", "-k", "1000", "--json")
    assert done.code == 0
    assert done.complaints == ["lmk: -k 1000: the index has only 12 pictures"]
    neighbours = json.loads(done.out)["neighbours"]
    assert len({near["id"] for near in neighbours}) == 12  # and no distractor among them
    assert lmk("build-index", "gallery/castle", "-o", "few.lmk", "--model", tiny).code == 0
    few = lmk("query", "queries/q_castle.jpg", "-i", "few.lmk", "--json")
    assert (few.code, few.err) == (0, "")
    assert len(json.loads(few.out)["neighbours"]) == 4


def test_build_index_says_what_it_did(lmk: Run, here: Path, tiny: Path) -> None:
    build = ("build-index", "gallery", "--distractors", "bank", "--model", tiny)
    first = lmk(*build)
    assert (first.code, first.err) == (0, "")
    assert re.fullmatch(
        r"gallery\.lmk: 12 pictures and 6 distractors in \d+\.\d s \(18 newly computed\)\n"
        r"gallery\.lmk: holds 12 pictures of 3 landmarks, the largest bridge \(4\), castle \(4\), "
        r"tower \(4\)\n",
        first.out,
    )
    again = json.loads(lmk(*build, "--json").out)
    assert again.pop("seconds") > 0
    assert -1 < again.pop("threshold") < 1
    assert again == {
        "index": "gallery.lmk",
        "pictures": 12,
        "distractors": 6,
        "computed": 0,
        "whitened": False,
        "skipped": [],
        "duplicates": [],
        "shared": [],
        "relabelled": [],
        "conflicts": [],
        "without_own": [],
        "described": 0,
        "unknown_landmarks": [],
    }


def test_a_whitening_can_be_asked_for(lmk: Run, here: Path, tiny: Path) -> None:
    built = lmk("build-index", "gallery", "--whiten", "--model", tiny, "--json")
    assert built.code == 0, built.err
    assert json.loads(built.out)["whitened"] is True
    assert json.loads(lmk("info", "gallery.lmk", "--json").out)["embedder"]["whitened"] is True
    assert ", whitened, fingerprint" in lmk("info", "gallery.lmk").out
    assert lmk("query", "gallery/tower/0.jpg", "-i", "gallery.lmk").out.startswith(
        "gallery/tower/0.jpg: tower"
    )


def test_info_tells_the_same_in_lines_and_json(lmk: Run, here: Path) -> None:
    facts = json.loads(lmk("info", "sample.lmk", "--json").out)
    assert facts["path"] == "sample.lmk"
    assert (facts["pictures"], facts["distractors"], facts["landmarks"]) == (12, 6, 3)
    assert (facts["unlabelled"], facts["skipped"], facts["skipped_files"]) == (0, 0, [])
    assert facts["embedder"]["backbone"] == "test_efficientnet"
    assert facts["embedder"]["size"] == 64
    assert "vote" in {step["step"] for step in facts["steps"]}
    done = lmk("info", "sample.lmk")
    assert (done.code, done.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert lines["pictures"] == "12 (0 without a landmark)"
    assert lines["distractors"] == "6"
    assert facts["fingerprint"][:16] in lines["embedder"]
    assert "vote (" in lines["steps"]
    assert "()" not in lines["steps"]


def test_submit_writes_the_contests_recognition_file(lmk: Run, here: Path) -> None:
    done = lmk("submit", "queries", "-o", "s.csv")
    assert done == type(done)(0, "s.csv: 9 queries, 0 left blank\n", "")
    with (here / "s.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "landmarks"]
    assert [row[0] for row in rows[1:]] == sorted(p.stem for p in (here / "queries").iterdir())
    answers = dict(rows[1:])
    for name in ("bridge", "castle", "tower"):
        label, confidence = answers[f"q_{name}"].split(" ")
        assert label == name
        assert 0 < float(confidence) <= 1
    # The threshold blanks nothing here: GAP ranks by confidence.
    assert all(len(cell.split(" ")) == 2 for cell in answers.values())


def test_submit_writes_the_contests_retrieval_file(lmk: Run, here: Path) -> None:
    done = lmk("submit", "queries", "-o", "r.csv", "--task", "retrieval")
    assert (done.code, done.err) == (0, "")
    with (here / "r.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "images"]
    for id_, cell in rows[1:]:
        found = cell.split(" ")
        assert len(found) == len(set(found)) == 12
        if not id_.startswith("q_none"):
            assert all(name.startswith(id_.removeprefix("q_") + "/") for name in found[:4])


def test_submit_takes_a_csv_of_queries(lmk: Run, here: Path) -> None:
    (here / "asked.csv").write_text("id,path\nb,q_tower.jpg\na,q_castle.jpg\n")
    assert lmk("submit", "asked.csv", "--root", "queries", "-o", "s.csv").code == 0
    lines = (here / "s.csv").read_text().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["id,landmarks", "b,tower", "a,castle"]


def test_eval_gap_scores_by_usage(lmk: Run, here: Path) -> None:
    assert lmk("submit", "queries", "-o", "s.csv").code == 0
    scores = json.loads(lmk("eval", "gap", "s.csv", "solution.csv", "--json").out)
    assert scores.keys() == {"all", "Public", "Private"}
    counts = {"gap": 1.0, "queries": 9, "with_landmark": 3, "answered": 9, "right": 3}
    assert scores["all"].items() >= counts.items()
    assert (scores["Public"]["queries"], scores["Private"]["queries"]) == (8, 1)
    # Worked by hand: right, wrong, right of three: (1/1 + 2/3) / 3.
    (here / "hand.csv").write_text(
        "id,landmarks\nq_bridge,bridge 0.9\nq_none0,bridge 0.8\nq_castle,castle 0.7\nq_tower,\n"
    )
    table = lmk("eval", "gap", "hand.csv", "solution.csv").out.splitlines()
    assert table[0].split() == ["GAP", "queries", "landmark", "answered", "right"]
    assert table[1].split() == ["all", "0.5556", "9", "3", "3", "2"]


class Links(HTMLParser):
    """Collects what a page would load, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_query_html_is_one_page_that_needs_no_other_file(
    lmk: Run, here: Path, paint: Callable[..., Path]
) -> None:
    hostile = paint(here / "queries" / "<script>alert(1)<.jpg", 1, 5)
    (here / "gallery" / "tower" / "0.jpg").unlink()
    asked = (hostile, "queries/q_tower.jpg", "queries/q_none0.jpg")
    done = lmk("query", *asked, "--html", "a.html")
    assert (done.code, done.err) == (0, "")
    page = (here / "a.html").read_text(encoding="utf-8")
    assert "<script" not in page
    links = Links(page)
    assert len(links.sources) >= 15
    for source in links.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as thumbnail:
            assert max(thumbnail.size) <= 240
    assert "url(" not in page
    text = " ".join(" ".join(links.text).split())
    assert "3 answers" in text
    assert "tower Confidence 0." in text
    assert "the neighbours that voted for the answer" in text
    assert re.search(r"\d+ % of the votes no\. 1: [01]\.\d{3} → 0\.\d{3} tower/ \d\.jpg", text)
    answers = [json.loads(line) for line in lmk("query", *asked, "--json").out.splitlines()]
    silent = [near["vote"] == 0 for answer in answers for near in answer["neighbours"]]
    assert page.count('<figure class="silent">') == sum(silent) > 0
    assert len(re.findall(r"no vote\b", text)) == sum(silent)
    assert "none of these The best guess" in text
    assert "the file is missing or has changed" in text
    assert [path.name for path in here.iterdir() if path.name.startswith(".")] == []


def test_a_page_is_replaced_whole_or_not_at_all(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a.html").write_text("the old page")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
        done = lmk("query", "queries/q_tower.jpg", "--html", "a.html")
    assert done.code == StorageError.exit_code == 1
    assert "a.html: cannot write" in done.err
    assert (here / "a.html").read_text() == "the old page"
    assert [path.name for path in here.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "html"),
    [
        ("eiffel_tower", "eiffel_<wbr>tower"),
        ("a/b_1.jpg", "a/<wbr>b_<wbr>1.jpg"),
        ("/a__", "/<wbr>a_<wbr>_"),
        ("<i>_&", "&lt;i&gt;_<wbr>&amp;"),
        ("", ""),
    ],
)
def test_names_may_be_broken_between_words_only(name: str, html: str) -> None:
    assert breakable(name) == html


def test_one_is_no_plural(lmk: Run, here: Path) -> None:
    assert [counted(n, "file") for n in (0, 1, 1234)] == ["0 files", "1 file", "1,234 files"]
    (here / "one.csv").write_text("id,path\na,queries/q_castle.jpg\n")
    assert lmk("submit", "one.csv", "-o", "s.csv").out == "s.csv: 1 query, 0 left blank\n"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1234567, "1.2 MB"), (5e12, "5000.0 GB")],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_bars_are_drawn_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> str:
        with StageProgress() as progress:
            progress("gallery", 0, 40)
            progress("gallery", 40, 40)
        out, err = capsys.readouterr()
        assert out == ""
        return err

    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert work() == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    drawn = work()
    assert "gallery" in drawn
    assert "40/40" in drawn
    assert "\x1b[3" in drawn  # colours
    monkeypatch.setenv("NO_COLOR", "1")
    plain = work()
    assert "40/40" in plain
    assert not re.search("\x1b\\[[0-9;]*3[0-9]", plain)


@pytest.mark.parametrize("group", ["eval", "data"])
def test_no_line_of_a_groups_help_is_cut_off(
    lmk: Run, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = lmk(group, "--help")
    assert done.code == 0
    commands = done.out.partition("Commands:\n")[2].splitlines()
    assert len(commands) >= 2
    assert all(line.endswith(".") and not line.endswith("...") for line in commands)


def test_output_into_a_file_has_no_colours(lmk_process: Run, here: Path) -> None:
    for words in (("--help",), ("query", "queries/q_tower.jpg"), ("info", "sample.lmk")):
        done = lmk_process(*words, env={**os.environ, "NO_COLOR": "1"})
        assert done.code == 0
        assert "\x1b" not in done.out + done.err


@pytest.mark.parametrize("call", ["--help", "query queries/q_tower.jpg --json", "info sample.lmk"])
def test_a_reader_that_leaves_is_no_error(here: Path, call: str) -> None:
    """As in `lmk query ... | head`; here nobody reads at all."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "lmk.cli", *call.split()],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_stdout_is_one_line(here: Path, unbuffered: str) -> None:
    for words in (("--help",), ("info", "sample.lmk")):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "lmk.cli", *words],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            )
        assert done.returncode == 1
        assert done.stderr == "lmk: the output: no space left; free some and run it again\n"


def test_a_closed_stdout_is_no_error(here: Path) -> None:
    command = f"{sys.executable} -P -m lmk.cli --version >&-"
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_is_the_distributions(lmk: Run) -> None:
    from importlib.metadata import version

    done = lmk("--version")
    assert (done.code, done.out, done.err) == (0, f"lmk {version('lmk-landmarks')}\n", "")
