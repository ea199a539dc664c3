"""Kill -9 at random moments: the old index answers or the new one, and the next run finishes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.embed.data.manifest import read_manifest
from lmk.embed.extract.embedder import Embedder
from lmk.index.gallery import transaction
from lmk.rerank.indexing.build import build_index

ROUNDS = int(os.environ.get("LMK_TEST_KILLS", "20"))
ROUND_SECONDS = 60  # at most, on a busy machine
MORE = 60  # pictures


@pytest.fixture
def folder(
    tmp_path: Path,
    photos: Path,
    tiny: Embedder,
    tiny_weights: Path,
    write_photos: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """See killing.py."""
    write_photos(tmp_path / "more", landmarks=15, first=100)
    shutil.copytree(photos / "gallery", tmp_path / "gallery")
    shutil.copytree(photos / "bank", tmp_path / "bank")
    mix(tmp_path)
    (tmp_path / "asked").mkdir()
    for i, name in enumerate(("gallery/place_1/0", "more/place_107/2", "bank/1001")):
        shutil.copy(tmp_path / f"{name}.jpg", tmp_path / "asked" / f"{i}.jpg")
    bank = read_manifest(tmp_path / "bank")
    with monkeypatch.context() as patch:
        patch.setattr(transaction, "INLINE_ROWS", 1)  # so that there is a segment
        gallery = read_manifest(tmp_path / "gallery")
        build_index(gallery, tmp_path / "old.lmk", tiny, distractors=bank)
    other = Embedder.named("test_resnet", weights=tiny_weights, size=40)
    (tmp_path / "b").mkdir()
    other.save(tmp_path / "b")
    return tmp_path


def mix(folder: Path) -> None:
    mixed = folder / "mixed"
    shutil.copytree(folder / "more", mixed)
    shutil.copytree(folder / "gallery" / "place_0", mixed / "place_0")
    shutil.copytree(folder / "gallery" / "place_1", mixed / "castle")
    shutil.copytree(folder / "gallery" / "place_2", mixed / "place_2")
    shutil.copy(folder / "more" / "place_100" / "0.jpg", mixed / "place_2" / "0.jpg")
    (mixed / "place_100" / "0.jpg").unlink()


TOTALS = {
    "rebuild": MORE + 8, "add": MORE, "sync": MORE, "remove": 0, "relabel": 0, "rename": 0,
    "compact": 0, "repair": 28,
}  # fmt: skip
RESUMED = ("rebuild", "add", "sync")


@pytest.mark.slow
@pytest.mark.parametrize(("what", "total"), TOTALS.items())
def test_killed_at_random_moments(folder: Path, what: str, total: int) -> None:
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run(
        [sys.executable, "-P", script, what, folder, "7", str(ROUNDS)],
        capture_output=True,
        text=True,
        timeout=ROUND_SECONDS * (ROUNDS + 3),
    )
    assert done.returncode == 0, done.stderr
    first, *rounds = map(json.loads, done.stdout.splitlines())
    old, new = first["old"], first["new"]
    assert isinstance(new, list) and (old != new) == (what != "compact")
    assert isinstance(old, list) == (what != "repair")
    assert len(rounds) == ROUNDS
    for found in rounds:
        assert found["after"] in (old, new)
        assert found["finished"] == new
        assert found["computed"] <= total
    killed = [found for found in rounds if found["exit"] == -9]
    assert len(killed) >= ROUNDS / 2
    if what in RESUMED:
        assert any(found["computed"] < total for found in killed)  # it went on where it stopped
    assert any(found["after"] == old for found in killed)
