from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import (
    FormatTooNew,
    GalleryDamaged,
    GalleryLocked,
    NotAGallery,
    StorageError,
    UsageError,
)
from lmk.index.catalog.records import Picture
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.search.choose import choose

GOLDEN = Path(__file__).parents[2] / "golden" / "format1.lmk"
GOLDEN_2 = GOLDEN.with_name("format2.lmk")
NUMBERS = [*range(6), 1000, 1001, *range(100, 105), 200, 201]  # of the rows of `path`


def test_a_gallery_answers_what_was_written(path: Path, scenario: ModuleType) -> None:
    with Gallery.open(path) as gallery:
        assert (gallery.fingerprint, gallery.dim, gallery.rows) == (scenario.A, 8, len(NUMBERS))
        rows = np.arange(gallery.rows)
        expected = [scenario.picture(number) for number in NUMBERS]
        assert gallery.pictures(rows) == expected
        assert gallery.pictures(rows[::-1]) == expected[::-1]
        assert gallery.ids([3, 3]) == [expected[3].id] * 2
        vectors = np.array([scenario.vector_of(number) for number in NUMBERS])
        np.testing.assert_allclose(gallery.vectors(rows), vectors, atol=1e-3)
        np.testing.assert_allclose(np.linalg.norm(gallery.vectors(rows), axis=1), 1, atol=1e-6)
        assert gallery.role_rows("distractor").tolist() == [6, 7]
        assert gallery.role_rows("gallery").tolist() == [*range(6), *range(8, 15)]
        assert gallery.skipped() == [("broken.jpg", "cut short")]
        assert gallery.setting("pipeline") == {"k": 9}
        assert gallery.setting("nothing") is None
        assert gallery.array("penalty").tolist() == [0, 1, 2]
        assert gallery.array("nothing") is None
        assert gallery.file(expected[0]) == Path("/photos/in/00000.jpg")
        assert (gallery.embedder_dir / "weights" / "w.bin").read_bytes() == bytes(range(100))


def test_labels_are_a_sorted_vocabulary_and_csr(path: Path, scenario: ModuleType) -> None:
    with Gallery.open(path) as gallery:
        assert list(gallery.label_names) == sorted(
            {name for number in NUMBERS for name in scenario.labels_of(number)}
        )
        assert gallery.label_offsets.dtype == np.int64
        assert gallery.label_codes.dtype == np.int32
        for row, number in enumerate(NUMBERS):
            codes = gallery.label_codes[gallery.label_offsets[row] : gallery.label_offsets[row + 1]]
            assert tuple(gallery.label_names[c] for c in codes) == scenario.labels_of(number)
            assert gallery.labels(row) == scenario.labels_of(number)


def test_embeddings_of_a_role(path: Path, scenario: ModuleType) -> None:
    with Gallery.open(path) as gallery:
        found = gallery.embeddings("distractor")
        assert isinstance(found, Embeddings)
        assert found.ids == ("01000.jpg", "01001.jpg")
        assert found.fingerprint == scenario.A
        np.testing.assert_allclose(found.vectors[1], scenario.vector_of(1001), atol=1e-3)


def test_info_counts(path: Path, scenario: ModuleType) -> None:
    with Gallery.open(path) as gallery:
        info = gallery.info()
    of_gallery = [n for n in NUMBERS if n < 1000]
    assert (info.pictures, info.distractors, info.skipped) == (13, 2, 1)
    assert info.unlabelled == sum(not scenario.labels_of(n) for n in of_gallery)
    assert info.landmarks == len({name for n in of_gallery for name in scenario.labels_of(n)})
    assert (info.format, info.dim, info.fingerprint) == (4, 8, scenario.A)
    assert info.segments == 2  # of 8 and 5 rows; 2 more are in the catalog
    assert info.bytes_on_disk >= sum(f.stat().st_size for f in path.glob("segments/*"))
    assert info.created <= info.updated
    assert datetime.fromisoformat(info.created).tzinfo == UTC
    assert "." in info.created  # galleries made in the same second differ
    assert info.updated.endswith("+00:00")


@pytest.mark.parametrize("rows", [[15], [-1], [0, 99]])
def test_a_row_that_is_not_there_is_an_index_error(path: Path, rows: list[int]) -> None:
    with Gallery.open(path) as gallery:
        for ask in (gallery.vectors, gallery.ids, gallery.pictures):
            with pytest.raises(IndexError, match="of a gallery of 15 rows"):
                ask(rows)
        with pytest.raises(IndexError):
            gallery.labels(rows[-1])


