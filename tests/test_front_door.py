"""`import lmk`: the exported names, and a start that loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lmk
from lmk.embed.errors import UsageError

ROOT = Path(__file__).parent.parent
NAMES = {
    "Answer", "Embedder", "Evidence", "Gallery", "LmkError", "Manifest", "Pipeline", "Recognizer",
    "Submission", "Truth", "__version__", "build_index", "gap", "open", "read_manifest", "train",
}  # fmt: skip
LIGHT = {"lmk", "__future__", "importlib", "types", "typing", "_typing", "collections", "functools",
         "operator", "re", "contextlib", "copyreg", "warnings", "abc", "enum", "keyword", "reprlib",
         "itertools", "_collections", "_functools", "_operator", "_sre", "_warnings"}  # fmt: skip


def test_the_exported_names() -> None:
    assert set(lmk.__all__) == NAMES
    assert set(dir(lmk)) >= NAMES
    for name in NAMES - {"__version__"}:
        assert callable(getattr(lmk, name)), name
    assert lmk.__version__.count(".") >= 1


def test_types_name_the_same_things() -> None:
    """Names under TYPE_CHECKING and names that are imported on use are two lists."""
    assert set(lmk._MODULES) | {"__version__", "open"} == NAMES


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'lmk' has no attribute 'nothing'"):
        lmk.nothing  # noqa: B018


@pytest.mark.parametrize("flags", [(), ("-P",)])
def test_importing_it_loads_nothing_else(flags: tuple[str, ...]) -> None:
    """A plain `python` in the root of the repository works too."""
    code = "import sys; before = set(sys.modules); import lmk; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.startswith("lmk")} == {"lmk"}
    assert {name.partition(".")[0] for name in loaded} <= LIGHT


def test_an_error_of_the_library_is_an_lmk_error(tmp_path: Path) -> None:
    with pytest.raises(lmk.LmkError):
        lmk.open(tmp_path / "nothing.lmk")
    assert issubclass(UsageError, lmk.LmkError)
