"""Adding distractors, removing and compacting: the index is as if built of what is left."""

from __future__ import annotations

import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.errors import GalleryError, GalleryLocked, NotAGallery
from lmk.embed.extract.embedder import Embedder
from lmk.embed.local.features import RootSift, cache_of, local_features
from lmk.eval.tune.labelled_photos import read_labelled_photos
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.search.settings import SearchSettings
from lmk.index.vectors.labels import ROLES
from lmk.rerank.fit.saved import saved_pipeline
from lmk.rerank.fit.tables import BACKGROUND, PENALTY
from lmk.rerank.indexing.build import (
    CompactReport,
    add_pictures,
    build_index,
    compact_index,
    remove_pictures,
)
from lmk.rerank.indexing.ingest import PHOTOS, open_store
from lmk.rerank.indexing.relabel import relabel_pictures
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.dba import DbaStep
from lmk.rerank.steps.distractor_similarity import DistractorSimilarityStep, QueryPenaltyStep
from lmk.rerank.steps.penalty import PenaltyStep, RescaleStep
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.voting import VoteStep

# A small gallery is penalised by these.
PIPELINE = Pipeline(
    steps=(
        DbaStep(n=2),
        RescaleStep(),
        PenaltyStep(top=3, min_n=1, max_n=3, counts="raw"),
        DistractorSimilarityStep(m=2, factor=0.3),
        VoteStep(k=2),
        QueryPenaltyStep(m=2),
    )
)


@pytest.fixture
def index(tmp_path: Path, photos: Path, tiny: Embedder) -> Path:
    """5 places of 4 views and a bank of 8."""
    path = tmp_path / "g.lmk"
    build(path, read_manifest(photos / "gallery"), read_manifest(photos / "bank"), tiny)
    return path


def build(path: Path, gallery: Manifest, bank: Manifest, tiny: Embedder) -> None:
    build_index(gallery, path, tiny, distractors=bank, pipeline=PIPELINE)


def same(one: Path, other: Path) -> bool:
    """Whether two indexes hold the same pictures and have learnt the same of them."""
    context = []
    for path in (one, other):
        with Gallery.open(path, verify=True) as gallery:
            rows = np.flatnonzero(gallery.alive)
            ids, penalty = gallery.ids(rows), gallery.array(PENALTY)
            assert penalty is not None and len(penalty) == gallery.rows and penalty.max() > 0.05
            context.append(
                (
                    dict(zip(ids, (v.tobytes() for v in gallery.vectors(rows)), strict=True)),
                    dict(zip(ids, penalty[rows].tolist(), strict=True)),
                    (gallery.setting(BACKGROUND), saved_pipeline(gallery).threshold()),
                    gallery.setting("calibration"),
                )
            )
    left, right = context
    assert left[0] == right[0]
    assert left[1] == pytest.approx(right[1], abs=1e-5)
    assert left[2] == pytest.approx(right[2], abs=1e-5)
    assert left[3] is not None and left[3].keys() == right[3].keys()
    for name in ("confidence", "probability"):
        assert left[3][name] == pytest.approx(right[3][name], abs=1e-5)
    return True


def without(manifest: Manifest, ids: set[str]) -> Manifest:
    return Manifest(manifest.root, tuple(row for row in manifest.rows if row.id not in ids))


