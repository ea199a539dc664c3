"""How an answer is shown: which neighbours, what was taken off, which points they share."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lmk.cli.answer.answers import answer_lines, answers_page
from lmk.cli.answer.match_drawing import GAP, HEIGHT, MOST_LINES, drawing_of
from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.rerank.answers import Answer, Evidence, answers_of
from lmk.rerank.steps.geometry import GeometryStep
from lmk.rerank.steps.penalty import RescaleStep
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.state import NOT_LOOKED_AT, Match
from lmk.rerank.steps.voting import VoteStep


class Shelf:
    """As much of a recognizer and its gallery as an answer looks at."""

    has_labels = True

    def __init__(self, *steps: object) -> None:
        self.pipeline = Pipeline(steps=steps or (RescaleStep(), VoteStep()))
        self.gallery = self
        self.details: dict[str, LandmarkDetails] = {}

    def pictures(self, rows: Iterable[int]) -> list[SimpleNamespace]:
        found = [SimpleNamespace(id=str(row), labels=("b",), sha256="0" * 64) for row in rows]
        for picture in found:
            if self.file(picture).exists():
                picture.sha256 = hashlib.sha256(self.file(picture).read_bytes()).hexdigest()
        return found

    def details_of(self, labels: Iterable[str]) -> dict[str, LandmarkDetails]:
        return {label: self.details[label] for label in labels if label in self.details}

    def file(self, picture: SimpleNamespace) -> Path:
        return Path(f"{picture.id}.jpg")


def predictions_of(**given: object) -> Predictions:
    """One query with six neighbours, the nearest of them penalised below the last."""
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, -np.inf]], np.float32)
    rows = np.array([[10, 11, 12, 13, 14, 15, NO_ROW]])
    usual = {
        "labels": ("b",),
        "confidence": np.array([0.3], np.float32),
        "threshold": float("-inf"),
        "neighbours": Neighbours(rows, scores, ("q",)),
        "scores": np.array([[0.1, 0.1, 0, 0.2, 0.3, 0.4, -np.inf]], np.float32),
        "penalty": np.array([[0.8, 0.7, 0.7, 0.4, 0.2, 0, 0]], np.float32),
        "votes": np.array([[0, 0, 0, 0, 0.1, 0.3, 0]], np.float32),
        "query_penalty": np.zeros(1, np.float32),
        "inliers": np.full((1, 7), NOT_LOOKED_AT),
        "geometry_seconds": np.zeros(1),
        "probability": None,
        "landmark_score": None,
        "matches": {},
    }
    return Predictions(**(usual | given))  # type: ignore[arg-type]


def answered(predictions: Predictions, shelf: Shelf, k: int) -> list[Answer]:
    return answers_of(predictions, shelf, shelf.pipeline, k)  # type: ignore[arg-type]


def match_of(inlier: list[bool], size: tuple[int, int] = (480, 360)) -> Match:
    count = len(inlier)
    here = np.stack([np.arange(count), np.arange(count)], axis=1).astype(np.float32)
    return Match(here, here + 1, np.array(inlier, np.bool_), size, (300, 400))


def test_a_voter_that_the_penalty_brought_forward_is_shown() -> None:
    (answer,) = answered(predictions_of(), Shelf(), 5)
    assert [near.place for near in answer.neighbours] == [6, 5, 4, 1, 2]
    assert [near.id for near in answer.neighbours] == ["15", "14", "13", "10", "11"]
    assert [near.share for near in answer.neighbours] == pytest.approx([0.75, 0.25, 0, 0, 0])
    assert answer.neighbours[0].score == pytest.approx(0.4)
    assert answer.neighbours[1].penalty == pytest.approx(0.2)
    assert answer.neighbours[1].score_before == pytest.approx(0.5)
    assert [near.inliers for near in answer.neighbours] == [None] * 5
    assert (answer.probability, answer.landmark_score, answer.query_penalty) == (None, None, 0)


def test_the_parts_of_a_score_add_up_with_shared_points() -> None:
    match = match_of([True] * 7 + [False])
    predictions = predictions_of(
        inliers=np.array([[-1, -1, -1, -1, 0, 7, -1]]),
        matches={(0, 15): match},
        geometry_seconds=np.array([0.25]),
        query_penalty=np.array([0.125], np.float32),
        probability=np.array([0.75]),
        landmark_score=np.array([-0.5], np.float32),
    )
    shelf = Shelf(RescaleStep(), GeometryStep(weight=0.5, cap=70), VoteStep())
    (answer,) = answered(predictions, shelf, 3)
    first, second, third = answer.neighbours
    assert [near.inliers for near in answer.neighbours] == [7, 0, None]
    assert [near.gain for near in answer.neighbours] == pytest.approx([0.05, 0, 0])
    assert first.score_before == pytest.approx(0.35)
    assert first.match is match
    assert second.match is None
    assert third.score_before == pytest.approx(0.6)
    facts = json.loads(json.dumps(answer.as_dict()))
    assert facts["probability"] == 0.75
    assert facts["query_penalty"] == 0.125
    assert facts["landmark_score"] == -0.5
    assert facts["geometry_seconds"] == 0.25
    assert facts["neighbours"][0]["inliers"] == 7
    assert "match" not in facts["neighbours"][0]


def evidence(**given: object) -> Evidence:
    usual = {"id": "x", "path": "g/x.jpg", "labels": ("a",), "place": 1, "score": 0.95}
    usual |= {"penalty": 0, "score_after": 0.4, "vote": 0, "share": 0, "score_before": 0.4}
    return Evidence(**(usual | given))  # type: ignore[arg-type]


def test_an_answer_shows_what_was_taken_and_given() -> None:
    near = (
        evidence(labels=("a", "b"), place=12, score=0.9, penalty=0.1234, score_after=0.5166,
                 vote=0.5, share=0.996, inliers=31, gain=0.0664),
        evidence(path="g/y.jpg", vote=0.002, share=0.004, inliers=1),
        evidence(path="g/z.jpg", labels=(), place=2, score=0.91, score_after=-0.02),
    )  # fmt: skip
    assert answer_lines(Answer("q.jpg", "a", "a", 0.8, None, near)) == [
        "q.jpg: a  confidence 0.800",
        "   12  0.900 ->  0.517  100 %  a b            g/x.jpg"
        "  (penalty 0.123, 31 shared points +0.066)",
        "    1  0.950 ->  0.400    0 %  a              g/y.jpg  (1 shared point)",
        "    2  0.910 -> -0.020      -  (no landmark)  g/z.jpg",
    ]


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (
            Answer("q", "a", "a", 0.8, 0.5, (), probability=0.973, query_penalty=0.05),
            "q: a  confidence 0.800 (0.500 is needed; 0.050 was subtracted for its similarity to"
            " distractors; 97 % likely right)",
        ),
        (
            Answer("q", None, "a", 0.3, 0.5, (), probability=0.06),
            "q: none of these  (the best guess, a, has confidence 0.300; 0.500 is needed;"
            " 6 % likely right)",
        ),
        (
            Answer("q", None, None, None, 0.5, (), labelled=False),
            "q: none of these (no picture in the index has a landmark)",
        ),
        (
            Answer("q", None, None, None, 0.5, ()),
            "q: none of these (no near picture has a landmark)",
        ),
    ],
)
def test_the_first_line_says_all_of_the_answer(answer: Answer, line: str) -> None:
    assert answer_lines(answer) == [line]


def test_a_drawing_lays_both_pictures_side_by_side() -> None:
    drawn = drawing_of(match_of([True, False], size=(480, 360)))
    assert (drawn.query_width, drawn.gallery_width) == (HEIGHT * 480 / 360, HEIGHT * 300 / 400)
    assert drawn.start == drawn.query_width + GAP
    assert (drawn.width, drawn.height) == (drawn.start + drawn.gallery_width, HEIGHT)
    outlier, inlier = drawn.lines  # the inlier is drawn last, over the other
    assert (outlier.inlier, inlier.inlier) == (False, True)
    assert (outlier.x1, outlier.y1) == pytest.approx((240 / 360, 240 / 360), abs=0.05)
    assert (outlier.x2, outlier.y2) == pytest.approx((328 + 2 * 0.6, 2 * 0.6), abs=0.05)
    assert (inlier.x1, inlier.x2) == pytest.approx((0, 328 + 0.6), abs=0.05)


def test_of_too_many_lines_the_inliers_stay() -> None:
    drawn = drawing_of(match_of([False] * 150 + [True] * 100))
    assert len(drawn.lines) == MOST_LINES
    assert sum(line.inlier for line in drawn.lines) == 100


def test_the_page_draws_the_points(
    paint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "q.jpg", 1)
    paint(tmp_path / "15.jpg", 1, 2)
    predictions = predictions_of(
        inliers=np.array([[-1, -1, -1, -1, 0, 3, -1]]),
        matches={(0, 15): match_of([True, False, True, True]), (0, 14): match_of([False])},
        probability=np.array([0.75]),
    )
    (answer,) = answered(predictions, Shelf(), 2)
    text = answers_page([replace(answer, query="q.jpg")], {})
    assert text.count("<svg") == 1  # the other neighbour shares nothing
    assert len(re.findall(r"<image href=\"data:image/jpeg;base64,", text)) == 2
    assert text.count('<line class="inlier"') == 3
    assert text.count("<line x1") == 1
    assert "3 of 4 matches agree" in text
    assert "75 % likely right" in text
