from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.errors import GalleryDamaged, StorageError
from lmk.index.vectors.files import FileRecord, StoredFile, record_tree, runs, write_file


def test_a_written_file_is_what_was_given_and_has_its_checksum(tmp_path: Path) -> None:
    record = write_file(tmp_path, "segments/1.f16", [b"ab", b"", b"cde"])
    assert record == FileRecord("segments/1.f16", 5, hashlib.sha256(b"abcde").hexdigest())
    assert [f.name for f in (tmp_path / "segments").iterdir()] == ["1.f16"]
    assert (tmp_path / "segments" / "1.f16").read_bytes() == b"abcde"


def test_a_file_is_synced_before_it_gets_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").resolve().name
        seen.append(("fsync", "part" if name.endswith(".part") else name))
        real_fsync(descriptor)

    def replace(old: str, new: str, **folders: int) -> None:
        seen.append(("replace", new))
        real_replace(old, new, **folders)

    if not Path("/proc/self/fd").exists():
        pytest.skip("reads the names of open files from /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_file(tmp_path, "segments/1", [b"x"])
    assert seen == [
        ("fsync", "part"),
        ("replace", "1"),
        ("fsync", "segments"),
        ("fsync", tmp_path.name),
    ]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"no space left.*free some space"):
        write_file(tmp_path, "segments/1", [b"x"])
    assert not list((tmp_path / "segments").iterdir())


def test_record_tree_names_every_file_below(tmp_path: Path) -> None:
    (tmp_path / "e" / "deep").mkdir(parents=True)
    (tmp_path / "e" / "deep" / "b").write_bytes(b"bb")
    (tmp_path / "e" / "a").write_bytes(b"")
    assert record_tree(tmp_path, "e") == [
        FileRecord("e/a", 0, hashlib.sha256(b"").hexdigest()),
        FileRecord("e/deep/b", 2, hashlib.sha256(b"bb").hexdigest()),
    ]


def test_a_file_unlinked_after_opening_can_still_be_read(tmp_path: Path) -> None:
    file = StoredFile(tmp_path, write_file(tmp_path, "f", [b"abc"]))
    file.path.unlink()
    file.check()
    assert file.read(1, 2) == b"bc"
    file.close()
    file.close()


def test_a_file_cut_after_opening_is_an_error_not_a_crash(tmp_path: Path) -> None:
    file = StoredFile(tmp_path, write_file(tmp_path, "f", [bytes(10_000)]))
    os.truncate(file.path, 100)
    with pytest.raises(GalleryDamaged, match="cut while it was open"):
        file.read(50, 1000)
    file.close()


def test_a_file_that_cannot_be_opened_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, real = write_file(tmp_path, "f", [b"abc"]), os.open

    def refuse(name: str, *rest: Any, **folder: int) -> int:
        if name == "f":
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        return real(name, *rest, **folder)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=f"^{tmp_path}/f: cannot read: input/output error"):
        StoredFile(tmp_path, record)


@pytest.mark.parametrize("target", ["f", "other", "/etc/passwd"])
def test_a_link_is_not_opened_but_damage(tmp_path: Path, target: str) -> None:
    record = write_file(tmp_path, "f", [b"abc"])
    (tmp_path / "other").write_bytes(b"abc")  # the very content
    (tmp_path / "f").unlink()
    (tmp_path / "f").symlink_to(target)
    with pytest.raises(GalleryDamaged, match=r"/f: the file is a link; mend it"):
        StoredFile(tmp_path, record)


def test_reading_errors_are_storage_errors(tmp_path: Path) -> None:
    file = StoredFile(tmp_path, write_file(tmp_path, "f", [b"abc"]))
    file.close()
    with pytest.raises(StorageError, match="bad file descriptor"):
        file.check()


def test_a_map_outlives_the_file_and_notices_a_cut(tmp_path: Path) -> None:
    file = StoredFile(tmp_path, write_file(tmp_path, "f", [np.arange(5000, dtype="<f2").tobytes()]))
    array, check = file.map(np.dtype("<f2"))
    file.close()
    check()
    assert array.tolist() == np.arange(5000, dtype="<f2").tolist()
    assert not array.flags.writeable
    os.truncate(file.path, 100)
    with pytest.raises(GalleryDamaged, match="cut while it was open"):
        check()


def test_a_file_cut_between_opening_and_mapping_is_an_error(tmp_path: Path) -> None:
    file = StoredFile(tmp_path, write_file(tmp_path, "f", [bytes(10_000)]))
    os.truncate(file.path, 100)
    with pytest.raises(GalleryDamaged, match="cut while it was open"):
        file.map(np.dtype("<f2"))
    file.close()


@given(st.lists(st.integers(0, 40_000)).map(sorted))
def test_runs_cover_all_rows_once_and_are_bounded(rows: list[int]) -> None:
    array = np.array(rows, np.int64)
    found = list(runs(array))
    assert [i for start, stop in found for i in range(start, stop)] == list(range(len(rows)))
    assert all(rows[stop - 1] - rows[start] < 8192 for start, stop in found)