class TestRemove:
    def test_equals_a_build_of_the_rest(
        self, tmp_path: Path, photos: Path, tiny: Embedder, index: Path, learnt: str
    ) -> None:
        gallery, bank = read_manifest(photos / "gallery"), read_manifest(photos / "bank")
        gone = {"place_1/2.jpg", *(f"place_3/{view}.jpg" for view in range(4))}
        report = remove_pictures(index, [*gone, "distractor:1002"])
        assert report.removed == 6 and report.threshold is not None
        build(tmp_path / "rest.lmk", without(gallery, gone), without(bank, {"1002"}), tiny)
        assert same(index, tmp_path / "rest.lmk")
        with Recognizer.open(index) as recognizer:
            asked = [photos / "gallery" / "place_3" / "0.jpg"]
            predictions = recognizer.query(asked)[0]
            assert predictions.labels != ("place_3",)
            assert "place_3" not in recognizer.context.label_names
            rows = predictions.neighbours.rows
            assert recognizer.gallery.alive[rows[rows >= 0]].all()
        with Gallery.open(index) as opened:
            assert opened.rows == 28 and opened.removed == 6

    def test_an_unknown_id(self, index: Path) -> None:
        before = sorted((index / "arrays").iterdir())
        with pytest.raises(GalleryError, match="x: no picture of the gallery has this id"):
            remove_pictures(index, ["place_0/0.jpg", "x"])
        with Gallery.open(index) as gallery:
            assert gallery.removed == 0
        assert remove_pictures(index, []).removed == 0
        assert sorted((index / "arrays").iterdir()) == before  # nothing was learnt

    def test_the_same_removal_again(self, index: Path, photos: Path) -> None:
        """As after a kill that came after the commit; an id that never was is still an error."""
        gone = ["place_0/1.jpg", "distractor:1002"]
        first = remove_pictures(index, gone)
        assert (first.removed, first.earlier) == (2, ())
        again = remove_pictures(index, gone)
        assert (again.removed, again.earlier) == (0, tuple(gone))
        assert again.threshold == first.threshold
        more = remove_pictures(index, [*gone, "place_0/2.jpg"])
        assert (more.removed, more.earlier) == (1, tuple(gone))
        with pytest.raises(GalleryError, match="x: no picture of the gallery has this id"):
            remove_pictures(index, [*gone, "x"])
        assert add_pictures(index, read_manifest(photos / "gallery")).added == 2
        assert remove_pictures(index, ["place_0/1.jpg"]).removed == 1
        compact_index(index)  # gives the space of their names back too
        with pytest.raises(GalleryError, match="no picture of the gallery has this id"):
            remove_pictures(index, ["place_0/1.jpg"])
        assert verify(index) == ()

    def test_all_of_it_and_back(self, index: Path, photos: Path) -> None:
        with Gallery.open(index) as gallery:
            ids = gallery.ids(gallery.role_rows("gallery"))
        assert remove_pictures(index, ids).threshold is None
        with Recognizer.open(index) as recognizer:
            asked = [photos / "bank" / "1000.jpg"]
            assert recognizer.query(asked)[0].answers() == (None,)
        assert add_pictures(index, read_manifest(photos / "gallery")).computed == 0
        with Recognizer.open(index) as recognizer:
            asked = [photos / "gallery" / "place_2" / "1.jpg"]
            assert recognizer.query(asked)[0].answers() == ("place_2",)

    def test_locked_or_not_there(self, index: Path, tmp_path: Path) -> None:
        with GalleryWriter(index), pytest.raises(GalleryLocked):
            remove_pictures(index, ["place_0/0.jpg"])
        with pytest.raises(NotAGallery):
            remove_pictures(tmp_path / "none.lmk", ["a"])


