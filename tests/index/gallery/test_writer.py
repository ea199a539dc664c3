from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import (
    EmbedderMismatch,
    GalleryDamaged,
    GalleryError,
    GalleryLocked,
    NotAGallery,
    StorageError,
    UsageError,
)
from lmk.index.catalog import database
from lmk.index.catalog.records import Picture
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.labels import Role


def segments_of(path: Path) -> list[str]:
    return sorted(file.name for file in (path / "segments").iterdir())


def parts_of(gallery: Gallery) -> list[tuple[int, int, bool]]:
    """(first row, rows, kept in the catalog) of each part of the vectors."""
    catalog = gallery._catalog
    parts = [(first, rows, False) for first, rows, _ in catalog.segments()]
    return parts + [(first, rows, True) for first, rows, _ in catalog.inline()]


def test_nothing_is_visible_before_the_commit(path: Path, scenario: ModuleType) -> None:
    before = scenario.answers_at(path)
    with GalleryWriter(path) as writer:
        writer.reset(scenario.B, 6)
        writer.install_embedder(scenario.save_embedder)
        writer.append(*scenario.batch(range(30), scenario.B))
        writer.put_array("penalty", np.zeros(30))
        assert scenario.answers_at(path) == before
        inside = writer.gallery()
        assert inside is not None
        assert inside.fingerprint == scenario.A
        inside.close()
        writer.commit()
        assert scenario.answers_at(path)["fingerprint"] == scenario.B


def test_leaving_without_a_commit_undoes_everything(path: Path, scenario: ModuleType) -> None:
    GalleryWriter(path).close()  # sweeps what the array of the fixture replaced
    before, files = scenario.answers_at(path), sorted(path.rglob("*"))
    with GalleryWriter(path) as writer:
        writer.reset(scenario.B, 6)
        writer.install_embedder(scenario.save_embedder)
        writer.append(*scenario.batch(range(30), scenario.B))
        writer.put_array("x", np.zeros(30))
    assert scenario.answers_at(path) == before
    assert sorted(path.rglob("*")) == files


def test_an_exception_undoes_everything(path: Path, scenario: ModuleType) -> None:
    before = scenario.answers_at(path)
    with pytest.raises(KeyboardInterrupt), GalleryWriter(path) as writer:
        writer.append(*scenario.batch(range(300, 330)))
        raise KeyboardInterrupt
    assert scenario.answers_at(path) == before


def test_a_new_gallery_has_no_snapshot_and_needs_a_reset(
    tmp_path: Path, scenario: ModuleType
) -> None:
    with GalleryWriter(tmp_path / "deep" / "g.lmk", create=True) as writer:
        assert writer.gallery() is None
        for act in (
            lambda: writer.append(*scenario.batch([1])),
            lambda: writer.set("a", 1),
            lambda: writer.skip("a", "b"),
            lambda: writer.put_array("a", np.zeros(1)),
            lambda: writer.install_embedder(scenario.save_embedder),
            writer.commit,
        ):
            with pytest.raises(ValueError, match="call reset first"):
                act()


@pytest.mark.parametrize(("fingerprint", "dim"), [("", 8), ("../evil", 8), ("ok", 0), (".", 3)])
def test_reset_refuses_what_cannot_be(tmp_path: Path, fingerprint: str, dim: int) -> None:
    with (
        GalleryWriter(tmp_path / "g", create=True) as writer,
        pytest.raises(ValueError, match="a gallery of fingerprint"),
    ):
        writer.reset(fingerprint, dim)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(UsageError, match=r"holds something else \(photos\)"):
        GalleryWriter(tmp_path, create=True)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="this is a file"):
        GalleryWriter(tmp_path / "file", create=True)
    with pytest.raises(UsageError, match="this is a file"):
        GalleryWriter(tmp_path / "file" / "below", create=True)


def test_an_unfinished_build_goes_on_in_its_folder(tmp_path: Path, scenario: ModuleType) -> None:
    (tmp_path / "g.lmk" / "cache").mkdir(parents=True)
    (tmp_path / "g.lmk" / "cache" / "features").write_text("kept")
    scenario.rebuild(tmp_path / "g.lmk")
    assert (tmp_path / "g.lmk" / "cache" / "features").read_text() == "kept"
    assert len(scenario.answers_at(tmp_path / "g.lmk")["ids"]) == 8


