"""Files that release 0.1 wrote still work: an index, its embedder, settings, submissions.

tests/golden/release-0.1.tar.xz holds a small index with its photos, what `lmk query --json` and
`lmk submit` of that release answered, and JSON files of steps and training settings.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmk
from lmk.embed.extract.embedder import Embedder
from lmk.embed.train.config import TrainConfig
from lmk.eval.files.submission import RetrievalSubmission, Submission
from lmk.index.gallery.verify import verify
from lmk.rerank.lists.retrieval import Collection, read_retrieval, rerank_lists, saved_retrieval
from lmk.rerank.recognizer import Recognizer

SAMPLE = Path(__file__).parent / "golden" / "release-0.1.tar.xz"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(SAMPLE) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not in 3.11.2
        archive.extractall(folder)
    return folder / "release"


@pytest.fixture
def recognizer(release: Path) -> Iterator[Recognizer]:
    with lmk.open(release / "places.lmk") as opened:
        yield opened


def photos(release: Path) -> list[Path]:
    return sorted((release / "photos" / "queries").iterdir())


def test_an_index_answers_as_it_did(release: Path, recognizer: Recognizer) -> None:
    steps = [step.step for step in recognizer.pipeline.steps]
    assert steps[0] == "dba" and steps[3] == "distractor_similarity"  # their names have changed
    before = [json.loads(line) for line in (release / "answers.jsonl").read_text().splitlines()]
    answers = recognizer.answer(photos(release), k=3)
    assert len(answers) == len(before) == 6
    for answer, old in zip(answers, before, strict=True):
        assert Path(answer.query).stem == old["query"]
        assert (answer.label, answer.best) == (old["label"], old["best"])
        assert answer.confidence == pytest.approx(old["confidence"], abs=1e-3)
        assert answer.threshold == pytest.approx(old["threshold"], abs=1e-6)
        assert answer.query_penalty == pytest.approx(old["query_penalty"], abs=1e-3)
        for near, other in zip(answer.neighbours, old["neighbours"], strict=True):
            assert near.id == other["id"]
            for name in ("score", "penalty", "score_after", "vote"):
                assert getattr(near, name) == pytest.approx(other[name], abs=1e-3), name


def test_nothing_is_damaged(release: Path) -> None:
    assert not list(verify(release / "places.lmk"))


def test_lists_are_as_they_were(release: Path, recognizer: Recognizer) -> None:
    assert saved_retrieval(recognizer.gallery) == read_retrieval(str(release / "lists.json"))
    embeddings, skipped = recognizer.embedder.embed(photos(release))
    assert not skipped
    gallery = recognizer.gallery
    near = recognizer.context.neighbourhoods
    collection = Collection(recognizer.searcher, gallery.view(), near)
    lists = rerank_lists(saved_retrieval(recognizer.gallery), embeddings, collection)
    old = RetrievalSubmission.read(release / "lists.csv")
    for rows, images in zip(lists.rows, old.images, strict=True):
        ids = [picture.id for picture in gallery.pictures(rows)]
        assert ids == list(images)


def test_a_submission_is_read(release: Path) -> None:
    submission = Submission.read(release / "submission.csv")
    assert submission.query_ids == ("n0", "n1", "q0", "q1", "q2", "q3")
    assert submission.labels[3] == "place_1"


def test_an_embedder_folder_is_read(release: Path, recognizer: Recognizer) -> None:
    (folder,) = (release / "places.lmk" / "embedder").iterdir()
    own = Embedder.load(folder).embed(photos(release)[:1])[0]
    by_index = recognizer.embedder.embed(photos(release)[:1])[0]
    assert own.fingerprint == recognizer.gallery.fingerprint
    assert own.vectors.tolist() == by_index.vectors.tolist()


def test_training_settings_are_read(release: Path) -> None:
    old = json.loads((release / "train.json").read_text())
    config = TrainConfig.model_validate(old)
    assert (config.name, config.model.neck, config.stages[0].epochs) == ("small", 16, 3)
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
