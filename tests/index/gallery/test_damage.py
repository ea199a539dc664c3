"""Every file of a gallery, damaged in every way: the exact error, or an answer still right."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lmk.embed.errors import GalleryDamaged, GalleryError, NotAGallery, StorageError, UsageError
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify
from lmk.index.gallery.writer import GalleryWriter

FILES = {
    "segment": "segments/000002.f16",
    "second segment": "segments/000003.f16",
    "array": "arrays/000004.bin",
    "embedder": f"embedder/{'a' * 16}/weights/w.bin",
}


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "the file is missing"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "the file has"),
    "empty": (lambda p: p.write_bytes(b""), "the file has 0 bytes"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "the file has"),
    "extra": (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "the file has"),
    "first bit": (lambda p: flip(p, 0), "the file has changed: sha256"),
    "last bit": (lambda p: flip(p, 8 * p.stat().st_size - 1), "the file has changed: sha256"),
    "another gallery's": (lambda p: p.write_bytes(p.read_bytes()[::-1]), "the file has changed"),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(path: Path, file: str, damage: str) -> None:
    act, message = DAMAGES[damage]
    act(path / FILES[file])
    with pytest.raises(GalleryDamaged, match=message) as caught:
        Gallery.open(path)
    assert caught.value.where == str(path / FILES[file])
    assert caught.value.remedy == "mend it with `lmk index repair`"
    (finding,) = verify(path)
    assert (finding.where, finding.what) == (path / FILES[file], caught.value.what)
    if damage != "a folder":  # which needs another name first
        mend(path, file)
        Gallery.open(path, verify=True).close()


def mend(path: Path, file: str) -> None:
    """Mends what can be made without the pictures' files, by the numbers the findings give."""
    (finding,) = verify(path)
    with GalleryWriter(path) as writer:
        if finding.mend == "re-embed":
            rows = np.array(finding.rows)
            vectors = np.zeros((len(rows), 8), np.float32)
            vectors[:, 1] = 1
            writer.replace_vectors(rows, vectors)
        elif file == "array":
            writer.put_array("penalty", np.zeros(3))
        else:
            writer.install_embedder(_save)
        writer.commit()


def _save(folder: Path) -> None:
    (folder / "w.bin").write_bytes(b"w")


def test_files_swapped_with_each_other_are_noticed(path: Path, scenario: ModuleType) -> None:
    with scenario.committing(path) as writer:
        writer.append(*scenario.batch(range(400, 403)))  # with the 2 in the catalog: 5 rows
    one, other = path / "segments/000003.f16", path / "segments/000005.f16"
    assert one.stat().st_size == other.stat().st_size
    one.rename(path / "x")
    other.rename(one)
    (path / "x").rename(other)
    with pytest.raises(GalleryDamaged, match="the file has changed"):
        Gallery.open(path)


def test_without_verify_sizes_are_checked_and_lengths_of_vectors(path: Path) -> None:
    segment = path / FILES["segment"]
    data = np.fromfile(segment, "<f2")
    data[3] = 100
    data.tofile(segment)
    with Gallery.open(path, verify=False) as gallery:
        assert gallery.vectors([1, 14]).shape == (2, 8)
        with pytest.raises(GalleryDamaged, match="row 0 has length"):
            gallery.vectors([1, 0])
    segment.write_bytes(segment.read_bytes()[:-2])
    with pytest.raises(GalleryDamaged, match="bytes"):
        Gallery.open(path, verify=False)


