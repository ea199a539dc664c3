"""A sync removes nothing because it could not look, and asks before it removes much."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.errors import GalleryError
from lmk.embed.extract.embedder import Embedder
from lmk.index.gallery.gallery import Gallery
from lmk.rerank.indexing.build import build_index
from lmk.rerank.indexing.removals import UnseenPictures
from lmk.rerank.indexing.sync import SyncReport, sync_index

Change = Callable[[Path], None]


def sync(folder: Path, **options: bool) -> SyncReport:
    return sync_index(folder / "g.lmk", read_manifest(folder / "gallery"), **options)


def held(folder: Path) -> dict[str, str]:
    """Content of each picture and distractor by id."""
    with Gallery.open(folder / "g.lmk", verify=True) as gallery:
        pictures = gallery.pictures(np.flatnonzero(gallery.alive))
        return {picture.id: picture.sha256 for picture in pictures}


def away(place: Path) -> None:
    """The place is a link to a drive that is not mounted."""
    shutil.rmtree(place)
    place.symlink_to("/mnt/nowhere/place")


def unmounted(place: Path) -> None:
    shutil.rmtree(place)
    place.mkdir()
    (place / ".DS_Store").touch()


def file_instead(place: Path) -> None:
    shutil.rmtree(place)
    place.write_text("was a folder")


def other_encoding(place: Path) -> None:
    """The place was called plaçe_2 where its name is not UTF-8 now."""
    shutil.rmtree(place)
    (place.parent / os.fsdecode(b"pla\xe7e_2")).mkdir()


def links(place: Path) -> None:
    for file in place.glob("*.jpg"):
        file.unlink()
        file.symlink_to(f"/mnt/nowhere/{file.name}")


def emptied(place: Path) -> None:
    for file in place.glob("*.jpg"):
        file.write_bytes(b"")


def garbage(place: Path) -> None:
    for file in place.glob("*.jpg"):
        file.write_bytes(b"\xff\xd8 no picture any more")


def folders(place: Path) -> None:
    for file in place.glob("*.jpg"):
        file.unlink()
        file.mkdir()


@pytest.mark.parametrize("bad", [away, unmounted, file_instead, links, emptied, garbage, folders])
def test_what_cannot_be_looked_at_stays(folder: Path, bad: Change) -> None:
    before = held(folder)
    bad(folder / "gallery" / "place_2")
    (folder / "gallery" / "place_0" / "0.jpg").unlink()  # this one is gone
    for allow in (False, True):  # the option does not lift it
        report = sync(folder, allow_removals=allow)
        assert report.removed == (0 if allow else 1)
        assert sum(kept.pictures for kept in report.kept) == 4
        assert all(kept.path.startswith("place_2") and kept.reason for kept in report.kept)
        after = held(folder)
        assert set(before) - set(after) == {"place_0/0.jpg"}
        assert all(after[id_] == before[id_] for id_ in after)


@pytest.mark.parametrize("number", [13, 5])  # EACCES, EIO
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_folder_that_cannot_be_listed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, dry_run: bool
) -> None:
    scandir = os.scandir

    def fail(path: object = ".") -> object:
        if Path(str(path)) == folder / "gallery" / "place_2":
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)  # type: ignore[call-overload]

    before = held(folder)
    monkeypatch.setattr(os, "scandir", fail)
    report = sync(folder, dry_run=dry_run)
    reason = f"cannot be read: {os.strerror(number).lower()}"
    assert report.kept == (UnseenPictures("place_2", reason, 4),)
    assert (report.removed, report.unchanged, report.asks) == (0, 20, False)
    assert held(folder) == before


def test_a_name_that_became_another_encoding(folder: Path, tiny: Embedder) -> None:
    (folder / "gallery" / "place_2").rename(folder / "gallery" / "plaçe_2")
    assert sync(folder).moved == 4
    before = held(folder)
    other_encoding(folder / "gallery" / "plaçe_2")
    report = sync(folder)
    assert (report.removed, [kept.pictures for kept in report.kept]) == (0, [4])
    assert held(folder) == before


def test_a_picture_that_cannot_be_read_is_tried_again_when_it_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmk.embed.extract import extract

    file = folder / "gallery" / "place_2" / "1.jpg"
    whole = file.read_bytes()
    file.write_bytes(b"")
    reason = "empty file (0 bytes)"
    assert sync(folder).kept == (UnseenPictures("place_2/1.jpg", reason, 1),)
    read: list[Path] = []
    opened = extract.picture_bytes
    monkeypatch.setattr(extract, "picture_bytes", lambda path: (read.append(path), opened(path))[1])
    report = sync(folder)
    assert read == [] and report.kept == (UnseenPictures("place_2/1.jpg", reason, 1),)
    assert [(skip.path, skip.reason) for skip in report.skipped] == [("place_2/1.jpg", reason)]
    file.write_bytes(whole)
    report = sync(folder)
    assert (report.kept, report.skipped, report.unchanged) == ((), (), 20)
    assert report.changed == report.removed == 0


def test_distractors_that_cannot_be_looked_at_stay(folder: Path) -> None:
    before = held(folder)
    bank = folder / "bank"
    for name in ("1000.jpg", "1001.jpg"):
        (bank / name).unlink()
        (bank / name).symlink_to("/mnt/nowhere/x.jpg")
    gallery = read_manifest(folder / "gallery")
    report = sync_index(folder / "g.lmk", gallery, distractors=read_manifest(bank))
    assert [(kept.path, kept.pictures) for kept in report.kept] == [
        ("1000.jpg", 1),
        ("1001.jpg", 1),
    ]
    assert held(folder) == before


class TestTable:
    """In a table only the rows say what should be there; the disk says whether it can be read."""

    @staticmethod
    def table(folder: Path) -> Manifest:
        rows = read_manifest(folder / "gallery").rows
        return Manifest(folder, tuple(Row(r.id, f"gallery/{r.path}", r.labels) for r in rows))

    @pytest.mark.parametrize("bad", [away, unmounted, file_instead, links, emptied])
    def test_rows_whose_files_are_away_stay(self, folder: Path, bad: Change) -> None:
        table = self.table(folder)
        sync_index(folder / "g.lmk", table)
        before = held(folder)
        bad(folder / "gallery" / "place_2")
        report = sync_index(folder / "g.lmk", table)
        assert (report.removed, sum(kept.pictures for kept in report.kept)) == (0, 4)
        assert held(folder) == before

    def test_rows_whose_files_are_gone_go(self, folder: Path) -> None:
        table = self.table(folder)
        sync_index(folder / "g.lmk", table)
        shutil.rmtree(folder / "gallery" / "place_2")
        with pytest.raises(GalleryError, match=r"4 of its 20 pictures.*landmark place_2;"):
            sync_index(folder / "g.lmk", table)
        assert sync_index(folder / "g.lmk", table, allow_removals=True).removed == 4


class TestMuchIsRemoved:
    @pytest.mark.parametrize("distractors", [False, True])
    def test_it_stops_before_it_changes_anything(self, folder: Path, distractors: bool) -> None:
        before = held(folder)
        if distractors:
            for name in ("1000", "1003"):
                (folder / "bank" / f"{name}.jpg").unlink()
        else:
            shutil.rmtree(folder / "gallery" / "place_2")
        gallery, bank = read_manifest(folder / "gallery"), read_manifest(folder / "bank")
        says = "2 of its 8 distractors" if distractors else "4 of its 20 pictures, among them all"
        with pytest.raises(GalleryError, match=says) as caught:
            sync_index(folder / "g.lmk", gallery, distractors=bank)
        assert caught.value.exit_code == 1
        assert "--allow-removals" in str(caught.value) and "\n" not in str(caught.value)
        assert held(folder) == before
        would = sync_index(folder / "g.lmk", gallery, distractors=bank, dry_run=True)
        assert would.asks and would.removed == (2 if distractors else 4)
        assert would.vanishing == (() if distractors else ("place_2",))
        done = sync_index(folder / "g.lmk", gallery, distractors=bank, allow_removals=True)
        assert (done.removed, done.asks, done.vanishing) == (would.removed, False, would.vanishing)
        assert len(held(folder)) == 28 - done.removed

    def test_a_fifth_goes_without_a_question(self, folder: Path) -> None:
        for place in range(4):
            (folder / "gallery" / f"place_{place}" / "0.jpg").unlink()
        assert sync(folder).removed == 4
        for place in range(4):
            (folder / "gallery" / f"place_{place}" / "1.jpg").unlink()
        with pytest.raises(GalleryError, match="would lose 4 of its 16 pictures; nothing"):
            sync(folder)

    def test_a_landmark_with_other_pictures_does_not_vanish(self, folder: Path) -> None:
        """All of its pictures were saved again under other names."""
        place = folder / "gallery" / "place_2"
        for file in sorted(place.glob("*.jpg")):
            file.rename(file.with_name(f"new-{file.name}"))
        for file in sorted(place.glob("*.jpg")):
            file.write_bytes(file.read_bytes() + b"\0")
        report = sync(folder)
        assert (report.added, report.removed, report.vanishing) == (4, 4, ())

    def test_a_landmark_with_another_name_does_not_vanish(self, folder: Path) -> None:
        (folder / "gallery" / "place_2").rename(folder / "gallery" / "castle")
        report = sync(folder)
        assert (report.moved, report.removed, report.vanishing) == (4, 0, ())

    @pytest.mark.parametrize("level", ["above", "below"])
    def test_a_folder_of_the_wrong_level(self, folder: Path, level: str) -> None:
        """All landmarks would become one, `gallery`, or none; no picture would be removed."""
        before = held(folder)
        source = folder / "wrap"
        if level == "above":
            source.mkdir()
            (folder / "gallery").rename(source / "gallery")
        else:
            source.mkdir()
            for file in sorted((folder / "gallery").rglob("*.jpg")):
                shutil.copy2(file, source / f"{file.parent.name}-{file.name}")
        manifest = read_manifest(source)
        says = (
            r"0 of its 20 pictures and each of its landmarks place_0, place_1, place_2 and 2 more"
        )
        with pytest.raises(GalleryError, match=says):
            sync_index(folder / "g.lmk", manifest)
        assert held(folder) == before
        would = sync_index(folder / "g.lmk", manifest, dry_run=True)
        assert would.asks and len(would.vanishing) == 5
        assert sync_index(folder / "g.lmk", manifest, allow_removals=True).moved == 20

    def test_a_landmark_of_other_parts_does_not_vanish(self, folder: Path, tiny: Embedder) -> None:
        gallery = read_manifest(folder / "gallery")
        path = folder / "part.lmk"
        build_index(gallery, path, tiny, shard=(1, 3))
        with Gallery.open(path) as part:
            rows = part.pictures(np.flatnonzero(part.alive))
        lost = next(
            own for label in ("place_0", "place_1", "place_2", "place_3", "place_4")
            if 0 < len(own := [row for row in rows if row.labels == (label,)]) < 4
        )  # fmt: skip
        for row in lost:
            (folder / "gallery" / row.path).unlink()
        would = sync_index(path, read_manifest(folder / "gallery"), dry_run=True)
        assert (would.removed, would.vanishing) == (len(lost), ())


class TestRebuild:
    """An index that is built anew loses nothing because the build could not look."""

    @pytest.mark.parametrize("bad", [away, unmounted, file_instead, links, emptied, garbage])
    def test_it_stops_when_a_landmark_cannot_be_looked_at(
        self, folder: Path, tiny: Embedder, bad: Change
    ) -> None:
        before = held(folder)
        bad(folder / "gallery" / "place_2")
        gallery = read_manifest(folder / "gallery")
        with pytest.raises(GalleryError, match=r"all of the landmark place_2, which could") as told:
            build_index(gallery, folder / "g.lmk", tiny)
        assert told.value.exit_code == 1 and "place_2" in str(told.value).split("(")[1]
        assert "--allow-removals" in str(told.value)
        assert held(folder) == before
        report = build_index(gallery, folder / "g.lmk", tiny, allow_removals=True)
        assert report.pictures == 16 == len(held(folder))

    def test_little_is_left_out_as_ever(self, folder: Path, tiny: Embedder) -> None:
        (folder / "gallery" / "place_2" / "0.jpg").write_bytes(b"")
        report = build_index(read_manifest(folder / "gallery"), folder / "g.lmk", tiny)
        assert report.pictures == 19 and len(report.skipped) == 1

    def test_what_was_removed_goes(self, folder: Path, tiny: Embedder) -> None:
        shutil.rmtree(folder / "gallery" / "place_2")
        (folder / "gallery" / "notes.txt").touch()
        assert build_index(read_manifest(folder / "gallery"), folder / "g.lmk", tiny).pictures == 16

    def test_distractors(self, folder: Path, tiny: Embedder) -> None:
        for name in ("1000", "1001"):
            (folder / "bank" / f"{name}.jpg").write_bytes(b"")
        gallery, bank = read_manifest(folder / "gallery"), read_manifest(folder / "bank")
        with pytest.raises(GalleryError, match="2 of its 8 distractors, which could not"):
            build_index(gallery, folder / "g.lmk", tiny, distractors=bank)
