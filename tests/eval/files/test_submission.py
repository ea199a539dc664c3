"""Submission files: reading by the contest's rules, writing whole or not at all, validation."""

from __future__ import annotations

import fcntl
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmk.embed.errors import StorageError, SubmissionError, UsageError
from lmk.embed.tables.label_text import nfc, plain_name, whole_number
from lmk.eval.files.submission import (
    RetrievalSubmission,
    RetrievalWriter,
    Submission,
    SubmissionWriter,
)
from lmk.eval.files.validate import validate, validate_retrieval
from lmk.index.vectors.neighbours import Neighbours
from lmk.rerank.steps.predictions import Predictions

SAME_FOLDER = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def save(folder: Path, data: str | bytes, name: str = "submission.csv") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_reads_the_contests_format(tmp_path: Path) -> None:
    path = save(tmp_path, "id,landmarks\n000088da12d664db,8815 0.03\n0001623c6d808702,\n\nq,a -2\n")
    submission = Submission.read(path)
    assert submission.query_ids == ("000088da12d664db", "0001623c6d808702", "q")
    assert submission.labels == ("8815", None, "a")
    assert submission.confidence.tolist() == [0.03, -math.inf, -2.0]
    assert submission.lines == (2, 3, 5)
    assert submission.where(2) == f"{path}, line 5"


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfid,landmarks\na,1 0.5\nb,\n",  # byte order mark
        b"id,landmarks\r\na,1 0.5\r\nb,\r\n",  # Windows
        b"id,landmarks\na,1 0.5 \nb,  \n",  # trailing blanks
        b'"id","landmarks"\n"a","1 0.5"\n"b",""\n',  # quotes
        b"landmarks,id\n1 0.5,a\n,b\n",  # columns swapped
        b"id,landmarks\n\na,1 5e-1\n\n\nb,",  # blank rows, no newline at the end
    ],
)
def test_tolerates_what_common_programs_write(tmp_path: Path, data: bytes) -> None:
    submission = Submission.read(save(tmp_path, data))
    assert submission.query_ids == ("a", "b")
    assert submission.labels == ("1", None)
    assert submission.confidence.tolist() == [0.5, -math.inf]


IDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1
).filter(lambda text: bool(text.strip()) and "\x85" not in text)
LABELS = st.none() | IDS.filter(lambda text: text.split() == [text])
# Read are ids and labels as lists of pictures have them: without blanks, in NFC.
PLAIN_IDS = IDS.map(plain_name)
LABELS = LABELS.map(lambda label: label and nfc(label)).filter(
    lambda label: label is None or whole_number(label) == label
)
ROWS = st.dictionaries(
    PLAIN_IDS, st.tuples(LABELS, st.floats(allow_nan=False).filter(lambda x: x != -math.inf))
)


@SAME_FOLDER
@given(ROWS)
def test_writing_and_reading_give_the_same(
    tmp_path: Path, rows: dict[str, tuple[str | None, float]]
) -> None:
    confidence = [value if label is not None else -math.inf for label, value in rows.values()]
    submission = Submission(
        tuple(rows), tuple(label for label, _ in rows.values()), np.array(confidence, dtype=float)
    )
    submission.write(tmp_path / "out.csv")
    again = Submission.read(tmp_path / "out.csv")
    assert (again.query_ids, again.labels) == (submission.query_ids, submission.labels)
    assert again.confidence.tobytes() == submission.confidence.tobytes()
    assert names(tmp_path) == ["out.csv"]


@SAME_FOLDER
@given(st.dictionaries(PLAIN_IDS, st.lists(PLAIN_IDS, max_size=5)))
def test_retrieval_writing_and_reading_give_the_same(
    tmp_path: Path, rows: dict[str, list[str]]
) -> None:
    submission = RetrievalSubmission(tuple(rows), tuple(map(tuple, rows.values())))
    submission.write(tmp_path / "out.csv")
    again = RetrievalSubmission.read(tmp_path / "out.csv")
    assert (again.query_ids, again.images) == (submission.query_ids, submission.images)


def test_predictions_keep_answers_below_the_threshold() -> None:
    neighbours = Neighbours(
        np.array([[0], [1], [2], [-1]]),
        np.array([[0.9], [0.2], [0.1], [-np.inf]], dtype=np.float32),
        ("a", "b", "c", "d"),
    )
    flat = np.zeros((4, 1), dtype=np.float32)
    confidence = np.array([0.9, 0.1, -np.inf, -np.inf], dtype=np.float32)
    predictions = Predictions(
        labels=("x", "y", "z", None), confidence=confidence, threshold=0.5, neighbours=neighbours,
        scores=flat, penalty=flat, votes=flat, query_penalty=flat[:, 0],
        inliers=np.full((4, 1), -1), geometry_seconds=np.zeros(4), matches={},
    )  # fmt: skip
    submission = Submission.from_predictions(predictions)
    assert submission.labels == ("x", "y", None, None)
    assert (
        submission.confidence.tolist()
        == [float(np.float32(0.9)), float(np.float32(0.1))] + [-math.inf] * 2
    )