def test_a_segment_cut_while_the_gallery_is_open(path: Path) -> None:
    with Gallery.open(path) as gallery:
        (path / FILES["segment"]).write_bytes(b"")
        with pytest.raises(GalleryDamaged, match="cut while it was open"):
            gallery.vectors([0])


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (Path.unlink, NotAGallery, "its build never finished"),
        (lambda p: p.write_bytes(b""), NotAGallery, "its build never finished"),
        (lambda p: p.write_bytes(p.read_bytes()[:50]), GalleryDamaged, "malformed"),
        (lambda p: p.write_bytes(p.read_bytes()[:20_000]), GalleryDamaged, "malformed"),
        (lambda p: p.write_bytes(b"x" * 4096), GalleryDamaged, "not a database"),
        (lambda p: flip(p, 20), GalleryDamaged, "not a database"),
        (lambda p: (p.unlink(), p.mkdir()), NotAGallery, "its build never finished"),
    ],
)
def test_a_damaged_catalog(path: Path, act: Callable[[Path], object], error, message) -> None:
    act(path / "catalog.db")
    with pytest.raises(error, match=message):
        Gallery.open(path)


def _reset_byte(at: int, values: bytes) -> Callable[[Path], object]:
    def act(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at : at + len(values)] = values
        path.write_bytes(data)

    return act


def _sql(statement: str) -> Callable[[Path], object]:
    def act(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute(statement)
        connection.commit()
        connection.close()

    return act


CATALOG_DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda p: p.write_bytes(b""),
    "50 bytes": lambda p: p.write_bytes(p.read_bytes()[:50]),
    "half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "page less": lambda p: p.write_bytes(p.read_bytes()[:-4096]),
    "byte less": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "rubbish": lambda p: p.write_bytes(b"x" * 4096),
    "header": _reset_byte(0, b"overwritten header"),
    "page size": _reset_byte(16, b"\1\1"),
    "state": _sql("UPDATE meta SET value = '{}' WHERE name = 'state'"),
    "files": _sql("DELETE FROM file WHERE path LIKE 'seg%'"),
    "table": _sql("DROP TABLE batch"),
    "column": _sql("ALTER TABLE picture RENAME COLUMN labels TO mabels"),
    "schema": _sql("UPDATE sqlite_schema SET sql = 'CREATE TABLE batch (' WHERE name = 'batch'"),
    "root page": _sql("UPDATE sqlite_schema SET rootpage = 999 WHERE name = 'picture'"),
}


@pytest.mark.parametrize("damage", CATALOG_DAMAGES)
def test_a_rebuild_mends_every_damage_of_the_catalog(
    path: Path, scenario: ModuleType, tmp_path: Path, damage: str
) -> None:
    scenario.rebuild(tmp_path / "new.lmk")
    (path / "cache" / "features").write_text("kept")
    CATALOG_DAMAGES[damage](path / "catalog.db")
    content = (path / "catalog.db").read_bytes() if damage != "missing" else b""
    if damage != "byte less":  # of an index that answers do not use: `verify` finds it
        with pytest.raises(GalleryError, match="lmk build-index"):
            scenario.answers_at(path)
    scenario.rebuild(path)
    scenario.grow(path)
    scenario.grow(tmp_path / "new.lmk")
    assert scenario.answers_at(path) == scenario.answers_at(tmp_path / "new.lmk")
    assert (path / "cache" / "features").read_text() == "kept"
    aside = path / "catalog.db.damaged"
    # Of the first two nothing is left to keep; the others lose rows that a rebuild replaces.
    replaced = damage not in {"missing", "empty", "files", "byte less"}
    assert (aside.exists() and aside.read_bytes() == content) == replaced


def test_the_log_of_a_damaged_catalog_is_put_aside_with_it(
    path: Path, scenario: ModuleType
) -> None:
    (path / "catalog.db").write_bytes(b"x" * 4096)
    (path / "catalog.db-wal").write_bytes(b"a log")
    (path / "catalog.db.damaged").write_bytes(b"older")
    scenario.rebuild(path)
    assert (path / "catalog.db.damaged").read_bytes() == b"x" * 4096
    assert scenario.answers_at(path)["ids"]


