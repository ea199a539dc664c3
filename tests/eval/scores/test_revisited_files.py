"""Rank lists and features from files: what is read, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lmk.embed.errors import LmkError, StorageError, SubmissionError, UsageError
from lmk.eval.scores.revisited import RevisitedTruth
from lmk.eval.scores.revisited_files import read_features, read_ranks

NOTHING = np.zeros(0, dtype=np.int64)
TRUTH = RevisitedTruth(
    ("d0", "d1", "d2"),
    ("q0", "q1"),
    np.zeros((2, 4)),
    (np.array([0]), np.array([1])),
    (np.array([1]), np.array([0])),
    (NOTHING, NOTHING),
)


def saved(folder: Path, array: object, name: str = "ranks.npy") -> Path:
    path = folder / name
    np.save(path, np.asarray(array), allow_pickle=True)
    return path


def written(folder: Path, text: str) -> Path:
    path = folder / "ranks.csv"
    path.write_text(text)
    return path


def test_rows_are_queries_and_minus_one_is_none(tmp_path: Path) -> None:
    path = saved(tmp_path, np.array([[2, 0, 1], [1, -1, -1]], dtype=np.int32))
    lists, missing = read_ranks(path, TRUTH)
    assert [found.tolist() for found in lists] == [[2, 0, 1], [1]]
    assert all(found.dtype == np.int64 for found in lists)
    assert missing == ()


def test_columns_are_queries_when_said_so(tmp_path: Path) -> None:
    path = saved(tmp_path, np.array([[2, 1], [0, 0], [1, 2]], dtype=np.uint16))
    lists, _ = read_ranks(path, TRUTH, columns=True)
    assert [found.tolist() for found in lists] == [[2, 0, 1], [1, 0, 2]]


def test_a_csv_names_pictures(tmp_path: Path) -> None:
    lists, missing = read_ranks(written(tmp_path, "id,images\nq1,d2 d0\n"), TRUTH)
    assert [found.tolist() for found in lists] == [[], [2, 0]]
    assert missing == ("q0",)


@pytest.mark.parametrize(
    ("array", "columns", "words"),
    [
        ([[0, 1, 2]] * 3, False, ["3 rows for 2 queries"]),
        ([[0, 1], [1, 0], [2, 2]], False, ["3 rows for 2 queries", "add --columns"]),
        ([[0, 1, 2], [1, 0, 2]], True, ["3 columns for 2 queries", "leave --columns out"]),
        ([[0.0, 1.0], [1.0, 0.0]], False, ["whole numbers", "float64"]),
        ([0, 1], False, ["whole numbers", "[2]"]),
        ([[0, 3], [1, 0]], False, ["query 0", "outside the 3"]),
        ([[0, 1], [-2, 0]], False, ["query 1", "outside the 3"]),
        ([[0, 1], [2, 2]], False, ["query 1", "twice"]),
    ],
)
def test_wrong_arrays_of_ranks(
    tmp_path: Path, array: object, columns: bool, words: list[str]
) -> None:
    path = saved(tmp_path, array)
    with pytest.raises(SubmissionError) as caught:
        read_ranks(path, TRUTH, columns=columns)
    assert str(caught.value).startswith(str(path))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,images\nq0,d0\nq7,d0\n", ["line 3", "no query q7"]),
        ("id,images\nq0,d0 d1.jpg\n", ["line 2", "d1.jpg", "without .jpg"]),
        ("id,images\nq0,d0 d0\n", ["line 2", "twice"]),
        ("query,images\nq0,d0\n", ["line 1", "id,images"]),
    ],
)
def test_wrong_lists_of_names(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(SubmissionError) as caught:
        read_ranks(written(tmp_path, text), TRUTH)
    for word in words:
        assert word in str(caught.value)


def test_columns_are_of_arrays(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--columns is for"):
        read_ranks(written(tmp_path, "id,images\n"), TRUTH, columns=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_features_of_either_format(tmp_path: Path, dtype: type) -> None:
    features = np.arange(6, dtype=dtype).reshape(3, 2) / 8
    save_file({"any": features}, tmp_path / "f.safetensors")
    for path in (saved(tmp_path, features, "f.npy"), tmp_path / "f.safetensors"):
        found = read_features(path, 3)
        assert found.dtype == (np.float64 if dtype == np.float64 else np.float32)
        assert np.array_equal(found, features)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 4)), ["3 rows of floats", "[2, 4]"]),
        (np.zeros(3), ["3 rows of floats", "[3]"]),
        (np.zeros((3, 2), dtype=np.int64), ["3 rows of floats", "int64"]),
        (np.array([[1, 2], [np.nan, 0], [1, 1]]), ["NaN"]),
        (np.array([[1, 2], [np.inf, 0], [1, 1]]), ["infinite"]),
    ],
)
def test_wrong_features(tmp_path: Path, array: np.ndarray, words: list[str]) -> None:
    with pytest.raises(SubmissionError) as caught:
        read_features(saved(tmp_path, array), 3)
    for word in words:
        assert word in str(caught.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = saved(tmp_path, np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(SubmissionError, match="not an array that can be read"):
        read_features(path, 2)
    with pytest.raises(SubmissionError, match="not an array that can be read"):
        read_ranks(path, TRUTH)


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    (tmp_path / "two.npz").rename(tmp_path / "two.npy")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    save_file({"a": np.zeros((1, 1)), "b": np.zeros((1, 1))}, tmp_path / "two.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    refused: list[tuple[str, type[LmkError], str]] = [
        ("two.npy", SubmissionError, "several arrays"),
        ("cut.npy", SubmissionError, "not an array"),
        ("empty.npy", SubmissionError, "not an array"),
        ("no.npy", UsageError, "no such file"),
        ("cut.safetensors", SubmissionError, "not tensors"),
        ("two.safetensors", SubmissionError, "2 tensors \\(a, b\\)"),
        ("no.safetensors", UsageError, "no such file"),
        ("folder.safetensors", StorageError, "cannot read"),
        ("features.txt", UsageError, ".npy or .safetensors"),
    ]
    for name, kind, words in refused:
        with pytest.raises(kind, match=words):
            read_features(tmp_path / name, 1)
