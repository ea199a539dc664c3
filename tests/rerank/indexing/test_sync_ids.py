"""Ids of pictures whose names differ in a blank only, when one of them comes later."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lmk.embed.data.manifest import read_manifest
from lmk.embed.extract.embedder import Embedder
from lmk.index.gallery.gallery import Gallery
from lmk.rerank.indexing.build import add_pictures, build_index
from lmk.rerank.indexing.sync import sync_index


def held(path: Path) -> dict[str, str]:
    """The content of each picture by id."""
    with Gallery.open(path) as gallery:
        pictures = gallery.pictures(np.flatnonzero(gallery.alive))
        return {picture.id: picture.sha256 for picture in pictures}


def test_an_id_never_moves_to_another_picture(
    tmp_path: Path, tiny: Embedder, write_photos: Callable[..., Path]
) -> None:
    gallery = write_photos(tmp_path / "gallery", landmarks=2, views=2)
    place, index = gallery / "place_0", tmp_path / "g.lmk"
    (place / "0.jpg").rename(place / "n 1.jpg")
    build_index(read_manifest(gallery), index, tiny)
    first = held(index)["place_0/n_1.jpg"]
    shutil.copytree(index, tmp_path / "added.lmk")
    write_photos(tmp_path / "spare", landmarks=1, views=3)
    shutil.copy(tmp_path / "spare" / "place_0" / "2.jpg", place / "n_1.jpg")

    report = sync_index(index, read_manifest(gallery))
    assert (report.added, report.moved, report.removed, report.computed) == (1, 1, 0, 1)
    after = held(index)
    assert after["./place_0/n%201.jpg"] == first != after["./place_0/n_1.jpg"]
    assert "place_0/n_1.jpg" not in after  # it would be the other picture's now
    build_index(read_manifest(gallery), tmp_path / "new.lmk", tiny)
    assert after == held(tmp_path / "new.lmk")
    assert sync_index(index, read_manifest(gallery)).unchanged == 5

    # A picture of the index keeps its id when the folder is added to it.
    added = add_pictures(tmp_path / "added.lmk", read_manifest(gallery))
    assert added.added == 1
    assert held(tmp_path / "added.lmk")["place_0/n_1.jpg"] == first