def test_another_embedder_is_refused_with_the_way_out(path: Path, scenario: ModuleType) -> None:
    with scenario.committing(path) as writer:
        with pytest.raises(EmbedderMismatch, match=r"bbbb for a gallery.*rebuild it with"):
            writer.append(*scenario.batch([7], scenario.B))
        embeddings, pictures = scenario.batch([7])
        with pytest.raises(EmbedderMismatch, match="6 components for a gallery of 8; use"):
            short = scenario.batch([7], scenario.B)[0].vectors
            writer.append(Embeddings(short, embeddings.ids, scenario.A), pictures)
        with pytest.raises(ValueError, match="role 'query'"):
            writer.append(embeddings, pictures, "query")
        with pytest.raises(ValueError, match="different ids"):
            writer.append(embeddings, scenario.batch([8])[1])
        with pytest.raises(ValueError, match="not absolute: photos"):
            writer.append(embeddings, [replace(pictures[0], root="photos")])
        assert writer.append(embeddings, pictures) == 1  # a refusal undoes nothing


def test_a_known_picture_is_left_as_it_is_and_a_changed_one_refused(
    path: Path, scenario: ModuleType
) -> None:
    before = scenario.answers_at(path)
    with scenario.committing(path) as writer:
        assert writer.append(*scenario.batch([0, 1, 100, 50])) == 1
        assert writer.unchanged == 3
        embeddings, (picture,) = scenario.batch([2])
        with pytest.raises(GalleryError, match=r"00002.jpg: another picture has this id; give it"):
            writer.append(embeddings, [replace(picture, sha256="other")])
    after = scenario.answers_at(path)
    assert after["pictures"] == [*before["pictures"], scenario.picture(50)]


def add(path: Path, embeddings: Embeddings, pictures: list[Picture], role: Role) -> int:
    with GalleryWriter(path) as writer:
        added = writer.append(embeddings, pictures, role)
        writer.commit()
    return added


def test_an_append_is_one_commit_and_needs_a_gallery(path: Path, scenario: ModuleType) -> None:
    assert add(path, *scenario.batch([300, 301]), role="distractor") == 2
    with Gallery.open(path) as gallery:
        assert gallery.ids(gallery.role_rows("distractor"))[-2:] == ["00300.jpg", "00301.jpg"]
        generation = gallery.generation
    assert add(path, *scenario.batch([300]), role="gallery") == 0
    with Gallery.open(path) as gallery:
        assert gallery.generation == generation
    with pytest.raises(NotAGallery):
        add(path.parent / "none", *scenario.batch([1]), role="gallery")
    assert not (path.parent / "none").exists()


def test_small_adds_stay_in_the_catalog_until_they_are_enough(
    tmp_path: Path, scenario: ModuleType
) -> None:
    path = tmp_path / "g"
    seen = []
    sizes = scenario.small_segments(inline=5, small=100, many=100)
    with sizes, GalleryWriter(path, create=True) as writer:
        writer.reset(scenario.A, 8)
        for start in range(0, 12, 2):
            writer.append(*scenario.batch([start, start + 1]))
            writer.commit()
            with Gallery.open(path) as gallery:
                seen.append(parts_of(gallery))
    assert seen == [
        [(0, 2, True)],
        [(0, 2, True), (2, 2, True)],
        [(0, 6, False)],
        [(0, 6, False), (6, 2, True)],
        [(0, 6, False), (6, 2, True), (8, 2, True)],
        [(0, 6, False), (6, 6, False)],
    ]
    with Gallery.open(path) as gallery:
        assert gallery.pictures(range(12)) == [scenario.picture(n) for n in range(12)]


