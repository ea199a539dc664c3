"""Verify names every damage; opening notices what has changed since the last comparison."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lmk.embed.errors import GalleryDamaged, NotAGallery
from lmk.embed.extract.feature_store import FeatureStore
from lmk.index.gallery import checksums
from lmk.index.gallery import verify as verify_module
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import drop_derived, verify
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.derived_files import DerivedFiles

SEGMENT, SECOND, ARRAY = "segments/000002.f16", "segments/000003.f16", "arrays/000004.bin"
EMBEDDER = f"embedder/{'a' * 16}/weights/w.bin"


def flip(path: Path, *, keep_times: bool = False) -> None:
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    if keep_times:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def sql(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path / "catalog.db")
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_whole_gallery_has_nothing_to_find(path: Path) -> None:
    assert verify(path) == ()


def test_every_damage_is_found_at_once(path: Path) -> None:
    derived = DerivedFiles(path / "cache" / "search")
    for name in ("codes", "graph"):
        derived.save(name, lambda part: part.write_bytes(bytes(1000)) and None)
    flip(path / SEGMENT)
    (path / SECOND).unlink()
    (path / ARRAY).write_bytes((path / ARRAY).read_bytes()[:-1])
    flip(path / EMBEDDER)
    flip(path / "cache" / "search" / "codes")
    sql(path, "UPDATE inline SET vectors = zeroblob(32)")
    findings = verify(path)
    found = {f.where.relative_to(path).as_posix(): (f.mend, f.rows) for f in findings}
    assert found == {
        SEGMENT: ("re-embed", range(8)),
        SECOND: ("re-embed", range(8, 13)),
        "catalog.db": ("re-embed", range(13, 15)),
        ARRAY: ("remake", range(0)),
        EMBEDDER: ("remake", range(0)),
        "cache/search/codes": ("remake", range(0)),
    }
    assert all(f.what and f.remedy == "mend it with `lmk index repair`" for f in findings)
    assert drop_derived(path, findings) == 1
    assert derived.names() == ["graph"]


@pytest.mark.parametrize("before", ["_open_files", "_of_catalog"])
def test_what_a_writer_replaces_meanwhile_is_no_damage(
    path: Path, scenario: ModuleType, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    real, passed = getattr(verify_module, before), []

    def late(*arguments: object) -> object:
        if not passed:
            passed.append(scenario.rebuild(path))
            scenario.grow(path)  # sweeps what the rebuild replaced
            assert not (path / SEGMENT).exists()
        return real(*arguments)

    monkeypatch.setattr(verify_module, before, late)
    assert verify(path) == ()
    assert passed


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM picture WHERE row = 3", "SQLite says|14 pictures, 15 expected"),
        ("UPDATE picture SET path = 'x' WHERE row = 3", "an entry has changed"),
        ("UPDATE label SET text = 'x' WHERE code = 0", "label 0 has changed"),
        ("UPDATE batch SET data = zeroblob(length(data))", "the labels from row 0 on"),
        ("DELETE FROM segment WHERE first_row = 8", "rows 8 to 13 are not accounted for"),
        ("DELETE FROM inline", "rows 13 to 15 are not accounted for"),
        ("DELETE FROM skipped", "0 of 1 entries of skipped"),
        ("DELETE FROM file WHERE path LIKE 'arr%'", "entries of file"),
        ("DROP TABLE inline", "the tables are others than expected"),
        ("UPDATE removal SET rows = zeroblob(8)", "the rows of removal 1 have changed"),
        ("DELETE FROM removal", "0 of 1 entries of removal"),
        ("UPDATE meta SET value = '{}' WHERE name = 'state'", "an entry has changed"),
        ("UPDATE segment SET rows = 'x'", "changed|unsupported operand"),
        ("PRAGMA user_version = 9", "written in format 9"),
    ],
)
def test_damage_of_the_catalog_is_found(path: Path, statement: str, message: str) -> None:
    if "removal" in statement:
        with GalleryWriter(path) as writer:
            writer.remove(["00002.jpg"])
            writer.commit()
    sql(path, statement)
    finding = verify(path)[0]
    assert re.search(message, finding.what)
    assert finding.mend == "none"
    assert finding.where in (path, path / "catalog.db")
    assert finding.remedy


def test_an_index_of_the_catalog_that_says_other_than_its_table(path: Path) -> None:
    """No answer uses it, and the next add would take a picture for a new one."""
    catalog = path / "catalog.db"
    connection = sqlite3.connect(catalog)
    page = connection.execute(
        "SELECT rootpage FROM sqlite_schema WHERE name = 'picture_content'"
    ).fetchone()[0]
    connection.close()
    data = bytearray(catalog.read_bytes())
    at = data.rindex(b"5feceb66ffc86f38", 0, page * 4096)  # sha256 of "0", the first picture
    assert at > (page - 1) * 4096
    data[at] = ord("6")
    catalog.write_bytes(data)
    (finding,) = verify(path)
    assert "picture_content" in finding.what
    assert finding.mend == "none"


def test_what_is_no_gallery_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotAGallery):
        verify(tmp_path / "none")
    GalleryWriter(tmp_path / "g", create=True).close()
    with pytest.raises(NotAGallery, match="never finished"):
        verify(tmp_path / "g")


# What was compared is noted


def hashed(path: Path, monkeypatch: pytest.MonkeyPatch, **options: bool | None) -> list[str]:
    """Opens a gallery and returns the files that were compared."""
    seen = []
    real = checksums.StoredFile.check

    def check(file: checksums.StoredFile) -> None:
        seen.append(file.record.path)
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(checksums.StoredFile, "check", check)
        Gallery.open(path, **options).close()
    return sorted(seen)


def test_a_file_is_compared_again_only_when_it_was_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hashed(path, monkeypatch) == []  # who wrote them has noted them
    everything = hashed(path, monkeypatch, verify=True)
    assert {SEGMENT, SECOND, ARRAY, EMBEDDER} <= set(everything)
    (path / SEGMENT).touch()
    assert hashed(path, monkeypatch) == [SEGMENT]
    assert hashed(path, monkeypatch) == []
    (path / checksums.NOTE).unlink()
    assert hashed(path, monkeypatch, verify=False) == []
    assert hashed(path, monkeypatch) == everything
    assert hashed(path, monkeypatch) == []


def test_a_change_that_keeps_size_and_time_is_noticed(path: Path) -> None:
    flip(path / SEGMENT, keep_times=True)
    with pytest.raises(GalleryDamaged, match="the file has changed"):
        Gallery.open(path)
    with pytest.raises(GalleryDamaged, match="the file has changed"):
        Gallery.open(path)  # what has changed is not noted
    Gallery.open(path, verify=False).close()


def test_a_change_between_writing_and_committing_is_noticed(path: Path) -> None:
    with GalleryWriter(path) as writer:
        writer.put_array("x", np.zeros(300))
        file = writer.uncommitted.arrays()["x"]
        other = file.with_name("other")  # another inode: times are the same within a tick
        other.write_bytes(file.read_bytes())
        flip(other)
        other.replace(file)
        writer.commit()
    with pytest.raises(GalleryDamaged, match="the file has changed"):
        Gallery.open(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"segments/000002.f16": 3}', b"\xff"])
def test_a_damaged_note_costs_a_comparison(
    path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (path / checksums.NOTE).write_bytes(content)
    assert SEGMENT in hashed(path, monkeypatch)
    assert SEGMENT in json.loads((path / checksums.NOTE).read_text())
    flip(path / SEGMENT)
    with pytest.raises(GalleryDamaged):
        Gallery.open(path)


def test_without_a_place_for_the_note_every_opening_compares(
    path: Path, monkeypatch: pytest.MonkeyPatch, scenario: ModuleType
) -> None:
    for item in (path / "cache").iterdir():
        item.unlink()
    (path / "cache").rmdir()
    (path / "cache").touch()
    for _ in range(2):
        assert SEGMENT in hashed(path, monkeypatch)
    scenario.grow(path)
    assert len(scenario.answers_at(path)["ids"]) == 15


def test_verify_finds_what_changed_without_a_trace(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk that returns other bytes than it got."""
    monkeypatch.setattr(checksums.StoredFile, "stamp", lambda file: "always the same")
    with GalleryWriter(path) as writer:
        writer.put_array("x", np.zeros(3))
        writer.commit()
    Gallery.open(path).close()
    flip(path / SEGMENT)
    Gallery.open(path).close()
    (finding,) = verify(path)
    assert finding.where == path / SEGMENT
    with pytest.raises(GalleryDamaged):
        Gallery.open(path)  # and it is noted no longer


