"""Files of tags: what is read, what is refused with its line, and where unnamed tags rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lmk.embed.errors import SubmissionError, UsageError
from lmk.eval.files.tag_files import read_tag_table
from lmk.eval.scores.tags import score_pictures, score_tags

TRUTH = "id,path,tags\np1,a.jpg,cat sofa\np2,b.jpg,\np3,c.jpg,dog\n"


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    path = tmp_path / "tags.csv"
    path.write_text(TRUTH)
    return path


def predictions(folder: Path, text: str) -> Path:
    path = folder / "predictions.csv"
    path.write_text(text)
    return path


def test_both_files_are_laid_beside_each_other(tmp_path: Path, truth: Path) -> None:
    given = predictions(tmp_path, "tags,id\ndog:-1.5 a:b:2e-3,p3\ncat:0.9  sofa:.5 tree:0.1,p1\n")
    table = read_tag_table(given, truth)
    assert table.ids == ("p1", "p2", "p3")
    assert table.names == ("a:b", "cat", "dog", "sofa", "tree")
    none = -np.inf
    assert table.scores.tolist() == [
        [none, 0.9, none, 0.5, 0.1],
        [none] * 5,
        [0.002, none, -1.5, none, none],
    ]
    assert table.truth.tolist() == [
        [False, True, False, True, False],
        [False] * 5,
        [False, False, True, False, False],
    ]
    assert table.missing == ("p2",)


def test_unnamed_tags_rank_below_all_others_and_never_hit(tmp_path: Path, truth: Path) -> None:
    table = read_tag_table(predictions(tmp_path, "id,tags\np1,sofa:-7\np3,cat:1\n"), truth)
    scores = table.finite_scores()
    assert np.isfinite(scores).all()
    assert scores[0].argmax() == table.names.index("sofa")
    assert scores[1].max() < -7
    found = score_pictures(*table.padded(2), 2)
    # p1: sofa is a hit and its second place empty, although "cat" stands first among the unnamed.
    assert found.precision.tolist() == [0.5, 0.0]
    assert found.recall.tolist() == [0.5, 0.0]
    by_tag = score_tags(scores, table.truth, table.names)
    assert by_tag.average_precision[table.names.index("sofa")] == 1


def test_k_may_be_larger_than_the_number_of_tags(tmp_path: Path, truth: Path) -> None:
    table = read_tag_table(predictions(tmp_path, "id,tags\np1,cat:1 sofa:2\n"), truth)
    assert score_pictures(*table.padded(50), 50).precision[0] == 2 / 50


def test_predictions_without_any_tag_are_scored(tmp_path: Path, truth: Path) -> None:
    table = read_tag_table(predictions(tmp_path, "id,tags\np1,\n"), truth)
    assert np.isfinite(table.finite_scores()).all()
    assert score_pictures(*table.padded(3), 3).recall.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,labels\np1,cat:1\n", ["line 1", "id and tags", "id,labels"]),
        ("id,tags\np1,cat:1\np9,cat:1\n", ["line 3", "unknown picture p9"]),
        ("id,tags\np1,cat:1\np1,cat:1\n", ["line 3", "p1 is repeated", "line 2"]),
        ("id,tags\np1,cat:1 dog\n", ["line 2", "'dog' must be a tag and its score"]),
        ("id,tags\np1,:0.5\n", ["line 2", "':0.5'"]),
        ("id,tags\np1,cat:high\n", ["line 2", "'high' is no finite number"]),
        ("id,tags\np1,cat:nan\n", ["line 2", "'nan' is no finite number"]),
        ("id,tags\np1,cat:inf\n", ["line 2", "'inf'"]),
        ("id,tags\np1,cat:1_0\n", ["line 2", "'1_0'"]),
        ("id,tags\np1,cat:\u0663\n", ["line 2"]),
        ("id,tags\np1,cat:1 cat:2\n", ["line 2", "the tag cat stands twice"]),
        ("id,tags\n,cat:1\n", ["line 2", "the id is empty"]),
        ("id,tags\np1,cat:1,more\n", ["line 2", "3 cells"]),
        ("id,tags\n", ["no rows"]),
        ("", ["empty file"]),
    ],
)
def test_wrong_predictions_are_refused_with_their_line(
    tmp_path: Path, truth: Path, text: str, words: list[str]
) -> None:
    path = predictions(tmp_path, text)
    with pytest.raises(SubmissionError) as caught:
        read_tag_table(path, truth)
    assert str(caught.value).startswith(str(path))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,tags\np1,cat cat\n", ["line 2", "a tag stands twice"]),
        ("id,tags\np1,\n", ["no picture has a tag"]),
        ("id\np1\n", ["line 1", "id and tags"]),
    ],
)
def test_a_wrong_truth_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "tags.csv"
    path.write_text(text)
    with pytest.raises(SubmissionError) as caught:
        read_tag_table(predictions(tmp_path, "id,tags\np1,cat:1\n"), path)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path, truth: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_tag_table(tmp_path / "no.csv", truth)