def test_many_small_segments_become_one(tmp_path: Path, scenario: ModuleType) -> None:
    path = tmp_path / "g"
    with scenario.small_segments(inline=2, small=8, many=3):
        with scenario.committing(path, create=True) as writer:
            writer.reset(scenario.A, 8)
            writer.append(*scenario.batch(range(100, 109)))  # a large one, never folded
            for start in range(0, 9, 3):
                writer.append(*scenario.batch(range(start, start + 3)))
                writer.commit()
            writer.append(*scenario.batch([9]))
            writer.commit()
            reader = Gallery.open(path)
            assert [part[:2] for part in parts_of(reader)] == [
                (0, 9), (9, 3), (12, 3), (15, 3), (18, 1),
            ]  # fmt: skip
            writer.append(*scenario.batch([10]))
        with Gallery.open(path) as gallery:
            assert parts_of(gallery) == [(0, 9, False), (9, 11, False)]
            numbers = [*range(100, 109), *range(11)]
            assert gallery.pictures(range(20)) == [scenario.picture(n) for n in numbers]
            expected = [scenario.vector_of(n) for n in numbers]
            np.testing.assert_allclose(gallery.vectors(range(20)), expected, atol=1e-3)
        assert len(segments_of(path)) == 5  # the reader may still need the old ones
        with GalleryWriter(path):
            assert len(segments_of(path)) == 2
        assert reader.vectors(range(19)).shape == (19, 8)
        reader.close()


def test_folding_does_not_launder_damage(tmp_path: Path, scenario: ModuleType) -> None:
    path = tmp_path / "g"
    sizes = scenario.small_segments(inline=2, small=8, many=2)
    with sizes, GalleryWriter(path, create=True) as writer:
        writer.reset(scenario.A, 8)
        for start in (0, 3):
            writer.append(*scenario.batch(range(start, start + 3)))
            writer.commit()
        segment = path / "segments" / "000001.f16"
        data = bytearray(segment.read_bytes())
        data[5] ^= 1
        segment.write_bytes(data)
        writer.append(*scenario.batch(range(6, 9)))
        with pytest.raises(GalleryDamaged, match=r"000001.f16: the file has changed"):
            writer.commit()
        with pytest.raises(GalleryError, match="an error has undone this change"):
            writer.commit()


def test_after_an_error_nothing_can_be_committed(path: Path, scenario: ModuleType) -> None:
    before = scenario.answers_at(path)
    with GalleryWriter(path) as writer:
        embeddings, pictures = scenario.batch([300, 301])
        pictures[1] = replace(pictures[1], path="a\0b")
        with pytest.raises(ValueError, match="NUL"):
            writer.append(embeddings, pictures)
        for act in (
            writer.commit,
            lambda: writer.reset(scenario.A, 8),
            lambda: writer.append(*scenario.batch([302])),
            lambda: writer.set("a", 1),
        ):
            with pytest.raises(GalleryError, match="open the writer again"):
                act()
    assert scenario.answers_at(path) == before
    with GalleryWriter(path) as writer:
        with pytest.raises(TypeError):
            writer.set("a", object())
        with pytest.raises(GalleryError, match="open the writer again"):
            writer.commit()


def test_an_array_is_for_the_rows_it_was_saved_for(path: Path, scenario: ModuleType) -> None:
    arrays = {
        "f": np.arange(6, dtype=">f4").reshape(2, 3).T,
        "i": np.array([[1, 2]], np.int64),
        "b": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float16),
        "scalar": np.array(3.5),
    }
    with scenario.committing(path) as writer:
        for name, array in arrays.items():
            writer.put_array(name, array)
        with pytest.raises(ValueError, match="plain numbers"):
            writer.put_array("o", np.array([object()]))
        writer.put_array("i", np.array([[3, 4]], np.int64))
    arrays["i"] = np.array([[3, 4]], np.int64)
    with Gallery.open(path) as gallery:
        for name, array in arrays.items():
            found = gallery.array(name)
            np.testing.assert_array_equal(found, array)
            assert found.dtype == array.dtype
            assert found.shape == array.shape
            assert found.flags.writeable
    with Gallery.open(path) as before:
        with scenario.committing(path) as writer:
            writer.put_array("f", np.zeros(1))
            writer.append(*scenario.batch([300]))
            writer.put_array("i", np.ones(1))
        with Gallery.open(path) as gallery:
            assert gallery.array("f") is None
            assert gallery.array("b") is None
            assert gallery.array("i").tolist() == [1]
        assert before.array("b").tolist() == [True, False]


