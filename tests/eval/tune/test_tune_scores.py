"""Photos with known answers: read once, refused where the index knows them, tried by pipelines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.errors import UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.eval.tune.grid import default_grid
from lmk.eval.tune.labelled_photos import read_labelled_photos, refuse_shared_photos
from lmk.eval.tune.scores import try_pipelines
from lmk.index.catalog.lock import take_lock
from lmk.rerank.indexing.build import build_index
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.geometry import GeometryStep
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.voting import VoteStep


@pytest.fixture(scope="module")
def built(photos: Path, tiny: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("known") / "known.lmk"
    bank = read_manifest(photos / "bank")
    build_index(read_manifest(photos / "gallery"), index, tiny, distractors=bank)
    return index


@pytest.fixture
def recognizer(built: Path, tmp_path: Path) -> Iterator[Recognizer]:
    index = Path(shutil.copytree(built, tmp_path / "own.lmk"))
    with Recognizer.open(index) as opened:
        yield opened


@pytest.fixture
def asked(tmp_path: Path, render: Callable[..., np.ndarray]) -> Manifest:
    """Two other views of each of three places, and two of none; ids do not rise."""
    rows = []
    for number, (seed, view) in enumerate([(0, 7), (1, 7), (2, 7), (0, 8), (1, 8), (2, 8)]):
        rows.append(Row(f"q{9 - number}", f"{seed}-{view}.jpg", (f"place_{seed}",)))
        Image.fromarray(render(seed, view)).save(tmp_path / rows[-1].path)
    for number, seed in enumerate((2000, 2001)):
        rows.append(Row(f"n{number}", f"{seed}.jpg"))
        Image.fromarray(render(seed)).save(tmp_path / rows[-1].path)
    return Manifest(tmp_path, tuple(rows))


def test_photos_come_by_rising_id_with_what_they_show(
    recognizer: Recognizer, asked: Manifest
) -> None:
    bad = replace(asked, rows=(*asked.rows, Row("a", "none.jpg")))
    done: list[int] = []
    known = read_labelled_photos(bad, recognizer, on_progress=done.append)
    assert known.embeddings.ids == tuple(sorted(row.id for row in asked.rows))
    assert [skip.path for skip in known.skipped] == ["none.jpg"]
    assert done[-1] == len(bad)
    by_id = {row.id: row for row in asked.rows}
    for place, id_ in enumerate(known.embeddings.ids):
        assert known.labels[place] == by_id[id_].labels
        assert known.files[place] == asked.file(by_id[id_])
        vector = recognizer.embedder.embed([known.files[place]])[0].vectors[0]
        assert vector @ known.embeddings.vectors[place] > 0.9999


def test_photos_are_embedded_once(
    recognizer: Recognizer, asked: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_labelled_photos(asked, recognizer)
    monkeypatch.setattr(Embedder, "start", lambda *_: pytest.fail("a photo was computed again"))
    again = read_labelled_photos(asked, recognizer)
    assert (again.embeddings.vectors == first.embeddings.vectors).all()


def test_an_index_that_another_one_tunes_is_no_hindrance(
    recognizer: Recognizer, asked: Manifest
) -> None:
    folder = recognizer.gallery.path / "cache" / "photos"
    folder.mkdir(parents=True)
    lock = take_lock(folder)
    try:
        known = read_labelled_photos(asked, recognizer)
    finally:
        os.close(lock)
    assert len(known) == 8
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("folder", "words"), [("gallery", "pictures of the index"), ("bank", "among the distractors")]
)
def test_what_the_index_holds_is_refused(
    recognizer: Recognizer, asked: Manifest, photos: Path, folder: str, words: str
) -> None:
    copied = sorted((photos / folder).rglob("*.jpg"))[2]
    shutil.copy(copied, asked.file(asked.rows[3]))
    with pytest.raises(UsageError, match=words) as refused:
        read_labelled_photos(asked, recognizer)
    assert "1 of 8" in str(refused.value)


def test_a_test_must_be_on_other_photos(recognizer: Recognizer, asked: Manifest) -> None:
    first, second = replace(asked, rows=asked.rows[:4]), replace(asked, rows=asked.rows[4:])
    one, other = (read_labelled_photos(part, recognizer) for part in (first, second))
    refuse_shared_photos(one, other)
    with pytest.raises(UsageError, match="4 of 8 test photos"):
        refuse_shared_photos(one, read_labelled_photos(asked, recognizer))


def test_each_pipeline_answers_as_it_would_alone(recognizer: Recognizer, asked: Manifest) -> None:
    known = read_labelled_photos(asked, recognizer)
    points = Pipeline(steps=(GeometryStep(extractor="rootsift", weight=0.5), VoteStep()))
    pipelines = [*default_grid()[::3], points, Pipeline(candidates=3)]
    done: list[int] = []
    tried = try_pipelines(recognizer, pipelines, known, on_progress=done.append)
    assert done == list(range(1, len(pipelines) + 1))
    for pipeline, found in zip(pipelines, tried, strict=True):
        alone = Recognizer(recognizer.gallery, recognizer.embedder, pipeline)
        answer = alone.predict(known.embeddings, features=alone.features_of(known.files))
        assert found.labels == answer.labels
        assert found.confidence == pytest.approx(answer.confidence, abs=1e-6)
    looked = tried[pipelines.index(points)]
    assert (looked.inliers >= 0).any()
    assert len(set(tried[0].confidence.tolist())) > 1
