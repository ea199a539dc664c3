"""Temporary folders of killed processes are removed, and no other."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lmk.embed.scratch import ScratchFolder, sweep_scratch

KILLED = """
import os, signal
from lmk.embed.scratch import ScratchFolder
folder = ScratchFolder("graph")
(folder.path / "below").mkdir()
print(folder.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_the_folder_of_a_killed_process_is_removed_by_the_next(temporary: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", KILLED], capture_output=True, text=True, timeout=60
    )
    left = Path(done.stdout.strip())
    assert left.parent == temporary and left.is_dir()
    with ScratchFolder("repair") as folder:
        assert not left.exists()
        assert folder.is_dir()
    assert list(temporary.iterdir()) == []


def test_what_is_in_use_or_not_ours_stays(temporary: Path) -> None:
    used = ScratchFolder("graph")
    (temporary / "lmk-graph-abcdefgh").mkdir()  # without a lock: nobody knows whose it is
    (temporary / "lmk-mine").mkdir()
    target = temporary / "target"
    target.mkdir()
    (target / ".lmk-lock").touch()
    (temporary / "lmk-graph-linklink").symlink_to(target)
    before = sorted(temporary.rglob("*"))
    sweep_scratch()
    assert sorted(temporary.rglob("*")) == before
    used.close()
    assert not used.path.exists()


def test_it_goes_with_its_object(temporary: Path) -> None:
    folder = ScratchFolder("graph")
    path = folder.path
    del folder
    assert not path.exists()
