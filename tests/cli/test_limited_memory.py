"""Under a memory limit a command ends with one line, also where a library crashes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits of Linux")
LIMIT = 600 << 20
THREADS = "OPENBLAS_NUM_THREADS"
START = """
import os, resource, signal, sys, types
LIMIT = resource.{limit}
resource.setrlimit(LIMIT, (1 << 30, resource.getrlimit(LIMIT)[1]))
fake = types.ModuleType("lmk.cli.main")
def main():
    print("at work", flush=True)
    {body}
fake.main = main
sys.modules["lmk.cli.main"] = fake
from lmk.cli.entry import run
run()
"""


def start(body: str, limit: str = "RLIMIT_AS", **variables: str) -> subprocess.Popen[str]:
    code = START.format(body=body, limit=limit)
    pipe = subprocess.PIPE
    kept = {name: value for name, value in os.environ.items() if name != THREADS}
    command = [sys.executable, "-P", "-c", code]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=kept | variables)


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_one_line(number: signal.Signals, limit: str) -> None:
    process = start(f"os.kill(os.getpid(), {int(number)})", limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = err.splitlines()
    assert line.startswith(f"lmk: a library crashed ({number.name})") and "ulimit -v" in line


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(2)", 2),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_other_ends_are_passed_on(body: str, code: int) -> None:
    process = start(body)
    assert process.communicate(timeout=60) == ("at work\n", "")
    assert process.returncode == code


def test_signals_are_passed_on() -> None:
    process = start("try: signal.pause()\n    except KeyboardInterrupt: sys.exit(130)")
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.parametrize(("variables", "threads"), [({}, "1"), ({THREADS: "3"}, "3")])
def test_openblas_starts_no_threads_of_its_own(variables: dict[str, str], threads: str) -> None:
    """It waits without end for the memory of its threads."""
    process = start(f'print(os.environ["{THREADS}"])', **variables)
    assert process.communicate(timeout=60)[0] == f"at work\n{threads}\n"


@pytest.mark.slow
def test_a_query_under_a_limit(lmk_process: Callable[..., object], here: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    done = lmk_process(
        *("query", here / "queries" / "q_tower.jpg", "-i", here / "sample.lmk"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, hard)),
    )
    done.refused(1, "memory", "ulimit -v")  # type: ignore[attr-defined]