# --- malformed files ---------------------------------------------------------------------------

GOOD = [b"id,landmarks", b"q1,12 0.5", b"q2,", b"q3,7 0.25", b"q4,Eiffel_Tower 1e-3", b"q5,12 -4"]
BAD_ROWS = {
    "no comma": b"q6",
    "three cells": b"q6,1,0.5",
    "four cells": b"q6,1 0.5,,",
    "no id": b",1 0.5",
    "blank id": b"   ,1 0.5",
    "label alone": b"q6,12",
    "confidence alone": b"q6, 0.5",
    "three tokens": b"q6,Eiffel Tower 0.5",
    "two answers": b"q6,12 0.5 13 0.4",
    "two blanks": b"q6,12  0.5",
    "a tab": b"q6,12\t0.5",
    "a tab in the label": b"q6,1\t2 0.5",
    "a hard blank in the label": "q6,Eiffel\u00a0Tower 0.5".encode(),
    "NaN": b"q6,12 nan",
    "NAN": b"q6,12 NaN",
    "minus NaN": b"q6,12 -nan",
    "a word": b"q6,12 high",
    "None": b"q6,12 None",
    "a comma for a point": b'q6,"12 0,5"',
    "a percentage": b"q6,12 50%",
    "grouped digits": b"q6,12 1_000",
    "other digits": "q6,12 ٣".encode(),
    "hexadecimal": b"q6,12 0x1p3",
    "two signs": b"q6,12 --1",
    "swapped": b"q6,0.5 twelve",
    "repeated": b"q1,12 0.5",
    "repeated blank": b"q2,",
    "not UTF-8": b"q\xff,12 0.5",
    "not UTF-8 in the label": b"q6,\xe9glise 0.5",
    "UTF-8 surrogate": b"q6,\xed\xa0\x80 0.5",
    "a NUL": b"q6,12\0 0.5",
    "an open quote": b'q6,"12 0.5',
    "text behind a quote": b'q6,"12" 0.5',
    "another header": b"id,landmarks",
    "a semicolon": b"q6;12 0.5",
}
BAD_HEADERS = {
    "empty": b"",
    "a data row": b"q0,12 0.5",
    "retrieval": b"id,images",
    "one column": b"id",
    "three columns": b"id,landmarks,Usage",
    "twice": b"id,id",
    "capitals": b"Id,Landmarks",
    "semicolon": b"id;landmarks",
    "UTF-16": "id,landmarks".encode("utf-16"),
    "not UTF-8": b"id,landmarks\xff",
    "an open quote": b'"id,landmarks',
    "a picture": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "a zip": b"PK\x03\x04\x14\x00",
}
ENDS = {"unix": b"\n", "windows": b"\r\n"}
CASES = [
    pytest.param(row, place, end, id=f"{name}-{place}-{end_name}")
    for name, row in BAD_ROWS.items()
    for place in range(2, len(GOOD) + 1)
    for end_name, end in ENDS.items()
] + [
    pytest.param(header, 0, end, id=f"header {name}-{end_name}")
    for name, header in BAD_HEADERS.items()
    for end_name, end in ENDS.items()
]


def test_there_are_enough_malformed_cases() -> None:
    assert len(CASES) >= 300


@pytest.mark.parametrize(("bad", "place", "end"), CASES)
def test_malformed_files_are_refused_with_line_and_reason(
    tmp_path: Path, bad: bytes, place: int, end: bytes
) -> None:
    lines = [bad, *GOOD[1:]] if place == 0 else [*GOOD[:place], bad, *GOOD[place:]]
    path = save(tmp_path, end.join(lines) + end)
    with pytest.raises(SubmissionError) as caught:
        Submission.read(path)
    message = str(caught.value)
    told = {place + 1}
    if bad in GOOD[1:]:  # a repeated id is told where it stands the second time
        told = {max(number for number, line in enumerate(lines, start=1) if line == bad)}
    elif bad == b"":  # blank rows are skipped, so the first answer is taken for the header
        told = {2}
    assert any(message.startswith(f"{path}, line {line}: ") for line in told), message
    assert "\n" not in message


