"""Repair: what is damaged is made again, what is whole stays, what is lost is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmk.embed.data.manifest import read_manifest
from lmk.embed.errors import GalleryDamaged, GalleryError, GalleryLocked, NotAGallery
from lmk.embed.extract.embedder import Embedder
from lmk.index.gallery import transaction as sizes
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify
from lmk.index.gallery.writer import GalleryWriter
from lmk.rerank.fit.saved import saved_pipeline
from lmk.rerank.fit.tables import BACKGROUND, PENALTY
from lmk.rerank.indexing import repair as repair_module
from lmk.rerank.indexing.build import build_index
from lmk.rerank.indexing.repair import RepairReport, repair_index
from lmk.rerank.recognizer import Recognizer

SEGMENT = 7  # rows of a segment here


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, photos: Path, tiny: Embedder) -> Path:
    """A folder with gallery/, bank/ and their index g.lmk, in segments of few rows."""
    folder = tmp_path_factory.mktemp("repaired")
    shutil.copytree(photos, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        bank = read_manifest(folder / "bank")
        gallery = read_manifest(folder / "gallery")
        build_index(gallery, folder / "g.lmk", tiny, distractors=bank)
    return folder


def small(patch: pytest.MonkeyPatch) -> None:
    """Blocks, and so segments, of few rows."""
    from lmk.rerank.indexing import ingest

    patch.setattr(ingest, "BLOCK", SEGMENT)
    patch.setattr(sizes, "INLINE_ROWS", 1)
    patch.setattr(sizes, "SMALL_SEGMENT_ROWS", SEGMENT)


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


@pytest.fixture
def index(folder: Path) -> Path:
    return folder / "g.lmk"


def contents(path: Path) -> dict[str, object]:
    with Gallery.open(path, verify=True) as gallery:
        rows = np.flatnonzero(gallery.alive)
        penalty = gallery.array(PENALTY)
        assert penalty is not None
        return {
            "ids": gallery.ids(rows),
            "vectors": gallery.vectors(rows).tobytes(),
            "penalty": penalty[rows].tolist(),
            "background": gallery.setting(BACKGROUND),
            "pipeline": saved_pipeline(gallery),
            "embedder": sorted(file.name for file in gallery.embedder_dir.iterdir()),
        }


def flip(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], None]] = {"flip": flip, "cut": cut, "gone": Path.unlink}


def segments(index: Path) -> list[Path]:
    found = sorted((index / "segments").iterdir())
    assert len(found) == 4
    return found


def assert_whole(index: Path) -> None:
    assert verify(index) == ()
    assert repair_index(index) == RepairReport((), 0, ())


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("cached", [True, False])
def test_damaged_vectors(folder: Path, index: Path, damage: str, cached: bool) -> None:
    """From the kept features, or from the pictures."""
    before = contents(index)
    for path in segments(index)[:2]:
        DAMAGE[damage](path)
    if not cached:
        shutil.rmtree(index / "cache")
    else:
        shutil.rmtree(folder / "gallery")
    told: list[str] = []
    report = repair_index(index, on_progress=lambda stage, done, total: told.append(stage))
    assert report == RepairReport((), 14, ())
    assert contents(index) == before
    assert ("damaged vectors" in told) != cached
    assert_whole(index)


def test_pictures_that_are_gone_are_lost_and_no_other(folder: Path, index: Path) -> None:
    before = contents(index)
    shutil.rmtree(index / "cache")
    flip(segments(index)[0])
    (folder / "gallery" / "place_0" / "1.jpg").unlink()
    shutil.copy(folder / "bank" / "1000.jpg", folder / "gallery" / "place_1" / "0.jpg")
    (folder / "gallery" / "place_4" / "0.jpg").unlink()  # its vector is whole
    report = repair_index(index)
    assert report == RepairReport((), 5, ("place_0/1.jpg", "place_1/0.jpg"))
    after = contents(index)
    left = [id_ for id_ in before["ids"] if id_ not in report.lost]  # type: ignore[attr-defined]
    assert after["ids"] == left and len(left) == 26
    assert_whole(index)
    with Recognizer.open(index) as recognizer:
        asked = [folder / "gallery" / "place_0" / "0.jpg"]
        assert recognizer.query(asked)[0].labels == ("place_0",)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_segment_all_of_whose_pictures_are_gone(folder: Path, index: Path, damage: str) -> None:
    shutil.rmtree(index / "cache")
    shutil.rmtree(folder / "gallery" / "place_0")
    shutil.rmtree(folder / "gallery" / "place_1")
    DAMAGE[damage](segments(index)[0])
    report = repair_index(index)
    assert report.reembedded == 0 and len(report.lost) == SEGMENT
    assert len(contents(index)["ids"]) == 21  # type: ignore[arg-type]
    assert_whole(index)


def unmounted(folder: Path) -> None:
    (folder / "gallery").rename(folder / "elsewhere")


def empty_mount_point(folder: Path) -> None:
    unmounted(folder)
    (folder / "gallery").mkdir()


@pytest.mark.parametrize("leave", [unmounted, empty_mount_point])
def test_pictures_on_a_drive_that_is_not_mounted_are_not_lost(
    folder: Path, index: Path, leave: Callable[[Path], None]
) -> None:
    before = contents(index)
    shutil.rmtree(index / "cache")
    flip(segments(index)[0])
    leave(folder)
    with pytest.raises(GalleryError, match=r"gallery: 7 pictures.*--drop-lost"):
        repair_index(index)
    assert len(verify(index)) == 1  # nothing was changed
    shutil.rmtree(folder / "gallery", ignore_errors=True)
    (folder / "elsewhere").rename(folder / "gallery")
    assert repair_index(index) == RepairReport((), 7, ())
    assert contents(index) == before


def test_pictures_that_cannot_be_reached_are_given_up_when_asked_to(
    folder: Path, index: Path
) -> None:
    shutil.rmtree(index / "cache")
    flip(segments(index)[0])
    unmounted(folder)
    report = repair_index(index, drop_lost=True)
    assert report.reembedded == 0 and len(report.lost) == SEGMENT
    assert_whole(index)


def test_a_file_that_cannot_be_read_is_not_lost(
    folder: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, who may read everything: the error comes from another place."""
    shutil.rmtree(index / "cache")
    flip(segments(index)[0])
    closed = folder / "gallery" / "place_0" / "1.jpg"
    content = closed.read_bytes()
    closed.unlink()
    closed.symlink_to(closed)  # opening it is ELOOP
    with pytest.raises(GalleryError, match=r"1\.jpg: 1 picture.*cannot be read.*--drop-lost"):
        repair_index(index)
    closed.unlink()
    closed.write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(repair_module, "_compute", lambda *_: None)  # as where decoding fails
        with pytest.raises(GalleryError, match="unchanged, but cannot be decoded"):
            repair_index(index)
    assert repair_index(index) == RepairReport((), 7, ())


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_arrays(index: Path, damage: str) -> None:
    before = contents(index)
    files = sorted((index / "arrays").iterdir())
    assert files
    for path in files:
        DAMAGE[damage](path)
    report = repair_index(index)
    assert report == RepairReport(tuple(f"arrays/{path.name}" for path in files), 0, ())
    assert contents(index) == before
    assert_whole(index)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["graph.bin", "graph.xml"])