def test_an_intact_embedder_of_the_same_fingerprint_is_kept(
    path: Path, scenario: ModuleType
) -> None:
    def never(folder: Path) -> None:
        raise AssertionError("saved again")

    expected = scenario.answers_at(path)["embedder"]
    with scenario.committing(path) as writer:
        writer.reset(scenario.A, 8)
        writer.install_embedder(never)
    assert scenario.answers_at(path)["embedder"] == expected
    GalleryWriter(path).close()
    assert scenario.answers_at(path)["embedder"] == expected


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_a_rebuild_mends_a_damaged_embedder(path: Path, scenario: ModuleType, damage: str) -> None:
    expected = scenario.answers_at(path)["embedder"]
    file = path / "embedder" / ("a" * 16) / "config.json"
    file.unlink() if damage == "remove" else file.write_text('{"backbone": "NONE"}')
    with pytest.raises(GalleryDamaged, match=r"config.json.*mend it with"):
        Gallery.open(path)
    scenario.rebuild(path)
    assert scenario.answers_at(path)["embedder"] == expected


def test_another_embedder_comes_beside_the_old_until_the_next_writer(
    path: Path, scenario: ModuleType
) -> None:
    scenario.rebuild(path, scenario.B)
    folders = path / "embedder"
    assert sorted(f.name for f in folders.iterdir()) == ["a" * 16, "b" * 16]
    GalleryWriter(path).close()
    assert [f.name for f in folders.iterdir()] == ["b" * 16]


def test_a_failing_save_is_passed_on(path: Path, scenario: ModuleType) -> None:
    def full(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    GalleryWriter(path).close()  # sweeps what the array of the fixture replaced
    before, files = scenario.answers_at(path), sorted(path.rglob("*"))
    with GalleryWriter(path) as writer:
        writer.reset(scenario.B, 6)
        with pytest.raises(StorageError, match="no space left"):
            writer.install_embedder(full)
    assert scenario.answers_at(path) == before
    assert sorted(path.rglob("*")) == files


LEFT_BY_US = (
    "segments/000099.f16",
    "segments/.000098.f16.0123456789abcdef.part",
    "arrays/000097.bin",
    "embedder/.0123456789abcdef/deep/w",
    "embedder/fedcba9876543210/config.json",
)
OF_THE_USER = (
    "notes.txt",
    "segments/notes.txt",
    "segments/1.f16",
    "segments/000001.f16.txt",
    "segments/deep/000001.f16",
    "arrays/000001.f16",
    "arrays/000096.bin.part",
    "embedder/old/deep/w",
    "embedder/config.json",
    "embedder/fedcba9876543210x/w",
)


def write_all(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_the_sweep_takes_what_is_ours_and_nothing_else(path: Path, scenario: ModuleType) -> None:
    GalleryWriter(path).close()  # sweeps what the fixture's commits replaced
    before, files = scenario.answers_at(path), sorted(path.rglob("*"))
    write_all(path, LEFT_BY_US)
    GalleryWriter(path).close()
    assert sorted(path.rglob("*")) == files
    write_all(path, (*OF_THE_USER, "cache/f/x"))
    GalleryWriter(path, create=True).close()
    assert all((path / name).read_text() == "x" for name in (*OF_THE_USER, "cache/f/x"))
    assert scenario.answers_at(path) == before


@pytest.mark.parametrize("also", [(), (".lock",), LEFT_BY_US, ("cache/x",)])
@pytest.mark.parametrize(
    "name", [*OF_THE_USER, "catalog.db", "segments", "cache", "catalog.db-wal"]
)
def test_nothing_in_a_users_folder_is_touched(
    tmp_path: Path, name: str, also: tuple[str, ...]
) -> None:
    """Whatever else looks like ours there: the names are common ones."""
    if (name, also) == ("cache", ("cache/x",)):
        pytest.skip("a file and a folder of one name")
    write_all(tmp_path, (name, *(a for a in also if name not in Path(a).parts)))
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    with pytest.raises(UsageError, match=r"holds something else \(.*give the gallery a folder"):
        GalleryWriter(tmp_path, create=True)
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    write_all(tmp_path, ["segments/notes.txt"])
    with pytest.raises(UsageError, match=r"\(segments\)"):
        GalleryWriter(tmp_path, create=True)
    (tmp_path / ".lock").write_text("123\n")
    with pytest.raises(UsageError, match=r"\(segments/notes.txt\)"):
        GalleryWriter(tmp_path, create=True)


def test_a_link_to_files_of_another_gallery_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".lock").touch()
    (tmp_path / "new" / "segments").symlink_to(path / "segments")
    files = sorted(path.rglob("*"))
    with pytest.raises(UsageError, match=r"\(segments\)"):
        GalleryWriter(tmp_path / "new", create=True)
    assert sorted(path.rglob("*")) == files


def test_a_build_killed_before_its_first_commit_is_taken_up(
    path: Path, scenario: ModuleType
) -> None:
    expected = scenario.answers_at(path)["fingerprint"]
    write_all(path, LEFT_BY_US)
    (path / "catalog.db").unlink()
    scenario.rebuild(path)
    assert scenario.answers_at(path)["fingerprint"] == expected
    assert not any((path / name).exists() for name in LEFT_BY_US)


def test_the_second_writer_is_told_who_writes(path: Path, scenario: ModuleType) -> None:
    code = (
        "import sys; from lmk.index.gallery.writer import GalleryWriter\n"
        "with GalleryWriter(sys.argv[1]) as w: print('ready', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-P", "-c", code, path], stdin=-1, stdout=-1, text=True
    )
    with other:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(GalleryLocked, match=f"process {other.pid} is writing to it; wait"):
            GalleryWriter(path)
        assert scenario.answers_at(path)["fingerprint"] == scenario.A  # reading needs no lock
        other.kill()  # the kernel frees its lock
    with scenario.committing(path) as writer:
        with pytest.raises(GalleryLocked):
            GalleryWriter(path)
        writer.append(*scenario.batch([300]))


