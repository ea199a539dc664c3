"""Derived files: what is not as it was saved is not there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.embed.files import stamp
from lmk.index.vectors.derived_files import DerivedFiles

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def derived(tmp_path: Path) -> DerivedFiles:
    files = DerivedFiles(tmp_path / "search")
    for name in ("codes", "graph"):
        assert files.save(name, lambda part: part.write_bytes(CONTENT) and None)
    return files


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_in_silence(path: Path) -> None:
    """One bit, with the old size and the old time of change."""
    times = path.stat()
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "extra": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "one bit": flip,
    "one bit, same time": flip_in_silence,
    "another's": lambda p: p.write_bytes(bytes(len(p.read_bytes()))),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["codes", "codes.note"])
def test_a_damaged_file_is_not_loaded_and_can_be_made_again(
    derived: DerivedFiles, tmp_path: Path, damage: str, file: str
) -> None:
    DAMAGES[damage](tmp_path / "search" / file)
    loaded = derived.load("codes")
    # A note whose stamp has changed is made anew from the content, where that still fits.
    assert loaded is None or (file == "codes.note" and loaded.read_bytes() == CONTENT)
    if file == "codes":
        assert derived.damaged("codes")
    assert derived.load("graph").read_bytes() == CONTENT
    if damage == "a folder":
        (tmp_path / "search" / file).rmdir()
    derived.save("codes", lambda part: part.write_bytes(CONTENT) and None)
    assert derived.load("codes").read_bytes() == CONTENT
    assert not derived.damaged("codes")


def test_a_file_is_hashed_again_only_when_its_stamp_is_new(
    derived: DerivedFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "search" / "codes"
    before = stamp(path)
    path.touch()
    assert stamp(path) != before
    assert derived.load("codes") == path  # hashed, and noted
    monkeypatch.setattr("lmk.index.vectors.derived_files.hashlib", None)
    assert derived.load("codes") == path


def test_nothing_is_kept_without_a_folder_or_where_it_cannot_be_written(tmp_path: Path) -> None:
    nothing = DerivedFiles(None)
    assert nothing.save("a", lambda part: pytest.fail("written")) is None
    assert nothing.load("a") is None
    assert not nothing.damaged("a")
    assert nothing.names() == []
    nothing.prune(())
    (tmp_path / "file").touch()
    in_the_way = DerivedFiles(tmp_path / "file" / "below")
    assert in_the_way.load("a") is None
    assert in_the_way.names() == []

    def full(part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    there = DerivedFiles(tmp_path / "there")
    assert there.save("a", full) is None
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("removed", [True, False])
def test_a_file_that_is_replaced_or_removed_while_it_is_compared_is_not_damaged(
    derived: DerivedFiles, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    real = DerivedFiles._digest

    def digest(self: DerivedFiles, path: Path) -> str:
        monkeypatch.setattr(DerivedFiles, "_digest", real)
        derived.remove("codes")
        if not removed:
            derived.save("codes", lambda part: part.write_bytes(b"another") and None)
        return "0" * 64

    monkeypatch.setattr(DerivedFiles, "_digest", digest)
    assert not derived.damaged("codes")


def there(derived: DerivedFiles, tmp_path: Path) -> list[str]:
    """The names of all files, each of which has its note."""
    found = {item.name for item in (tmp_path / "search").iterdir()}
    assert found == {f"{name}{end}" for name in derived.names() for end in ("", ".note")}
    return derived.names()


def test_prune_takes_what_no_part_is_left_of(derived: DerivedFiles, tmp_path: Path) -> None:
    def save(name: str, *of: str) -> None:
        derived.save(name, lambda part: part.write_bytes(CONTENT) and None, of)

    save("int8-a", "a")
    save("index-1.rows", "a", "b")
    save("index-1.tuned")
    save("index-2.rows", "b", "c")
    save("index-2.tuned")
    (tmp_path / "search" / "int8-a").touch()
    assert derived.load("int8-a")  # hashed and noted again, with what it is derived from
    derived.prune({"a", "b", "c"})
    derived.prune({"b"})
    every = ["codes", "graph", "index-1.rows", "index-1.tuned", "index-2.rows", "index-2.tuned"]
    assert there(derived, tmp_path) == every
    derived.prune({"c"})
    assert there(derived, tmp_path) == ["codes", "graph", "index-2.rows", "index-2.tuned"]


def test_prune_takes_what_killed_processes_left(derived: DerivedFiles, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    folder = tmp_path / "search"
    for pid in (dead.pid, os.getpid(), 1):
        (folder / f".codes.{pid}.0123abcd.part").touch()
    for name in ("forgotten", "new"):
        (folder / name).touch()
    os.utime(folder / "forgotten", (10**9, 10**9))
    derived.prune(())
    left = {item.name for item in folder.iterdir()} - {"codes", "codes.note", "graph", "graph.note"}
    assert left == {"new", f".codes.{os.getpid()}.0123abcd.part", ".codes.1.0123abcd.part"}
    DerivedFiles(tmp_path / "none").prune(())


def test_a_folder_that_is_emptied_while_a_file_is_written(
    derived: DerivedFiles, tmp_path: Path
) -> None:
    assert derived.save("codes", lambda part: shutil.rmtree(tmp_path / "search")) is None


def test_remove_takes_files_with_their_notes(derived: DerivedFiles, tmp_path: Path) -> None:
    for name in ("graph", "graph", "codes"):
        derived.remove(name)
    assert list((tmp_path / "search").iterdir()) == []
