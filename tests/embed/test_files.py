"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmk.embed.errors import StorageError
from lmk.embed.files import LEFTOVER, remove_leftovers, write_whole


@pytest.mark.parametrize("content", [b"", b"new", [b"n", memoryview(b"ew")]])
def test_the_content_replaces_what_was_there(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")
    write_whole(path, content)
    assert path.read_bytes() == b"".join([content] if isinstance(content, bytes) else content)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "\U0001f5fc" * 63])
def test_the_longest_name_can_be_written(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, b"new")
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [(name, b"new")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_an_interrupted_write_leaves_the_old_file_alone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise error

    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error):
        write_whole(path, pieces())
    assert [(item, item.read_bytes()) for item in tmp_path.iterdir()] == [(path, b"old")]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_is_a_storage_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError, match=f"^{path}: cannot write: no space.*free some space"):
        write_whole(path, b"new")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_told_by_the_name_the_user_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, *_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", name)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=f"^{tmp_path}/page.html: cannot write: permission"):
        write_whole(tmp_path / "page.html", b"new")


def test_the_folder_is_synced_after_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        at = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((at.name.endswith(".part"), at == tmp_path.resolve()))
        assert (tmp_path / "file").exists() == synced[-1][1]
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_whole(tmp_path / "file", b"new")
    assert synced == [(True, False), (False, True)]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    meet = threading.Barrier(2, timeout=10)

    def pieces(letter: bytes) -> Iterator[bytes]:
        yield letter
        meet.wait()  # both are in the middle of it
        yield letter

    threads = [threading.Thread(target=write_whole, args=(path, pieces(x))) for x in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in {b"aa", b"bb"}
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from lmk.embed.files import write_whole
os.replace = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
write_whole(Path(sys.argv[1]), b"new")
"""


def test_what_a_killed_process_leaves_is_known_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    command = [sys.executable, "-P", "-c", KILLED, path]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = set(tmp_path.iterdir()) - {path}
    assert LEFTOVER.fullmatch(left.name)
    others = [".file.part", ".file.0123.part", ".other.0123456789abcdef.part", "file.part"]
    for name in others:
        (tmp_path / name).touch()
    remove_leftovers(path)
    assert {item.name for item in tmp_path.iterdir()} == {"file", *others}
    assert path.read_bytes() == b"old"
