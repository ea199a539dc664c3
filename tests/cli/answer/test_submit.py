"""`lmk submit`: which file it writes, in which order, and what a stopped run leaves."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lmk.embed.extract.extract import extract_stream
from lmk.eval.files import contest_csv
from lmk.eval.files.submission import RetrievalWriter, SubmissionWriter
from lmk.index.gallery.gallery import Gallery
from lmk.rerank import recognizer
from lmk.rerank.fit.fit import save_pipeline
from lmk.rerank.fit.saved import saved_pipeline
from lmk.rerank.steps.distractor_similarity import OverpredictedStep
from lmk.rerank.steps.pipeline import Pipeline

Run = Callable[..., object]
SUBMIT = ("submit", "queries", "-i", "sample.lmk", "-o", "s.csv")
TASKS = pytest.mark.parametrize(
    ("task", "writer"), [("recognition", SubmissionWriter), ("retrieval", RetrievalWriter)]
)


def cells(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def stop_after(
    count: int, writer: type, monkeypatch: pytest.MonkeyPatch, lmk: Run, *words: object
) -> None:
    """Runs the command and stops it, as Ctrl-C does, when that many rows are written."""
    write = writer.write_cell

    def stopping(self: object, query_id: str, *answer: object) -> None:
        if len(self.written) == count:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        write(self, query_id, *answer)

    with monkeypatch.context() as patched:
        patched.setattr(writer, "write_cell", stopping)
        lmk(*words).refused(130, "stopped")


@TASKS
def test_a_replaced_picture_is_answered_anew_after_a_stop(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch, task: str, writer: type
) -> None:
    submit = (*SUBMIT, "--task", task)
    stop_after(3, writer, monkeypatch, lmk, *submit)
    replaced = here / "queries" / "q_bridge.jpg"
    replaced.write_bytes((here / "queries" / "q_castle.jpg").read_bytes())
    done = lmk(*submit)
    assert (done.code, "earlier run" in done.out) == (0, False)
    answers = dict(cells(here / "s.csv"))
    assert answers["q_bridge"].startswith("castle")
    assert answers["q_bridge"] == answers["q_castle"]


def test_a_picture_that_appears_after_a_stop_is_answered(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "asked.csv").write_text("id,path\na,gone.jpg\nb,q_tower.jpg\nc,q_castle.jpg\n")
    submit = ("submit", "asked.csv", "--root", "queries", "-o", "s.csv")
    stop_after(2, SubmissionWriter, monkeypatch, lmk, *submit)
    (here / "queries" / "q_bridge.jpg").rename(here / "queries" / "gone.jpg")
    assert lmk(*submit).out == "s.csv: 3 queries, 0 left blank\n"
    assert [cell.partition(" ")[0] for _, cell in cells(here / "s.csv")] == [
        "bridge",
        "tower",
        "castle",
    ]


@TASKS
def test_rows_come_in_the_manifests_order_and_blanks_are_counted_over_all_runs(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch, task: str, writer: type
) -> None:
    """Two rows may name one file, readable or not; blanks stand where their query does."""
    (here / "queries" / "bad.jpg").write_bytes(b"no picture")
    paths = ["bad.jpg", "q_tower.jpg", "bad.jpg", "gone.jpg", "q_castle.jpg", "q_tower.jpg"]
    rows = [f"q{9 - place},{path}" for place, path in enumerate([*paths, "bad.jpg"])]
    (here / "asked.csv").write_text("\n".join(["id,path", *rows]) + "\n")
    submit = ("submit", "asked.csv", "--root", "queries", "-o", "s.csv", "--task", task)
    done = lmk(*submit)
    assert (done.code, done.out) == (0, "s.csv: 7 queries, 4 left blank\n")
    assert len(done.complaints) == 4
    whole = cells(here / "s.csv")
    assert [id_ for id_, _ in whole] == [row.partition(",")[0] for row in rows]
    assert [bool(cell) for _, cell in whole] == [False, True, False, False, True, True, False]
    assert whole[1][1] == whole[5][1]
    for count in range(1, 7):
        (here / "s.csv").unlink()
        stop_after(count, writer, monkeypatch, lmk, *submit)
        again = f"s.csv: 7 queries ({count} of them in an earlier run), 4 left blank\n"
        assert lmk(*submit).out == again
        assert cells(here / "s.csv") == whole


@pytest.mark.parametrize("stop", [0, 1, 3, 5, "at the end"])
def test_overpredicted_landmarks_are_counted_over_all_batches_and_runs(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch, stop: int | str
) -> None:
    """Three photos of a tower, two of a castle, and one that cannot be read."""
    names = ["tower", "castle", "tower", "gone", "castle", "tower"]
    rows = [f"q{place},q_{name}.jpg" for place, name in enumerate(names)]
    (here / "asked.csv").write_text("\n".join(["id,path", *rows]) + "\n")
    submit = ("submit", "asked.csv", "--root", "queries", "-o", "s.csv")
    assert lmk(*submit).code == 0
    alone = cells(here / "s.csv")
    with Gallery.open(here / "sample.lmk") as gallery:
        steps = saved_pipeline(gallery).with_threshold(None).steps
    save_pipeline(here / "sample.lmk", Pipeline(steps=(*steps, OverpredictedStep(limit=2))))
    monkeypatch.setattr(recognizer, "extract_stream", partial(extract_stream, batch=2))
    if stop == "at the end":
        with monkeypatch.context() as patched:
            patched.setattr(contest_csv, "sync_folder", _interrupted)
            lmk(*submit).refused(130, "stopped")
    elif stop:
        stop_after(int(stop), SubmissionWriter, monkeypatch, lmk, *submit)
    assert lmk(*submit).code == 0
    expected = [[id_, "tower -3.0" if id_ in ("q0", "q2", "q5") else cell] for id_, cell in alone]
    assert cells(here / "s.csv") == expected
    assert list(here.glob(".*.part")) == []


def _interrupted(folder: Path) -> None:
    raise KeyboardInterrupt


def test_what_a_stopped_run_left_goes_when_the_index_has_changed(
    lmk: Run, here: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(3, SubmissionWriter, monkeypatch, lmk, *SUBMIT)
    assert len(list(here.glob(".s.csv.*.part"))) == 1
    assert lmk("build-index", "gallery", "-o", "sample.lmk", "--model", tiny).code == 0
    assert "earlier run" not in lmk(*SUBMIT).out
    assert list(here.glob(".*.part")) == []


def test_the_list_of_queries_is_not_written_over(lmk: Run, here: Path) -> None:
    text = "id,path\na,q_tower.jpg\n"
    (here / "q.csv").write_text(text)
    lmk("submit", "q.csv", "--root", "queries", "-i", "sample.lmk", "-o", "./q.csv").refused(
        2, "q.csv"
    )
    assert (here / "q.csv").read_text() == text


def test_queries_whose_names_differ_in_a_blank_or_ending_only(lmk: Run, here: Path) -> None:
    queries = here / "queries"
    (queries / "q_tower.jpg").rename(queries / "my 1.jpg")
    (queries / "q_castle.jpg").rename(queries / "my_1.jpg")
    (queries / "q_bridge.jpg").rename(queries / "other.jpeg")
    assert lmk(*SUBMIT).code == 0
    answers = {id_: cell.partition(" ")[0] for id_, cell in cells(here / "s.csv")}
    assert (answers["./my%201.jpg"], answers["./my_1.jpg"]) == ("tower", "castle")
    assert answers["other"] == "bridge" and len(answers) == 9
    solution = ["id,landmarks", "./my%201.jpg,tower", "./my_1.jpg,castle", "other,bridge"]
    solution += [f"q_none{n}," for n in range(6)]
    (here / "truth.csv").write_text("\n".join(solution) + "\n")
    assert lmk("eval", "gap", "s.csv", "truth.csv").code == 0
