"""Sync: the gallery holds what the folder holds, and only what is new or changed is embedded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.errors import GalleryError, GalleryLocked, ManifestError, NotAGallery
from lmk.embed.extract import extract as extract_module
from lmk.embed.extract.embedder import Embedder
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.rerank.fit.saved import saved_pipeline
from lmk.rerank.fit.tables import BACKGROUND, PENALTY
from lmk.rerank.indexing import sync as sync_module
from lmk.rerank.indexing.build import add_pictures, build_index
from lmk.rerank.indexing.ingest import open_store
from lmk.rerank.indexing.sync import SyncReport, sync_index

Change = Callable[[Path], None]


def sync(
    folder: Path, *, bank: bool = True, dry_run: bool = False, allow: bool = True
) -> SyncReport:
    others = read_manifest(folder / "bank") if bank else None
    manifest = read_manifest(folder / "gallery")
    return sync_index(
        folder / "g.lmk", manifest, distractors=others, dry_run=dry_run, allow_removals=allow
    )


def counts(report: SyncReport) -> dict[str, int]:
    names = ("added", "changed", "moved", "relabelled", "removed", "unchanged", "computed")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def contents(path: Path) -> dict[str, object]:
    """What an index holds and answers from, by id."""
    with Gallery.open(path, verify=True) as gallery:
        rows = np.flatnonzero(gallery.alive)
        pictures = gallery.pictures(rows)
        vectors, penalty = gallery.vectors(rows), gallery.array(PENALTY)
        assert penalty is not None
        return {
            "pictures": {
                p.id: (p.labels, p.path, p.sha256, p.size, p.mtime_ns, bool(distractor))
                for p, distractor in zip(pictures, gallery.membership.distractor[rows], strict=True)
            },
            "vectors": {p.id: v.tobytes() for p, v in zip(pictures, vectors, strict=True)},
            "penalty": {p.id: float(penalty[r]) for p, r in zip(pictures, rows, strict=True)},
            "background": round(gallery.setting(BACKGROUND), 6),
            "threshold": round(saved_pipeline(gallery).threshold() or 0, 5),
            "skipped": dict(gallery.skipped()),
        }


def contents_count(path: Path) -> int:
    with Gallery.open(path) as gallery:
        return int(gallery.alive.sum())


def rebuilt(folder: Path, tiny: Embedder) -> dict[str, object]:
    """What a build of the same folders gives."""
    shutil.rmtree(folder / "new.lmk", ignore_errors=True)
    bank = read_manifest(folder / "bank")
    build_index(read_manifest(folder / "gallery"), folder / "new.lmk", tiny, distractors=bank)
    return contents(folder / "new.lmk")


def touch(path: Path, seconds: int = 10) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + seconds * 10**9))


def add(folder: Path) -> None:
    """A new landmark of 4 pictures; more.jpg is of place_0."""
    shutil.copytree(folder / "spare" / "place_50", folder / "gallery" / "place_50")
    shutil.copy(folder / "spare" / "place_0" / "7.jpg", folder / "gallery" / "place_0" / "more.jpg")


def change(folder: Path) -> None:
    shutil.copy(folder / "spare" / "place_50" / "0.jpg", folder / "gallery" / "place_1" / "2.jpg")
    shutil.copy(folder / "spare" / "place_50" / "1.jpg", folder / "bank" / "1003.jpg")


def remove(folder: Path) -> None:
    shutil.rmtree(folder / "gallery" / "place_2")
    (folder / "gallery" / "place_3" / "0.jpg").unlink()
    (folder / "bank" / "1005.jpg").unlink()


def rename(folder: Path) -> None:
    (folder / "gallery" / "place_4").rename(folder / "gallery" / "castle")
    (folder / "gallery" / "place_0" / "1.jpg").rename(folder / "gallery" / "place_3" / "moved.jpg")


def touch_some(folder: Path) -> None:
    for name in ("gallery/place_0/0.jpg", "gallery/place_1/1.jpg", "bank/1000.jpg"):
        touch(folder / name)


def spoil(folder: Path) -> None:
    (folder / "gallery" / "place_0" / "0.jpg").write_text("no picture any more")
    (folder / "gallery" / "notes.txt").touch()
    (folder / "bank" / "new.jpg").touch()


def everything(folder: Path) -> None:
    for one in (add, change, remove, rename, touch_some):
        one(folder)


CASES = [
    (add, {"added": 5, "unchanged": 28, "computed": 5}),
    (change, {"changed": 2, "unchanged": 26, "computed": 2}),
    (remove, {"removed": 6, "unchanged": 22}),
    (rename, {"moved": 5, "unchanged": 23}),
    (touch_some, {"unchanged": 28}),
    (everything, {"added": 5, "changed": 2, "moved": 5, "removed": 6, "unchanged": 15}),
]


class TestSync:
    @pytest.fixture(autouse=True)
    def spare(self, folder: Path, write_photos: Callable[..., Path]) -> None:
        """Pictures that a test may put into the folders."""
        write_photos(folder / "spare", landmarks=1, views=4, first=50)
        write_photos(folder / "spare", landmarks=1, views=8)

    @pytest.mark.parametrize(("act", "expected"), CASES)
    def test_equals_a_build(
        self, folder: Path, tiny: Embedder, act: Change, expected: dict[str, int]
    ) -> None:
        act(folder)
        before = contents(folder / "g.lmk")
        would = sync(folder, dry_run=True)
        assert contents(folder / "g.lmk") == before
        report = sync(folder)
        # A new picture of place_50 has the content of a changed one of place_1: both are kept.
        twins = 1 if act is everything else 0
        assert (len(report.conflicts), report.duplicates) == (twins, ())
        got = counts(report)
        if twins:  # computed once or twice, as their turns come
            assert got.pop("computed") in (5, 6)
        assert got == expected
        assert contents(folder / "g.lmk") == rebuilt(folder, tiny)
        planned = counts(would)
        assert planned == {name: n for name, n in expected.items() if name != "computed"}
        verbs = ("add", "change", "move", "relabel", "remove")
        listed = {verb: [id_ for v, id_ in would.would if v == verb] for verb in verbs}
        names = ("added", "changed", "moved", "relabelled", "removed")
        assert {name: len(listed[verb]) for verb, name in zip(verbs, names, strict=True)} == {
            name: planned.get(name, 0) for name in names
        }

    def test_again_reads_nothing(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        everything(folder)
        place = folder / "gallery" / "place_0"
        shutil.copy(place / "2.jpg", place / "copy.jpg")
        sync(folder)
        before = contents(folder / "g.lmk")
        read: list[Path] = []
        opened = extract_module.picture_bytes
        monkeypatch.setattr(
            extract_module, "picture_bytes", lambda path: (read.append(path), opened(path))[1]
        )
        report = sync(folder)
        # What has the content of another picture is not in the gallery, so it is looked at again.
        assert [path.name for path in read] == ["copy.jpg"] and len(report.duplicates) == 1
        assert counts(report) == {"unchanged": 27} and contents(folder / "g.lmk") == before

    def test_without_a_cache_nothing_known_is_computed(self, folder: Path, tiny: Embedder) -> None:
        rename(folder)
        touch_some(folder)
        shutil.rmtree(folder / "g.lmk" / "cache")
        assert counts(sync(folder)) == {"moved": 5, "unchanged": 23}
        assert contents(folder / "g.lmk") == rebuilt(folder, tiny)

    def test_the_bank_stays_unless_one_is_given(self, folder: Path) -> None:
        remove(folder)
        before = contents(folder / "g.lmk")["pictures"]
        report = sync(folder, bank=False)
        assert counts(report) == {"removed": 5, "unchanged": 15}
        after = contents(folder / "g.lmk")["pictures"]
        assert set(before) - set(after) == {  # type: ignore[call-overload]
            *(f"place_2/{view}.jpg" for view in range(4)),
            "place_3/0.jpg",
        }
        spoil(folder)
        assert counts(sync(folder)) == {"removed": 1, "unchanged": 22}
        spoiled = contents(folder / "g.lmk")["skipped"]
        assert counts(sync(folder, bank=False)) == {"unchanged": 15}
        assert contents(folder / "g.lmk")["skipped"] == spoiled

    def test_labels_of_a_table(self, folder: Path, tiny: Embedder) -> None:
        def table(labels: dict[str, str]) -> Manifest:
            rows = read_manifest(folder / "gallery").rows
            return Manifest(
                folder / "gallery",
                tuple(Row(r.id, r.path, (labels.get(r.id, r.labels[0]),)) for r in rows),
            )

        changed = table({"place_0/1.jpg": "castle", "place_2/3.jpg": "tower"})
        touch(folder / "gallery" / "place_2" / "3.jpg")
        would = sync_index(folder / "g.lmk", changed, dry_run=True)
        assert sorted(would.would) == [("relabel", "place_0/1.jpg"), ("relabel", "place_2/3.jpg")]
        report = sync_index(folder / "g.lmk", changed)
        assert counts(report) == {"relabelled": 2, "unchanged": 18}
        bank = read_manifest(folder / "bank")
        build_index(changed, folder / "new.lmk", tiny, distractors=bank)
        assert contents(folder / "g.lmk") == contents(folder / "new.lmk")

    def test_every_landmark_is_renamed_in_a_table(self, folder: Path) -> None:
        rows = read_manifest(folder / "gallery").rows
        renamed = tuple(Row(r.id, r.path, (f"new_{r.labels[0]}",)) for r in rows)
        manifest = Manifest(folder / "gallery", renamed)
        for dry_run in (True, False):
            report = sync_index(folder / "g.lmk", manifest, dry_run=dry_run)
            assert counts(report) == {"relabelled": 20}
        with Gallery.open(folder / "g.lmk") as gallery:
            assert all(name.startswith("new_") for name in gallery.label_names)

    def test_a_moved_folder(self, folder: Path, tiny: Embedder) -> None:
        """The same ids and stamps below another root: read, and not computed."""
        (folder / "gallery").rename(folder / "elsewhere")
        manifest = read_manifest(folder / "elsewhere")
        report = sync_index(folder / "g.lmk", manifest)
        assert counts(report) == {"moved": 20}
        with Gallery.open(folder / "g.lmk") as gallery:
            picture = gallery.pictures(gallery.role_rows("gallery")[:1])[0]
            assert gallery.file(picture).is_file()

    def test_no_picture_is_tried_again_when_it_changes(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bad = folder / "gallery" / "place_0" / "bad.jpg"
        bad.write_text("words")
        assert len(sync(folder).skipped) == 1
        read: list[Path] = []
        opened = extract_module.picture_bytes
        monkeypatch.setattr(
            extract_module, "picture_bytes", lambda path: (read.append(path), opened(path))[1]
        )
        report = sync(folder)
        assert read == [] and [skip.path for skip in report.skipped] == ["place_0/bad.jpg"]
        touch(bad)
        assert len(sync(folder).skipped) == 1 and read == [bad]
        shutil.copy(folder / "spare" / "place_50" / "0.jpg", bad)
        report = sync(folder)
        assert counts(report) == {"added": 1, "unchanged": 28, "computed": 1}
        assert report.skipped == () and contents(folder / "g.lmk")["skipped"] == {}

    def test_a_dry_run_counts_damaged_pictures_and_taken_labels_as_the_sync(
        self, folder: Path
    ) -> None:
        (folder / "gallery" / "place_0" / "1.jpg").write_bytes(b"damaged")
        rows = read_manifest(folder / "gallery").rows
        plain = tuple(replace(r, labels=() if r.id == "place_1/1.jpg" else r.labels) for r in rows)
        sync_index(folder / "g.lmk", Manifest(folder / "gallery", plain))
        (folder / "gallery" / "place_0" / "2.jpg").write_bytes(b"damaged too")
        shutil.copy(folder / "gallery/place_1/1.jpg", folder / "gallery/place_2/copy.jpg")
        copy = Row("place_2/copy.jpg", "place_2/copy.jpg", ("place_2",))
        manifest = Manifest(folder / "gallery", (*plain, copy))
        would = sync_index(folder / "g.lmk", manifest, dry_run=True)
        report = sync_index(folder / "g.lmk", manifest)
        assert would.would == (("relabel", "place_2/copy.jpg"),)
        assert counts(would) == counts(report)
        assert counts(report)["relabelled"] == 1 and would.kept == report.kept
        assert would.skipped == report.skipped and len(report.skipped) == 2

    def test_a_file_that_cannot_be_opened_keeps_its_row(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed = [folder / "gallery" / "place_0" / "0.jpg", folder / "bank" / "1001.jpg"]
        for path in closed:
            touch(path)
        real = os.open

        def refuse(path: object, *args: int, **options: object) -> int:
            if path in map(str, closed):
                raise PermissionError(13, "Permission denied")
            return real(path, *args, **options)

        monkeypatch.setattr(os, "open", refuse)
        report = sync(folder)
        assert counts(report) == {"unchanged": 28}
        assert [skip.reason for skip in report.skipped] == ["cannot be read: permission denied"] * 2
        monkeypatch.undo()
        assert counts(sync(folder)) == {"unchanged": 28} and not sync(folder).skipped

    @pytest.mark.parametrize("dry_run", [True, False])
    def test_a_drive_that_is_not_there(self, folder: Path, dry_run: bool) -> None:
        manifest = read_manifest(folder / "gallery")
        before = contents(folder / "g.lmk")
        shutil.rmtree(folder / "gallery")
        with pytest.raises(ManifestError, match=r"none of its 20 pictures.*no such file"):
            sync_index(folder / "g.lmk", manifest, dry_run=dry_run)
        with pytest.raises(ManifestError, match="none of its 0 pictures"):
            sync_index(folder / "g.lmk", Manifest(folder, ()), dry_run=dry_run)
        assert contents(folder / "g.lmk") == before

    def test_a_picture_of_a_table_that_is_gone(self, folder: Path) -> None:
        manifest = read_manifest(folder / "gallery")
        (folder / "gallery" / "place_0" / "0.jpg").unlink()
        report = sync_index(folder / "g.lmk", manifest)
        assert counts(report) == {"removed": 1, "unchanged": 19}
        assert [(skip.path, skip.reason) for skip in report.skipped] == [
            ("place_0/0.jpg", "no such file")
        ]

    def test_copies_are_kept_where_the_build_kept_them(self, folder: Path, tiny: Embedder) -> None:
        place = folder / "gallery" / "place_0"
        shutil.copy(place / "0.jpg", place / "copy.jpg")
        assert sync(folder).duplicates == (("place_0/copy.jpg", "place_0/0.jpg"),)
        manifest = read_manifest(folder / "gallery")
        build_index(manifest, folder / "g.lmk", tiny, duplicates=True)
        touch(place / "copy.jpg")
        shutil.copy(place / "0.jpg", place / "copy2.jpg")
        place.rename(folder / "gallery" / "castle")
        report = sync_index(folder / "g.lmk", read_manifest(folder / "gallery"))
        assert counts(report) == {"added": 1, "moved": 5, "unchanged": 16}
        assert report.duplicates == ()

    def test_copies_are_kept_where_an_add_took_them(self, folder: Path) -> None:
        place = folder / "gallery" / "place_0"
        shutil.copy(place / "0.jpg", place / "copy.jpg")
        manifest = read_manifest(folder / "gallery")
        assert add_pictures(folder / "g.lmk", manifest, duplicates=True).added == 1
        shutil.copy(place / "0.jpg", place / "copy2.jpg")
        assert counts(sync(folder)) == {"added": 1, "unchanged": 29}

    def test_one_part_of_several(self, folder: Path, tiny: Embedder) -> None:
        manifest, bank = read_manifest(folder / "gallery"), read_manifest(folder / "bank")
        reports = []
        for number in (1, 2, 3):
            path = folder / f"{number}.lmk"
            build_index(manifest, path, tiny, distractors=bank, shard=(number, 3))
            reports.append(sync_index(path, manifest, distractors=bank))
        assert [counts(report).keys() for report in reports] == [{"unchanged"}] * 3
        assert sum(report.unchanged for report in reports) == 28

    def test_a_part_without_a_picture(self, folder: Path, tiny: Embedder) -> None:
        manifest = read_manifest(folder / "gallery")
        few = Manifest(manifest.root, manifest.rows[:1])
        paths = [folder / f"{number}.lmk" for number in (1, 2)]
        for number, path in enumerate(paths, 1):
            build_index(few, path, tiny, shard=(number, 2))
        reports = [sync_index(path, few, dry_run=dry) for path in paths for dry in (True, False)]
        assert sorted(report.unchanged for report in reports) == [0, 0, 1, 1]
        full, empty = sorted(paths, key=lambda path: -contents_count(path))
        assert (contents_count(full), contents_count(empty)) == (1, 0)
        with pytest.raises(ManifestError, match="none of its 0 pictures"):
            sync_index(full, Manifest(manifest.root, ()))

    @pytest.mark.parametrize("kept", [False, True])
    def test_a_copy_that_is_left_out_changes_nothing(
        self, folder: Path, tiny: Embedder, monkeypatch: pytest.MonkeyPatch, kept: bool
    ) -> None:
        place = folder / "gallery" / "place_0"
        if kept:
            build_index(read_manifest(folder / "gallery"), folder / "g.lmk", tiny, duplicates=True)
        shutil.copy(place / "0.jpg", place / "copy.jpg")
        (place / "1.jpg").rename(place / "moved.jpg")
        shutil.copy(place / "moved.jpg", place / "twin.jpg")
        would = sync(folder, bank=False, dry_run=True)
        report = sync(folder, bank=False)
        for field in ("added", "moved", "removed", "unchanged"):
            assert getattr(would, field) == getattr(report, field), field
        # The content of 1.jpg is in two new files: the first by name takes its place.
        assert report.added == (2 if kept else 0)
        assert len(report.duplicates) == (0 if kept else 2)
        learnt: list[bool] = []
        real = sync_module.fit_change

        def fit_change(*args: object, **options: object) -> object:
            learnt.append(bool(options["changed"]))
            return real(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(sync_module, "fit_change", fit_change)
        assert sync(folder, bank=False, dry_run=True).would == ()
        assert counts(sync(folder, bank=False)) == counts(sync(folder, bank=False, dry_run=True))
        assert learnt == [False]

    def test_ids_of_the_bank_and_the_gallery_do_not_mix(self, folder: Path) -> None:
        rows = (Row("distractor:1000", "place_0/0.jpg", ("a",)), Row("b", "place_0/1.jpg", ("a",)))
        before = contents(folder / "g.lmk")
        with pytest.raises(GalleryError, match="another picture has this id"):
            sync_index(folder / "g.lmk", Manifest(folder / "gallery", rows), allow_removals=True)
        assert contents(folder / "g.lmk") == before

    def test_features_of_pictures_that_are_gone_are_dropped(
        self, folder: Path, tiny: Embedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sync_module, "_SOME_UNUSED", 0)
        monkeypatch.setattr(sync_module, "_MOST_UNUSED", 1.3)
        real = sync_module.prune_features

        def prune(path: Path, gallery: Gallery) -> int:
            with pytest.raises(GalleryLocked):  # nobody else keeps features meanwhile
                GalleryWriter(path)
            return real(path, gallery)

        monkeypatch.setattr(sync_module, "prune_features", prune)
        remove(folder)
        sync(folder)
        assert len(open_store(folder / "g.lmk", tiny)) == 28  # 1.27 times the pictures
        (folder / "bank" / "1006.jpg").unlink()
        sync(folder)
        assert len(open_store(folder / "g.lmk", tiny)) == 28  # 75 % of its shard is used
        shutil.rmtree(folder / "gallery" / "place_3")
        shutil.rmtree(folder / "gallery" / "place_4")
        (folder / "bank" / "1007.jpg").unlink()
        sync(folder)
        assert len(open_store(folder / "g.lmk", tiny)) == 16  # 8 of 20, and a shard of 8

    def test_who_writes(self, folder: Path) -> None:
        manifest = read_manifest(folder / "gallery")
        with GalleryWriter(folder / "g.lmk"):
            with pytest.raises(GalleryLocked):
                sync_index(folder / "g.lmk", manifest)
            assert sync_index(folder / "g.lmk", manifest, dry_run=True).unchanged == 20
        with pytest.raises(NotAGallery):
            sync_index(folder / "none.lmk", manifest)

    def test_progress(self, folder: Path) -> None:
        add(folder)
        told: list[tuple[str, int, int]] = []
        manifest = read_manifest(folder / "gallery")
        sync_index(folder / "g.lmk", manifest, on_progress=lambda *step: told.append(step))
        assert ("comparing", 25, 25) in told and ("pictures", 5, 5) in told
        assert told[-1] == ("penalty and threshold", 1, 1)
        told.clear()
        sync_index(
            folder / "g.lmk", manifest, dry_run=True, on_progress=lambda *step: told.append(step)
        )
        assert told[-1] == ("comparing", 25, 25)
