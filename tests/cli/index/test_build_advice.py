"""What build-index tells of an index that has little to learn refusing from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., object]


def test_few_pictures_and_no_distractors(lmk: Run, here: Path, tiny: Path) -> None:
    done = lmk("build-index", "gallery", "--model", tiny)
    assert done.code == 0 and len(done.complaints) == 1
    assert "fitted on 12 pictures only" in done.err and "--distractors" in done.err


def test_one_landmark_and_no_distractors_refuses_nothing(lmk: Run, here: Path, tiny: Path) -> None:
    for other in sorted(Path("gallery").iterdir())[1:]:
        shutil.rmtree(other)
    done = lmk("build-index", "gallery", "--model", tiny)
    assert done.code == 0 and len(done.complaints) == 1
    assert "every picture will get a landmark" in done.err and "--distractors" in done.err
    again = json.loads(lmk("build-index", "gallery", "--model", tiny, "--json").out)
    assert again["threshold"] is None


def test_distractors_are_enough(lmk: Run, here: Path, tiny: Path) -> None:
    done = lmk("build-index", "gallery", "--distractors", "bank", "--model", tiny)
    assert (done.code, done.err) == (0, "")
