"""Solution files: the contest's, GLDv2's, plain ones, and those that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmk.embed.errors import LmkError, SubmissionError, UsageError
from lmk.eval.files.submission import RetrievalSubmission, Submission
from lmk.eval.files.truth import RetrievalTruth, Truth
from lmk.eval.scores.average_precision import judge_retrieval
from lmk.eval.scores.gap import gap_of_judged
from lmk.eval.scores.judged import judge


def save(folder: Path, data: str | bytes, name: str = "solution.csv") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_the_contests_recognition_solution(tmp_path: Path) -> None:
    # The layout of GLDv2's recognition_solution_v2.1.csv.
    path = save(
        tmp_path,
        "id,landmarks,Usage\n000088da12d664db,,Private\n00084cdf8f600d00,8815 21 9,Public\n"
        "0009ee1e0d26f4a8,77,Ignored\n",
    )
    truth = Truth.read(path)
    assert truth.query_ids == ("000088da12d664db", "00084cdf8f600d00", "0009ee1e0d26f4a8")
    assert truth.labels == ((), ("8815", "21", "9"), ())
    assert truth.usage == ("Private", "Public", "Ignored")
    assert (truth.rows(), truth.rows("Public"), truth.rows("Private")) == ((0, 1), (1,), (0,))
    assert truth.source == str(path)
    assert truth.row_of["00084cdf8f600d00"] == 1


@pytest.mark.parametrize(
    "data",
    [
        "id,landmarks\na,1\nb,\nc,2 3\n",
        "id,landmark_id\na,1\nb,\nc,2|3\n",
        "id,label\na,1\nb,\nc,2 | 3\n",
        "\ufeffid,labels\r\na,1\r\nb,\r\nc,2  3 \r\n",
        "path,landmark_id,id\nx/a.jpg,1,a\n\nx/b.jpg,,b\nx/c.jpg,2|3,c\n",
    ],
)
def test_plain_files(tmp_path: Path, data: str) -> None:
    truth = Truth.read(save(tmp_path, data))
    assert truth.query_ids == ("a", "b", "c")
    assert truth.labels == (("1",), (), ("2", "3"))
    assert truth.usage == (None, None, None)


def test_gldv2_train_clean(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        "landmark_id,images\n1,17660ef415d37059 92b6290d571448f6\n7,25c9dfc7ea69838d\n",
        "train_clean.csv",
    )
    truth = Truth.read(path)
    assert truth.query_ids == ("17660ef415d37059", "92b6290d571448f6", "25c9dfc7ea69838d")
    assert truth.labels == (("1",), ("1",), ("7",))


def test_a_landmark_of_6272_pictures_fits_in_a_cell(tmp_path: Path) -> None:
    # train_clean.csv's largest row, and ten times that: past csv's own limit of 131,072 letters.
    for count in (6272, 62720):
        images = " ".join(f"{row:016x}" for row in range(count))
        assert len(Truth.read(save(tmp_path, f"landmark_id,images\n138982,{images}\n"))) == count


def test_gldv2_index_image_to_landmark(tmp_path: Path) -> None:
    path = save(
        tmp_path, "id,landmark_id\n00000c8bbc0a1f3b,101399\n", "index_image_to_landmark.csv"
    )
    assert Truth.read(path).labels == (("101399",),)


def test_the_contests_retrieval_solution(tmp_path: Path) -> None:
    # The layout of GLDv2's retrieval_solution_v2.1.csv.
    path = save(
        tmp_path,
        "id,images,Usage\n000088da12d664db,None,Ignored\n00084cdf8f600d00,aa bb,Public\n"
        "0009ee1e0d26f4a8,cc,Private\n",
    )
    truth = RetrievalTruth.read(path)
    assert truth.images == ((), ("aa", "bb"), ("cc",))
    assert truth.rows() == (1, 2)
    assert truth.row_of["0009ee1e0d26f4a8"] == 2
    assert len(truth) == 3
    plain = RetrievalTruth.read(save(tmp_path, "id,images\na,x\n"))
    assert plain.usage == (None,)


def test_sample_submissions_score_as_they_are(tmp_path: Path) -> None:
    solution = save(tmp_path, "id,landmarks,Usage\na,1,Public\nb,,Private\nc,2,Private\n")
    sample = save(tmp_path, "id,landmarks\na,1 0.1\nb,1 0.1\nc,1 0.1\n", "sample.csv")
    submission, truth = Submission.read(sample), Truth.read(solution)
    assert gap_of_judged(judge(submission, truth, "Public")).value == 1.0
    assert gap_of_judged(judge(submission, truth, "Private")).value == 0.0
    solution = save(tmp_path, "id,images,Usage\na,x y,Public\nb,None,Ignored\n")
    sample = save(tmp_path, "id,images\na,y z\nb,z y\n", "sample.csv")
    retrieval = judge_retrieval(RetrievalSubmission.read(sample), RetrievalTruth.read(solution))
    assert retrieval.mean_average_precision() == 0.5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "line 1: an empty file"),
        ("\n\n", "line 1: an empty file"),
        ("id,landmarks\n", "no rows below the header"),
        ("landmark_id,images\n", "no rows below the header"),
        ("a,1\nb,2\n", "line 1: the header must name the columns id and landmarks"),
        ("id,images\na,x\n", "line 1: the header must name the columns id and landmarks"),
        ("id,id,landmarks\na,a,1\n", "line 1: a column name stands twice"),
        ("id,landmarks\na,1\n\na,2\n", "line 4: id a is repeated"),
        ("id,landmarks\n,1\n", "line 2: the id is empty"),
        ("id,landmarks\na,1,2\n", "line 2: 3 cells where the header has 2"),
        ("id,landmarks\na\n", "line 2: 1 cells where the header has 2"),
        ("id,landmarks,Usage\na,1,public\n", "line 2: unknown Usage 'public'"),
        ("id,landmarks,Usage\na,1,\n", "line 2: unknown Usage ''"),
        ("id,landmarks\na,1 1\n", "line 2: a label stands twice"),
        (b"id,landmarks\na,\xff\n", "line 2: not UTF-8"),
        (b"id,landmarks\na,1\0\n", "line 2: a NUL byte"),
        ('id,landmarks\nb,1\na,"1\n', "line 3: not a CSV row"),
        ("landmark_id,images\n1,a b\n2,b\n", "line 3: id b is repeated"),
        ("landmark_id,images\n,a b\n", "line 2: not a label: ''"),
        ("landmark_id,images\nnan,a b\n", "line 2: not a label: 'nan'"),
    ],
)
def test_refused_with_line_and_reason(tmp_path: Path, data: str | bytes, message: str) -> None:
    path = save(tmp_path, data)
    with pytest.raises(SubmissionError) as caught:
        Truth.read(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("id,landmarks\na,1\n", "line 1: the header must name the columns id and images"),
        ("id,images\n", "no rows below the header"),
        ("id,images\na,None\n", "line 2: query a has no true picture"),
        ("id,images,Usage\na,,Public\n", "line 2: query a has no true picture"),
        ("id,images\na,x x\n", "line 2: an image stands twice"),
        ("id,images\na,x\na,y\n", "line 3: id a is repeated"),
    ],
)
def test_refused_retrieval_solutions(tmp_path: Path, data: str, message: str) -> None:
    with pytest.raises(SubmissionError) as caught:
        RetrievalTruth.read(save(tmp_path, data))
    assert message in str(caught.value)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["id,landmarks", "landmark_id,images", "id,images,Usage", ""]), st.binary())
def test_any_bytes_are_read_or_refused(tmp_path: Path, header: str, data: bytes) -> None:
    path = save(tmp_path, header.encode() + b"\n" + data)
    for reader in (Truth.read, RetrievalTruth.read):
        try:
            assert len(reader(path)) > 0
        except SubmissionError as error:
            assert str(path) in str(error)


def test_values_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="repeated"):
        Truth(("a", "a"), ((), ()), (None, None))
    with pytest.raises(ValueError, match="2 queries, 1 values"):
        Truth(("a", "b"), ((),), (None, None))
    with pytest.raises(ValueError, match="unknown usage"):
        Truth(("a",), ((),), ("public",))
    with pytest.raises(ValueError, match="twice"):
        RetrievalTruth(("a",), (("x", "x"),), (None,))


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        Truth.read(tmp_path / "none.csv")
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    with pytest.raises(LmkError, match="cannot read"):
        Truth.read(tmp_path / "loop.csv")


def test_a_usage_that_is_not_there_names_those_that_are() -> None:
    truth = Truth(("a", "b"), ((), ()), ("Private", "Ignored"))
    with pytest.raises(UsageError, match="no row of usage Public; it has Ignored, Private"):
        truth.rows("Public")
    with pytest.raises(UsageError, match="it has no Usage column"):
        Truth(("a",), ((),), (None,)).rows("Public")
