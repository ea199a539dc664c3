"""Folders whose landmarks seem to lie one level deeper, or beside which pictures lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmk.embed.data.folder_shape import folder_shape
from lmk.embed.data.manifest import read_manifest


def shape_of(root: Path, *names: str) -> tuple[str, tuple[str, ...]]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    shape = folder_shape(read_manifest(root))
    return shape.wrapper, shape.loose


@pytest.mark.parametrize(
    ("names", "wrapper"),
    [
        (["photos/arc/1.jpg", "photos/bow/2.jpg"], "photos"),
        (["a/b/arc/1.jpg", "a/b/bow/2.jpg"], "a/b"),
        (["photos/arc/day/1.jpg", "photos/bow/2.jpg"], "photos"),
        (["train/arc/1.jpg", "train/bow/2.jpg", "test/arc/3.jpg"], "train"),
        (["Test/arc/1.jpg", "Train/arc/3.jpg"], "Train"),
        (["wrap/test/arc/1.jpg", "wrap/train/arc/3.jpg"], "wrap/train"),
        (["asia/taj/1.jpg", "asia/fuji/2.jpg", "europe/arc/3.jpg"], "asia"),
    ],
)
def test_one_level_too_many(tmp_path: Path, names: list[str], wrapper: str) -> None:
    assert shape_of(tmp_path, *names) == (wrapper, ())


@pytest.mark.parametrize(
    "names",
    [
        ["arc/1.jpg", "bow/2.jpg"],
        ["arc/day/1.jpg", "arc/2.jpg", "bow/3.jpg"],
        ["arc/day/1.jpg", "arc/night/2.jpg", "bow/3.jpg"],
        ["arc/day/1.jpg", "arc/night/2.jpg", "bow/day/3.jpg", "bow/night/4.jpg"],
        ["arc/1.jpg"],
        ["arc/day/1.jpg"],
        ["photos/arc/1.jpg", "photos/cover.jpg"],
        ["1.jpg", "2.jpg"],
        ["0/a/f/0af19.jpg", "0/b/c/0bc00.jpg"],
    ],
)
def test_a_shape_that_is_right(tmp_path: Path, names: list[str]) -> None:
    assert shape_of(tmp_path, *names) == ("", ())


def test_pictures_beside_the_folders(tmp_path: Path) -> None:
    assert shape_of(tmp_path, "arc/1.jpg", "b.jpg", "a.jpg") == ("", ("a.jpg", "b.jpg"))
    assert shape_of(tmp_path / "x", "p/arc/1.jpg", "p/bow/1.jpg", "a.jpg") == ("p", ("a.jpg",))
