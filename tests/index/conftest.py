from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def scenario() -> ModuleType:
    """Known pictures and galleries made of them (scenario.py)."""
    path = Path(__file__).with_name("scenario.py")
    spec = importlib.util.spec_from_file_location("index_scenario", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(scenario: ModuleType):
    """A writer whose segments begin at a few rows."""
    with scenario.small_segments():
        yield


@pytest.fixture
def path(tmp_path: Path, scenario: ModuleType, small: None) -> Path:
    """A gallery with a segment, inline vectors, an embedder, an array and a skipped file."""
    path = tmp_path / "g.lmk"
    scenario.rebuild(path)
    scenario.grow(path)
    with scenario.GalleryWriter(path) as writer:
        writer.append(*scenario.batch([200, 201]))
        writer.put_array("penalty", scenario.np.arange(3, dtype=scenario.np.float32))
        writer.commit()
    return path


@pytest.fixture(scope="session")
def in_mount() -> Callable[[str, Path, str], subprocess.CompletedProcess[str]]:
    """Runs Python code in a process of its own that sees `folder` mounted in another way.

    Needs root and Linux namespaces, and skips the test without them.
    """
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("needs a mount namespace (root on Linux)")

    def run(mount: str, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
        script = f'set -e; {mount}; exec "$PYTHON" -P -c "$CODE" "$FOLDER"'
        environment = os.environ | {"FOLDER": str(folder), "PYTHON": sys.executable, "CODE": code}
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