def test_rows_must_be_numbers_in_a_line(path: Path) -> None:
    with Gallery.open(path) as gallery:
        with pytest.raises(ValueError, match=r"rows must be int \[n\]"):
            gallery.vectors([0.5])
        with pytest.raises(ValueError, match=r"rows must be int \[n\]"):
            gallery.vectors([[0]])
        assert gallery.vectors([]).shape == (0, 8)
        assert gallery.ids([]) == []


def test_a_closed_gallery_says_so(path: Path) -> None:
    gallery = Gallery.open(path)
    gallery.close()
    gallery.close()
    for ask in (gallery.vectors, gallery.ids, gallery.pictures):
        with pytest.raises(ValueError, match="is closed"):
            ask([0])
    for ask in (gallery.skipped, lambda: gallery.setting("a"), lambda: gallery.array("a")):
        with pytest.raises(ValueError, match="is closed"):
            ask()


def test_a_gallery_can_be_empty(tmp_path: Path) -> None:
    with GalleryWriter(tmp_path / "e.lmk", create=True) as writer:
        writer.reset("f", 4)
        writer.commit()
    with Gallery.open(tmp_path / "e.lmk") as gallery:
        assert (gallery.rows, gallery.label_names) == (0, ())
        assert gallery.label_offsets.tolist() == [0]
        assert gallery.embeddings("gallery").vectors.shape == (0, 4)
        assert gallery.info().pictures == 0


def test_many_rows_of_a_batch_and_many_batches(tmp_path: Path, scenario: ModuleType) -> None:
    numbers = list(range(1500))
    with scenario.committing(tmp_path / "g", create=True) as writer:
        writer.reset(scenario.A, 8)
        for start in range(0, 1500, 250):
            writer.append(*scenario.batch(numbers[start : start + 250]))
    with Gallery.open(tmp_path / "g") as gallery:
        rows = np.random.default_rng(0).permutation(1500)
        assert gallery.pictures(rows) == [scenario.picture(int(n)) for n in rows]
        assert gallery.vectors(rows).shape == (1500, 8)
        assert gallery.info().segments == 1


