"""Kill -9 at random moments: the old index answers or the new one, and the next run finishes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.embed.embedder import Embedder
from lmk.embed.manifest import read_manifest
from lmk.rerank.build import build_index

ROUNDS = 20
MORE = 60  # pictures


@pytest.fixture
def folder(
    tmp_path: Path,
    photos: Path,
    tiny: Embedder,
    tiny_weights: Path,
    write_photos: Callable[..., Path],
) -> Path:
    """See killing.py."""
    write_photos(tmp_path / "more", landmarks=15, first=100)
    shutil.copytree(photos / "gallery", tmp_path / "gallery")
    shutil.copytree(photos / "bank", tmp_path / "bank")
    (tmp_path / "asked").mkdir()
    for i, name in enumerate(("gallery/place_1/0", "more/place_107/2", "bank/1001")):
        shutil.copy(tmp_path / f"{name}.jpg", tmp_path / "asked" / f"{i}.jpg")
    bank = read_manifest(tmp_path / "bank")
    build_index(tmp_path / "old.lmk", read_manifest(tmp_path / "gallery"), tiny, distractors=bank)
    other = Embedder.named("test_resnet", weights=tiny_weights, size=40)
    (tmp_path / "b").mkdir()
    other.save(tmp_path / "b")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("what", "total"), [("rebuild", MORE + 8), ("add", MORE)])
def test_killed_at_random_moments(folder: Path, what: str, total: int) -> None:
    script = Path(__file__).with_name("killing.py")
    done = subprocess.run(
        [sys.executable, "-P", script, what, folder, "7", str(ROUNDS)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    first, *rounds = map(json.loads, done.stdout.splitlines())
    old, new = first["old"], first["new"]
    assert isinstance(old, list) and isinstance(new, list) and old != new
    assert len(rounds) == ROUNDS
    for found in rounds:
        assert found["after"] in (old, new)
        assert found["finished"] == new
        assert found["computed"] <= total
    killed = [found for found in rounds if found["exit"] == -9]
    assert len(killed) >= ROUNDS / 2
    assert any(found["computed"] < total for found in killed)  # it went on where it stopped
    assert any(found["after"] == old for found in killed)
