"""Folders of a system or a device are no landmarks, whichever command reads the pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., object]

SAYS = "left out 3 folders or files of a system or device: @eaDir (2), Thumbs.db"


@pytest.fixture
def nas(here: Path) -> Path:
    """The sample as a network drive has it: thumbnails beside the pictures."""
    for folder in ("gallery", "queries", "bank", "gallery/tower"):
        thumbnails = here / folder / "@eaDir" / "x.jpg"
        thumbnails.mkdir(parents=True)
        shutil.copy(here / "gallery" / "castle" / "0.jpg", thumbnails / "SYNOPHOTO_THUMB_M.jpg")
    (here / "gallery" / "castle" / "Thumbs.db").touch()
    return here


def test_build_and_sync(lmk: Run, nas: Path, tiny: Path) -> None:
    done = lmk("build-index", "gallery", "--distractors", "bank", "--model", tiny, "--json")
    facts = json.loads(done.out)
    assert (facts["pictures"], facts["distractors"], facts["skipped"]) == (12, 6, [])
    one = "left out 1 folder or file of a system or device: @eaDir"
    assert done.complaints == [f"lmk: gallery: {SAYS}", f"lmk: bank: {one}"]
    again = lmk("index", "sync", "sample.lmk", "gallery")
    assert again.complaints == [f"lmk: gallery: {SAYS}"] and "12 unchanged" in again.out


@pytest.mark.parametrize(
    "words",
    ["index add sample.lmk gallery", "submit queries -i sample.lmk -o a.csv", "data check gallery"],
)
def test_others_say_so_too(lmk: Run, nas: Path, tiny: Path, words: str) -> None:
    command = words.split() + (["--model", str(tiny)] if "check" in words else [])
    done = lmk(*command)
    assert sum("of a system or device: @eaDir" in line for line in done.complaints) == 1, done
    assert not any("@eaDir/" in line for line in done.complaints)
    assert done.code in (0, 1) and "@eaDir" not in done.out


def test_a_folder_that_is_named_is_read(lmk: Run, nas: Path, tiny: Path) -> None:
    done = lmk("build-index", "gallery/@eaDir", "-o", "x.lmk", "--model", tiny, "--json")
    assert json.loads(done.out)["pictures"] == 1