class TestAdd:
    def test_distractors(self, tmp_path: Path, photos: Path, tiny: Embedder, learnt: str) -> None:
        gallery, bank = read_manifest(photos / "gallery"), read_manifest(photos / "bank")
        parts = [Manifest(bank.root, bank.rows[i::2]) for i in range(2)]
        build(tmp_path / "g.lmk", gallery, parts[0], tiny)
        report = add_pictures(tmp_path / "g.lmk", parts[1], role="distractor")
        assert (report.added, report.computed, report.unchanged) == (4, 4, 0)
        build(tmp_path / "whole.lmk", gallery, bank, tiny)
        assert same(tmp_path / "g.lmk", tmp_path / "whole.lmk")
        again = add_pictures(tmp_path / "g.lmk", parts[1], role="distractor")
        assert (again.added, again.computed, again.unchanged) == (0, 0, 4)

    def test_in_parts(self, tmp_path: Path, photos: Path, tiny: Embedder, learnt: str) -> None:
        gallery, bank = read_manifest(photos / "gallery"), read_manifest(photos / "bank")
        parts = [Manifest(gallery.root, gallery.rows[i::4]) for i in range(4)]
        build(tmp_path / "g.lmk", parts[0], bank, tiny)
        for part in parts[1:]:
            assert add_pictures(tmp_path / "g.lmk", part).added == 5
        build(tmp_path / "whole.lmk", gallery, bank, tiny)
        assert same(tmp_path / "g.lmk", tmp_path / "whole.lmk")

    def test_copies(self, index: Path, photos: Path, tmp_path: Path) -> None:
        shutil.copy(photos / "gallery" / "place_2" / "1.jpg", tmp_path / "copy.jpg")
        manifest = Manifest(tmp_path, (Row("copy", "copy.jpg", ("place_2",)),))
        report = add_pictures(index, manifest)
        assert (report.added, report.duplicates) == (0, (("copy", "place_2/1.jpg"),))
        report = add_pictures(index, manifest, duplicates=True)
        assert (report.added, report.computed, report.duplicates) == (1, 0, ())
        assert add_pictures(index, manifest, role="distractor").added == 1

    def test_a_file_that_is_a_picture_now_is_no_longer_listed_as_skipped(
        self, index: Path, photos: Path, tmp_path: Path
    ) -> None:
        rows = tuple(Row(name, name, ("x",)) for name in ("a.jpg", "b.jpg"))
        for row in rows:
            (tmp_path / row.path).write_text("words")
        for role in ROLES:
            assert add_pictures(index, Manifest(tmp_path, rows), role=role).added == 0
        shutil.copy(photos / "gallery" / "place_2" / "1.jpg", tmp_path / "a.jpg")
        add_pictures(index, Manifest(tmp_path, rows))
        with Gallery.open(index) as gallery:
            names = [name for name, _ in gallery.skipped() if not name.startswith("place")]
        assert names == ["b.jpg", "distractor:a.jpg", "distractor:b.jpg"]


class TestCompact:
    def test_equals_a_build_of_the_rest(
        self, tmp_path: Path, photos: Path, tiny: Embedder, index: Path, learnt: str
    ) -> None:
        gallery, bank = read_manifest(photos / "gallery"), read_manifest(photos / "bank")
        gone = {row.id for row in gallery.rows if row.id[6] in "0134"}
        remove_pictures(index, [*gone, "distractor:1000"])
        told: list[tuple[str, int, int]] = []
        report = compact_index(index, on_progress=lambda *step: told.append(step))
        assert report == CompactReport(removed=17, rows=11, features=16)
        assert told[-1] == ("penalty and threshold", 1, 1)
        assert len(open_store(index, tiny)) == 12  # of one shard more than half is used
        build(tmp_path / "rest.lmk", without(gallery, gone), without(bank, {"1000"}), tiny)
        assert same(index, tmp_path / "rest.lmk")
        with Gallery.open(index) as opened:
            assert (opened.rows, opened.removed) == (11, 0)
        told.clear()
        again = compact_index(index, on_progress=lambda *step: told.append(step))
        assert again == CompactReport(0, 11, 0) and told == []  # nothing is learnt from nothing
        # What was computed for the pictures that stay is still there.
        assert add_pictures(index, read_manifest(photos / "gallery")).computed == 16

    def test_the_cache_keeps_what_is_of_the_pictures(self, photos: Path, index: Path) -> None:
        """Points of two pictures, one removed, and of a photo; features of photos tuned on."""
        files = sorted((photos / "gallery" / "place_0").iterdir())[:2]
        asked = photos / "bank" / "1000.jpg"
        points = cache_of(index)
        for file in (*files, asked):
            data = file.read_bytes()
            content = sha256(data).hexdigest()
            local_features(content, lambda data=data: data, RootSift(), points)  # type: ignore[misc]
        remove_pictures(index, [f"place_0/{files[1].name}", "distractor:1000"])
        known = Manifest(photos / "bank", (Row("q", "1000.jpg"),))
        with Recognizer.open(index) as recognizer:
            read_labelled_photos(known, recognizer)
        tuned = sorted((index / PHOTOS).glob("*/*.safetensors"))
        assert len(tuned) == 1 and len(list((index / "cache" / "local").iterdir())) == 3
        assert compact_index(index).features == 2 + 1  # and rows of one shard that stays
        left = [path.name.partition("-")[0] for path in (index / "cache" / "local").iterdir()]
        assert left == [sha256(files[0].read_bytes()).hexdigest()]
        assert not tuned[0].exists()

    def test_a_part_learns_nothing(self, tmp_path: Path, photos: Path, tiny: Embedder) -> None:
        path = tmp_path / "g.lmk"
        build_index(read_manifest(photos / "gallery"), path, tiny, shard=(1, 1))
        remove_pictures(path, ["place_0/0.jpg"])
        assert compact_index(path).rows == 19
        with Gallery.open(path) as gallery:
            assert saved_pipeline(gallery).threshold() is None and gallery.array(PENALTY) is None

    def test_who_reads_is_not_disturbed(self, index: Path, photos: Path) -> None:
        asked = [photos / "gallery" / "place_4" / "0.jpg"]
        with Recognizer.open(index) as recognizer:
            before = recognizer.query(asked)[0]
            remove_pictures(index, [f"place_4/{view}.jpg" for view in range(4)])
            compact_index(index)
            after = recognizer.query(asked)[0]
            assert after.labels == before.labels == ("place_4",)
            np.testing.assert_array_equal(after.confidence, before.confidence)


