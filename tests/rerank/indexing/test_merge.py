"""Parts of a gallery, built apart and merged, are the gallery that is built at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.errors import EmbedderMismatch, GalleryError, ManifestError, NotAGallery, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.rerank.fit.saved import saved_pipeline
from lmk.rerank.fit.tables import BACKGROUND, PENALTY
from lmk.rerank.indexing import ingest
from lmk.rerank.indexing.build import add_pictures, build_index, remove_pictures
from lmk.rerank.indexing.ingest import part_of
from lmk.rerank.indexing.merge import merge_indexes
from lmk.rerank.recognizer import Recognizer

PARTS = 3


@pytest.fixture
def parts(tmp_path: Path, photos: Path, tiny: Embedder) -> list[Path]:
    """The gallery and the bank in three parts."""
    paths = [tmp_path / f"{number}.lmk" for number in range(1, PARTS + 1)]
    for number, path in enumerate(paths, 1):
        report = build_index(
            read_manifest(photos / "gallery"),
            path,
            tiny,
            distractors=read_manifest(photos / "bank"),
            shard=(number, PARTS),
        )
        assert 0 < report.pictures < 20 and report.computed == report.pictures + report.distractors
        assert not report.whitened and report.threshold is None
    return paths


def assert_alike(one: Path, other: Path, asked: list[Path]) -> None:
    """The same pictures, and the same answers to questions."""
    with Recognizer.open(one, verify=True) as first, Recognizer.open(other, verify=True) as second:
        context = []
        for gallery in (first.gallery, second.gallery):
            rows = np.flatnonzero(gallery.alive)
            pictures = gallery.pictures(rows)
            penalty = gallery.array(PENALTY)
            assert penalty is not None
            order = sorted(range(len(rows)), key=lambda i: pictures[i].id)
            context.append(
                (
                    [pictures[i] for i in order],
                    gallery.vectors(rows)[order],
                    penalty[rows][order],
                    gallery.setting(BACKGROUND),
                )
            )
        assert context[0][0] == context[1][0]
        np.testing.assert_allclose(context[0][1], context[1][1], atol=2e-3)
        np.testing.assert_allclose(context[0][2], context[1][2], atol=1e-3)
        assert context[0][3] == pytest.approx(context[1][3], abs=1e-3)
        answers, others = first.query(asked)[0], second.query(asked)[0]
        assert answers.answers() == others.answers()
        assert any(answers.answers()) and None in answers.answers()
        np.testing.assert_allclose(answers.confidence, others.confidence, atol=2e-3)
        # Vectors that differ in their last bits deal the bank into other halves.
        assert answers.threshold == pytest.approx(others.threshold, abs=0.05)


@pytest.mark.parametrize("whiten", [False, True])
def test_equals_a_build(
    tmp_path: Path,
    photos: Path,
    tiny: Embedder,
    parts: list[Path],
    whiten: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if whiten:
        monkeypatch.setattr(ingest, "LEAST_PICTURES", 28)
    gallery, bank = read_manifest(photos / "gallery"), read_manifest(photos / "bank")
    whole = build_index(gallery, tmp_path / "whole.lmk", tiny, distractors=bank)
    assert whole.whitened == whiten
    told: list[tuple[str, int, int]] = []
    report = merge_indexes(tmp_path / "m.lmk", parts, on_progress=lambda *step: told.append(step))
    assert (report.pictures, report.distractors, report.repeated) == (20, 8, 0)
    assert report.duplicates == ()
    asked = [*sorted((photos / "bank").iterdir()), *sorted((photos / "gallery").rglob("1.jpg"))]
    assert_alike(tmp_path / "whole.lmk", tmp_path / "m.lmk", asked)
    assert ("merging", 28, 28) in told and told[-1] == ("penalty and threshold", 1, 1)
    with Recognizer.open(tmp_path / "m.lmk") as recognizer:
        assert (recognizer.embedder.whitening is not None) == whiten
        assert recognizer.gallery.setting("shard") is None


def test_parts_depend_on_ids_alone(photos: Path) -> None:
    whole = read_manifest(photos / "gallery")
    fewer = Manifest(whole.root, whole.rows[3:])
    for number in (1, 2, 3):
        rows = set(part_of(whole, (number, 3)).rows)
        assert set(part_of(fewer, (number, 3)).rows) == rows & set(fewer.rows)
    assert part_of(whole, None) is whole
    assert part_of(whole, (1, 1)).rows == whole.rows
    for wrong in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(UsageError, match="count the parts from 1"):
            part_of(whole, wrong)


def test_a_part_learns_nothing_and_answers(photos: Path, parts: list[Path]) -> None:
    with Gallery.open(parts[0]) as gallery:
        assert gallery.array(PENALTY) is None and saved_pipeline(gallery).threshold() is None
    add_pictures(parts[0], read_manifest(photos / "gallery"))
    with Recognizer.open(parts[0]) as recognizer:
        assert saved_pipeline(recognizer.gallery).threshold() is None
        asked = [photos / "gallery" / "place_1" / "1.jpg"]
        assert recognizer.query(asked)[0].answers() == ("place_1",)


def test_a_part_without_pictures(tmp_path: Path, photos: Path, tiny: Embedder) -> None:
    row = read_manifest(photos / "gallery").rows[0]
    manifest = Manifest(photos / "gallery", (row,))
    sizes = [
        build_index(manifest, tmp_path / f"{n}.lmk", tiny, shard=(n, 2)).pictures for n in (1, 2)
    ]
    assert sorted(sizes) == [0, 1]
    report = merge_indexes(tmp_path / "m.lmk", [tmp_path / "1.lmk", tmp_path / "2.lmk"])
    assert report.pictures == 1
    with pytest.raises(ManifestError, match=r"none of its 1 pictures"):
        gone = Manifest(tmp_path, (Row(row.id, row.path),))
        build_index(gone, tmp_path / "x.lmk", tiny, shard=(sizes.index(1) + 1, 2))


def test_whole_galleries(
    tmp_path: Path, photos: Path, tiny: Embedder, write_photos: Callable[..., Path]
) -> None:
    """They stay unwhitened unless it is asked for, and are learnt from anew."""
    bank = read_manifest(photos / "bank")
    more = read_manifest(write_photos(tmp_path / "more", landmarks=3, first=20))
    gallery = read_manifest(photos / "gallery")
    build_index(gallery, tmp_path / "1.lmk", tiny, distractors=bank)
    build_index(more, tmp_path / "2.lmk", tiny)
    paths = [tmp_path / "1.lmk", tmp_path / "2.lmk"]
    merge_indexes(tmp_path / "m.lmk", paths)
    add_pictures(tmp_path / "1.lmk", more)
    asked = [*sorted((photos / "bank").iterdir()), *sorted((tmp_path / "more").rglob("1.jpg"))]
    with Recognizer.open(tmp_path / "1.lmk") as one, Recognizer.open(tmp_path / "m.lmk") as two:
        first, second = one.query(asked)[0], two.query(asked)[0]
        assert first.answers() == second.answers() and first.threshold == second.threshold
        np.testing.assert_array_equal(first.confidence, second.confidence)
    merge_indexes(tmp_path / "m.lmk", paths, whiten=True)
    with Recognizer.open(tmp_path / "m.lmk") as recognizer:
        assert recognizer.embedder.whitening is not None
        answers = recognizer.query(sorted((tmp_path / "more").rglob("1.jpg")))[0].labels
        assert answers == ("place_20", "place_21", "place_22")
    with pytest.raises(UsageError, match="whitened already"):
        merge_indexes(tmp_path / "n.lmk", [tmp_path / "m.lmk"], whiten=True)


def test_what_is_refused(
    tmp_path: Path, photos: Path, parts: list[Path], tiny_weights: Path, tiny: Embedder
) -> None:
    out = tmp_path / "m.lmk"
    with pytest.raises(UsageError, match="no galleries"):
        merge_indexes(out, [])
    with pytest.raises(UsageError, match="into itself"):
        merge_indexes(parts[0], parts)
    with pytest.raises(NotAGallery):
        merge_indexes(out, [parts[0], tmp_path / "none.lmk"])
    with pytest.raises(UsageError, match="a shard has no whitening; whiten when"):
        build_index(read_manifest(photos / "gallery"), out, tiny, whiten=True, shard=(1, 2))
    other = Embedder.named("test_resnet", weights=tiny_weights, size=40)
    build_index(read_manifest(photos / "bank"), tmp_path / "o.lmk", other)
    with pytest.raises(EmbedderMismatch):
        merge_indexes(out, [parts[0], tmp_path / "o.lmk"])
    rows = read_manifest(photos / "gallery").rows
    clash = Manifest(photos / "gallery", (Row(rows[0].id, rows[1].path, ("a",)),))
    build_index(clash, tmp_path / "c.lmk", tiny)
    with pytest.raises(GalleryError, match="different pictures"):
        merge_indexes(out, [*parts, tmp_path / "c.lmk"])
    with pytest.raises(NotAGallery, match="its build never finished"):
        Gallery.open(out)


def test_nothing_to_learn_a_whitening_from(tmp_path: Path, parts: list[Path]) -> None:
    for path in parts:
        with Gallery.open(path) as gallery:
            ids = gallery.ids(np.flatnonzero(gallery.alive))
        remove_pictures(path, ids)
    with pytest.raises(UsageError, match="no pictures to fit a whitening on"):
        merge_indexes(tmp_path / "g.lmk", parts, whiten=True)
    assert merge_indexes(tmp_path / "g.lmk", parts).pictures == 0


def test_of_how_it_is_searched_the_server_is_left_out(tmp_path: Path, parts: list[Path]) -> None:
    with GalleryWriter(parts[0]) as writer:
        search = {"kind": "exact", "recall": 0.9, "backend": "milvus", "uri": "http://x:1"}
        writer.set("search", search | {"collection": "c"})
        writer.commit()
    for duplicates in (True, False):
        merge_indexes(tmp_path / "g.lmk", parts, duplicates=duplicates)
        with Gallery.open(tmp_path / "g.lmk") as gallery:
            assert gallery.setting("search") == {"kind": "exact", "recall": 0.9}
            assert gallery.setting("duplicates") is duplicates
