"""The number of landmarks, and hints where the landmarks of a folder seem to lie elsewhere."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., object]
LARGEST = "holds 12 pictures of 3 landmarks, the largest bridge (4), castle (4), tower (4)\n"


@pytest.fixture
def wrap(here: Path) -> Path:
    """my photos/gallery/LANDMARK/: one folder too many."""
    folder = here / "my photos"
    folder.mkdir()
    (here / "gallery").rename(folder / "gallery")
    return folder


def test_the_landmarks_are_counted(lmk: Run, here: Path, tiny: Path, paint: Callable) -> None:
    done = lmk("build-index", "gallery", "--distractors", "bank", "--model", tiny)
    assert done.out.endswith(f"\ngallery.lmk: {LARGEST}")
    assert lmk("index", "sync", "sample.lmk", "gallery").out.endswith(f"\nsample.lmk: {LARGEST}")
    paint(here / "more" / "arch" / "1.jpg", 70)
    paint(here / "more" / "tower" / "5.jpg", 2, 50)
    done = lmk("index", "add", "sample.lmk", "more")
    held = "holds 14 pictures of 4 landmarks, the largest tower (5), bridge (4), castle (4)"
    assert done.out.splitlines()[1] == f"sample.lmk: {held}"
    assert "holds" not in lmk("index", "add", "sample.lmk", "bank", "--distractors").out
    assert "holds" not in lmk("index", "sync", "sample.lmk", "gallery", "--dry-run").out


def test_one_folder_too_many(lmk: Run, wrap: Path, tiny: Path) -> None:
    told = "my photos: its landmark gallery holds only folders; if each folder in my photos/gallery"
    done = lmk("build-index", wrap.name, "--model", tiny)
    hint = next(line for line in done.complaints if told in line)
    command = shlex.split(hint.rpartition(": lmk ")[2])
    assert command == ["build-index", "my photos/gallery", "-o", "my photos.lmk"]
    assert "of 1 landmark, gallery (12)" in done.out
    again = lmk(*command, "--model", tiny)  # the command that the hint names
    assert again.out.endswith(f"my photos.lmk: {LARGEST}") and told not in again.err
    as_json = lmk("build-index", wrap.name, "-o", "x.lmk", "--model", tiny, "--json")
    assert json.loads(as_json.out)["pictures"] == 12
    for name in ("add", "sync"):
        words = ("--allow-removals",) if name == "sync" else ()
        done = lmk("index", name, "sample.lmk", wrap.name, *words)
        assert f"lmk index {name} sample.lmk 'my photos/gallery'" in done.err


def test_pictures_beside_the_folders(lmk: Run, here: Path) -> None:
    shutil.move(here / "queries" / "q_none1.jpg", here / "gallery" / "a.jpg")
    done = lmk("index", "sync", "sample.lmk", "gallery")
    assert done.complaints == [
        "lmk: gallery: 1 picture (a.jpg) lies beside the folders of landmarks and without a "
        "landmark; move "
        "each into the folder of its landmark, then: lmk index sync sample.lmk gallery"
    ]
    assert done.out.endswith("castle (4), tower (4); 1 without a landmark\n")


def test_one_landmark(lmk: Run, here: Path, tiny: Path) -> None:
    for other in ("bridge", "castle"):
        shutil.rmtree(here / "gallery" / other)
    done = lmk("build-index", "gallery", "--distractors", "bank", "--model", tiny)
    (told,) = done.complaints
    assert "gallery.lmk: tower is its only landmark" in told
    assert told.endswith("each sub-folder of gallery is a landmark")