def test_gallery_and_pictures_can_be_moved_together(
    tmp_path: Path, scenario: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, (picture,) = scenario.batch([1])
    here = tmp_path / "here" / "out" / "g.lmk"
    moved = Picture(**{**vars(picture), "root": str(tmp_path / "here" / "photos")})
    with scenario.committing(here, create=True) as writer:
        writer.reset(scenario.A, 8)
        writer.append(embeddings, [moved])
    (tmp_path / "here").rename(tmp_path / "there")
    with Gallery.open(tmp_path / "there" / "out" / "g.lmk") as gallery:
        assert gallery.pictures([0])[0].root == str(tmp_path / "there" / "photos")
    monkeypatch.chdir(tmp_path / "there")
    with Gallery.open("out/g.lmk") as gallery:
        assert gallery.pictures([0])[0].root == str(tmp_path / "there" / "photos")


def test_names_that_are_not_utf8_come_back_byte_by_byte(
    tmp_path: Path, scenario: ModuleType
) -> None:
    name = os.fsdecode(b"caf\xe9 \xf0\x9f\x97\xbc.jpg")
    picture = Picture(name, (name, "Καστρο"), f"/x/{name}", f"{name * 300}", "00" * 32, 1, 2)
    vector = scenario.vector_of(1)[None]
    with scenario.committing(tmp_path / name, create=True) as writer:
        writer.reset(scenario.A, 8)
        writer.append(Embeddings(vector, (name,), scenario.A), [picture])
        assert writer.append(Embeddings(vector, (name,), scenario.A), [picture]) == 0
        writer.skip(name, "odd")
    with Gallery.open(tmp_path / name) as gallery:
        assert gallery.pictures([0]) == [picture]
        assert gallery.skipped() == [(name, "odd")]


def test_a_reader_keeps_what_it_opened(path: Path, scenario: ModuleType) -> None:
    before = Gallery.open(path)
    expected = scenario.answers(before)
    scenario.rebuild(path, scenario.B, 40)
    between = Gallery.open(path)
    scenario.rebuild(path, scenario.A, 3)
    GalleryWriter(path).close()  # sweeps everything that only the first reader knew
    assert not [f for f in path.rglob("*.f16") if f.name < "000005.f16"]
    assert scenario.answers(before) == expected
    assert between.fingerprint == scenario.B
    assert between.rows == 42
    after = scenario.answers_at(path)
    assert len(after["pictures"]) == 5
    before.close()
    between.close()
    assert scenario.answers_at(path) == after


def test_a_reader_that_loses_the_race_against_two_writers_looks_again(
    path: Path, scenario: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Gallery._open_files

    def slow(gallery: Gallery, opened: list, *, verify: bool) -> None:
        monkeypatch.setattr(Gallery, "_open_files", real)
        scenario.rebuild(path, scenario.B, 20)
        GalleryWriter(path).close()
        real(gallery, opened, verify=verify)

    monkeypatch.setattr(Gallery, "_open_files", slow)
    with Gallery.open(path) as gallery:
        assert gallery.fingerprint == scenario.B
        assert len(scenario.answers(gallery)["ids"]) == 22


def test_a_reader_neither_waits_for_a_writer_nor_keeps_it_waiting(
    path: Path, scenario: ModuleType
) -> None:
    with Gallery.open(path) as reader:
        before = scenario.answers(reader)
        with GalleryWriter(path) as writer:
            writer.append(*scenario.batch(range(300, 320)))
            with Gallery.open(path) as other:
                assert scenario.answers(other) == before
            writer.commit()
            with Gallery.open(path) as other:
                assert other.rows == reader.rows + 20
        assert scenario.answers(reader) == before


def test_a_reader_that_ends_leaves_the_writer_its_log(path: Path, scenario: ModuleType) -> None:
    """SQLite removes the log with the last connection; it must not take a reader's for that one.

    It does where the writer's locks are gone, as after any close of a descriptor of the catalog in
    its process; what the writer commits then is lost.
    """
    read = "import sys; from lmk.index.gallery.gallery import Gallery\n"
    read += "with Gallery.open(sys.argv[1]) as gallery: print(gallery.rows)"
    log = path / "catalog.db-wal"

    def rows() -> int:
        command = [sys.executable, "-P", "-c", read, path]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    with GalleryWriter(path) as writer:
        with pytest.raises(GalleryLocked):
            GalleryWriter(path, create=True)  # looks at the header
        writer.append(*scenario.batch([300]))
        writer.commit()
        before = log.stat().st_ino
        assert rows() == 16
        assert log.stat().st_ino == before
        writer.append(*scenario.batch([301]))
        writer.commit()
        assert rows() == 17
    assert rows() == 17


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "there is no such folder; make a gallery with `lmk build-index`"),
        (lambda p: p.write_text("x"), "this is a file, and a gallery is a folder"),
        (lambda p: p.mkdir(), "this folder is no gallery"),
        (lambda p: (p / "photos").mkdir(parents=True), "this folder is no gallery"),
        (lambda p: (p / "cache").mkdir(parents=True), "its build never finished; run the same"),
        (lambda p: GalleryWriter(p, create=True).close(), "its build never finished"),
        (lambda p: (p.mkdir(), (p / "catalog.db").touch()), "its build never finished"),
    ],
)
def test_what_is_no_gallery_is_said_to_be_none(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "g.lmk"
    make(path)
    with pytest.raises(NotAGallery, match=message) as caught:
        Gallery.open(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    with pytest.raises(NotAGallery, match=message):
        GalleryWriter(path)


@pytest.mark.parametrize(
    "statement",
    ["PRAGMA user_version = 1", "PRAGMA application_id = 7", "CREATE TABLE picture (name TEXT)"],
)
def test_another_programs_database_is_no_gallery(tmp_path: Path, statement: str) -> None:
    connection = sqlite3.connect(tmp_path / "catalog.db")
    connection.execute(statement)
    connection.close()
    content = (tmp_path / "catalog.db").read_bytes()
    with pytest.raises(NotAGallery, match="not lmk's"):
        Gallery.open(tmp_path)
    with pytest.raises(UsageError, match=r"holds something else \(catalog.db\)"):
        GalleryWriter(tmp_path, create=True)
    (tmp_path / ".lock").touch()
    with pytest.raises(NotAGallery, match="not lmk's; choose another folder"):
        GalleryWriter(tmp_path, create=True)
    assert (tmp_path / "catalog.db").read_bytes() == content


def test_a_newer_format_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path / "catalog.db")
    connection.execute("PRAGMA user_version = 5")
    connection.close()
    with pytest.raises(FormatTooNew, match=r"format 5.*up to format 4; install a newer lmk"):
        Gallery.open(path)
    files = sorted(path.rglob("*"))
    for create in (False, True):
        with pytest.raises(FormatTooNew):
            GalleryWriter(path, create=create)
    assert sorted(path.rglob("*")) == files


def test_the_sample_of_format_1_opens(tmp_path: Path, scenario: ModuleType) -> None:
    """It was made by scenario.rebuild(path, count=3) and must be readable for ever."""
    path = tmp_path / "format1.lmk"
    shutil.copytree(GOLDEN, path)
    with Gallery.open(path) as gallery:
        root = os.path.normpath(
            path / "../../../../../photos"
        )  # the sample was made 4 folders deep
        expected = [replace(scenario.picture(n), root=root) for n in (0, 1, 2, 1000, 1001)]
        assert gallery.pictures(range(5)) == expected
        assert gallery.role_rows("distractor").tolist() == [3, 4]
        vectors = [scenario.vector_of(n) for n in (0, 1, 2, 1000, 1001)]
        np.testing.assert_allclose(gallery.vectors(range(5)), vectors, atol=1e-3)
        assert gallery.setting("pipeline") == {"k": 3}
        assert gallery.array("penalty").tolist() == [0, 1, 2]
        assert gallery.skipped() == [("broken.jpg", "cut short")]
        assert gallery.info().format == 1
        assert (gallery.precision, gallery.removed) == ("f16", 0)
        assert gallery.labels(0) == scenario.labels_of(0)
        queries = Embeddings(np.array(vectors[:1]), ("q",), scenario.A)
        assert choose(gallery).search(queries, 1).rows.tolist() == [[0]]
    content = (path / "catalog.db").read_bytes()
    assert verify(path) == ()
    assert (path / "catalog.db").read_bytes() == content  # reading migrates a copy
    assert not list(path.glob("catalog.db-*"))
    with GalleryWriter(path) as writer:
        assert writer.append(*scenario.batch([2, 300])) == 1
        assert writer.remove(["00001.jpg"]) == 1
    with Gallery.open(path) as gallery:
        assert gallery.info().format == 1  # an abandoned change leaves it as it was
        before = gallery.pictures(range(5))
    scenario.grow(path)
    with Gallery.open(path) as gallery:
        assert gallery.info().format == 4
        assert gallery.pictures(range(5)) == before
        assert gallery.rows == 10
    with scenario.committing(path) as writer:
        writer.put_array("penalty", np.arange(10), by_row=True)
        writer.remove(["00001.jpg"])
        writer.compact()
    assert verify(path) == ()
    assert len(scenario.answers_at(path)["ids"]) == 9


def test_the_sample_of_format_2_opens(tmp_path: Path, scenario: ModuleType) -> None:
    """As sample 1, with two pictures added and one of them removed; made by format 2's writer."""
    path = Path(shutil.copytree(GOLDEN_2, tmp_path / "format2.lmk"))
    with Gallery.open(path) as gallery:
        assert gallery.info().format == 2
        assert gallery._catalog._connection.execute("PRAGMA database_list").fetchone()[2]  # no copy
        assert gallery.alive.tolist() == [True] * 6 + [False]
        assert gallery.find(["00007.jpg"]) == {"00007.jpg": 5}
        assert gallery.array("penalty").tolist() == list(range(7))
        assert (gallery.embedder_dir / "weights" / "w.bin").read_bytes() == bytes(range(100))
    content = (path / "catalog.db").read_bytes()
    assert verify(path) == ()
    assert (path / "catalog.db").read_bytes() == content
    with scenario.committing(path) as writer:
        assert writer.uncommitted.removed_ids(["00008.jpg"]) == set()  # format 2 did not keep them
        writer.remove(["00007.jpg"])
    with GalleryWriter(path) as writer:
        assert writer.uncommitted.removed_ids(["00007.jpg", "00000.jpg"]) == {"00007.jpg"}
    assert verify(path) == ()
    with Gallery.open(path) as gallery:
        assert gallery.info().format == 4


def test_arrays_of_format_1_are_carried_over_where_they_go_by_row(
    tmp_path: Path, scenario: ModuleType
) -> None:
    """It did not say so: one for each row does, another length is dropped by compact."""
    path = tmp_path / "g"
    with scenario.committing(path, create=True) as writer:
        writer.reset(scenario.A, 8)
        writer.append(*scenario.batch(range(4)))
        writer.remove(["00001.jpg"])
        for name, array in (("rows", np.arange(4)), ("other", np.arange(3))):
            writer.put_array(name, array)
            header = writer._t.catalog.meta(f"array:{name}")
            del header["by_row"]
            writer._t.changes.set_meta(f"array:{name}", header)
        writer.compact()
    with Gallery.open(path) as gallery:
        assert gallery.array("rows").tolist() == [0, 2, 3]
        assert gallery.array("other") is None


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE picture SET labels = '1,' WHERE row = 1", "the labels from row 0 on"),
        ("DELETE FROM picture WHERE row = 1", "the labels from row 0 on"),
        ("UPDATE batch SET role = 'distractor'", "the labels from row 0 on"),
        ("DROP TABLE batch", "table batch is missing"),
    ],
)
def test_a_damaged_gallery_of_format_1_is_not_migrated(
    tmp_path: Path, statement: str, message: str
) -> None:
    path = tmp_path / "format1.lmk"
    shutil.copytree(GOLDEN, path)
    connection = sqlite3.connect(path / "catalog.db")
    connection.execute(statement)
    connection.commit()
    connection.close()
    for opening in (Gallery.open, GalleryWriter):
        with pytest.raises(GalleryDamaged, match=message):
            opening(path)
    assert message in verify(path)[0].what


