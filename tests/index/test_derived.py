"""Derived files: what is not as it was saved is not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.index import derived as derived_module
from lmk.index.derived import DerivedFiles, stamp

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
    monkeypatch.setattr("lmk.index.derived.hashlib", None)
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
    real = derived_module._digest

    def digest(path: Path) -> str:
        monkeypatch.setattr(derived_module, "_digest", real)
        derived.remove("codes")
        if not removed:
            derived.save("codes", lambda part: part.write_bytes(b"another") and None)
        return "0" * 64

    monkeypatch.setattr(derived_module, "_digest", digest)
    assert not derived.damaged("codes")


def test_prune_and_remove_take_files_with_their_notes(
    derived: DerivedFiles, tmp_path: Path
) -> None:
    (tmp_path / "search" / ".codes.123.part").touch()
    derived.prune({"graph"})
    assert sorted(f.name for f in (tmp_path / "search").iterdir()) == ["graph", "graph.note"]
    derived.remove("graph")
    derived.remove("graph")
    assert list((tmp_path / "search").iterdir()) == []