def test_adding_never_puts_a_damaged_catalog_aside(path: Path) -> None:
    CATALOG_DAMAGES["half"](path / "catalog.db")
    files = sorted(path.rglob("*"))
    with pytest.raises(GalleryDamaged, match="rebuild it with `lmk build-index`"):
        GalleryWriter(path)
    assert sorted(path.rglob("*")) == files


def test_a_damaged_catalog_of_a_folder_with_something_else_stays(path: Path) -> None:
    CATALOG_DAMAGES["header"](path / "catalog.db")
    (path / "photos").mkdir()
    with pytest.raises(UsageError, match=r"something else \(photos\)"):
        GalleryWriter(path, create=True)
    assert not (path / "catalog.db.damaged").exists()


def test_any_bit_of_the_catalog_can_be_mended(path: Path, scenario: ModuleType) -> None:
    """All but those in the header that say of which program and format the file is."""
    whole = (path / "catalog.db").read_bytes()
    refused = {*range(60, 64), *range(68, 72)}
    used = [i for i, byte in enumerate(whole) if byte and i not in refused]
    rng = random.Random(0)
    for at in [*range(16, 60), *range(64, 68), *(rng.choice(used) for _ in range(60))]:
        (path / "catalog.db").write_bytes(whole)
        flip(path / "catalog.db", 8 * at + rng.randrange(8))
        with scenario.committing(path, create=True) as writer:
            writer.reset(scenario.A, 8)
            writer.append(*scenario.batch(range(6)))
        with Gallery.open(path) as gallery:
            assert gallery.rows == 6, at
        for extra in path.glob("catalog.db-*"):
            extra.unlink()


def test_the_catalog_of_an_older_state(path: Path, scenario: ModuleType, tmp_path: Path) -> None:
    old = shutil.copy(path / "catalog.db", tmp_path)
    scenario.rebuild(path, scenario.B)
    GalleryWriter(path).close()
    shutil.copy(old, path)
    with pytest.raises(GalleryDamaged, match="the file is missing"):
        Gallery.open(path)


def test_extra_bytes_behind_the_catalog_change_nothing(path: Path, scenario: ModuleType) -> None:
    expected = scenario.answers_at(path)
    with (path / "catalog.db").open("ab") as file:
        file.write(bytes(4096))
    assert scenario.answers_at(path) == expected


def _outcome(path: Path, scenario: ModuleType) -> dict | str:
    try:
        return scenario.answers_at(path)
    except GalleryError as error:
        return type(error).__name__
    except StorageError as error:
        return type(error).__name__


@pytest.mark.parametrize("seed", range(4))
def test_one_bit_of_the_catalog_never_gives_a_wrong_answer(
    path: Path, scenario: ModuleType, seed: int
) -> None:
    """At bytes in use: most of the file is free space."""
    expected = scenario.answers_at(path)
    catalog = path / "catalog.db"
    whole = catalog.read_bytes()
    used = [i for i, byte in enumerate(whole) if byte]
    rng = random.Random(seed)
    outcomes = []
    for _ in range(300):
        flip(catalog, 8 * rng.choice(used) + rng.randrange(8))
        outcomes.append(_outcome(path, scenario))
        for extra in path.glob("catalog.db-*"):
            extra.unlink()
        catalog.write_bytes(whole)
    wrong = [o for o in outcomes if not isinstance(o, str) and o != expected]
    assert not wrong
    assert outcomes.count("GalleryDamaged") > 60


