"""Changes that are killed, or may not write: the index is as before or as after, and goes on."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

Run = Callable[..., object]
CHANGES = {
    "add": ("add", "sample.lmk", "more"),
    "remove": ("remove", "sample.lmk", "tower/0.jpg", "castle/1.jpg"),
    "sync": ("sync", "sample.lmk", "more", "--allow-removals"),
    "compact": ("compact", "sample.lmk"),
    "merge": ("merge", "sample.lmk", "-o", "new.lmk"),
    "repair": ("repair", "sample.lmk"),
    "set": ("set", "sample.lmk", "--kind", "flat"),
}
KILLS = 6


@pytest.fixture(autouse=True)
def more(here: Path, paint: Callable[..., Path]) -> None:
    for view in range(3):
        paint(here / "more" / "fountain" / f"{view}.jpg", 7, view)


def contents(lmk: Run, index: str = "sample.lmk") -> str:
    done = lmk("index", "list", index, "--pictures")
    assert done.code == 0, done.err
    return done.out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["add", "remove", "sync", "compact"])
def test_killed_at_any_time_it_is_as_before_or_as_after(
    lmk: Run, started: Callable[..., subprocess.Popen[str]], here: Path, name: str
) -> None:
    if name == "compact":
        assert lmk("index", "remove", "sample.lmk", "bridge/0.jpg").code == 0
    shutil.copytree(here / "sample.lmk", here / "kept")
    call = ("index", *CHANGES[name])
    before = contents(lmk)
    began = time.monotonic()
    assert started(*call).wait(120) == 0
    whole = time.monotonic() - began
    after = contents(lmk)
    chance = random.Random(4)
    for n in range(KILLS):
        shutil.rmtree(here / "sample.lmk")
        shutil.copytree(here / "kept", here / "sample.lmk")
        process = started(*call)
        with suppress(subprocess.TimeoutExpired):  # most of the first half is imports
            process.wait(whole * (0.5 + 0.5 * (n + chance.random()) / KILLS))
        process.kill()
        process.communicate()
        assert lmk("index", "verify", "sample.lmk").out == "sample.lmk: all is well\n"
        found = contents(lmk)
        assert found in (before, after)
        assert lmk(*call).code == 0
        assert contents(lmk) == after


AGAIN = {
    **{name: CHANGES[name] for name in ("add", "remove", "compact", "merge", "repair", "set")},
    "sync": (*CHANGES["sync"], "--allow-removals"),
    "remove a landmark": ("remove", "sample.lmk", "--label", "tower"),
    "remove both": ("remove", "sample.lmk", "bridge/1.jpg", "--label", "tower"),
    "rename": ("rename-label", "sample.lmk", "tower", "spire"),
    "relabel": ("relabel", "sample.lmk", "tower/0.jpg", "--label", "spire"),
    "take a label off": ("relabel", "sample.lmk", "--remove-label", "tower"),
}


@pytest.mark.parametrize("name", AGAIN)
def test_every_change_can_be_run_again(lmk: Run, here: Path, name: str) -> None:
    """A kill after the commit: nobody has seen that it was done."""
    assert lmk("index", *AGAIN[name]).code == 0
    after = contents(lmk)
    again = lmk("index", *AGAIN[name])
    assert again.code == 0, again.err
    assert contents(lmk) == after


def test_a_removal_says_what_was_removed_before(lmk: Run, here: Path) -> None:
    call = ("index", "remove", "sample.lmk", "bridge/1.jpg", "--label", "tower")
    assert lmk(*call).out == "sample.lmk: 5 pictures removed\n"
    again = lmk(*call)
    assert again.out == "sample.lmk: 0 pictures removed, 1 removed before\n"
    assert again.err == "lmk: no picture is left of tower: it was removed before\n"
    lmk("index", "remove", "sample.lmk", "bridge/1.jpeg").refused(1, "no picture", "this id")
    lmk("index", "remove", "sample.lmk", "--label", "towr").refused(2, "no picture has the label")


@pytest.mark.parametrize("name", CHANGES)
def test_where_nothing_may_be_written_it_is_said_and_nothing_changes(
    lmk: Run, lmk_process: Run, here: Path, name: str, heed_permissions: Callable[[], None]
) -> None:
    before = contents(lmk)
    paths = sorted(here.rglob("*"))
    try:
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        here.chmod(0o555)
        done = lmk_process("index", *CHANGES[name], preexec_fn=heed_permissions)
        if done.code == 77:
            pytest.skip("root cannot give up its power over files here")
        done.refused(1, "permission denied", "check the permissions")
        assert sorted(here.rglob("*")) == paths
    finally:
        for path in (here, *paths):
            path.chmod(0o755)
    assert contents(lmk) == before
