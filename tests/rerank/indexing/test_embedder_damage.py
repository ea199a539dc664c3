"""A damaged embedder folder makes no index, and one that got into an index is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lmk.embed.checksums import read_checksums
from lmk.embed.data.manifest import read_manifest
from lmk.embed.errors import GalleryDamaged, ModelDamaged, NotAGallery
from lmk.embed.extract.embedder import Embedder
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.merge import merge
from lmk.index.gallery.verify import verify
from lmk.rerank.indexing.build import build_index
from lmk.rerank.indexing.repair import repair_index
from lmk.rerank.recognizer import Recognizer


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def saved(tiny: Embedder, tmp_path: Path) -> Path:
    """A folder of the tiny embedder, of which the graph has changed."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    tiny.save(folder)
    flip(folder / "graph.bin", -1)
    return folder


def test_a_damaged_graph_makes_no_index(saved: Path, photos: Path, tmp_path: Path) -> None:
    index = tmp_path / "g.lmk"
    with pytest.raises(ModelDamaged, match=r"graph\.bin: the file has changed"):
        build_index(read_manifest(photos / "gallery"), index, Embedder.named(str(saved)))
    with pytest.raises(NotAGallery):
        Gallery.open(index)


def test_one_that_got_into_an_index_is_found(saved: Path, photos: Path, tmp_path: Path) -> None:
    """As where it was damaged on its way: the catalog knows the damaged file alone."""
    gallery = read_manifest(photos / "gallery")
    damaged, whole = tmp_path / "damaged.lmk", tmp_path / "whole.lmk"
    build_index(gallery, damaged, Embedder.load(saved, checked=True))
    for name in ("graph.xml", "graph.bin"):
        (saved / name).unlink()
    build_index(gallery, whole, Embedder.load(saved))
    assert verify(whole) == ()
    (finding,) = verify(damaged)
    assert finding.where.name == "graph.bin" and finding.mend == "remake"
    assert "before it came into the index" in finding.what
    with pytest.raises(GalleryDamaged, match=r"graph\.bin"):
        merge(tmp_path / "merged.lmk", [whole, damaged])
    assert repair_index(damaged).lost == ()
    assert verify(damaged) == ()
    merge(tmp_path / "merged.lmk", [whole, damaged])
    with Gallery.open(tmp_path / "merged.lmk") as merged:
        assert read_checksums(merged.embedder_dir) is not None


def test_damaged_checksums_are_made_again(tiny: Embedder, photos: Path, tmp_path: Path) -> None:
    index = tmp_path / "g.lmk"
    build_index(read_manifest(photos / "gallery"), index, tiny)
    flip(next(index.glob("embedder/*/SHA256SUMS")), 3)
    (finding,) = verify(index)
    assert finding.where.name == "SHA256SUMS" and "has changed" in finding.what
    repair_index(index)
    assert verify(index) == ()
    with Recognizer.open(index) as recognizer:
        assert read_checksums(recognizer.gallery.embedder_dir) is not None


def test_an_index_of_an_older_lmk_opens(tiny: Embedder, photos: Path, tmp_path: Path) -> None:
    """Its embedder has no checksums of its own; the catalog's stand in for them."""
    index = tmp_path / "g.lmk"

    def old(folder: Path) -> None:
        real(folder)
        (folder / "SHA256SUMS").unlink()

    real, tiny_copy = tiny.save, tiny.with_whitening(None)
    tiny_copy.save = old  # type: ignore[method-assign]
    build_index(read_manifest(photos / "gallery"), index, tiny_copy)
    assert verify(index) == ()
    with Recognizer.open(index) as recognizer:
        folder = recognizer.gallery.embedder_dir
        assert not (folder / "SHA256SUMS").exists()
        assert recognizer.embedder.graph() == folder / "graph.xml"
    shutil.rmtree(index)
