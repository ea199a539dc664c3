"""Predictions as a sequence and as a table, and a recognizer that is asked in many ways."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmk.embed.data.manifest import read_manifest
from lmk.embed.errors import UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.rerank.indexing.build import build_index
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.tags.taggers import VoteTagger, tag_files


@pytest.fixture
def predictions() -> Predictions:
    """Three queries: a landmark, one below the threshold, none with a label."""
    rows = np.array([[4, 2], [1, NO_ROW], [0, 3]])
    scores = np.array([[0.9, 0.5], [0.4, -np.inf], [0.3, 0.2]], np.float32)
    zeros = np.zeros((3, 2), np.float32)
    return Predictions(
        labels=("a", "b", None),
        confidence=np.array([0.8, 0.2, -np.inf], np.float32),
        threshold=0.3,
        neighbours=Neighbours(rows, scores, ("x", "y", "z")),
        scores=scores,
        penalty=zeros,
        votes=zeros,
        query_penalty=np.array([0.1, 0, 0], np.float32),
        inliers=np.full((3, 2), -1),
        geometry_seconds=np.zeros(3),
        probability=np.array([0.9, 0.25, 0.5]),
        landmark_score=None,
        matches={},
    )


def test_a_prediction_has_the_fields_of_one_answer(predictions: Predictions) -> None:
    assert len(predictions) == 3
    first, second, third = predictions
    assert (first.query, first.label, first.best, first.threshold) == ("x", "a", "a", 0.3)
    assert (first.confidence, first.query_penalty) == pytest.approx((0.8, 0.1))
    assert first.probability == 0.9 and first.landmark_score is None
    assert (second.label, second.best, second.rows.tolist()) == (None, "b", [1])
    assert (third.label, third.best, third.confidence, third.probability) == (None,) * 4
    assert predictions[-1].query == predictions[2].query == "z"
    assert [one.query for one in predictions[1:]] == ["y", "z"]
    assert [one.label for one in predictions] == list(predictions.answers())
    for wrong in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            predictions[wrong]


def test_representations_are_short(predictions: Predictions) -> None:
    assert repr(predictions) == "<Predictions: 3 queries, 1 with a landmark, threshold 0.300>"
    assert repr(predictions[0]).startswith("Prediction(query='x', label='a'")
    assert len(repr(predictions[0])) < 250


def test_to_pandas(predictions: Predictions) -> None:
    table = predictions.to_pandas()
    assert table["query"].tolist() == ["x", "y", "z"]
    assert table["label"][0] == "a" and table["label"].isna().tolist() == [False, True, True]
    assert table["confidence"][0] == pytest.approx(0.8) and np.isnan(table["confidence"][2])
    assert "rows" not in table and list(predictions[:0]) == []


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, photos: Path, tiny: Embedder) -> Path:
    path = tmp_path_factory.mktemp("predictions") / "g.lmk"
    build_index(read_manifest(photos / "gallery"), path, tiny)
    return path


def test_a_recognizer_takes_pictures_in_any_form(
    index: Path, tmp_path: Path, render: Callable[..., np.ndarray]
) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(render(2)).save(photo)
    pixels = np.asarray(Image.open(photo))
    with Recognizer.open(index) as recognizer:
        (expected,), _ = recognizer.query([photo])
        assert expected.label == "place_2"
        for source in (str(photo), photo, photo.read_bytes(), Image.open(photo), pixels):
            (one,), skipped = recognizer.query(source)
            assert (one.label, one.confidence) == (expected.label, expected.confidence)
            assert not skipped
        several, _ = recognizer.query([str(photo), pixels, Image.open(photo)])
        assert several.query_ids == (str(photo), "picture 1", "picture 2")
        with pytest.raises(UsageError, match="is a folder"):
            recognizer.query(str(tmp_path))
        with pytest.raises(TypeError, match="give a path"):
            recognizer.query(7)  # type: ignore[arg-type]


def test_taggers_take_them_too(index: Path, photos: Path, tmp_path: Path) -> None:
    photo = photos / "gallery" / "place_2" / "1.jpg"
    shutil.copy(photo, tmp_path / "copy.jpg")
    with Recognizer.open(index) as recognizer:
        tagger = VoteTagger(recognizer)
        named = [("a", str(photo)), ("b", photo.read_bytes()), ("c", str(tmp_path))]
        (batch,) = tag_files(tagger, named)
        assert batch.ids == ("a", "b") and batch.skipped[0].reason.startswith("is a folder")
        np.testing.assert_array_equal(batch.scores[0], batch.scores[1])
        assert tagger.knows(str(tmp_path / "copy.jpg")) and tagger.knows(photo.read_bytes())
