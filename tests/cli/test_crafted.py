"""Indexes of somebody with bad intentions (crafted.py): one line, nothing outside touched."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

_spec = importlib.util.spec_from_file_location("crafted", Path(__file__).with_name("crafted.py"))
assert _spec and _spec.loader
crafted = importlib.util.module_from_spec(_spec)
sys.modules["crafted"] = crafted
_spec.loader.exec_module(crafted)

Run = Callable[..., object]
SECONDS = 30  # of a hang; on a busy machine a repair that exports the network takes 13 s
READS = (
    ("info", "sample.lmk"),
    ("index", "list", "sample.lmk", "--pictures"),
    ("query", "queries/q_tower.jpg", "-i", "sample.lmk", "--html", "a.html"),
    ("index", "verify", "sample.lmk"),
)
WRITES = (
    ("index", "repair", "sample.lmk"),
    ("index", "remove", "sample.lmk", "tower/1.jpg"),
    ("index", "add", "sample.lmk", "more"),
    ("index", "sync", "sample.lmk", "gallery", "--dry-run"),
    ("index", "compact", "sample.lmk"),
    ("index", "set", "sample.lmk", "--kind", "flat"),
)
BOMB = "pages that point to each other"
REFUSED = {**crafted.LINKS, **crafted.SPECIAL, **crafted.SCHEMA}


@pytest.fixture
def stage(here: Path) -> Path:
    """The working directory, with a picture to add and a folder that nothing may touch."""
    victim = here / "victim"
    for name in ("segments/000001.f16", "arrays/000001.bin", "kept.txt"):
        for folder in (victim, victim / "other.lmk"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("kept")
    shutil.copytree(
        next((here / "sample.lmk" / "embedder").iterdir()), victim / "other.lmk/embedder/here"
    )
    shutil.copy(here / "sample.lmk" / "catalog.db", victim / "other.lmk")
    Image.new("RGB", (48, 48), (250, 0, 250)).save(victim / "private.jpg")
    (here / "more" / "tower").mkdir(parents=True)
    shutil.copy(here / "queries" / "q_tower.jpg", here / "more" / "tower" / "new.jpg")
    return here


def seen(folder: Path) -> dict[str, object]:
    """Names, contents and times of everything in a folder; all of it looks old from then on."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_nlink, content)
    return found


def age(folder: Path) -> None:
    """Makes files so old that a sweep would take them."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (10**9, 10**9), follow_symlinks=False)


def harmless(lmk: Run, call: tuple[str, ...], victim: Path, before: dict[str, object]) -> object:
    """Runs a command; it takes no time, ends with one line at most, and touches nothing."""
    start = time.monotonic()
    done = lmk(*call)
    assert time.monotonic() - start < SECONDS, call
    assert seen(victim) == before, call
    assert "--debug" not in done.err and "Traceback" not in done.err, (call, done)
    if done.code:
        said = done.complaints or done.out.splitlines()
        assert said and all("\n" not in line for line in said)
        assert len([line for line in done.complaints if line.startswith("lmk: ")]) <= 1
    return done


@pytest.mark.parametrize("name", crafted.CRAFTS)
def test_a_crafted_index_is_read_without_harm(lmk: Run, stage: Path, name: str) -> None:
    """One that reads and one that writes, in turn; all of them are the slow test's."""
    crafted.CRAFTS[name](stage / "sample.lmk")
    age(stage / "victim")
    before = seen(stage / "victim")
    turn = list(crafted.CRAFTS).index(name)
    calls = (READS[1], READS[3], WRITES[turn % len(WRITES)])
    done = [harmless(lmk, call, stage / "victim", before) for call in calls]
    if name in REFUSED and name not in ("the lock is a hard link", BOMB):  # which reading sees not
        assert [one.code for one in done] == [1, 1, 1], done
        done[0].refused(1, "sample.lmk/")


