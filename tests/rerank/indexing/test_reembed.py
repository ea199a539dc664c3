"""Rebuilding an index with another network: new vectors, the settings of before."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lmk.embed.data.manifest import read_manifest
from lmk.embed.errors import GalleryError, LmkError, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.embed.tables.landmark_table import LandmarkTable
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.landmarks import set_landmarks
from lmk.index.gallery.verify import verify
from lmk.index.search.settings import SearchSettings
from lmk.rerank.fit.fit import save_pipeline
from lmk.rerank.fit.saved import saved_pipeline
from lmk.rerank.fit.tables import CALIBRATION, FITTED
from lmk.rerank.indexing.build import BuildReport, build_index
from lmk.rerank.indexing.reembed import reembed_index, uses_network
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.voting import VoteStep


@pytest.fixture(scope="module")
def larger(tiny_weights: Path) -> Embedder:
    """The same network for larger pictures; its vectors are others."""
    return Embedder.named("test_resnet", weights=tiny_weights, size=64)


def reembed(folder: Path, embedder: Embedder, **options: bool) -> BuildReport:
    manifest, others = read_manifest(folder / "gallery"), read_manifest(folder / "bank")
    return reembed_index(folder / "g.lmk", manifest, embedder, distractors=others, **options)


def vectors(path: Path) -> np.ndarray:
    with Gallery.open(path, verify=True) as gallery:
        return gallery.vectors(np.flatnonzero(gallery.alive))


def test_the_vectors_are_those_of_a_build_with_the_new_network(folder, larger, tiny):
    path = folder / "g.lmk"
    assert uses_network(path, tiny) and not uses_network(path, larger)
    report = reembed(folder, larger)
    assert (report.pictures, report.distractors, report.computed) == (20, 8, 28)
    bank = read_manifest(folder / "bank")
    build_index(read_manifest(folder / "gallery"), folder / "new.lmk", larger, distractors=bank)
    assert np.array_equal(vectors(path), vectors(folder / "new.lmk"))
    with Gallery.open(path) as rebuilt, Gallery.open(folder / "new.lmk") as built:
        assert saved_pipeline(rebuilt) == saved_pipeline(built)
        for name in (CALIBRATION, FITTED):
            assert rebuilt.setting(name) == built.setting(name)
    assert uses_network(path, larger)
    assert not verify(path)


def test_the_settings_stay(folder, larger, tiny):
    path = folder / "g.lmk"
    build_index(
        read_manifest(folder / "gallery"), path, tiny, distractors=read_manifest(folder / "bank"),
        search=SearchSettings(kind="exact"), precision="f32", duplicates=True,
    )  # fmt: skip
    steps = Pipeline(steps=(VoteStep(k=3, power=2),))
    before = save_pipeline(path, steps).pipeline
    reembed(folder, larger)
    with Gallery.open(path) as gallery:
        pipeline = saved_pipeline(gallery)
        assert pipeline.with_threshold(None) == before.with_threshold(None)
        assert gallery.precision == "f32"
        assert SearchSettings.saved(gallery) == SearchSettings(kind="exact")
        assert gallery.setting("duplicates") is True


def test_the_details_of_landmarks_stay(folder, larger):
    castle = LandmarkDetails("place_1", "The castle", 48.5, 2.25)
    table = LandmarkTable("landmarks.csv", (castle,))
    set_landmarks(folder / "g.lmk", table)
    reembed(folder, larger)
    with Gallery.open(folder / "g.lmk") as gallery:
        assert gallery.all_details() == [castle]


def test_distractors_must_be_named(folder, larger):
    before = vectors(folder / "g.lmk")
    with pytest.raises(UsageError, match=r"has 8 distractors, .* name their folder"):
        reembed_index(folder / "g.lmk", read_manifest(folder / "gallery"), larger)
    assert np.array_equal(before, vectors(folder / "g.lmk"))


def test_lost_landmarks_stop_it(folder, larger):
    before = vectors(folder / "g.lmk")
    shutil.rmtree(folder / "gallery" / "place_2")
    with pytest.raises(GalleryError, match="all of the landmark place_2"):
        reembed(folder, larger)
    assert np.array_equal(before, vectors(folder / "g.lmk"))
    assert reembed(folder, larger, allow_removals=True).pictures == 16


def test_a_picture_that_cannot_be_read_now_stops_it(folder, larger):
    before = vectors(folder / "g.lmk")
    (folder / "gallery" / "place_0" / "0.jpg").write_text("damaged")
    with pytest.raises(GalleryError, match=r"1 of its pictures cannot be accessed now.*0\.jpg"):
        reembed(folder, larger)
    assert np.array_equal(before, vectors(folder / "g.lmk"))
    assert reembed(folder, larger, allow_removals=True).pictures == 19


def test_a_part_of_an_index_is_refused(folder, larger, tiny):
    path = folder / "part.lmk"
    build_index(read_manifest(folder / "gallery"), path, tiny, shard=(1, 2))
    with pytest.raises(UsageError, match="is one part of an index"):
        reembed_index(path, read_manifest(folder / "gallery"), larger)


def test_a_failure_leaves_the_old_index(folder, larger, monkeypatch):
    before = vectors(folder / "g.lmk")

    def fail(*_: object, **__: object) -> None:
        raise LmkError("the disk is full")

    monkeypatch.setattr("lmk.rerank.indexing.build.fit", fail)
    with pytest.raises(LmkError, match="the disk is full"):
        reembed(folder, larger)
    assert np.array_equal(before, vectors(folder / "g.lmk"))
    assert not verify(folder / "g.lmk")