def test_pages_of_the_catalog_lost_or_exchanged(path: Path, scenario: ModuleType) -> None:
    expected = scenario.answers_at(path)
    catalog = path / "catalog.db"
    whole = catalog.read_bytes()
    pages = [whole[i : i + 4096] for i in range(0, len(whole), 4096)]
    rng = random.Random(0)
    damaged = 0
    for one in range(1, len(pages)):
        for page in (bytes(4096), pages[rng.randrange(1, len(pages))]):
            changed = [*pages[:one], page, *pages[one + 1 :]]
            catalog.write_bytes(b"".join(changed))
            outcome = _outcome(path, scenario)
            assert isinstance(outcome, str) or outcome == expected, one
            damaged += isinstance(outcome, str)
            for extra in path.glob("catalog.db-*"):
                extra.unlink()
    assert damaged > len(pages) / 2


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM picture WHERE row = 9", "the picture of row 9 is missing"),
        ("DELETE FROM batch WHERE first_row = 8", "rows 8 to 10 are not accounted for"),
        ("DELETE FROM segment WHERE first_row = 8", "rows 8 to 13 are not accounted for"),
        ("DELETE FROM inline", "rows 13 to 15 are not accounted for"),
        ("DELETE FROM label WHERE code = 0", "entries of label"),
        ("DELETE FROM meta WHERE name = 'setting:pipeline'", "entries of meta"),
        ("DELETE FROM skipped", "0 of 1 entries of skipped"),
        ("DELETE FROM root", "0 of 1 entries of root"),
        ("UPDATE label SET code = 99 WHERE code = 0", "label 0 is missing"),
        ("UPDATE batch SET data = zeroblob(length(data))", "the labels from row 0 on"),
        ("UPDATE batch SET rows = 'x' WHERE first_row = 0", "an entry has changed"),
        ("UPDATE picture SET path = 'x' WHERE row = 3", "an entry has changed"),
        ("UPDATE picture SET labels = '0,' WHERE row = 3", "an entry has changed"),
        ("UPDATE inline SET vectors = zeroblob(32)", "the vectors from row 13 on have changed"),
        ("UPDATE segment SET rows = 'x' WHERE first_row = 0", "an entry has changed"),
        ("DROP TABLE batch", "table batch is missing or another"),
        ("UPDATE meta SET value = '{}' WHERE name = 'state'", "an entry has changed"),
        ("DELETE FROM meta WHERE name = 'state'", "its build never finished"),
    ],
)
def test_an_entry_lost_or_changed(
    path: Path, scenario: ModuleType, statement: str, message: str
) -> None:
    connection = sqlite3.connect(path / "catalog.db")
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(GalleryError, match=message):
        scenario.answers_at(path)


ASIDE = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import scenario
with scenario.GalleryWriter(Path(sys.argv[2]), create=True) as writer:
    writer.reset(scenario.A, 8)
    writer.install_embedder(scenario.save_embedder)
    writer.append(*scenario.batch(range(2000)))
    writer.put_array("penalty", scenario.np.arange(2000.0))
    if sys.argv[3] == "killed":
        os._exit(9)
    raise KeyboardInterrupt
"""


def files_of(path: Path) -> dict[str, bytes]:
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for top in ("segments", "arrays", "embedder")
        for file in (path / top).rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize("how", ["stopped", "killed"])
@pytest.mark.parametrize("damage", ["half", "header", "missing"])
def test_a_rebuild_that_does_not_end_removes_nothing(
    path: Path, scenario: ModuleType, damage: str, how: str
) -> None:
    """Neither the catalog that cannot be read, nor a file that it may name."""
    CATALOG_DAMAGES[damage](path / "catalog.db")
    kept, before = path / "catalog.db", files_of(path)
    content = None if damage == "missing" else kept.read_bytes()
    command = [sys.executable, "-P", "-c", ASIDE, str(Path(scenario.__file__).parent), path, how]
    for _ in range(2):
        subprocess.run(command, capture_output=True, timeout=100)
        assert before.items() <= files_of(path).items()
        if content is not None:
            aside = kept if how == "stopped" else path / "catalog.db.damaged"
            assert aside.read_bytes() == content
    scenario.rebuild(path)
    assert verify(path) == ()
    with Gallery.open(path) as gallery:
        assert gallery.rows == 8
        named = {record.path for record in gallery._catalog.files()}
    assert set(files_of(path)) == named  # the rest goes with the commit