@SAME_FOLDER
@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    for prefix in (b"", b"id,landmarks\n"):
        path = save(tmp_path, prefix + data)
        try:
            submission = Submission.read(path)
        except SubmissionError as error:
            assert str(path) in str(error)
        else:
            submission.write(tmp_path / "again.csv")


@SAME_FOLDER
@given(st.binary(max_size=80))
def test_any_bytes_are_a_retrieval_submission_or_refused(tmp_path: Path, data: bytes) -> None:
    path = save(tmp_path, b"id,images\n" + data)
    try:
        RetrievalSubmission.read(path)
    except SubmissionError as error:
        assert str(path) in str(error)


def test_retrieval_rows(tmp_path: Path) -> None:
    submission = RetrievalSubmission.read(save(tmp_path, "id,images\na,x y x \nb,\n"))
    assert submission.images == (("x", "y", "x"), ())
    assert submission.where(1).endswith("line 3")
    with pytest.raises(SubmissionError, match="line 2: image 2 is ''"):
        RetrievalSubmission.read(save(tmp_path, "id,images\na,x  y\n"))
    with pytest.raises(SubmissionError, match="line 3: id a is repeated; it stands on line 2"):
        RetrievalSubmission.read(save(tmp_path, "id,images\na,x\na,y\n"))


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        Submission.read(tmp_path / "none.csv")
    with pytest.raises(UsageError, match="a folder"):
        Submission.read(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        SubmissionWriter(tmp_path / "none" / "out.csv")
    with pytest.raises(UsageError, match="a folder, not a file"):
        SubmissionWriter(tmp_path)


def test_values_that_cannot_be() -> None:
    one = np.zeros(1)
    with pytest.raises(ValueError, match="repeated"):
        Submission(("a", "a"), ("1", "1"), np.zeros(2))
    with pytest.raises(ValueError, match="NaN"):
        Submission(("a",), ("1",), np.array([np.nan]))
    with pytest.raises(ValueError, match="blank answer"):
        Submission(("a",), (None,), one)
    with pytest.raises(ValueError, match="float64"):
        Submission(("a",), ("1",), one.astype(np.float32))
    with pytest.raises(ValueError, match="2 queries, 1 labels"):
        Submission(("a", "b"), ("1",), one)
    with pytest.raises(ValueError, match="lines"):
        Submission(("a",), ("1",), one, lines=(1, 2))
    with pytest.raises(ValueError, match="repeated"):
        RetrievalSubmission(("a", "a"), ((), ()))
    with pytest.raises(ValueError, match="lists of images"):
        RetrievalSubmission(("a", "b"), ((),))
    with pytest.raises(ValueError, match="lines"):
        RetrievalSubmission(("a",), ((),), lines=())


# --- writing -----------------------------------------------------------------------------------


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = save(tmp_path, "id,landmarks\nold,1 0.5\n")
    for row, message in (
        (("a", "Eiffel Tower", 0.5), "has a blank in it"),
        (("a", "", 0.5), "has a blank in it"),
        (("a", "1", math.nan), "NaN"),
        (("", "1", 0.5), "id is empty"),
        (("a\nb", "1", 0.5), "cannot be written"),
        (("a\udcff", "1", 0.5), "cannot be written"),
        (("first", "1", 0.5), "written twice"),
    ):
        with pytest.raises(SubmissionError, match=message), SubmissionWriter(path) as writer:
            writer.write("first", "1", 0.5)
            writer.write(*row)
    for images, message in ((["x"] * 101, "101 images"), (["x y"], "has a blank in it")):
        with pytest.raises(SubmissionError, match=message), RetrievalWriter(path) as retrieval:
            retrieval.write("a", images)
    assert path.read_text() == "id,landmarks\nold,1 0.5\n"
    assert names(tmp_path) == ["submission.csv"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"), SubmissionWriter(path) as writer:
        writer.write("a", "1", 0.5)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["submission.csv"]


def test_a_resumed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt), SubmissionWriter(path, resume="k1") as writer:
        writer.write("a", "1", 0.1)
        writer.write("b", None, 0.2)
        raise KeyboardInterrupt
    assert not path.exists()
    part = tmp_path / ".out.csv.k1.part"
    with part.open("a") as file:
        file.write("c,7 0.")  # a row cut short
    with SubmissionWriter(path, resume="k1") as writer:
        assert writer.done == [["a", "1 0.1"], ["b", ""]]
        assert writer.written == {"a", "b"}
        writer.write("c", "7", 0.3)
    assert path.read_text() == "id,landmarks\na,1 0.1\nb,\nc,7 0.3\n"
    assert names(tmp_path) == ["out.csv"]


@pytest.mark.parametrize(
    "damage", [b"", b"\0\0\0\0\n", b"\xff\xfe\n", b"id,images\nq,x\n", b"id,landmarks\nq\n"]
)
def test_an_unusable_part_is_started_over(tmp_path: Path, damage: bytes) -> None:
    save(tmp_path, damage, ".out.csv.k.part")
    with SubmissionWriter(tmp_path / "out.csv", resume="k") as writer:
        assert writer.done == []
        writer.write("a", "1", 0.5)
    assert (tmp_path / "out.csv").read_text() == "id,landmarks\na,1 0.5\n"


def test_another_work_starts_anew_and_two_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with SubmissionWriter(path, resume="k1") as first:
        first.write("a", "1", 0.5)
        with pytest.raises(UsageError, match="another process"):
            SubmissionWriter(path, resume="k1")
        with SubmissionWriter(path, resume="k2") as other:
            assert other.done == []
            other.write("b", "1", 0.5)
    assert path.read_text() == "id,landmarks\na,1 0.5\n"


def test_parts_left_by_stopped_runs_are_removed_when_nobody_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    others = (".out.csv.bak.k1.part", ".out.csv.part", "out.csv.k1.part")  # of other targets
    for name in (".out.csv.k0.part", *others):
        save(tmp_path, b"", name)
    with pytest.raises(KeyboardInterrupt), SubmissionWriter(path, resume="k1"):
        raise KeyboardInterrupt
    with SubmissionWriter(path, resume="k2"), SubmissionWriter(path):
        save(tmp_path, "id,landmarks\n", ".out.csv.k3.part")
    assert names(tmp_path) == sorted([*others, "out.csv"])


def test_a_part_that_is_finished_before_it_is_locked_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process ends between our opening its part and locking it."""
    path = tmp_path / "out.csv"
    save(tmp_path, "id,landmarks\na,1 0.5\n", ".out.csv.k.part")
    lock, calls = fcntl.flock, []

    def late(file: IO[str], how: int) -> None:
        if not calls:
            (tmp_path / ".out.csv.k.part").replace(path)
        calls.append(how)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(KeyboardInterrupt), SubmissionWriter(path, resume="k") as writer:
        assert writer.done == []
        writer.write("b", "1", 0.5)
        raise KeyboardInterrupt
    assert path.read_text() == "id,landmarks\na,1 0.5\n"


def test_a_killed_writer_leaves_the_old_file_or_its_rows(tmp_path: Path) -> None:
    path = save(tmp_path, "old")
    code = (
        "import os, sys\n"
        "from lmk.eval.files.submission import SubmissionWriter\n"
        "with SubmissionWriter(sys.argv[1], resume='k') as writer:\n"
        "    for row in range(5000):\n"
        "        writer.write(f'q{row}', '1', row / 7)\n"
        "        if row == 3210: os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    with SubmissionWriter(path, resume="k") as writer:
        assert len(writer.written) == 3211
        for row in range(3211, 5000):
            writer.write(f"q{row}", "1", row / 7)
    again = Submission.read(path)
    assert again.confidence.tolist() == [row / 7 for row in range(5000)]


# --- validation --------------------------------------------------------------------------------


def test_validation_lists_every_fault_by_line(tmp_path: Path) -> None:
    path = save(tmp_path, "id,landmarks\na,1 0.5\nb,9 inf\nx,1.0 0.5\n\ne,\nz,2 -inf\n")
    findings = validate(
        Submission.read(path), queries=["g", "f", "e", "a", "b"], gallery_labels={"1", "2"}
    )
    assert [(finding.kind, finding.line, finding.query_id) for finding in findings] == [
        ("unknown label", 3, "b"),
        ("infinite", 3, "b"),
        ("infinite", 7, "z"),
        ("missing", None, "f"),
        ("missing", None, "g"),
    ]
    assert findings[0].reason == "the gallery has no landmark 9"
    unread = Submission(("a",), ("9",), np.array([0.5]))
    assert validate(unread) == ()
    assert validate(unread, gallery_labels={"1"})[0].line is None


def test_validation_of_retrieval(tmp_path: Path) -> None:
    many = " ".join(f"i{rank}" for rank in range(101))
    path = save(tmp_path, f"id,images\na,{many}\nb,i1 i1 z\nc,i1 i2\n")
    ids = {f"i{rank}" for rank in range(101)}
    submission = RetrievalSubmission.read(path)
    findings = validate_retrieval(submission, gallery_ids=ids)
    assert [(finding.kind, finding.line) for finding in findings] == [
        ("too many", 2),
        ("repeated image", 3),
        ("unknown label", 3),
    ]
    clean = RetrievalSubmission.read(save(tmp_path, "id,images\na,i1 i2\nb,\n"))
    assert validate_retrieval(clean) == ()