READ_ALL = textwrap.dedent("""
    import sys
    from lmk.index.gallery.gallery import Gallery
    with Gallery.open(sys.argv[1]) as gallery:
        print(gallery.ids(range(gallery.rows)))
        gallery.vectors(range(gallery.rows))
    from lmk.index.gallery.writer import GalleryWriter
    from lmk.embed.errors import StorageError
    try:
        GalleryWriter(sys.argv[1])
    except StorageError as error:
        print(error)
""")
READ_ONLY = 'mount --bind "$FOLDER" "$FOLDER"; mount -o remount,ro,bind "$FOLDER"'


def _read_only(path: Path, in_mount: Callable[..., subprocess.CompletedProcess[str]]) -> str:
    done = in_mount(READ_ONLY, path, READ_ALL)
    assert done.returncode == 0, done.stderr
    assert "cannot write: read-only file system; choose a folder that can be written" in done.stdout
    return done.stdout


def test_a_read_only_folder_can_be_read(path: Path, in_mount) -> None:
    with Gallery.open(path) as gallery:
        ids = gallery.ids(range(gallery.rows))
    assert str(ids) in _read_only(path, in_mount)
    assert not (path / "catalog.db-shm").exists()


def test_a_read_only_copy_of_a_gallery_in_use_can_be_read(
    path: Path, tmp_path: Path, scenario: ModuleType, in_mount
) -> None:
    with Gallery.open(path), GalleryWriter(path) as writer:
        writer.append(*scenario.batch([999]))
        writer.commit()
        copy = shutil.copytree(path, tmp_path / "copy.lmk")
    (copy / "catalog.db-shm").unlink()
    assert (copy / "catalog.db-wal").stat().st_size > 0
    assert "'00999.jpg'" in _read_only(copy, in_mount)