@pytest.mark.slow
@pytest.mark.parametrize("name", crafted.CRAFTS)
def test_no_command_is_harmed_by_a_crafted_index(lmk: Run, stage: Path, name: str) -> None:
    crafted.CRAFTS[name](stage / "sample.lmk")
    age(stage / "victim")
    before = seen(stage / "victim")
    for call in (*READS, *WRITES):
        harmless(lmk, call, stage / "victim", before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a pipe as catalog.db", "a pipe as .lock", BOMB])
def test_a_process_does_not_hang(lmk_process: Run, stage: Path, name: str) -> None:
    crafted.CRAFTS[name](stage / "sample.lmk")
    for call in (READS[0], WRITES[1]):
        lmk_process(*call).refused(1, "sample.lmk/")


def test_there_are_enough_of_them() -> None:
    assert len(crafted.CRAFTS) >= 90
    assert min(map(len, (crafted.LINKS, crafted.SPECIAL, crafted.SCHEMA, crafted.VALUES))) >= 10


def test_the_index_folder_itself_may_be_reached_by_a_link(lmk: Run, here: Path) -> None:
    expected = lmk("query", "queries/q_tower.jpg", "-i", "sample.lmk")
    (here / "sample.lmk").rename(here / "elsewhere")
    (here / "linked").symlink_to("elsewhere")
    done = lmk("query", "queries/q_tower.jpg", "-i", "linked")
    assert (done.code, done.out) == (0, expected.out)
    assert lmk("index", "remove", "linked", "tower/1.jpg").code == 0
    assert lmk("index", "verify", "linked").code == 0


def test_a_build_over_a_linked_cache_is_refused(lmk: Run, stage: Path, tiny: Path) -> None:
    crafted.link("cache", "victim")(stage / "sample.lmk")
    before = seen(stage / "victim")
    done = lmk("build-index", "gallery", "-o", "sample.lmk", "--model", tiny)
    done.refused(1, "sample.lmk/cache: is a link", "delete it, then see `lmk index verify`")
    (stage / "sample.lmk" / "cache").unlink()
    assert lmk("build-index", "gallery", "-o", "sample.lmk", "--model", tiny).code == 0
    assert seen(stage / "victim") == before


def shown(page: Path) -> list[Image.Image]:
    """The pictures of a page."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page.read_text())
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.mark.parametrize("root", ["../victim", "../../../../../../.."])
def test_a_page_shows_no_picture_but_those_the_index_was_built_from(
    lmk: Run, stage: Path, root: str
) -> None:
    call = ("query", "queries/q_tower.jpg", "-i", "sample.lmk", "--html", "a.html")
    assert lmk(*call).code == 0
    assert len(shown(stage / "a.html")) == 6  # the query and five neighbours
    index = stage / "sample.lmk"
    private = stage / "victim" / "private.jpg"
    path = "private.jpg" if root == "../victim" else str(private.resolve()).lstrip("/")
    crafted.row("root", "text", root, "code = 0")(index)
    crafted.row("picture", "path", path)(index)
    assert lmk(*call).code == 0
    assert len(shown(stage / "a.html")) == 1  # the query
    assert str(private.resolve()) not in lmk("index", "verify", "sample.lmk").out


def test_a_pipe_in_the_place_of_a_picture_is_named(lmk: Run, here: Path) -> None:
    for name in ("0.jpg", "1.jpg"):
        (here / "gallery" / "tower" / name).unlink()
        os.mkfifo(here / "gallery" / "tower" / name)
    os.mkfifo(here / "queries" / "pipe.jpg")
    call = ("query", "queries/q_tower.jpg", "-i", "sample.lmk", "--html", "a.html")
    assert lmk(*call).code == 0
    assert "the file is missing or has changed" in (here / "a.html").read_text()
    done = lmk("query", "queries/pipe.jpg", "-i", "sample.lmk", "--html", "a.html")
    done.refused(1, "queries/pipe.jpg: is no plain file")
    synced = lmk("index", "sync", "sample.lmk", "gallery")
    assert (synced.code, "tower/0.jpg: is no plain file" in synced.err) == (0, True)
    assert lmk("index", "repair", "sample.lmk").code == 0
