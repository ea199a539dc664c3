"""What a command imports: help is instant, a question needs neither torch nor pandas."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., object]
HEAVY = {
    "cv2", "faiss", "jinja2", "numpy", "openvino", "pandas", "PIL", "pyarrow", "pydantic", "rich",
    "safetensors", "scipy", "sklearn", "timm", "torch", "torchvision",
}  # fmt: skip
HELP_SECONDS = 1.5  # 0.1 s on a quiet machine; tests run beside other work


def imported(call: list[str], cwd: Path | None = None) -> tuple[set[str], float]:
    """The top-level modules that a command imports, and the seconds it took."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "lmk.cli", *call],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
    )
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    names = re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE)
    assert "lmk.cli.main" in names
    # An import that is refused, as that of openvino_telemetry is, counts only with what it loads.
    tops = {name.partition(".")[0] for name in names if name != "openvino_telemetry"}
    return tops, seconds


@pytest.mark.parametrize(
    "call", [["--help"], ["--version"], ["query", "--help"], ["data", "-h"], ["index", "-h"]]
)
def test_help_is_quick_and_imports_nothing_heavy(call: list[str]) -> None:
    seconds = []
    for _ in range(3):
        modules, took = imported(call)
        assert modules & HEAVY == set()
        seconds.append(took)
    assert min(seconds) < HELP_SECONDS


def test_query_runs_without_torch_timm_and_pandas(here: Path) -> None:
    """The network runs from the graph that the index keeps."""
    modules, _ = imported(["query", "queries/q_tower.jpg", "-i", "sample.lmk", "--json"], here)
    assert "openvino" in modules
    unwanted = {"torch", "torchvision", "timm", "pandas", "sklearn", "scipy", "openvino_telemetry"}
    assert modules & unwanted == set()


@pytest.mark.parametrize(
    "call",
    [
        "build-index gallery --distractors bank --model {tiny} -o new.lmk --json",
        "submit queries -i sample.lmk -o s.csv",
        "info sample.lmk --json",
        "index list sample.lmk",
        "index search sample.lmk sample.lmk -o found",
        "index add sample.lmk queries --distractors",
        "index remove sample.lmk tower/0.jpg",
        "index sync sample.lmk gallery",
        "index verify sample.lmk",
    ],
)
def test_no_other_command_over_a_saved_embedder_needs_torch(
    here: Path, tiny: Path, call: str
) -> None:
    modules, _ = imported(call.format(tiny=tiny).split(), here)
    assert modules & {"torch", "torchvision", "timm", "openvino_telemetry"} == set()


def test_query_in_a_process_answers_as_in_this_one(lmk: Run, lmk_process: Run, here: Path) -> None:
    words = ("query", "queries/q_tower.jpg", "queries/q_none1.jpg", "--json")
    here_, there = lmk(*words), lmk_process(*words)
    assert (there.code, there.err) == (0, "")
    for mine, theirs in zip(here_.out.splitlines(), there.out.splitlines(), strict=True):
        mine_, theirs_ = json.loads(mine), json.loads(theirs)
        assert mine_["label"] == theirs_["label"]
        assert mine_["confidence"] == pytest.approx(theirs_["confidence"], abs=1e-5)
        assert [n["id"] for n in mine_["neighbours"]] == [n["id"] for n in theirs_["neighbours"]]


def test_python_m_is_the_same_command(lmk_process: Run, here: Path) -> None:
    script = Path(sys.executable).with_name("lmk")
    if not script.exists():
        pytest.skip("the lmk script is not installed beside this Python")
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60)
    assert shown.stdout == lmk_process("--help").out
    assert shown.stdout.startswith("Usage: lmk [OPTIONS] COMMAND [ARGS]...")