def test_a_damaged_graph(folder: Path, index: Path, damage: str, name: str) -> None:
    """It is exported again from the weights, and the vectors that are damaged too come of it."""
    before = contents(index)
    with Recognizer.open(index) as recognizer:
        asked = sorted((folder / "bank").iterdir())
        confidence = recognizer.query(asked)[0].confidence
    shutil.rmtree(index / "cache")
    flip(segments(index)[2])
    path = next(index.glob(f"embedder/*/{name}"))
    DAMAGE[damage](path)
    report = repair_index(index)
    assert report.remade == (path.relative_to(index).as_posix(),) and report.reembedded == 13
    after = contents(index)
    assert (after["ids"], after["embedder"]) == (before["ids"], before["embedder"])
    with Recognizer.open(index) as recognizer:
        again = recognizer.query(asked)[0].confidence
    np.testing.assert_allclose(again, confidence, atol=1e-3)
    assert_whole(index)


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_an_embedder_that_is_given(index: Path, tiny: Embedder, lite0: Embedder, name: str) -> None:
    before = contents(index)
    flip(next(index.glob(f"embedder/*/{name}")), 20)
    damaged = rf"{name}: the embedder is damaged, and no installed"
    with pytest.raises(GalleryDamaged, match=damaged) as refused:
        repair_index(index, embedder=lite0)
    assert "--model" not in str(refused.value)
    with pytest.raises(GalleryDamaged, match=rf"{damaged}.*--model.*build-index"):
        repair_index(index)
    assert repair_index(index, embedder=tiny).reembedded == 0
    assert contents(index) == before
    assert_whole(index)


def test_an_embedder_of_the_package(tmp_path: Path, photos: Path) -> None:
    """Config and graph are gone, the whitening is whole: the fingerprint proves the rest."""
    gallery, bank = read_manifest(photos / "gallery"), read_manifest(photos / "bank")
    index = tmp_path / "g.lmk"
    build_index(gallery, index, Embedder.named("lite0"), distractors=bank, whiten=True)
    before = contents(index)
    for name in ("config.json", "graph.bin"):
        next(index.glob(f"embedder/*/{name}")).unlink()
    assert len(repair_index(index).remade) == 2
    assert contents(index) == before
    flip(next(index.glob("embedder/*/whitening.safetensors")))
    lost = r"whitening\.safetensors: the embedder is damaged"
    with pytest.raises(GalleryDamaged, match=lost) as refused:
        repair_index(index)
    assert "--model" not in str(refused.value)  # it would not help


def test_several_things_at_once(index: Path) -> None:
    before = contents(index)
    flip(segments(index)[1])
    cut(sorted((index / "arrays").iterdir())[0])
    next(index.glob("embedder/*/graph.xml")).unlink()
    search = index / "cache" / "search"
    search.mkdir(parents=True, exist_ok=True)
    (search / "x.index").write_text("derived")
    (search / "x.index.note").write_text("{}")
    report = repair_index(index)
    assert len(report.remade) == 3 and report.reembedded == 7 and report.lost == ()
    assert not (search / "x.index").exists()
    assert contents(index) == before
    assert_whole(index)


def test_a_part_learns_nothing(tmp_path: Path, photos: Path, tiny: Embedder) -> None:
    index = tmp_path / "g.lmk"
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        build_index(read_manifest(photos / "gallery"), index, tiny, shard=(1, 1))
    flip(sorted((index / "segments").iterdir())[0])
    assert repair_index(index).reembedded == 7
    with Gallery.open(index) as gallery:
        assert saved_pipeline(gallery).threshold() is None


def test_what_cannot_be_mended(index: Path, tmp_path: Path) -> None:
    with GalleryWriter(index), pytest.raises(GalleryLocked):
        repair_index(index)
    with pytest.raises(NotAGallery):
        repair_index(tmp_path / "none.lmk")
    catalog = index / "catalog.db"
    content = catalog.read_bytes()
    place = content.rindex(b"place_3/1.jpg")
    catalog.write_bytes(content[:place] + b"Q" + content[place + 1 :])
    with pytest.raises(GalleryDamaged, match="build"):
        repair_index(index)
