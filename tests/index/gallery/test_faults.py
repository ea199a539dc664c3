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
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify

SCENARIO = Path(__file__).parents[1] / "scenario.py"
ACTS = ["grow", "rebuild", "sync", "compact", "mend", "merge", "describe"]
QUICK = {
    ("grow", False),
    ("build", True),
    ("steps", "compact"),
    ("lost", "grow"),
}  # the default run
KILLS = int(os.environ.get("LMK_TEST_KILLS", "20"))  # of each kind


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


@pytest.mark.parametrize(
    ("name", "after"),
    [
        pytest.param(name, after, marks=() if (name, after) in QUICK else pytest.mark.slow)
        for name in (*ACTS, "build")
        for after in (False, True)
    ],
)
def test_an_error_at_any_step_leaves_old_or_new(
    tmp_path: Path, scenario: ModuleType, small: None, name: str, after: bool
) -> None:
    act = scenario.ACTS["rebuild" if name == "build" else name]
    old, path = tmp_path / "old", tmp_path / "g.lmk"
    if name == "build":
        old.mkdir()
        scenario.rebuild(path, scenario.B, 5)
        allowed = [scenario.answers_at(path)]
    else:
        scenario.rebuild(old)
        shutil.copytree(old, path)
        allowed = states(scenario, path, act)
        assert allowed[0] != allowed[-1]
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
            assert not verify(path), stop
            at_old += left == allowed[0]
        act(path)
        assert scenario.answers_at(path) == allowed[-1], stop
    assert stop > 30
    assert failed >= stop - 8  # a failing ROLLBACK or PRAGMA at the end hurts nobody
    if name != "build":
        assert at_old > 0


@pytest.mark.parametrize(
    ("mode", "act"),
    [
        pytest.param(mode, act, marks=() if (mode, act) in QUICK else pytest.mark.slow)
        for act in ACTS
        for mode in ("steps", "lost")
        if (mode, act) != ("lost", "describe")  # it writes no file that could be lost
    ],
)
def test_a_writer_killed_at_any_step_leaves_old_or_new(
    tmp_path: Path, scenario: ModuleType, small: None, mode: str, act: str
) -> None:
    """Also where the power is cut: what was not synced is lost."""
    if mode == "lost" and not Path("/proc/self/fd").exists():
        pytest.skip("reads the names of open files from /proc")
    path = tmp_path / "g.lmk"
    scenario.rebuild(path)
    allowed = [scenario.digest(state) for state in states(scenario, path, scenario.ACTS[act])]
    command = [sys.executable, "-P", SCENARIO, mode, path, act]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) > 25
    assert [line[0] for line in lines] == [True] * (len(lines) - 1) + [False]
    assert {line[1] for line in lines} == set(allowed)
    assert {line[2] for line in lines} == {allowed[-1]}
    assert any(line[3] for line in lines) == (mode == "lost")


FILE_SIZE_LIMITS = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import scenario
from lmk.embed.errors import StorageError
path = Path(sys.argv[2])
for limit in [*range(0, 4000, 400), *range(4000, 200_000, 4000)]:
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
def test_changing_killed_at_random_moments_loses_nothing_committed(
    tmp_path: Path, scenario: ModuleType
) -> None:
    """Adding, removing, compacting, replacing pictures and vectors."""
    path = tmp_path / "g.lmk"
    with scenario.GalleryWriter(path, create=True) as writer:
        writer.reset(scenario.A, 8)
        writer.commit()
    rng, done = random.Random(0), 0
    for _ in range(KILLS):
        command = [sys.executable, "-P", SCENARIO, "changes", path]
        lines = killed_after(command, rng.uniform(0, 0.3))
        with Gallery.open(path) as gallery:
            done, before = gallery.setting("done"), done
            assert done >= max(before, int(lines[-1]))
            plan = scenario.Plan.after(done)
            assert gallery.alive.tolist() == [entry is not None for entry in plan.rows]
            embeddings, pictures = plan.batch([entry for entry in plan.rows if entry])
            rows = np.flatnonzero(gallery.alive)
            assert gallery.pictures(rows) == pictures
            np.testing.assert_allclose(gallery.vectors(rows), embeddings.vectors, atol=1e-3)
        assert verify(path) == ()
    assert done > 3 * KILLS


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
    for _ in range(KILLS):
        command = [sys.executable, "-P", SCENARIO, "rebuilds", path]
        assert "both" in killed_after(command, rng.uniform(0, 0.3))
        left = scenario.answers_at(path)
        assert left in allowed
        scenario.rebuild(path, scenario.B, 30)
        assert scenario.answers_at(path) == allowed[0]


def test_readers_see_one_state_or_the_other_during_rewrites(
    tmp_path: Path, scenario: ModuleType, small: None
) -> None:
    path = tmp_path / "g.lmk"
    allowed = []
    for fingerprint, count in ((scenario.B, 30), (scenario.A, 20)):
        scenario.rebuild(path, fingerprint, count)
        allowed.append(scenario.answers_at(path))
    command = [sys.executable, "-P", SCENARIO, "rewrites", path, "50"]
    seen = []
    with subprocess.Popen(command) as writer:
        while writer.poll() is None:
            # The folder of an embedder goes with the second commit after it: readers take it once.
            with Gallery.open(path) as gallery:
                state = scenario.answers(gallery)
            seen.append([state.items() <= whole.items() for whole in allowed].index(True))
    assert writer.returncode == 0
    assert set(seen) == {0, 1}
    assert scenario.answers_at(path) == allowed[1]
