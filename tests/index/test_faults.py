"""A writer that fails, or dies, at any step leaves the old gallery or the new one."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lmk.embed.errors import LmkError, StorageError
from lmk.index.gallery import Gallery

SCENARIO = Path(__file__).with_name("scenario.py")


def disk_full(kind: str) -> None:
    if kind == "file":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


def states(scenario: ModuleType, path: Path, act: Callable[[Path], None]) -> list[dict]:
    """The states of a gallery before `act` and after it, and between its commits."""
    seen = [scenario.answers_at(path)]
    commit = scenario.GalleryWriter.commit

    def watched(writer: object) -> None:
        commit(writer)
        seen.append(scenario.answers_at(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenario.GalleryWriter, "commit", watched)
        act(path)
    return seen


@pytest.mark.parametrize("after", [False, True], ids=["instead", "after"])
@pytest.mark.parametrize("name", ["grow", "rebuild", "build"])
def test_an_error_at_any_step_leaves_old_or_new(
    tmp_path: Path, scenario: ModuleType, small: None, name: str, after: bool
) -> None:
    def act(path: Path) -> None:
        scenario.grow(path) if name == "grow" else scenario.rebuild(path, scenario.B, 5)

    old, path = tmp_path / "old", tmp_path / "g.lmk"
    if name == "build":
        old.mkdir()
        scenario.rebuild(path, scenario.B, 5)
        allowed = [scenario.answers_at(path)]
    else:
        scenario.rebuild(old)
        shutil.copytree(old, path)
        allowed = states(scenario, path, act)
    failed, at_old, stop = 0, 0, 0
    while True:
        stop += 1
        shutil.rmtree(path)
        shutil.copytree(old, path)
        steps = scenario.Steps(stop, disk_full, after=after)
        try:
            with steps.watch():
                act(path)
        except StorageError as error:
            failed += 1
            assert "free some space" in str(error)
        if steps.taken < stop:
            break
        try:
            left = scenario.answers_at(path)
        except LmkError as error:
            assert name == "build"
            assert "never finished" in str(error) or "no gallery" in str(error)
        else:
            assert left in allowed, stop
            at_old += left == allowed[0]
        act(path)
        assert scenario.answers_at(path) == allowed[-1], stop
    assert stop > 30
    assert failed >= stop - 8  # a failing ROLLBACK or PRAGMA at the end hurts nobody
    if name != "build":
        assert at_old > 0


@pytest.mark.parametrize("act", ["grow", "rebuild"])
def test_a_writer_killed_at_any_step_leaves_old_or_new(
    tmp_path: Path, scenario: ModuleType, small: None, act: str
) -> None:
    path = tmp_path / "g.lmk"
    scenario.rebuild(path)
    todo = scenario.grow if act == "grow" else lambda p: scenario.rebuild(p, scenario.B, 5)
    allowed = [scenario.digest(state) for state in states(scenario, path, todo)]
    command = [sys.executable, "-P", SCENARIO, "steps", path, act]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) > 25
    assert [line[0] for line in lines] == [True] * (len(lines) - 1) + [False]
    assert {line[1] for line in lines} == set(allowed)
    assert {line[2] for line in lines} == {allowed[-1]}


FILE_SIZE_LIMITS = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import scenario
from lmk.embed.errors import StorageError
path = Path(sys.argv[2])
for limit in [*range(0, 4000, 400), *range(4000, 120_000, 4000)]:
    old = scenario.digest(scenario.answers_at(path))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        scenario.rebuild(path, scenario.B, 300)
        outcome = "done"
    except StorageError as error:
        outcome = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert scenario.digest(scenario.answers_at(path)) == old or outcome == "done", (limit, outcome)
    print(outcome, flush=True)
    if outcome == "done":
        break
"""


def test_a_real_limit_of_file_sizes_is_a_storage_error(
    tmp_path: Path, scenario: ModuleType
) -> None:
    scenario.rebuild(tmp_path / "g.lmk")
    command = [sys.executable, "-P", "-c", FILE_SIZE_LIMITS, SCENARIO.parent, tmp_path / "g.lmk"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    *failed, last = done.stdout.splitlines()
    assert last == "done"
    assert len(failed) > 10
    assert any("file too large" in line for line in failed)
    assert any("catalog.db: cannot use the catalog" in line for line in failed)
    assert len(scenario.answers_at(tmp_path / "g.lmk")["ids"]) == 302


FULL_DISK = """
import shutil, sys
from pathlib import Path
sys.path.insert(0, SCENARIO)
import scenario
from lmk.embed.errors import StorageError
path = Path(sys.argv[1]) / "g.lmk"
scenario.rebuild(path, count=900)
old = scenario.digest(scenario.answers_at(path))
failed = 0
filler = path.parent / "filler"
for free in range(0, 1_500_000, 50_000):
    space = shutil.disk_usage(path).free
    filler.write_bytes(bytes(max(space - free, 0)))
    try:
        scenario.rebuild(path, scenario.B, 950)
        break
    except StorageError as error:
        assert "free" in str(error), error
        failed += 1
        assert scenario.digest(scenario.answers_at(path)) == old
    filler.unlink()
assert len(scenario.answers_at(path)["ids"]) == 952
print("failed", failed)
"""


def test_a_really_full_disk_leaves_the_old_gallery(tmp_path: Path, in_mount) -> None:
    code = FULL_DISK.replace("SCENARIO", repr(str(SCENARIO.parent)))
    done = in_mount('mount -t tmpfs -o size=4m none "$FOLDER"', tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 3


def killed_after(command: list, seconds: float) -> list[str]:
    """Runs a command, kills it some time after its first line, returns the lines it printed."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        rest = process.stdout.read()
        timer.join()
    assert process.returncode == -signal.SIGKILL
    return [first.strip(), *rest.splitlines()]


@pytest.mark.slow
def test_adding_killed_at_random_moments_loses_nothing_committed(
    tmp_path: Path, scenario: ModuleType
) -> None:
    path = tmp_path / "g.lmk"
    with scenario.GalleryWriter(path, create=True) as writer:
        writer.reset(scenario.A, 8)
        writer.commit()
    rng, rows = random.Random(0), 0
    for _ in range(20):
        command = [sys.executable, "-P", SCENARIO, "adds", path]
        lines = killed_after(command, rng.uniform(0, 0.3))
        with Gallery.open(path) as gallery:
            assert gallery.rows % 3 == 0
            assert gallery.rows >= max(rows, int(lines[-1]))
            assert gallery.ids(range(gallery.rows)) == [f"{n:05d}.jpg" for n in range(gallery.rows)]
            expected = np.array([scenario.vector_of(n) for n in range(gallery.rows)])
            found = gallery.vectors(range(gallery.rows))
            np.testing.assert_allclose(found, expected.reshape(-1, 8), atol=1e-3)
            rows = gallery.rows
    assert rows > 60


@pytest.mark.slow
def test_rebuilding_killed_at_random_moments_leaves_one_of_two(
    tmp_path: Path, scenario: ModuleType, small: None
) -> None:
    path = tmp_path / "g.lmk"
    allowed = []
    for fingerprint, count in ((scenario.B, 30), (scenario.A, 20)):
        scenario.rebuild(path, fingerprint, count)
        allowed.append(scenario.answers_at(path))
    rng = random.Random(1)
    for _ in range(20):
        command = [sys.executable, "-P", SCENARIO, "rebuilds", path]
        assert "both" in killed_after(command, rng.uniform(0, 0.3))
        left = scenario.answers_at(path)
        assert left in allowed
        scenario.rebuild(path, scenario.B, 30)
        assert scenario.answers_at(path) == allowed[0]
