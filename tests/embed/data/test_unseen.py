"""Whether a file that cannot be read is gone, or cannot be looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmk.embed.data.unseen import Unseen, UnseenPlaces, hidden_by, unnamed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "full" / "empty").mkdir(parents=True)
    (tmp_path / "full" / "a.jpg").touch()
    (tmp_path / "full" / "folder.jpg").mkdir()
    (tmp_path / "full" / "dead.jpg").symlink_to("/nowhere/x.jpg")
    (tmp_path / "drive").symlink_to("/nowhere")
    (tmp_path / "file").touch()
    (tmp_path / "trash" / "@eaDir").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("path", ["full/b.jpg", "full/none/b.jpg", "none/b.jpg", "full/none/x/y/b"])
def test_a_file_that_is_gone(root: Path, path: str) -> None:
    assert hidden_by(root / path, root) is None


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("full/a.jpg", "is no picture now"),
        ("full/folder.jpg", "is no picture now"),
        ("full/dead.jpg", "is no picture now"),
        ("full/empty/b.jpg", "is empty: is a drive away?"),
        ("full/empty/deep/b.jpg", "is empty: is a drive away?"),
        ("trash/b.jpg", "is empty: is a drive away?"),
        ("drive/b.jpg", "a link that leads nowhere"),
        ("file/b.jpg", "is a file, and was a folder"),
        ("full/" + "x" * 300, "cannot be read: file name too long"),
        ("full/a\0b.jpg", "cannot be read: embedded null"),
    ],
)
def test_a_file_that_may_be_there(root: Path, path: str, why: str) -> None:
    assert why in str(hidden_by(root / path, root))


def test_a_folder_that_fails(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lstat = Path.lstat

    def refuse(path: Path) -> object:
        if path == root / "full" / "b.jpg":
            raise PermissionError(13, "Permission denied")
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", refuse)
    why = "cannot be read: permission denied"
    assert hidden_by(root / "full" / "b.jpg", root) == why
    assert hidden_by(root / "full" / "c.jpg", root) is None


def test_a_root_that_is_away(tmp_path: Path) -> None:
    assert hidden_by(tmp_path / "none" / "a" / "b.jpg", tmp_path / "none") is not None


@pytest.mark.parametrize(
    ("name", "hidden", "seen"),
    [
        (b"caf\xe9.jpg", ["café.jpg", "cafe\u0301.jpg", "café/1.jpg"], ["cafe.jpg", "caf", "x"]),
        (b"\x93\x8c.jpg", ["東.jpg"], ["a.jpg", "b/東.jpg"]),
        (b"p/\xe9", ["p/é/1.jpg"], ["p/e/1.jpg", "é"]),
    ],
)
def test_a_name_in_another_encoding(name: bytes, hidden: list[str], seen: list[str]) -> None:
    places = UnseenPlaces([unnamed(name.decode("utf-8", "surrogateescape"))])
    assert [places.at(path) is not None for path in hidden] == [True] * len(hidden)
    assert [places.at(path) for path in seen] == [None] * len(seen)


def test_a_picture_or_folder_of_another_name_is_not_hidden() -> None:
    places = UnseenPlaces([Unseen("a/b", "", "unreadable")], files=["c", "d.jpg"])
    assert all(places.at(path) for path in ("a/b", "a/b/x.jpg", "a/b/c/d", "c/x.jpg", "d.jpg/1"))
    assert not any(places.at(path) for path in ("a", "a/bc", "a/c", "c", "d.jpg", "x/c/y"))
    assert not UnseenPlaces([])
