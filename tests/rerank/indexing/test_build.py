"""Building and extending an index, and asking it, on small pictures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import (
    EmbedderMismatch,
    GalleryError,
    GalleryLocked,
    ManifestError,
    ModelError,
    NotAGallery,
    UsageError,
)
from lmk.embed.extract.embedder import Embedder
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.search.settings import SearchSettings
from lmk.index.vectors.view import LEAST_WIDTH
from lmk.rerank.fit.saved import saved_pipeline
from lmk.rerank.fit.tables import BACKGROUND, PENALTY
from lmk.rerank.indexing import ingest
from lmk.rerank.indexing.build import add_pictures, build_index
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.penalty import PenaltyStep
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.voting import VoteStep


def state(path: Path) -> dict[str, object]:
    """Everything an index answers from, by picture id."""
    with Gallery.open(path) as gallery:
        ids = gallery.ids(np.arange(gallery.rows))
        vectors = gallery.vectors(np.arange(gallery.rows))
        penalty = gallery.array(PENALTY)
        roles = set(gallery.role_rows("gallery").tolist())
        return {
            "vectors": dict(zip(ids, vectors, strict=True)),
            "labels": {id_: gallery.labels(row) for row, id_ in enumerate(ids)},
            "penalty": {ids[row]: float(penalty[row]) for row in roles if penalty is not None},
            "pipeline": saved_pipeline(gallery),
            "background": gallery.setting(BACKGROUND),
            "fingerprint": gallery.fingerprint,
            "skipped": gallery.skipped(),
        }


def threshold(pipeline: Pipeline) -> float:
    return float(pipeline.steps[-1].value)  # type: ignore[union-attr]


def assert_same(one: dict[str, object], other: dict[str, object]) -> None:
    for name in ("vectors", "labels", "penalty"):
        assert one[name].keys() == other[name].keys()  # type: ignore[attr-defined]
    assert one["labels"] == other["labels"] and one["fingerprint"] == other["fingerprint"]
    for id_, vector in one["vectors"].items():  # type: ignore[attr-defined]
        np.testing.assert_array_equal(vector, other["vectors"][id_])  # type: ignore[index]
        assert other["penalty"].get(id_, 0) == pytest.approx(  # type: ignore[attr-defined]
            one["penalty"].get(id_, 0),
            abs=1e-6,  # type: ignore[attr-defined]
        )
    assert one["background"] == pytest.approx(other["background"], abs=1e-6)
    assert threshold(one["pipeline"]) == pytest.approx(threshold(other["pipeline"]), abs=1e-5)
    assert one["pipeline"].steps[:-1] == other["pipeline"].steps[:-1]  # type: ignore[attr-defined]


class TestBuild:
    def test_what_it_holds(self, built: Path, photos: Path, tiny: Embedder) -> None:
        with Gallery.open(built) as gallery:
            info = gallery.info()
            assert (info.pictures, info.distractors, info.landmarks) == (20, 8, 5)
            assert gallery.fingerprint == tiny.fingerprint
            files = sorted((photos / "gallery").rglob("*.jpg"))
            expected, _ = tiny.embed(files)
            ids = [path.relative_to(photos / "gallery").as_posix() for path in files]
            rows = gallery.role_rows("gallery")
            assert gallery.ids(rows) == ids
            cosines = (gallery.vectors(rows) * expected.vectors).sum(axis=1)
            assert cosines.min() > 0.9999
            assert [gallery.labels(int(row))[0] for row in rows] == [
                id_.split("/")[0] for id_ in ids
            ]
            pictures = gallery.pictures(rows)
            assert [gallery.file(picture) for picture in pictures] == [f.resolve() for f in files]
            assert gallery.array(PENALTY) is not None
            assert saved_pipeline(gallery).steps[:-1] == Pipeline().steps

    def test_again_computes_nothing(self, index: Path, photos: Path, tiny: Embedder) -> None:
        before = state(index)
        stages: list[tuple[str, int, int]] = []
        report = build_index(
            read_manifest(photos / "gallery"),
            index,
            tiny,
            distractors=read_manifest(photos / "bank"),
            on_progress=lambda *stage: stages.append(stage),
        )
        assert (report.pictures, report.distractors, report.computed) == (20, 8, 0)
        assert not report.whitened and report.skipped == ()
        assert_same(before, state(index))
        assert stages[0] == ("gallery", 0, 20) and ("gallery", 20, 20) in stages
        assert ("distractors", 8, 8) in stages and stages[-1][0] == "penalty and threshold"

    def test_interrupted_it_goes_on(self, tmp_path: Path, photos: Path, tiny: Embedder) -> None:
        def stop(stage: str, done: int, total: int) -> None:
            if stage == "penalty and threshold":
                raise KeyboardInterrupt

        path, manifest = tmp_path / "g.lmk", read_manifest(photos / "gallery")
        with pytest.raises(KeyboardInterrupt):
            build_index(manifest, path, tiny, on_progress=stop)
        with pytest.raises(NotAGallery, match="its build never finished"):
            Recognizer.open(path)
        with pytest.raises(NotAGallery, match="its build never finished"):
            add_pictures(path, manifest, wait=1)
        assert build_index(manifest, path, tiny).computed == 0
        with Recognizer.open(path) as recognizer:
            assert len(recognizer.gallery.role_rows("gallery")) == 20

    def test_another_model_or_gallery_in_its_place(
        self, index: Path, photos: Path, tiny_weights: Path, tmp_path: Path
    ) -> None:
        other = Embedder.named("test_resnet", weights=tiny_weights, size=40)
        manifest = read_manifest(photos / "bank")
        with Recognizer.open(index) as reader:
            asked = [photos / "gallery" / "place_2" / "1.jpg"]
            before = reader.query(asked)[0]
            report = build_index(manifest, index, other)
            assert reader.query(asked)[0].labels == before.labels  # what is open stays
        assert report.pictures == 8 and report.computed == 8
        fresh = tmp_path / "fresh.lmk"
        build_index(manifest, fresh, other)
        with Gallery.open(index) as one, Gallery.open(fresh) as two:
            assert one.ids(range(8)) == two.ids(range(8)) and one.rows == 8
            np.testing.assert_array_equal(one.vectors(range(8)), two.vectors(range(8)))
            assert one.array(PENALTY) is None
            assert saved_pipeline(one) == saved_pipeline(two) == Pipeline()

    def test_the_same_ids_in_gallery_and_bank(
        self, tmp_path: Path, photos: Path, tiny: Embedder
    ) -> None:
        manifest = read_manifest(photos / "bank")
        report = build_index(manifest, tmp_path / "g.lmk", tiny, distractors=manifest)
        assert (report.pictures, report.distractors, report.computed) == (8, 8, 8)
        with Gallery.open(tmp_path / "g.lmk") as gallery:
            assert gallery.ids([0, 8]) == ["1000", "distractor:1000"]

    def test_bad_files_are_listed(self, tmp_path: Path, tiny: Embedder,
                                  write_photos: Callable[..., Path]) -> None:  # fmt: skip
        root = write_photos(tmp_path / "in", landmarks=2, views=2)
        (root / "place_0" / "bad.jpg").write_text("words")
        (root / "notes.txt").touch()
        (root / "place_1").joinpath(os.fsdecode(b"\xff.jpg")).touch()
        report = build_index(read_manifest(root), tmp_path / "g.lmk", tiny)
        assert report.pictures == 4 and len(report.skipped) == 3
        assert dict(state(tmp_path / "g.lmk")["skipped"]) == {  # type: ignore[call-overload]
            "notes.txt": "not a picture (.txt)",
            "place_0/bad.jpg": "not a picture that can be decoded",
            "place_1/\\udcff.jpg": "its name is not valid UTF-8",
        }
        others = tmp_path / "bank"
        others.mkdir()
        (others / "notes.txt").touch()
        (others / "a.jpg").touch()
        with pytest.raises(ManifestError, match="none of its 1 pictures"):
            build_index(read_manifest(others), tmp_path / "bad.lmk", tiny)
        bank = read_manifest(others)
        report = build_index(read_manifest(root), tmp_path / "g.lmk", tiny, distractors=bank)
        assert (report.distractors, len(report.skipped)) == (0, 5)
        skipped = dict(state(tmp_path / "g.lmk")["skipped"])  # type: ignore[call-overload]
        assert len(skipped) == 5
        assert skipped["distractor:a.jpg"] == "empty file (0 bytes)"

    def test_not_one_good_file(self, index: Path, tmp_path: Path, tiny: Embedder) -> None:
        before = state(index)
        folder = tmp_path / "bad"
        folder.mkdir()
        (folder / "a.jpg").write_text("words")
        (folder / "notes.txt").touch()
        with pytest.raises(ManifestError, match=r"none of its 1 pictures.*is a\.jpg: not a pic"):
            build_index(read_manifest(folder), index, tiny)
        with pytest.raises(ManifestError, match="none of its 0 pictures can be read; check"):
            build_index(Manifest(folder, ()), index, tiny)
        assert_same(before, state(index))

    def test_whitening(
        self, tmp_path: Path, photos: Path, tiny: Embedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gallery, bank = read_manifest(photos / "gallery"), read_manifest(photos / "bank")
        path = tmp_path / "g.lmk"
        assert not build_index(gallery, path, tiny, distractors=bank).whitened
        assert build_index(gallery, path, tiny, whiten=True).whitened
        monkeypatch.setattr(ingest, "LEAST_PICTURES", 28)
        assert not build_index(gallery, path, tiny).whitened
        assert not build_index(gallery, path, tiny, distractors=bank, whiten=False).whitened
        report = build_index(gallery, path, tiny, distractors=bank)
        assert report.whitened and report.computed == 0
        with Recognizer.open(path) as recognizer:
            assert recognizer.embedder.whitening is not None
            assert recognizer.gallery.dim == 27  # the rank of 28 pictures
            assert recognizer.gallery.fingerprint != tiny.fingerprint
            asked = photos / "gallery" / "place_3" / "2.jpg"
            found = recognizer.query([asked])[0].neighbours
            assert recognizer.gallery.ids(found.rows[0, :1]) == ["place_3/2.jpg"]
            assert found.scores[0, 0] > 0.99

    def test_a_pipeline_of_ones_own(self, tmp_path: Path, photos: Path, tiny: Embedder) -> None:
        pipeline = Pipeline(steps=(VoteStep(k=2),), candidates=7)
        build_index(
            read_manifest(photos / "gallery"),
            tmp_path / "g.lmk",
            tiny,
            distractors=read_manifest(photos / "bank"),
            pipeline=pipeline,
        )
        with Recognizer.open(tmp_path / "g.lmk") as recognizer:
            assert recognizer.pipeline.steps[:-1] == pipeline.steps
            assert recognizer.context.penalty is None
            predictions, _ = recognizer.query([photos / "bank" / "1001.jpg"])
            assert predictions.neighbours.k == 7


class TestAdd:
    @pytest.mark.parametrize("bank", [True, False])
    def test_equals_a_build(
        self,
        tmp_path: Path,
        photos: Path,
        tiny: Embedder,
        write_photos: Callable[..., Path],
        bank: bool,
    ) -> None:
        root = write_photos(tmp_path / "in", landmarks=6)
        whole = read_manifest(root)
        others = read_manifest(photos / "bank") if bank else None
        build_index(whole, tmp_path / "whole.lmk", tiny, distractors=others)
        parts = [Manifest(root, whole.rows[i::3]) for i in range(3)]
        build_index(parts[0], tmp_path / "parts.lmk", tiny, distractors=others)
        for part in parts[1:]:
            report = add_pictures(tmp_path / "parts.lmk", part)
            assert (report.added, report.computed, report.unchanged) == (8, 8, 0)
        assert_same(state(tmp_path / "whole.lmk"), state(tmp_path / "parts.lmk"))
        asked = [*(photos / "bank").iterdir(), *(photos / "gallery").rglob("1.jpg")]
        with (
            Recognizer.open(tmp_path / "whole.lmk") as one,
            Recognizer.open(tmp_path / "parts.lmk") as two,
        ):
            first, second = one.query(asked)[0], two.query(asked)[0]
            assert first.answers() == second.answers()
            np.testing.assert_allclose(first.confidence, second.confidence, atol=1e-5)

    def test_again_adds_nothing(self, index: Path, photos: Path) -> None:
        before = state(index)
        report = add_pictures(index, read_manifest(photos / "gallery"))
        assert (report.added, report.computed, report.unchanged) == (0, 0, 20)
        assert_same(before, state(index))

    def test_nothing_that_can_be_read(self, index: Path, tmp_path: Path) -> None:
        before = state(index)
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "a.jpg").write_text("words")
        report = add_pictures(index, read_manifest(tmp_path / "bad"))
        assert report.added == 0 and len(report.skipped) == 1
        assert_same(before, state(index))

    def test_another_picture_of_the_same_id(
        self, index: Path, tmp_path: Path, write_photos: Callable[..., Path]
    ) -> None:
        before = state(index)
        root = write_photos(tmp_path / "other", landmarks=1, first=77)
        (root / "place_77").rename(root / "place_0")
        with pytest.raises(GalleryError, match="another picture has this id"):
            add_pictures(index, read_manifest(root))
        assert_same(before, state(index))

    def test_while_another_writes(self, index: Path, photos: Path) -> None:
        with GalleryWriter(index), pytest.raises(GalleryLocked):
            add_pictures(index, read_manifest(photos / "gallery"))

    def test_no_index(self, tmp_path: Path, photos: Path) -> None:
        with pytest.raises(NotAGallery):
            add_pictures(tmp_path / "none.lmk", read_manifest(photos / "gallery"))


class TestRecognizer:
    @pytest.fixture
    def recognizer(self, built: Path) -> Iterator[Recognizer]:
        with Recognizer.open(built) as recognizer:
            yield recognizer

    def test_a_gallery_picture_finds_itself(self, recognizer: Recognizer, photos: Path) -> None:
        asked = sorted((photos / "gallery").rglob("*.jpg"))
        predictions, skipped = recognizer.query(asked)
        assert skipped == () and predictions.query_ids == tuple(map(str, asked))
        nearest = recognizer.gallery.ids(predictions.neighbours.rows[:, 0])
        assert nearest == [path.relative_to(photos / "gallery").as_posix() for path in asked]
        assert predictions.neighbours.scores[:, 0].min() > 0.999
        assert predictions.neighbours.k == 100 and (predictions.neighbours.rows[:, 20:] == -1).all()

    def test_more_neighbours(self, recognizer: Recognizer, photos: Path) -> None:
        asked = [photos / "bank" / "1003.jpg"]
        plain, deep = recognizer.query(asked)[0], recognizer.query(asked, k=150)[0]
        assert deep.neighbours.k == 150 and deep.labels == plain.labels
        endless = recognizer.query(asked, k=10**9)[0]  # it would take 12 GB
        assert endless.neighbours.k == LEAST_WIDTH and endless.labels == plain.labels
        assert deep.confidence == pytest.approx(plain.confidence)

    def test_stream_and_predict_agree_with_query(
        self, recognizer: Recognizer, photos: Path
    ) -> None:
        manifest = read_manifest(photos / "bank")
        streamed = list(recognizer.embed_stream(manifest))
        embeddings = streamed[0][0]
        predictions = recognizer.predict(embeddings)
        queried, _ = recognizer.query([manifest.file(row) for row in manifest.rows])
        assert predictions.labels == queried.labels
        np.testing.assert_allclose(predictions.confidence, queried.confidence, atol=1e-6)
        found = recognizer.search(embeddings, 3)
        np.testing.assert_array_equal(found.rows, queried.neighbours.rows[:, :3])

    def test_nothing_readable(self, recognizer: Recognizer, tmp_path: Path) -> None:
        predictions, skipped = recognizer.query([tmp_path / "none.jpg", tmp_path])
        assert len(predictions) == 0 and len(skipped) == 2

    def test_another_pipeline_learns_its_penalty(self, built: Path, photos: Path) -> None:
        with Gallery.open(built) as gallery:
            kept, saved = saved_pipeline(gallery), gallery.array(PENALTY)
        assert saved is not None
        other = Pipeline(steps=(PenaltyStep(top=3, ramp="linear", min_n=1, max_n=2), VoteStep(k=1)))
        with Recognizer.open(built, pipeline=other) as recognizer:
            penalty = recognizer.context.penalty
            assert penalty is not None and penalty.shape == (28,) and (penalty[20:] == 0).all()
            assert not np.allclose(penalty, saved)
            assert recognizer.query([photos / "bank" / "1000.jpg"])[0].threshold == -np.inf
        again = Pipeline(steps=kept.steps[:-1])
        with Recognizer.open(built, pipeline=again) as recognizer:
            np.testing.assert_array_equal(recognizer.context.penalty, saved)
        steps = tuple(step for step in kept.steps if not hasattr(step, "ramp"))
        with Recognizer.open(built, pipeline=Pipeline(steps=steps)) as recognizer:
            assert recognizer.context.penalty is None

    def test_a_penalty_that_is_missing_is_learnt_again(
        self, built: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Gallery.open(built) as gallery:
            saved = gallery.array(PENALTY)
        monkeypatch.setattr(Gallery, "array", lambda self, name: None)
        with Recognizer.open(built) as recognizer:
            np.testing.assert_allclose(recognizer.context.penalty, saved, atol=1e-5)

    def test_a_moved_index(self, index: Path, photos: Path, tmp_path: Path) -> None:
        index.rename(tmp_path / "moved.lmk")
        with Recognizer.open(tmp_path / "moved.lmk") as recognizer:
            assert len(recognizer.query([photos / "bank" / "1000.jpg"])[0]) == 1

    def test_a_damaged_graph_is_an_error_of_one_line(self, index: Path) -> None:
        graph = next(index.glob("embedder/*/graph.bin"))
        content = bytearray(graph.read_bytes())
        content[1000] ^= 1
        graph.write_bytes(content)
        with pytest.raises(GalleryError) as caught:
            Recognizer.open(index)
        assert "\n" not in str(caught.value)

    def test_an_embedder_that_cannot_be_read_closes_the_gallery(
        self, built: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[Gallery] = []

        def fail(folder: Path, *, checked: bool) -> Embedder:
            raise ModelError("no such weights", where=folder)

        def watched(path: Path, *, verify: bool | None) -> Gallery:
            opened.append(open_gallery(path, verify=verify))
            return opened[0]

        open_gallery = Gallery.open
        monkeypatch.setattr(Embedder, "load", fail)
        monkeypatch.setattr(Gallery, "open", watched)
        with pytest.raises(ModelError, match="no such weights"):
            Recognizer.open(built)
        assert not opened[0].close.alive

    def test_accuracy_on_rendered_places(
        self, tmp_path: Path, photos: Path, lite0: Embedder
    ) -> None:
        """View 3 of each place is asked; the bank's second half is of no place."""
        rows = read_manifest(photos / "gallery").rows
        known = Manifest(photos / "gallery", tuple(row for row in rows if "/3" not in row.id))
        bank = read_manifest(photos / "bank")
        half = Manifest(bank.root, bank.rows[:4])
        build_index(known, tmp_path / "g.lmk", lite0, distractors=half)
        with Recognizer.open(tmp_path / "g.lmk") as recognizer:
            asked = [photos / "gallery" / f"place_{p}" / "3.jpg" for p in range(5)]
            answers = recognizer.query(asked)[0]
            assert answers.labels == tuple(f"place_{p}" for p in range(5))
            none = recognizer.query([bank.file(row) for row in bank.rows[4:]])[0]
            assert answers.confidence.min() > none.confidence.mean()