def test_a_folder_without_write_permission_can_be_read(path: Path, scenario: ModuleType) -> None:
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    expected = scenario.answers_at(path)
    path.chmod(0o555)
    try:
        assert scenario.answers_at(path) == expected
        with pytest.raises(StorageError, match="check the permissions"):
            GalleryWriter(path / "new", create=True)
    finally:
        path.chmod(0o755)


def test_reading_imports_nothing_heavy() -> None:
    code = (
        "import sys, lmk.index.gallery.gallery, lmk.index.gallery.writer, lmk.index.search.choose;"
        "print([m for m in ('faiss', 'torch', 'pandas', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_gallery_that_is_not_closed_frees_its_files(path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("counts open files in /proc")

    def mine() -> int:
        links = [str(f.readlink()) for f in Path("/proc/self/fd").iterdir() if f.is_symlink()]
        return sum(str(path) in link for link in links)

    gallery = Gallery.open(path)
    assert mine() > 0
    del gallery
    assert mine() == 0


def test_a_file_that_goes_while_sizes_are_added_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda file: real(f"{file}.gone" if "seg" in file else file))
    with Gallery.open(path) as gallery:
        less = gallery.info().bytes_on_disk
        monkeypatch.undo()
        segments = sum(file.stat().st_size for file in (path / "segments").iterdir())
        assert gallery.info().bytes_on_disk - less == segments
