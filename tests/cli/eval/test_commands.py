"""`lmk eval`: what each command prints, its JSON against the library, and the calls it refuses."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmk.eval.files.submission import RetrievalSubmission, Submission
from lmk.eval.files.truth import RetrievalTruth, Truth
from lmk.eval.scores.average_precision import judge_retrieval
from lmk.eval.scores.bootstrap import gap_interval, gap_test
from lmk.eval.scores.compare import blend
from lmk.eval.scores.gap import contest_gap, gap_of_judged
from lmk.eval.scores.judged import judge

Run = Callable[..., Any]

SOLUTION = """id,landmarks,Usage
a,eiffel,Public
b,,Public
c,louvre pyramid,Private
d,eiffel,Private
e,,Private
f,louvre,Ignored
g,louvre,Public
"""
OLD = "id,landmarks\na,eiffel 0.9\nb,louvre 0.8\nc,louvre 0.7\nd,louvre 0.6\ne,\n"
NEW = "id,landmarks\na,eiffel 9\nc,pyramid 8\nd,eiffel 7\nb,louvre 2\ne,eiffel 1\ng,eiffel 0\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in (("solution", SOLUTION), ("old", OLD), ("new", NEW)):
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def test_every_command_has_an_example(lmk: Run) -> None:
    for command in ("gap", "retrieval", "revisited", "tags", "compare"):
        done = lmk("eval", command, "--help")
        assert done.code == 0
        assert f"Example: lmk eval {command} " in " ".join(done.out.split())


def test_gap_as_json(lmk: Run, files: Path) -> None:
    done = lmk("eval", "gap", "old.csv", "solution.csv", "--json", "--resamples", 200, "--seed", 4)
    assert done.code == 0
    found = json.loads(done.out)
    assert list(found) == ["all", "Public", "Private"]
    submission, truth = Submission.read("old.csv"), Truth.read("solution.csv")
    for name, usage in (("all", None), ("Public", "Public"), ("Private", "Private")):
        judged = judge(submission, truth, usage)
        interval = gap_interval(judged, resamples=200, seed=4)
        row = found[name]
        assert row["gap"] == gap_of_judged(judge(submission, truth, usage)).value
        assert row["gap_interval"] == [interval.low, interval.high]
        assert row["contest_gap"] == contest_gap(judged).value
        assert row["landmark_only_gap"] == (
            gap_of_judged(judge(submission, truth, usage), ignore_non_landmark=True).value
        )
        assert row["accuracy"] == judged.accuracy()
        assert (row["resamples"], row["seed"]) == (200, 4)
    assert (found["all"]["queries"], found["all"]["with_landmark"]) == (6, 4)
    assert (found["all"]["answered"], found["all"]["right"]) == (4, 2)


def test_gap_as_tables(lmk: Run, files: Path) -> None:
    done = lmk("eval", "gap", "old.csv", "solution.csv")
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["GAP", "queries", "landmark", "answered", "right"]
    # right answers stand at ranks 1 and 3 of four landmarks: (1 + 2/3) / 4
    assert lines[1] == ["all", "0.4167", "6", "4", "4", "2"]
    assert lines[2][:2] == ["Public", "0.5000"]
    assert "acc@1" in done.out
    assert "0.5000 [" in done.out
    assert "1,000 bootstrap draws of the queries, seed 0" in done.out


def test_gap_says_what_is_missing_but_not_of_ignored_queries(lmk: Run, files: Path) -> None:
    done = lmk("eval", "gap", "old.csv", "solution.csv", "--resamples", 0)
    assert done.complaints == [
        "lmk: old.csv: missing: the query has no row and counts as blank (query g)"
    ]
    assert "no intervals" in done.out
    (files / "odd.csv").write_text("id,landmarks\na,eiffel inf\n")
    done = lmk("eval", "gap", "odd.csv", "solution.csv", "--resamples", 0)
    assert done.complaints == [
        "lmk: odd.csv, line 2: infinite: the confidence is inf (query a)",
        "lmk: odd.csv: missing: the query has no row and counts as blank (query b); 4 more like it",
    ]


def test_gap_without_queries_without_landmark(lmk: Run, files: Path) -> None:
    (files / "solution.csv").write_text("id,landmarks\na,eiffel\n")
    (files / "one.csv").write_text("id,landmarks\na,eiffel 1\n")
    done = lmk("eval", "gap", "one.csv", "solution.csv")
    row = next(line for line in done.out.splitlines() if line.startswith("98 %"))
    assert row.split()[-1] == "-"
    found = json.loads(
        lmk("eval", "gap", "one.csv", "solution.csv", "--json", "--resamples", 0).out
    )
    assert found["all"]["gap_interval"] is None
    assert found["all"]["contest_gap"] is None
    assert found["all"]["contest_interval"] is None


def test_compare_as_json(lmk: Run, files: Path) -> None:
    done = lmk("eval", "compare", "old.csv", "new.csv", "solution.csv", "--json", "--top", 1)
    assert done.code == 0
    assert done.err == ""
    found = json.loads(done.out)
    first, second = found["submissions"]
    truth = Truth.read("solution.csv")
    old, new = Submission.read("old.csv"), Submission.read("new.csv")
    test = gap_test(judge(old, truth), judge(new, truth))
    assert found["usage"] == "all"
    assert (first["submission"], first["gap"]) == (
        "old.csv",
        gap_of_judged(judge(old, truth)).value,
    )
    assert second["gap"] == gap_of_judged(judge(new, truth)).value
    assert second["difference"] == pytest.approx(test.difference)
    assert second["difference_interval"] == [test.low, test.high]
    assert second["p_value"] == test.p_value
    assert "difference" not in first
    changes = second["changes"]
    assert len(changes) == 1
    # "d" was answered wrongly below all right answers (1/4) and is right now, nothing wrong above.
    assert changes[0] == {
        "query": "d",
        "change": 0.25,
        "truth": ["eiffel"],
        "before": "louvre",
        "after": "eiffel",
    }


def test_the_changes_of_all_queries_add_up(lmk: Run, files: Path) -> None:
    done = lmk("eval", "compare", "old.csv", "new.csv", "solution.csv", "--json", "--resamples", 0)
    second = json.loads(done.out)["submissions"][1]
    assert sum(row["change"] for row in second["changes"]) == pytest.approx(second["difference"])
    assert second["p_value"] is None
    assert second["gap_interval"] is None


def test_compare_as_tables(lmk: Run, files: Path) -> None:
    done = lmk("eval", "compare", "old.csv", "new.csv", "solution.csv", "--usage", "Private")
    lines = done.out.splitlines()
    assert lines[0].split() == ["GAP", "difference", "p"]
    assert lines[1].split()[:2] == ["old.csv", "0.5000"]
    assert lines[2].split()[:2] == ["new.csv", "1.0000"]
    assert "+0.5000 [" in lines[2]
    assert "queries that change GAP most from old.csv to new.csv" in done.out
    assert lines[-1].split() == ["d", "+0.50000", "eiffel", "louvre", "eiffel"]
    plain = lmk("eval", "compare", "old.csv", "old.csv", "solution.csv", "--resamples", 0)
    assert "+0.0000" in plain.out
    assert "queries that change" not in plain.out


def test_compare_shows_blanks_and_queries_without_landmark(lmk: Run, files: Path) -> None:
    (files / "silent.csv").write_text("id,landmarks\na,eiffel 0.5\n")
    done = lmk("eval", "compare", "silent.csv", "old.csv", "solution.csv")
    row = next(line for line in done.out.splitlines() if line.startswith("b "))
    assert row.split()[2:] == ["(none)", "(blank)", "louvre"]


def test_a_blend_is_written_and_scored(lmk: Run, files: Path) -> None:
    done = lmk(
        *("eval", "compare", "old.csv", "new.csv", "solution.csv", "--json"),
        *("--blend", "both.csv", "--weights", "1,3"),
    )
    wanted = blend([Submission.read("old.csv"), Submission.read("new.csv")], [1, 3])
    written = Submission.read("both.csv")
    assert (written.query_ids, written.labels) == (wanted.query_ids, wanted.labels)
    assert np.array_equal(written.confidence, wanted.confidence)
    third = json.loads(done.out)["submissions"][2]
    assert third["submission"] == "both.csv"
    assert third["gap"] == gap_of_judged(judge(wanted, Truth.read("solution.csv"))).value


RETRIEVAL = "id,images\na,g1 x g2\nb,x g3\nc,x\n"
RETRIEVAL_SOLUTION = "id,images,Usage\na,g1 g2,Public\nb,g3,Private\nd,g1,Private\nc,None,Ignored\n"
GALLERY = "id,landmark_id\ng1,eiffel\ng2,eiffel\ng3,louvre\nx,\n"


@pytest.fixture
def lists(files: Path) -> Path:
    (files / "lists.csv").write_text(RETRIEVAL)
    (files / "wanted.csv").write_text(RETRIEVAL_SOLUTION)
    (files / "gallery.csv").write_text(GALLERY)
    return files


def test_retrieval_as_json(lmk: Run, lists: Path) -> None:
    done = lmk("eval", "retrieval", "lists.csv", "wanted.csv", "--json")
    assert done.code == 0
    assert done.complaints == [
        "lmk: lists.csv: 1 of 3 queries have no row (the first is d): they count as empty lists"
    ]
    found = json.loads(done.out)
    assert list(found) == ["all", "Public", "Private"]
    # a: (1 + 2/3) / 2, b: 1/2, d: 0
    assert found["all"]["map"] == pytest.approx((5 / 6 + 1 / 2) / 3)
    assert found["Public"]["map"] == pytest.approx(5 / 6)
    assert found["Private"]["map"] == pytest.approx(1 / 4)
    result = judge_retrieval(
        RetrievalSubmission.read("lists.csv"), RetrievalTruth.read("wanted.csv")
    )
    assert found["all"]["mean_precisions"] == result.mean_precisions().tolist()
    assert found["all"]["precision"] == {
        "1": pytest.approx(1 / 3),
        "5": pytest.approx(3 / 15),
        "10": pytest.approx(3 / 30),
        "100": pytest.approx(3 / 300),
    }
    assert found["all"]["recall"]["1"] == pytest.approx(1 / 6)
    assert found["all"]["recall"]["100"] == pytest.approx(2 / 3)
    assert found["all"]["median_first_position"] == 2
    assert found["all"]["map_interval"][0] <= found["all"]["map"] <= found["all"]["map_interval"][1]


def test_retrieval_as_a_table_with_another_k(lmk: Run, lists: Path) -> None:
    done = lmk("eval", "retrieval", "lists.csv", "wanted.csv", "-k", 1, "--resamples", 0)
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["mAP@1", "queries", "P@1", "recall@1", "first", "hit"]
    assert lines[1] == ["all", "0.3333", "3", "0.3333", "0.1667", "2"]
    assert "2 without one" in done.out


def test_retrieval_by_the_labels_of_a_gallery(lmk: Run, lists: Path) -> None:
    """a and d show the two pictures of eiffel, c one of louvre; b shows nothing and is left out."""
    done = lmk(
        "eval", "retrieval", "lists.csv", "solution.csv", "--gallery", "gallery.csv", "--json"
    )
    assert done.code == 0
    assert done.complaints[0] == (
        "lmk: solution.csv: 2 of 7 queries show no landmark of gallery.csv and are left out"
    )
    found = json.loads(done.out)
    assert found["all"]["queries"] == 4  # a, c, d, g; f is Ignored
    assert found["all"]["map"] == pytest.approx((5 / 6 + 0 + 0 + 0) / 4)


def test_retrieval_by_the_labels_of_an_index(lmk: Run, here: Path) -> None:
    lmk("submit", "queries", "-i", "sample.lmk", "-o", "lists.csv", "--task", "retrieval")
    done = lmk("eval", "retrieval", "lists.csv", "solution.csv", "-i", "sample.lmk", "--json")
    assert done.code == 0
    by_index = json.loads(done.out)
    rows = ["id,landmark_id"]
    rows += [
        f"{path.relative_to(here / 'gallery')},{path.parent.name}"
        for path in sorted((here / "gallery").rglob("*.jpg"))
    ]
    (here / "gallery.csv").write_text("\n".join(rows) + "\n")
    done = lmk(
        "eval", "retrieval", "lists.csv", "solution.csv", "--gallery", "gallery.csv", "--json"
    )
    assert json.loads(done.out) == by_index
    assert by_index["all"]["queries"] == 3
    assert by_index["all"]["map"] > 0.5


@pytest.mark.parametrize("report", [(), ("--report", "out")])
def test_labels_that_the_index_lacks_are_named(
    lmk: Run, here: Path, report: tuple[str, ...]
) -> None:
    (here / "s.csv").write_text(
        "id,landmarks\n"
        + "".join(f"q_none{n},twoer 0.{n + 1}\n" for n in range(6))
        + "q_bridge,bridge 0.9\nq_castle,castle 0.8\nq_tower,tower 0.7\n"
    )
    call = ("eval", "gap", "s.csv", "solution.csv", *report)
    assert lmk(*call).complaints == ["lmk: wrote out/report.html"] * bool(report)
    found = lmk(*call, "-i", "sample.lmk").complaints
    assert found[0] == (
        "lmk: s.csv, line 2: unknown label: the gallery has no landmark twoer (query q_none0); "
        "5 more like it"
    )
    assert len(found) == 1 + bool(report)


def test_what_is_odd_in_a_retrieval_submission_is_said(lmk: Run, here: Path) -> None:
    rows = {"q_bridge": "bridge/0.jpg bridge/0.jpg", "q_castle": "n0 castle/0.jpg"}
    rows["q_tower"] = " ".join(f"i{rank}" for rank in range(101))
    (here / "r.csv").write_text(
        "id,images\n" + "".join(f"{id_},{cell}\n" for id_, cell in rows.items())
    )
    call = ("eval", "retrieval", "r.csv", "solution.csv", "-i", "sample.lmk")
    left_out = "6 of 9 queries show no landmark"
    found = lmk(*call).complaints
    assert len(found) == 4
    assert left_out in found[0]
    assert "r.csv, line 2: repeated image" in found[1]
    assert "r.csv, line 3: unknown label: the gallery has no picture n0" in found[2]
    assert "101 more like it" in found[2]
    assert "r.csv, line 4: too many: 101 images, only 100 are scored" in found[3]
    assert len(lmk(*call, "-k", 200).complaints) == 3


TAGS = "id,split,tags\np1,val,cat sofa\np2,val,\np3,val,dog\n"
TAGGED = "id,tags\np1,cat:0.9 dog:0.4 sofa:0.1\np3,dog:0.8 cat:0.7\n"


def test_tags(lmk: Run, files: Path) -> None:
    (files / "tags.csv").write_text(TAGS)
    (files / "tagged.csv").write_text(TAGGED)
    done = lmk("eval", "tags", "tagged.csv", "tags.csv", "-k", 2, "--json")
    assert done.code == 0
    assert done.complaints == [
        "lmk: tagged.csv: 1 of 3 pictures have no row (the first is p2): they count as without tags"
    ]
    found = json.loads(done.out)
    assert (found["k"], found["pictures"], found["without_true_tag"]) == (2, 2, 1)
    assert found["precision"] == pytest.approx(1 / 2)
    assert found["recall"] == pytest.approx(3 / 4)
    assert found["f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["tags"]["cat"] == {"support": 1, "average_precision": 1.0}
    assert found["tags"]["dog"]["average_precision"] == 1.0
    assert found["tags"]["sofa"]["average_precision"] == 1.0
    assert found["macro_map"] == 1.0
    assert found["micro_map"] == pytest.approx((1 + 1 + 3 / 5) / 3)
    assert found["f1_interval"][0] <= found["f1"] <= found["f1_interval"][1]


def test_tags_given_and_what_follows(lmk: Run, files: Path) -> None:
    (files / "tags.csv").write_text(TAGS)
    (files / "tagged.csv").write_text(TAGGED)
    (files / "relations.csv").write_text("child,parent\ncat,animal\ndog,animal\n")
    call = ("eval", "tags", "tagged.csv", "tags.csv", "-k", 1, "--json")
    assert json.loads(lmk(*call).out)["given"] is None
    found = json.loads(lmk(*call, "--threshold", 0.7).out)["given"]
    assert found["micro"] == {"precision": 2 / 3, "recall": 2 / 3, "f1": pytest.approx(2 / 3)}
    assert found["tags"]["cat"] == {"precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3)}
    assert found["tags"]["sofa"] == {"precision": 0, "recall": 0, "f1": 0}
    (files / "tagged.csv").write_text("id,tags,given\np1,cat:0.9,cat animal\np3,dog:0.8,\n")
    found = json.loads(lmk(*call, "--relations", "relations.csv").out)
    assert found["given"]["tags"]["animal"] == {
        "precision": 1, "recall": 0.5, "f1": pytest.approx(2 / 3),
    }  # fmt: skip
    assert found["tags"]["animal"]["support"] == 2
    table = lmk(*call[:-1], "--resamples", 0).out
    assert "assigned tags, micro: P 0.5000  R 0.3333" in table
    (files / "tagged.csv").write_text("id,tags,given\np1,cat:0.9,cat cat\n")
    lmk(*call).refused(1, "line 2", "twice")


def test_tags_as_a_table(lmk: Run, files: Path) -> None:
    (files / "tags.csv").write_text(TAGS)
    (files / "tagged.csv").write_text("id,tags\np1,dog:0.9 zebra:0.8\np2,\np3,dog:0.8\n")
    done = lmk("eval", "tags", "tagged.csv", "tags.csv", "-k", 1, "--resamples", 0)
    assert done.err == ""
    assert "P@1 0.5000  R@1 0.5000  F1@1 0.5000" in done.out
    assert "1 have no true tag" in done.out
    assert "over 3 tags" in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert ["dog", "1", "0.5000"] in rows
    assert not any(row[:1] == ["zebra"] for row in rows)  # nobody has it: no AP
    found = json.loads(lmk("eval", "tags", "tagged.csv", "tags.csv", "-k", 1, "--json").out)
    assert found["tags"]["zebra"] == {"support": 0, "average_precision": None}


@pytest.fixture
def benchmark(files: Path) -> Path:
    """Two queries and four database pictures; q0 finds easy and hard, q1 its hard one second."""
    gnd = [
        {"bbx": [0, 0, 9, 9], "easy": [0], "hard": [1], "junk": [3]},
        {"bbx": [0, 0, 9, 9], "easy": [2], "hard": [3], "junk": []},
    ]
    truth = {"imlist": ["d0", "d1", "d2", "d3"], "qimlist": ["q0", "q1"], "gnd": gnd}
    (files / "gnd.pkl").write_bytes(pickle.dumps(truth, protocol=2))
    np.save(files / "ranks.npy", np.array([[0, 1, 3, 2], [2, 0, 3, 1]]))
    np.save(files / "columns.npy", np.array([[0, 1, 3, 2], [2, 0, 3, 1]]).T)
    (files / "ranks.csv").write_text("id,images\nq0,d0 d1 d3 d2\nq1,d2 d0 d3 d1\n")
    np.save(files / "database.npy", np.eye(4, dtype=np.float32))
    np.save(files / "queries.npy", np.array([[4, 3, 1, 2], [3, 1, 4, 2]], dtype=np.float32))
    return files


def test_revisited_from_every_kind_of_file(lmk: Run, benchmark: Path) -> None:
    calls = [
        ("--ranks", "ranks.npy"),
        ("--ranks", "columns.npy", "--columns"),
        ("--ranks", "ranks.csv"),
        ("--database", "database.npy", "--queries", "queries.npy"),
    ]
    answers = [lmk("eval", "revisited", "gnd.pkl", *call, "--json") for call in calls]
    assert all(done.code == 0 and done.err == "" for done in answers)
    found = [json.loads(done.out) for done in answers]
    assert all(each == found[0] for each in found)
    assert found[0]["easy"]["map"] == 1
    # q0: 1; q1 (after its easy picture is taken out): hard at rank 2, the mean of 0 and 1/2
    assert found[0]["hard"]["map"] == pytest.approx((1 + 1 / 4) / 2)
    assert found[0]["hard"]["mean_precision"] == {"1": 0.5, "5": 0.75, "10": 0.75}
    assert found[0]["medium"]["queries"] == 2


def test_revisited_as_a_table(lmk: Run, benchmark: Path) -> None:
    (benchmark / "one.csv").write_text("id,images\nq0,d0\n")
    done = lmk("eval", "revisited", "gnd.pkl", "--ranks", "one.csv", "--resamples", 0)
    assert done.complaints == [
        "lmk: one.csv: 1 of 2 queries have no row (the first is q1): they count as empty lists"
    ]
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["mAP", "mP@1", "mP@5", "mP@10", "queries"]
    assert lines[1] == ["easy", "0.5000", "0.5000", "0.5000", "0.5000", "2"]
    with_bounds = lmk("eval", "revisited", "gnd.pkl", "--ranks", "one.csv")
    assert "0.5000 [0.000 to 1.000]" in with_bounds.out


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        ("gap old.csv solution.csv --queries x", 2, ["--queries", "--report"]),
        ("gap old.csv solution.csv --index no.lmk", 2, ["no.lmk: there is no such"]),
        ("gap old.csv solution.csv --root .", 2, ["--root", "--queries"]),
        ("gap old.csv solution.csv --resamples -1", 2, ["--resamples", "lmk eval gap --help"]),
        ("gap old.csv solution.csv --report no/where", 2, ["no: no such folder"]),
        ("gap old.csv solution.csv --report old.csv", 2, ["old.csv: is a file"]),
        ("gap old.csv solution.csv --report out -i no.lmk", 2, ["no.lmk: there is no such"]),
        ("gap old.csv solution.csv --report out --queries no", 2, ["no: no such folder or file"]),
        ("gap old.csv wanted.csv", 1, ["wanted.csv, line 1", "id and landmarks"]),
        ("compare old.csv solution.csv", 2, ["two submissions or more"]),
        ("compare old.csv no.csv solution.csv", 2, ["no.csv: no such file"]),
        ("compare old.csv new.csv solution.csv --weights 1,2", 2, ["--weights", "--blend"]),
        ("compare old.csv new.csv solution.csv --blend b.csv --weights 1", 2, ["2 numbers"]),
        ("compare old.csv new.csv solution.csv --blend b.csv --weights 1,x", 2, ["'1,x'"]),
        ("compare old.csv new.csv solution.csv --blend b.csv --weights 1,0", 2, ["above 0"]),
        ("compare old.csv new.csv solution.csv --blend no/b.csv", 2, ["no: no such folder"]),
        ("compare old.csv minus.csv solution.csv --blend b.csv --rule score", 1, ["minus.csv"]),
        (
            "compare old.csv new.csv solution.csv --blend old.csv",
            2,
            ["old.csv: would be read and overwritten"],
        ),
        ("compare old.csv lost.csv solution.csv --blend b.csv", 1, ["unknown query id z"]),
        ("compare old.csv lost.csv solution.csv", 1, ["lost.csv, line 2", "unknown query id z"]),
        ("retrieval lists.csv no.csv", 2, ["no.csv: no such file"]),
        ("retrieval lists.csv wanted.csv -k 0", 2, ["'-k'"]),
        ("retrieval old.csv wanted.csv", 1, ["old.csv, line 1", "id,images"]),
        ("retrieval lists.csv solution.csv", 1, ["solution.csv, line 1", "id and images"]),
        ("retrieval lists.csv solution.csv -i a --gallery b", 2, ["give one of them"]),
        ("retrieval lists.csv solution.csv --gallery tags.csv", 1, ["tags.csv, line 1"]),
        ("retrieval lists.csv solution.csv --gallery far.csv", 1, ["no query shows", "far.csv"]),
        ("retrieval lists.csv solution.csv -i no.lmk", 2, ["no.lmk"]),
        ("tags old.csv tags.csv", 1, ["old.csv, line 1", "id and tags"]),
        ("tags lists.csv no.csv", 2, ["no.csv: no such file"]),
        ("tags tags.csv tags.csv -k 0", 2, ["'-k'"]),
        ("revisited gnd.pkl", 2, ["give --ranks, or both"]),
        ("revisited gnd.pkl --database database.npy", 2, ["give --ranks, or both"]),
        ("revisited gnd.pkl --ranks ranks.npy --queries queries.npy", 2, ["leave out --database"]),
        ("revisited gnd.pkl --ranks ranks.csv --columns", 2, ["--columns is for a .npy"]),
        (
            "revisited gnd.pkl --database database.npy --queries queries.npy --columns",
            2,
            ["--columns is for"],
        ),
        ("revisited no.pkl --ranks ranks.npy", 2, ["no.pkl: no such file"]),
        ("revisited old.csv --ranks ranks.npy", 1, ["old.csv: not a pickle"]),
        ("revisited gnd.pkl --ranks columns.npy", 1, ["4 rows for 2 queries", "add --columns"]),
        ("revisited gnd.pkl --database database.npy --queries narrow.npy", 1, ["3 numbers"]),
        ("revisited easy.pkl --ranks ranks.npy", 1, ["easy.pkl", "no query has a right"]),
    ],
)
def test_what_cannot_be_done_is_one_line(
    lmk: Run, benchmark: Path, lists: Path, call: str, code: int, words: list[str]
) -> None:
    (lists / "tags.csv").write_text(TAGS)
    (lists / "minus.csv").write_text("id,landmarks\na,eiffel -1\n")
    (lists / "lost.csv").write_text("id,landmarks\nz,eiffel 1\n")
    (lists / "far.csv").write_text("id,landmark_id\ng1,tower_bridge\n")
    np.save(lists / "narrow.npy", np.zeros((2, 3), dtype=np.float32))
    gnd = [{"bbx": [0, 0, 9, 9], "easy": [0], "hard": [], "junk": []}] * 2
    truth = {"imlist": ["d0", "d1", "d2", "d3"], "qimlist": ["q0", "q1"], "gnd": gnd}
    (lists / "easy.pkl").write_bytes(pickle.dumps(truth, protocol=2))
    before = sorted(lists.rglob("*"))
    lmk("eval", *call.split()).refused(code, *words)
    assert sorted(lists.rglob("*")) == before


def test_a_pickle_that_runs_code_is_refused(lmk: Run, files: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("open('owned', 'w')",)

    (files / "evil.pkl").write_bytes(pickle.dumps({"gnd": Evil()}))
    np.save(files / "ranks.npy", np.zeros((1, 1), dtype=int))
    lmk("eval", "revisited", "evil.pkl", "--ranks", "ranks.npy").refused(1, "evil.pkl", "load")
    assert not (files / "owned").exists()
