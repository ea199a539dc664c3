"""Relabelling: the index is as if built with these labels, and a stopped run changes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from lmk.embed.data.manifest import Manifest, read_manifest
from lmk.embed.errors import GalleryError, GalleryLocked, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.index.catalog.catalog import Catalog
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify
from lmk.index.gallery.writer import GalleryWriter
from lmk.rerank.fit.saved import saved_pipeline
from lmk.rerank.fit.tables import BACKGROUND, PENALTY
from lmk.rerank.indexing.build import add_pictures, build_index, compact_index
from lmk.rerank.indexing.relabel import relabel_pictures, remove_label, rename_label
from lmk.rerank.tags.thresholds import VOTES_SETTING, TagThreshold, TagThresholds, saved_thresholds

# place_0 becomes a part of place_1, and one picture of place_2 shows nothing.
OTHERS = {f"place_0/{view}.jpg": ("place_1",) for view in range(4)} | {"place_2/0.jpg": ()}


def contents(path: Path) -> dict[str, object]:
    """The labels and learnt values of an index, by id."""
    with Gallery.open(path, verify=True) as gallery:
        rows = np.flatnonzero(gallery.alive)
        pictures, penalty = gallery.pictures(rows), gallery.array(PENALTY)
        calibration = gallery.setting("calibration")
        assert penalty is not None
        return {
            "pictures": {p.id: replace(p, root="") for p in pictures},
            "vectors": {
                p.id: v.tobytes() for p, v in zip(pictures, gallery.vectors(rows), strict=True)
            },
            "penalty": {
                p.id: round(float(penalty[r]), 5) for p, r in zip(pictures, rows, strict=True)
            },
            "background": round(gallery.setting(BACKGROUND), 5),
            "threshold": round(saved_pipeline(gallery).threshold() or 0, 5),
            "confidence": np.round((calibration or {}).get("confidence", []), 5).tolist(),
        }


def with_labels(manifest: Manifest, labels: dict[str, tuple[str, ...]]) -> Manifest:
    rows = tuple(replace(row, labels=labels.get(row.id, row.labels)) for row in manifest.rows)
    return replace(manifest, rows=rows)


def test_equals_a_build_with_these_labels(
    index: Path, tmp_path: Path, photos: Path, tiny: Embedder, learnt: str
) -> None:
    before = contents(index)
    report = relabel_pictures(index, OTHERS | {"place_3/0.jpg": ("place_3",)})
    assert (report.relabelled, report.unchanged, report.emptied) == (5, 1, ("place_0",))
    manifest = with_labels(read_manifest(photos / "gallery"), OTHERS)
    bank = read_manifest(photos / "bank")
    build_index(manifest, tmp_path / "new.lmk", tiny, distractors=bank)
    expected = contents(tmp_path / "new.lmk")
    assert contents(index) == expected != before
    assert expected["confidence"] != before["confidence"]  # of its own pictures, by landmark
    assert report.threshold == pytest.approx(expected["threshold"], abs=1e-5)
    compact_index(index)
    assert contents(index) == expected
    assert not verify(index)


def test_a_renamed_and_joined_label_equals_a_build(
    index: Path, tmp_path: Path, photos: Path, tiny: Embedder, learnt: str
) -> None:
    report = rename_label(index, "place_0", "place_1")
    assert (report.renamed, report.merged_into, report.again) == (4, 4, False)
    labels = {name: own for name, own in OTHERS.items() if own}
    manifest = with_labels(read_manifest(photos / "gallery"), labels)
    bank = read_manifest(photos / "bank")
    build_index(manifest, tmp_path / "new.lmk", tiny, distractors=bank)
    assert contents(index) == contents(tmp_path / "new.lmk")


def test_an_add_that_brings_only_a_label_learns_from_it(
    index: Path, tmp_path: Path, photos: Path, tiny: Embedder
) -> None:
    manifest = read_manifest(photos / "gallery")
    labels = {name: own for name, own in OTHERS.items() if own}
    report = add_pictures(index, with_labels(manifest, labels))
    assert (report.added, len(report.relabelled), report.unchanged) == (0, 4, 16)
    bank = read_manifest(photos / "bank")
    build_index(with_labels(manifest, labels), tmp_path / "new.lmk", tiny, distractors=bank)
    assert contents(index) == contents(tmp_path / "new.lmk")
    unlabelled = with_labels(manifest, {row.id: () for row in manifest.rows})
    report = add_pictures(index, unlabelled)  # that takes no label away
    assert (report.added, report.relabelled, report.unchanged) == (0, (), 20)


@contextmanager
def stopped(step: int) -> Iterator[list[int]]:
    """Ctrl-C at one of the calls to SQLite and of the syncs of files, counted from 1."""
    taken = [0]

    def watched(real: object) -> object:
        def call(*args: object, **options: object) -> object:
            taken[0] += 1
            if taken[0] == step:
                raise KeyboardInterrupt
            return real(*args, **options)  # type: ignore[operator]

        return call

    with (
        mock.patch.object(Catalog, "all", watched(Catalog.all)),
        mock.patch.object(Catalog, "many", watched(Catalog.many)),
        mock.patch("os.fsync", watched(os.fsync)),
    ):
        yield taken


@pytest.mark.parametrize("command", ["relabel", "rename", "remove"])
def test_stopped_anywhere_it_is_old_or_new_and_the_same_command_goes_on(
    built: Path, tmp_path: Path, command: str
) -> None:
    def act(path: Path) -> None:
        if command == "relabel":
            relabel_pictures(path, OTHERS)
        elif command == "rename":
            rename_label(path, "place_0", "place_1")
        else:
            remove_label(path, "place_0")

    done = Path(shutil.copytree(built, tmp_path / "done.lmk"))
    with stopped(0) as taken:
        act(done)
    old, new = contents(built), contents(done)
    assert old != new
    outcomes = []
    steps = {*range(3, taken[0], max(taken[0] // 6, 1)), *range(taken[0] - 2, taken[0] + 1)}
    for step in sorted(steps):
        path = Path(shutil.copytree(built, tmp_path / f"{step}.lmk"))
        with stopped(step), pytest.raises(KeyboardInterrupt):
            act(path)
        outcomes.append(contents(path))
        assert outcomes[-1] in (old, new) and not verify(path)
        act(path)
        assert contents(path) == new, step
    assert old in outcomes and new in outcomes


def test_thresholds_of_tags_follow_a_rename(index: Path) -> None:
    one, other = TagThreshold(value=0.2, pictures=0), TagThreshold(value=0.3, pictures=0)
    parents = {"place_0": ("place_2",), "place_3": ("place_0", "place_1")}
    saved = TagThresholds(tags={"place_0": one, "place_1": other}, parents=parents)

    def renamed(new: str) -> TagThresholds:
        with GalleryWriter(index) as writer:
            writer.set(VOTES_SETTING, saved.model_dump(mode="json"))
            writer.commit()
        rename_label(index, "place_0", new)
        with Gallery.open(index) as gallery:
            found = saved_thresholds(gallery, VOTES_SETTING)
        assert found is not None
        return found

    found = renamed("arch")
    assert found.tags == {"arch": one, "place_1": other}
    assert found.parents == {"arch": ("place_2",), "place_3": ("arch", "place_1")}
    rename_label(index, "arch", "place_0")
    found = renamed("place_1")
    assert found.tags == {"place_1": other}
    assert found.parents == {"place_1": ("place_2",), "place_3": ("place_1",)}
    circle = TagThresholds(parents={"a": ("b",), "b": ("c",)})
    with pytest.raises(UsageError, match="follow from itself"):
        circle.with_tag_renamed("c", "a")


def test_a_second_writer_and_an_unknown_id(index: Path) -> None:
    before = contents(index)
    with GalleryWriter(index), pytest.raises(GalleryLocked):
        relabel_pictures(index, OTHERS)
    with pytest.raises(GalleryError, match="no picture of the gallery has this id"):
        relabel_pictures(index, OTHERS | {"x": ("y",)})
    for labels in ((" ",), ("a b",), ("",)):
        with pytest.raises(UsageError, match="blank"):
            relabel_pictures(index, {"place_0/0.jpg": labels})
    assert contents(index) == before