def _store(path: Path) -> FeatureStore:
    store = FeatureStore(path / "cache" / "features", "f" * 64, 4, below=path)
    for number in range(40):
        store.add(f"{number:064x}", np.eye(4, dtype=np.float32)[number % 4])
        store.flush()
    return FeatureStore(path / "cache" / "features", "f" * 64, 4, below=path)  # lists the shards


def test_kept_features_are_compared_too(path: Path) -> None:
    _store(path)
    local = path / "cache" / "local"
    local.mkdir()
    (local / "a.features").write_bytes(hashlib.sha256(b"points").digest() + b"points")
    assert verify(path) == ()
    features = path / "cache" / "features"
    shard = sorted((features / ("f" * 16)).iterdir())[3]
    damaged = [features / f"{'f' * 16}.index", shard, local / "a.features"]
    for file in damaged:
        flip(file, keep_times=True)
    findings = verify(path)
    assert sorted(finding.where for finding in findings) == sorted(damaged)
    assert {finding.mend for finding in findings} == {"remake"}
    assert drop_derived(path, findings) == 3
    assert verify(path) == ()
    assert len(_store(path)) == 40


def test_bytes_behind_the_catalog_are_found_and_dropped_when_it_is_rewritten(path: Path) -> None:
    with GalleryWriter(path) as writer:  # whose end writes the log into the file
        writer.set("a", 1)
        writer.commit()
    size = (path / "catalog.db").stat().st_size
    with (path / "catalog.db").open("ab") as file:
        file.write(b"hidden" * 1000)
    (finding,) = verify(path)
    assert finding.where == path / "catalog.db"
    assert finding.what == "6,000 bytes behind its end, which are no part of it"
    assert finding.mend == "remake"
    with GalleryWriter(path) as writer:
        writer.rewrite_catalog()
        writer.commit()
    assert verify(path) == ()
    assert (path / "catalog.db").stat().st_size <= size


def test_a_link_is_found_and_nothing_behind_it_is_looked_at(path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes((path / ARRAY).read_bytes())
    (path / ARRAY).unlink()
    (path / ARRAY).symlink_to(tmp_path / "other")
    (finding,) = verify(path)
    assert finding.where == path / ARRAY
    assert finding.what == "is a link, and an index may hold plain files and folders only"
    assert (finding.mend, finding.remedy) == ("none", "delete it, then see `lmk index verify`")