def test_how_it_is_searched_is_kept(tmp_path: Path, photos: Path, tiny: Embedder) -> None:
    manifest = read_manifest(photos / "gallery")
    build_index(manifest, tmp_path / "g.lmk", tiny, search=SearchSettings("flat", 0.9))
    with Gallery.open(tmp_path / "g.lmk") as gallery:
        assert gallery.setting("search") == {"kind": "flat", "recall": 0.9}
    build_index(manifest, tmp_path / "g.lmk", tiny, precision="f32")
    with Gallery.open(tmp_path / "g.lmk") as gallery:
        assert gallery.setting("search") == {} and gallery.precision == "f32"
        expected, _ = tiny.embed([manifest.file(row) for row in manifest.rows])
        np.testing.assert_allclose(gallery.vectors(range(20)), expected.vectors, atol=3e-4)


def test_many_at_a_time(
    tmp_path: Path, photos: Path, tiny: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures go into the gallery block by block, with the same result."""
    from lmk.rerank.indexing import ingest

    gallery, bank = read_manifest(photos / "gallery"), read_manifest(photos / "bank")
    build(tmp_path / "one.lmk", gallery, bank, tiny)
    sizes: list[int] = []
    append = GalleryWriter.append

    def watched(writer: GalleryWriter, *args: object, **options: object) -> int:
        sizes.append(len(args[0]))  # type: ignore[arg-type]
        return append(writer, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(GalleryWriter, "append", watched)
    monkeypatch.setattr(ingest, "BLOCK", 6)
    build(tmp_path / "many.lmk", gallery, bank, tiny)
    assert sizes == [6, 6, 6, 2, 6, 2]
    assert same(tmp_path / "one.lmk", tmp_path / "many.lmk")


def test_names_may_be_strings_of_numpy(photos: Path, tmp_path: Path, tiny: Embedder) -> None:
    manifest = read_manifest(photos / "gallery")
    rows = tuple(
        Row(np.str_(row.id), np.str_(row.path), tuple(map(np.str_, row.labels)))
        for row in manifest.rows
    )
    path = tmp_path / "g.lmk"
    build_index(replace(manifest, rows=rows), path, tiny)
    relabel_pictures(path, {np.str_(rows[0].id): [np.str_("castle")]})
    remove_pictures(path, [np.str_(rows[1].id)])
    assert not verify(path)
    with Gallery.open(path) as gallery:
        assert "castle" in gallery.label_names
