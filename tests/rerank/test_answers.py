"""Recognizer.answer, its Answers, and other steps over the same gallery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import lmk
from lmk.embed.extract.embedder import Embedder
from lmk.rerank.answers import Answers
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.voting import VoteStep


@pytest.fixture(scope="module")
def index(photos: Path, tiny: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("answers") / "g.lmk"
    lmk.build_index(photos / "gallery", path, tiny, distractors=photos / "bank")
    return path


@pytest.fixture
def recognizer(index: Path) -> Iterator[Recognizer]:
    with lmk.open(index) as opened:
        yield opened


@pytest.fixture
def query(photos: Path) -> Path:
    return photos / "gallery" / "place_2" / "1.jpg"


def test_an_answer_for_each_picture_in_order(
    recognizer: Recognizer, photos: Path, query: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    other = photos / "gallery" / "place_0" / "0.jpg"
    answers = recognizer.answer([query, broken, other], k=2)
    assert [answer.query for answer in answers] == [str(query), str(other)]
    assert [answer.best for answer in answers] == ["place_2", "place_0"]
    assert [len(answer.neighbours) for answer in answers] == [2, 2]
    assert answers[0].neighbours[0].id == "place_2/1.jpg"
    assert [skip.path for skip in answers.skipped] == [str(broken)]
    assert repr(answers).endswith("1 skipped>")
    assert isinstance(answers[:1], Answers) and len(answers[:1]) == 1


def test_one_picture_and_no_neighbours(recognizer: Recognizer, query: Path) -> None:
    (answer,) = recognizer.answer(query, k=0)
    assert answer.best == "place_2" and answer.neighbours == ()
    with pytest.raises(ValueError, match="k must be 0 or more"):
        recognizer.answer(query, k=-1)


def test_a_table(recognizer: Recognizer, query: Path) -> None:
    table = recognizer.answer([query]).to_pandas()
    assert list(table["query"]) == [str(query)] and list(table["best"]) == ["place_2"]
    assert list(table["nearest"]) == ["place_2/1.jpg"]
    assert table["nearest_score"][0] == pytest.approx(1, abs=1e-3)
    assert list(recognizer.answer([]).to_pandas().columns) == list(table.columns)


def test_a_page_for_notebooks(recognizer: Recognizer, query: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<b>&odd.jpg"
    odd.write_bytes(query.read_bytes())
    answers = recognizer.answer([odd], k=2)
    page = answers._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 3  # the query and two neighbours
    assert "<td>place_2</td>" in page or "(best guess: place_2)" in page
    assert "<b>" not in page and "&lt;b&gt;&amp;odd.jpg" in page
    odd.unlink()  # a picture that is gone is named
    assert answers._repr_html_().count("data:image/jpeg;base64,") == 2


def test_other_steps_over_the_same_gallery(recognizer: Recognizer, query: Path) -> None:
    nearest = Pipeline(steps=(VoteStep(k=1, power=1.0),))
    before = recognizer.pipeline
    other = recognizer.with_pipeline(nearest)
    assert other.pipeline == nearest and recognizer.pipeline == before
    assert other.gallery is recognizer.gallery and other.searcher is recognizer.searcher
    assert other.answer(query)[0].confidence == pytest.approx(1, abs=1e-3)
    assert other.answer(query)[0].probability is None  # calibrated for other steps
    with pytest.raises(AttributeError):
        recognizer.pipeline = nearest  # type: ignore[misc]


def test_paths_are_enough_to_build(photos: Path, index: Path, tmp_path: Path) -> None:
    table = tmp_path / "two.csv"
    table.write_text("id,path,landmark_id\na,place_0/0.jpg,x\nb,place_1/0.jpg,y\n")
    report = lmk.build_index(
        lmk.read_manifest(table, root=photos / "gallery"), str(tmp_path / "two.lmk"),
        lmk.Embedder.load(next((index / "embedder").iterdir())),
    )  # fmt: skip
    assert report.pictures == 2
