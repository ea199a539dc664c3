"""Plain files, opened without waiting and without following links inside a folder."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.embed.errors import StorageError
from lmk.embed.files import write_whole
from lmk.embed.plain_files import (
    NotPlainError,
    open_folder,
    open_plain,
    parse_json,
    read_plain,
    require_plain_tree,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a file two folders down, beside one that is no part of it."""
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    (tmp_path / "root" / "a" / "b" / "file").write_bytes(b"inside")
    (tmp_path / "outside" / "b").mkdir(parents=True)
    (tmp_path / "outside" / "b" / "file").write_bytes(b"outside")
    return tmp_path / "root"


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


MAKE: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: path.symlink_to("../../../outside/b/file"),
    "a dangling link": lambda path: path.symlink_to("nothing"),
    "a pipe": os.mkfifo,
    "a socket": _socket,
}


@pytest.mark.parametrize("kind", MAKE)
def test_what_is_no_plain_file_is_not_opened(root: Path, kind: str) -> None:
    path = root / "a" / "b" / "file"
    path.unlink()
    MAKE[kind](path)
    what = "is a link" if "link" in kind else "is a pipe, a socket or a device"
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        with pytest.raises(NotPlainError, match=what) as caught:
            open_plain(path, flags, below=root)
        assert caught.value.filename == str(path)
    with pytest.raises(NotPlainError, match=what):
        require_plain_tree(root, lambda name: True)
    require_plain_tree(root, lambda name: name != "a")


@pytest.mark.parametrize("part", ["a", "a/b"])
def test_no_component_may_be_a_link(root: Path, part: str) -> None:
    path, linked = root / "a" / "b" / "file", root / part
    linked.rename(root / "kept")
    linked.symlink_to("../../outside/b" if part == "a/b" else "../outside")
    assert path.read_bytes() == b"outside"
    for act in (
        lambda: read_plain(path, below=root),
        lambda: open_folder(path.parent, below=root).__enter__(),
        lambda: open_folder(path.parent, below=root, create=True).__enter__(),
        lambda: require_plain_tree(root, lambda name: True),
    ):
        with pytest.raises(NotPlainError, match="is a link"):
            act()
    with pytest.raises(StorageError, match=r"is a link; put a folder or a plain file in its place"):
        write_whole(path, b"new", below=root)
    assert (root.parent / "outside" / "b" / "file").read_bytes() == b"outside"
    assert [item.name for item in (root.parent / "outside" / "b").iterdir()] == ["file"]


def test_the_folder_itself_may_be_reached_by_a_link(root: Path) -> None:
    (root.parent / "linked").symlink_to("root")
    linked = root.parent / "linked"
    assert read_plain(linked / "a" / "b" / "file", below=linked) == b"inside"
    write_whole(linked / "a" / "b" / "file", b"new", below=linked)
    assert (root / "a" / "b" / "file").read_bytes() == b"new"
    require_plain_tree(linked, lambda name: True)


def test_without_a_folder_links_are_followed_and_pipes_are_not_waited_for(root: Path) -> None:
    (root / "link").symlink_to("../outside/b/file")
    assert read_plain(root / "link") == b"outside"
    os.mkfifo(root / "pipe")
    (root / "to pipe").symlink_to("pipe")
    for name in ("pipe", "to pipe"):
        with pytest.raises(NotPlainError):
            read_plain(root / name)
    with pytest.raises(IsADirectoryError):
        read_plain(root / "a")


def test_writing_replaces_a_link_and_not_what_it_leads_to(root: Path) -> None:
    path = root / "a" / "file"
    path.symlink_to("../../outside/b/file")
    write_whole(path, b"new", below=root)
    assert (path.is_symlink(), path.read_bytes()) == (False, b"new")
    assert (root.parent / "outside" / "b" / "file").read_bytes() == b"outside"


def test_a_folder_that_is_exchanged_for_a_link_meanwhile_is_never_followed(root: Path) -> None:
    """One thread exchanges a folder for a link and back; reading gives the inside or an error."""
    stop, seen = threading.Event(), set()
    (root / "link").symlink_to("../outside")

    def exchange() -> None:
        while not stop.is_set():
            (root / "a").rename(root / "kept")
            (root / "link").rename(root / "a")
            (root / "a").rename(root / "link")
            (root / "kept").rename(root / "a")

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        for _ in range(3000):
            try:
                seen.add(read_plain(root / "a" / "b" / "file", below=root))
            except OSError as error:
                seen.add(type(error))
    finally:
        stop.set()
        thread.join()
    assert seen <= {b"inside", NotPlainError, FileNotFoundError, NotADirectoryError}
    assert b"inside" in seen


def test_folders_may_not_be_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "/".join("a" * 15)).mkdir(parents=True)
    require_plain_tree(tmp_path, lambda name: True)
    (tmp_path / "/".join("a" * 17)).mkdir(parents=True)
    with pytest.raises(NotPlainError, match="nested too deep"):
        require_plain_tree(tmp_path, lambda name: True)


def test_json_nested_too_deep_is_a_value_error() -> None:
    assert parse_json(b'{"a": [1]}') == {"a": [1]}
    for text in ("[" * 100_000, "{", '"\\ud800', "[" * 100_000 + "]" * 100_000):
        with pytest.raises(ValueError):
            parse_json(text)