def test_a_writer_waits_for_another_as_long_as_it_is_told(path: Path, scenario: ModuleType) -> None:
    first = GalleryWriter(path)
    message = f"process {os.getpid()} is still writing to it after 0.2 s; wait"
    with pytest.raises(GalleryLocked, match=message):
        GalleryWriter(path, wait=0.2)
    timer = threading.Timer(0.2, first.close)
    timer.start()
    with scenario.committing(path, wait=60) as second:
        second.append(*scenario.batch([300]))
    timer.join()


def test_another_program_in_the_catalog_keeps_a_writer_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0)
    shell = sqlite3.connect(path / "catalog.db", isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(GalleryLocked, match=r"catalog.db: another process is writing"):
        GalleryWriter(path)
    shell.close()
    GalleryWriter(path).close()


def test_generation_and_file_names_never_come_back(path: Path, scenario: ModuleType) -> None:
    seen_generations, seen_files = [], set()
    for fingerprint in (scenario.A, scenario.B, scenario.A):
        scenario.rebuild(path, fingerprint)
        with Gallery.open(path) as gallery:
            seen_generations.append(gallery.generation)
            names = {f"segments/{name}" for name in segments_of(path)} - seen_files
        assert names
        seen_files |= names
    assert seen_generations == sorted(set(seen_generations))


def test_closing_twice_does_nothing(path: Path) -> None:
    writer = GalleryWriter(path)
    writer.close()
    writer.close()
    GalleryWriter(path).close()


def test_who_comes_while_the_first_build_runs(tmp_path: Path, scenario: ModuleType) -> None:
    path = tmp_path / "g.lmk"
    with GalleryWriter(path, create=True) as building:
        building.reset(scenario.A, 8)
        message = f"process {os.getpid()} is building it; wait"
        with pytest.raises(NotAGallery, match=message):
            Gallery.open(path)
        with pytest.raises(NotAGallery, match=message):
            verify(path)
        with pytest.raises(GalleryLocked, match=f"process {os.getpid()} is writing to it"):
            GalleryWriter(path)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(GalleryWriter, path, wait=60)
            building.append(*scenario.batch([1]))
            building.commit()
            building.close()
            with waiting.result() as writer:
                assert writer.append(*scenario.batch([2])) == 1


def test_a_build_that_was_given_up_is_not_named_as_running(tmp_path: Path) -> None:
    GalleryWriter(tmp_path / "g.lmk", create=True).close()
    with pytest.raises(NotAGallery, match="its build never finished"):
        GalleryWriter(tmp_path / "g.lmk", wait=5)
    (tmp_path / "g.lmk" / ".lock").unlink()
    with pytest.raises(NotAGallery, match="its build never finished"):
        GalleryWriter(tmp_path / "g.lmk")
    assert not (tmp_path / "g.lmk" / ".lock").exists()
