from __future__ import annotations

import io
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.embed.errors import DownloadError, StorageError
from lmk.embed.gldv2.unpack import unpack

GOOD = {"0/1/2/0123456789abcdef.jpg": b"one", "f/e/d/fedcba9876543210.jpg": b"two" * 5000}


def info(name: str, kind: bytes = tarfile.REGTYPE, **fields) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for field, value in fields.items():
        setattr(member, field, value)
    return member


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path, Path]:
    return tmp_path / "a.tar", tmp_path / "stage", tmp_path / "train"


def write(archive: Path, *extra: tuple[tarfile.TarInfo, bytes], prefix: str = "") -> None:
    with tarfile.open(archive, "w") as tar:
        for name, body in GOOD.items():
            tar.addfile(info(prefix + name, size=len(body)), io.BytesIO(body))
        for member, body in extra:
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("prefix", ["", "./", ".//"])
def test_pictures_land_in_nested_folders(folders, prefix):
    archive, stage, into = folders
    write(archive, (info(prefix + "0", tarfile.DIRTYPE), b""), prefix=prefix)
    assert unpack(archive, stage, into) == {name: len(body) for name, body in GOOD.items()}
    assert tree(into) == GOOD
    assert not stage.exists()


def test_owner_and_mode_of_the_archive_are_not_taken_over(folders):
    archive, stage, into = folders
    write(archive, (info("a/b/c/abc.jpg", mode=0o6777, uid=4242, mtime=0), b"x"))
    unpack(archive, stage, into)
    found = (into / "a/b/c/abc.jpg").stat()
    assert found.st_mode & 0o7111 == 0
    assert found.st_uid == os.getuid()


@pytest.mark.parametrize(
    "member",
    [
        info("/tmp/lmk-evil.jpg"),
        info("../evil.jpg"),
        info("0/1/../../../evil.jpg"),
        info("."),
        info("evil.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"),
        info("evil.jpg", tarfile.SYMTYPE, linkname="0/1/2/0123456789abcdef.jpg"),
        info("evil.jpg", tarfile.LNKTYPE, linkname="0/1/2/0123456789abcdef.jpg"),
        info("evil.jpg", tarfile.FIFOTYPE),
        info("evil.jpg", tarfile.CHRTYPE, devmajor=1, devminor=3),
    ],
    ids=lambda member: f"{member.name!r} {member.type!r} {member.linkname}",
)
def test_a_member_that_could_reach_outside_refuses_the_whole_archive(folders, member):
    archive, stage, into = folders
    write(archive, (member, b""))
    with pytest.raises(DownloadError, match="unsafe member"):
        unpack(archive, stage, into)
    assert not into.exists()
    assert not stage.exists()


def test_a_sparse_file_that_would_fill_the_disk_is_refused(folders):
    archive, stage, into = folders
    sparse = {"major": "1", "minor": "0", "name": "big.jpg", "realsize": str(10**15)}
    pax_headers = {f"GNU.sparse.{key}": value for key, value in sparse.items()}
    write(archive, (info("big.jpg", pax_headers=pax_headers), b"1\n0\n0\n".ljust(512, b"\0")))
    with pytest.raises(DownloadError, match="unsafe member"):
        unpack(archive, stage, into)
    assert not into.exists()


def test_a_nul_in_a_long_name_is_refused(folders):
    archive, stage, into = folders
    write(archive, (info("x" * 200 + "N.jpg"), b""))
    archive.write_bytes(archive.read_bytes().replace(b"xN.jpg", b"x\0.jpg"))
    with pytest.raises(DownloadError, match=r"unsafe member|not a tar"):
        unpack(archive, stage, into)
    assert not into.exists()


@pytest.mark.parametrize("body", [b"", b"<html>", os.urandom(2000)])
def test_what_is_no_tar_file(folders, body):
    archive, stage, into = folders
    archive.write_bytes(body)
    with pytest.raises(DownloadError, match="not a tar file"):
        unpack(archive, stage, into)
    assert not into.exists()


def test_a_cut_tar_file_leaves_nothing(folders):
    archive, stage, into = folders
    write(archive)
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(DownloadError, match="unexpected end"):
        unpack(archive, stage, into)
    assert not into.exists()


def test_what_an_earlier_run_left_is_replaced(folders):
    archive, stage, into = folders
    write(archive)
    (stage / "0").mkdir(parents=True)
    (stage / "0/half.jpg").write_bytes(b"ha")
    (into / "0/1/2").mkdir(parents=True)
    (into / "0/1/2/0123456789abcdef.jpg").write_bytes(b"older")
    unpack(archive, stage, into)
    assert tree(into) == GOOD


KINDS = [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.AREGTYPE]
NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "c.jpg"]), max_size=5).map("/".join)


@settings(max_examples=200, deadline=None)
@given(members=st.lists(st.tuples(NAMES, st.sampled_from(KINDS), NAMES), max_size=5))
def test_whatever_the_members_nothing_lands_outside(members):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with tarfile.open(root / "a.tar", "w") as tar:
            for name, kind, link in members:
                tar.addfile(info(name, kind, linkname=link))
        into = root / "deep/er/into"
        try:
            sizes = unpack(root / "a.tar", root / "deep/er/stage", into)
        except (DownloadError, OSError):  # OSError: a file where another member needs a folder
            sizes = {}
        assert tree(into).keys() == sizes.keys()
        assert not any(path.is_symlink() for path in root.rglob("*"))
        assert {path.name for path in root.iterdir()} <= {"a.tar", "deep"}
        assert {path.name for path in (root / "deep").glob("*/*")} <= {"into"}


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("a/b.jpg", "a/b.jpg"), "two members are called"),
        (("a.jpg", "a.jpg/b.jpg"), "of a folder"),
        (("a.jpg/b.jpg", "a.jpg"), "of a folder"),
    ],
)
def test_names_that_clash_end_with_a_way_out(folders, names, text):
    archive, stage, into = folders
    write(archive, *[(info(name), b"x") for name in names])
    with pytest.raises(DownloadError, match=text) as caught:
        unpack(archive, stage, into)
    assert "name another mirror" in str(caught.value)
    assert not tree(into) and not stage.exists()


def test_a_folder_in_the_way_is_named(folders):
    archive, stage, into = folders
    write(archive)
    (into / "f/e/d/fedcba9876543210.jpg").mkdir(parents=True)
    with pytest.raises(StorageError, match="remove what is in the way"):
        unpack(archive, stage, into)


def test_too_many_members(folders, monkeypatch):
    archive, stage, into = folders
    write(archive)
    monkeypatch.setattr("lmk.embed.gldv2.unpack.MOST_MEMBERS", 1)
    with pytest.raises(DownloadError, match="more than 1 members"):
        unpack(archive, stage, into)
    assert not tree(into)
