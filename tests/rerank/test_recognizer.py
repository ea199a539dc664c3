"""An opened index: what it reads of what it was taught, local features, probabilities."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lmk.embed.data import sources as sources_module
from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.errors import ModelError, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.local.features import RootSift
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.rerank.fit.calibration import Calibration
from lmk.rerank.fit.fit import save_calibration, save_pipeline
from lmk.rerank.fit.saved import saved_calibration, saved_distractors, saved_pipeline
from lmk.rerank.indexing.build import add_pictures, build_index, compact_index, remove_pictures
from lmk.rerank.indexing.merge import merge_indexes
from lmk.rerank.indexing.repair import repair_index
from lmk.rerank.indexing.sync import sync_index
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.dba import DbaStep
from lmk.rerank.steps.distractor_similarity import DistractorSimilarityStep, QueryPenaltyStep
from lmk.rerank.steps.geometry import GeometryStep
from lmk.rerank.steps.penalty import PenaltyStep, RescaleStep
from lmk.rerank.steps.pipeline import DEFAULT_STEPS, Pipeline
from lmk.rerank.steps.voting import VoteStep

ALL = Pipeline(
    steps=(
        DbaStep(n=2),
        RescaleStep(),
        PenaltyStep(top=3, min_n=1, max_n=3, counts="raw"),
        DistractorSimilarityStep(m=2, factor=0.3),
        GeometryStep(top=3, margin=9, points=200, longest=200),
        VoteStep(k=2),
        QueryPenaltyStep(m=2),
    )
)
PHOTOS = Calibration(method="logistic", slope=2, intercept=-1, answers=9)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, photos: Path, tiny: Embedder) -> Path:
    """5 places of 4 views and a bank of 8, with the usual steps."""
    path = tmp_path_factory.mktemp("recognizer") / "g.lmk"
    gallery, bank = read_manifest(photos / "gallery"), read_manifest(photos / "bank")
    build_index(gallery, path, tiny, distractors=bank)
    return path


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    """A copy to be changed; its pictures are found where they were."""
    path = built.with_name(f"{tmp_path.name}.lmk")
    shutil.copytree(built, path)
    return path


def test_what_is_saved_is_what_is_learnt_now(index: Path, photos: Path) -> None:
    asked = [photos / "gallery" / f"place_{place}" / "1.jpg" for place in range(5)]
    with Recognizer.open(index, pipeline=ALL) as recognizer:
        assert recognizer.calibration is None  # it is of other steps
        now = recognizer.query(asked)[0]
        context = recognizer.context
    learnt = save_pipeline(index, ALL)
    with Recognizer.open(index) as recognizer:
        assert recognizer.pipeline == learnt.pipeline
        assert recognizer.pipeline.with_threshold(None) == ALL
        saved = recognizer.context
        assert context.neighbourhoods is not None and saved.neighbourhoods is not None
        np.testing.assert_array_equal(context.neighbourhoods.rows, saved.neighbourhoods.rows)
        assert context.distractor_similarity is not None and context.penalty is not None
        np.testing.assert_allclose(
            context.distractor_similarity, saved.distractor_similarity, atol=1e-6
        )
        np.testing.assert_allclose(context.penalty, saved.penalty, atol=1e-6)
        again = recognizer.query(asked)[0]
        np.testing.assert_array_equal(again.inliers, now.inliers)
        np.testing.assert_allclose(again.confidence, now.confidence, atol=1e-6)
        assert (
            again.landmark_score is not None
            and again.query_penalty.any()
            and now.probability is None
        )


class TestGeometry:
    def test_of_files(self, index: Path, photos: Path) -> None:
        """The picture itself shares all its points; features are kept by content."""
        asked = [photos / "gallery" / "place_2" / "1.jpg"]
        with Recognizer.open(index, pipeline=ALL) as recognizer:
            got, skipped = recognizer.query(asked)
            row = recognizer.gallery.find(["place_2/1.jpg"])["place_2/1.jpg"]
            place = np.flatnonzero(got.neighbours.rows[0] == row)[0]
            assert got.inliers[0, place] > 20 and (0, row) in got.matches
            assert got.inliers[0, place] == got.inliers.max() == got.matches[0, row].inliers
            assert not skipped and got.geometry_seconds[0] > 0
            assert np.count_nonzero(got.inliers >= 0) == 3
            without = recognizer.predict(recognizer.embedder.embed(asked)[0])
            assert (without.inliers == -1).all()
        assert len(list((index / "cache" / "local").iterdir())) >= 3

    def test_without_files(
        self, index: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A query that went after it was embedded, and a gallery whose pictures are gone."""
        copy = tmp_path / "copy.jpg"
        shutil.copy(photos / "gallery" / "place_2" / "1.jpg", copy)
        with Recognizer.open(index, pipeline=ALL) as recognizer:
            vectors = recognizer.embedder.embed([copy])[0]
            features = recognizer.features_of([copy])
            copy.unlink()
            gone = recognizer.predict(vectors, features=features)
            assert (gone.inliers == -1).all() and gone.labels[0] is not None
            monkeypatch.setattr(sources_module, "read_bytes", lambda path: "no such file")
            monkeypatch.setattr(Gallery, "read", lambda gallery, picture: "no such file")
            there = recognizer.features_of([photos / "gallery" / "place_2" / "1.jpg"])
            assert there is not None and there(0) == "no such file"
            points = RootSift(200, 200).extract(np.zeros((50, 50), np.uint8))
            lost = recognizer.predict(vectors, features=lambda query: points)
            assert (lost.inliers == -1).all()

    def test_no_step_no_features(self, index: Path, photos: Path) -> None:
        with Recognizer.open(index) as recognizer:
            assert recognizer.features_of([photos]) is None
            assert recognizer.context.row_features is None

    def test_xfeat_that_is_not_installed(
        self, index: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from lmk.embed.local import xfeat

        monkeypatch.setattr(xfeat, "PACKAGE", "no-such-package")
        steps = (GeometryStep(extractor="xfeat"), VoteStep())
        with (
            Recognizer.open(index, pipeline=Pipeline(steps=steps)) as recognizer,
            pytest.raises(ModelError, match="xfeat"),
        ):
            recognizer.query([photos / "gallery" / "place_2" / "1.jpg"])


class TestCalibration:
    def test_of_the_gallery(self, index: Path, photos: Path) -> None:
        with Recognizer.open(index) as recognizer:
            assert recognizer.calibration is not None
            assert recognizer.gallery.setting("calibrated") == "gallery"
            asked = [photos / "gallery" / "place_2" / "1.jpg", photos / "bank" / "1000.jpg"]
            got = recognizer.query(asked)[0]
            assert got.probability is not None and got.probability[0] > got.probability[1]
            expected = recognizer.calibration.probabilities(got.confidence)
            np.testing.assert_array_equal(got.probability, expected)

    def test_of_photos_it_outlives_changes(self, index: Path, photos: Path) -> None:
        save_calibration(index, PHOTOS, 0.123)
        remove_pictures(index, ["place_0/0.jpg"])
        compact_index(index)
        rows = read_manifest(photos / "gallery")
        add_pictures(index, Manifest(rows.root, rows.rows[:1]))
        sync_index(index, Manifest(rows.root, rows.rows[1:]))
        with GalleryWriter(index) as writer:
            writer.put_array("penalty", np.zeros(writer.uncommitted.rows, np.float32), by_row=True)
            writer.commit()
            damaged = writer.uncommitted.arrays()["penalty"]
        damaged.write_bytes(b"\1" * damaged.stat().st_size)
        assert repair_index(index).remade
        with Recognizer.open(index) as recognizer:
            assert recognizer.calibration == PHOTOS
            assert recognizer.pipeline.threshold() == 0.123
            assert recognizer.gallery.setting("calibrated") == "photos"

    def test_the_gallery_teaches_it_again(self, index: Path, tmp_path: Path) -> None:
        with Gallery.open(index) as gallery:
            first, threshold = saved_calibration(gallery), saved_pipeline(gallery).threshold()
        save_calibration(index, None, None)
        with Gallery.open(index) as gallery:
            assert saved_calibration(gallery) is None
            assert saved_pipeline(gallery) == Pipeline()
        merge_indexes(tmp_path / "merged.lmk", [index])
        learnt = save_pipeline(index, Pipeline())
        assert learnt.calibration == first and learnt.pipeline.threshold() == threshold
        for path in (index, tmp_path / "merged.lmk"):
            with Gallery.open(path) as gallery:
                assert gallery.setting("calibrated") == "gallery"
                assert saved_pipeline(gallery).threshold() == threshold
                assert saved_calibration(gallery) == first

    def test_a_part_learns_nothing(self, tmp_path: Path, photos: Path, tiny: Embedder) -> None:
        build_index(read_manifest(photos / "gallery"), tmp_path / "g.lmk", tiny, shard=(1, 2))
        with pytest.raises(UsageError, match="one part of an index"):
            save_pipeline(tmp_path / "g.lmk", ALL)
        with Gallery.open(tmp_path / "g.lmk") as gallery:
            assert saved_pipeline(gallery).steps == DEFAULT_STEPS


def test_distractors_that_a_gallery_holds_are_not_used(
    index: Path, photos: Path, tmp_path: Path, tiny: Embedder
) -> None:
    """They come with the gallery, after it or before it, and count again when it lets them go."""
    row = Row("same", "place_2/1.jpg", ())
    same = Manifest(photos / "gallery", (row,))
    bank = read_manifest(photos / "bank")
    both = tmp_path / "both"
    shutil.copytree(photos / "bank", both)
    shutil.copy(photos / "gallery" / "place_2" / "1.jpg", both / "same.jpg")
    report = build_index(read_manifest(photos / "gallery"), tmp_path / "g.lmk", tiny,
                         distractors=read_manifest(both))  # fmt: skip
    assert report.shared == ("distractor:same",) and report.distractors == 9
    with Gallery.open(index) as gallery, Gallery.open(tmp_path / "g.lmk") as other:
        assert saved_distractors(other).mask.sum() == 8 == len(other.role_rows("distractor")) - 1
        expected = gallery.array("penalty")
        assert expected is not None
        np.testing.assert_allclose(other.array("penalty")[:20], expected[:20], atol=1e-6)  # type: ignore[index]
        assert saved_pipeline(other).threshold() == saved_pipeline(gallery).threshold()
    assert add_pictures(index, same, role="distractor").shared == ("distractor:same",)
    with Gallery.open(index) as gallery:
        assert saved_distractors(gallery).mask.sum() == 8
    remove_pictures(index, ["place_2/1.jpg"])
    with Gallery.open(index) as gallery:
        assert saved_distractors(gallery).mask.sum() == 9
    synced = sync_index(index, read_manifest(photos / "gallery"), distractors=bank)
    assert synced.shared == () and synced.removed == 1


@pytest.mark.parametrize("what", ["no bank", "few", "no label", "none left"])
def test_small_galleries(what: str, tmp_path: Path, photos: Path, tiny: Embedder) -> None:
    """All steps on an empty bank, one picture of a landmark, no landmark, no picture."""
    rows = read_manifest(photos / "gallery").rows
    some = {"few": rows[:1], "no label": tuple(Row(r.id, r.path, ()) for r in rows[:5])}
    gallery = Manifest(photos / "gallery", some.get(what, rows[:6]))
    bank = None if what == "no bank" else read_manifest(photos / "bank")
    path = tmp_path / "g.lmk"
    build_index(gallery, path, tiny, distractors=bank, pipeline=ALL)
    if what == "none left":
        remove_pictures(path, [row.id for row in gallery.rows])
    with Recognizer.open(path) as recognizer:
        got = recognizer.query([photos / "gallery" / "place_0" / "1.jpg"])[0]
        if what in ("no label", "none left"):
            assert got.labels == (None,) and np.isneginf(got.confidence[0])
        else:
            assert got.labels == ("place_0",) and np.isfinite(got.confidence[0])
        assert (got.landmark_score is None) == (what == "no bank")
        assert got.neighbours.k == 100 and (got.neighbours.rows[0, 6:] == -1).all()
        if what == "few":
            assert recognizer.calibration is None  # no answer of its own can be right


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.1), ("most", 2)])
def test_a_saved_vote_with_a_removed_parameter(index: Path, name: str, value: float) -> None:
    """An index of an older version opens with null, and is refused in one line with a value."""
    with Gallery.open(index) as gallery:
        saved = saved_pipeline(gallery).model_dump(mode="json")
    with GalleryWriter(index) as writer:
        vote = next(step for step in saved["steps"] if step["step"] == "vote")
        vote |= {"temperature": None, "most": None}
        writer.set("pipeline", saved)
        writer.commit()
    with Gallery.open(index) as gallery:
        pipeline = saved_pipeline(gallery)
    assert pipeline.steps[3] == VoteStep(k=10, prior=-0.5)
    with GalleryWriter(index) as writer:
        vote[name] = value
        writer.set("pipeline", saved)
        writer.commit()
    with pytest.raises(UsageError) as refused:
        Recognizer.open(index)
    assert str(refused.value) == (
        f"{index}: the parameter {name} of the step vote was removed from lmk; "
        "rebuild it with `lmk build-index`"
    )