def test_embeddings_of_another_model_are_refused(
    built: Path, embed: Callable[..., Embeddings]
) -> None:

    with Recognizer.open(built) as recognizer, pytest.raises(EmbedderMismatch):
        recognizer.predict(embed(np.eye(96)[:2]))


def test_torch_is_not_imported(built: Path, photos: Path) -> None:
    code = (
        "import sys, json; from pathlib import Path; from lmk.rerank.recognizer import Recognizer\n"
        "with Recognizer.open(sys.argv[1]) as recognizer:\n"
        "    predictions, _ = recognizer.query([Path(sys.argv[2])])\n"
        "heavy = [n for n in ('torch', 'timm', 'sklearn', 'pandas', 'openvino_telemetry')"
        " if n in sys.modules]\n"
        "print(json.dumps([len(predictions), heavy]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, built, photos / "bank" / "1000.jpg"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, []]


def test_an_index_that_cannot_be_written_answers(index: Path, photos: Path) -> None:
    """A folder mounted read-only (needs root on Linux, as permissions do not stop root)."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("needs a mount namespace (root on Linux)")
    code = (
        "import sys; from pathlib import Path; from lmk.rerank.recognizer import Recognizer\n"
        "with Recognizer.open(sys.argv[1]) as recognizer:\n"
        "    print(len(recognizer.query([Path(sys.argv[2])])[0]))\n"
        "Path(sys.argv[1], 'x').touch()\n"
    )
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, index, sys.executable, "-P", "-c", code, index,
         photos / "bank" / "1000.jpg"],
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.stdout == "1\n"
    assert "Read-only file system" in done.stderr.splitlines()[-1]


def test_rows_of_one_manifest_with_the_same_content(
    tmp_path: Path, photos: Path, tiny: Embedder
) -> None:
    row = "gallery/place_0/0.jpg"
    manifest = Manifest(photos, (Row("a", row, ("x",)), Row("b", row, ("x",))))
    report = build_index(manifest, tmp_path / "g.lmk", tiny)
    assert report.pictures == 1 and report.duplicates == (("b", "a"),)
    assert (report.conflicts, report.without_own) == ((), ())
    report = build_index(manifest, tmp_path / "g.lmk", tiny, duplicates=True)
    assert report.pictures == 2 and report.duplicates == ()
    with Gallery.open(tmp_path / "g.lmk") as gallery:
        np.testing.assert_array_equal(*gallery.vectors([0, 1]))


def test_the_same_content_under_two_landmarks_is_kept_under_both(
    tmp_path: Path, photos: Path, tiny: Embedder
) -> None:
    """Whatever the order: neither landmark disappears, and those without another are named."""
    one, other = "gallery/place_0/0.jpg", "gallery/place_1/0.jpg"
    rows = [Row("a", one, ("x",)), Row("b", one, ("y",)), Row("c", other, ("y",)), Row("d", one)]
    for order in (rows, rows[::-1]):
        report = build_index(Manifest(photos, tuple(order)), tmp_path / "g.lmk", tiny)
        assert report.pictures == 3 and len(report.conflicts) == 1
        assert {report.conflicts[0].id, report.conflicts[0].other} == {"a", "b"}
        assert report.without_own == ("x",)
        assert [left for left, _ in report.duplicates] == ["d"]  # it has no landmark to lose
        with Gallery.open(tmp_path / "g.lmk") as gallery:
            kept = gallery.pictures(gallery.role_rows("gallery"))
            assert {p.id: p.labels for p in kept} == {"a": ("x",), "b": ("y",), "c": ("y",)}


@pytest.mark.parametrize(
    ("search", "complaint"),
    [
        ({"kind": "fast"}, "'fast'.*choose auto, exact"),
        ({"kind": "PQ7x4fs"}, "'PQ7x4fs'"),  # no 7 code words of so many components
        ({"recall": float("nan")}, "a recall of nan; choose one from 0 to 1"),
        ({"kind": "exact", "recall": 1.5}, "a recall of 1.5"),
    ],
)
def test_a_search_that_there_is_not_is_refused_before_anything_is_embedded(
    photos: Path, tiny: Embedder, tmp_path: Path, search: dict[str, Any], complaint: str
) -> None:
    pictures = read_manifest(photos / "gallery")
    stages: list[str] = []
    with pytest.raises(UsageError, match=complaint):
        build_index(
            pictures,
            tmp_path / "g.lmk",
            tiny,
            search=SearchSettings(**search),
            on_progress=lambda s, *_: stages.append(s),
        )
    assert not stages and not (tmp_path / "g.lmk").exists()


def test_more_cells_than_the_pictures_can_train_are_refused_at_once(
    tiny: Embedder, tmp_path: Path
) -> None:
    rows = tuple(Row(f"{n}.jpg", f"{n}.jpg", ("a",)) for n in range(1000))
    pictures = Manifest(tmp_path, rows)
    with pytest.raises(UsageError, match="64 cells, and 1000 vectors can train 25"):
        build_index(pictures, tmp_path / "g.lmk", tiny, search=SearchSettings("IVF64,SQ8"))
    assert not (tmp_path / "g.lmk").exists()
    with pytest.raises(ManifestError):  # it is not known how many a merge will have
        build_index(
            pictures, tmp_path / "g.lmk", tiny, search=SearchSettings("IVF64,SQ8"), shard=(1, 2)
        )
