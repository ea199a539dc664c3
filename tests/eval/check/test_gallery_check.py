"""The vectors are made by hand here; tests/cli/data/test_check.py runs a network."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest, Row
from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.extract.extract import Extracted, Extraction
from lmk.eval.check import gallery_check
from lmk.eval.check.gallery_check import (
    KINDS,
    DataFinding,
    GalleryCheck,
    check_gallery,
    k_occurrence,
    least_cosine,
    skewness,
)


class Gallery:
    """Pictures written one by one, each with its labels and vector."""

    def __init__(self, folder: Path, render) -> None:
        self.folder, self.render = folder, render
        self.rows: list[Row] = []
        self.vectors: list[np.ndarray] = []
        self.skipped: list[Skipped] = []

    def add(self, name: str, labels: str, vector, image: Image.Image | None = None, **save) -> None:
        seed = 100 + len(self.rows)
        image = image or Image.fromarray(self.render(seed, width=200, height=150))
        image.save(self.folder / f"{name}.jpg", **save)
        self.rows.append(Row(name, f"{name}.jpg", tuple(labels.split())))
        self.vectors.append(np.asarray(vector, np.float32))

    def check(self, **options) -> GalleryCheck:
        unread = [Row(skip.path, skip.path) for skip in self.skipped]
        manifest = Manifest(self.folder, (*self.rows, *unread), (Skipped("notes.txt", "no"),))
        extracted = tuple(
            Extracted(row, hashlib.sha256(manifest.file(row).read_bytes()).hexdigest(), 1, 1)
            for row in self.rows
        )
        extraction = Extraction(extracted, (*manifest.skipped, *self.skipped), 0)
        vectors = unit_rows(np.stack(self.vectors)) if self.rows else np.zeros((0, 8), np.float32)
        ids = tuple(row.id for row in self.rows)
        return check_gallery(manifest, extraction, Embeddings(vectors, ids, "f"), **options)


@pytest.fixture
def gallery(tmp_path, render) -> Gallery:
    return Gallery(tmp_path, render)


ALIKE = np.eye(8)[0]  # vectors equal for all: only the pixels tell copies from others


def direction(axis: int, noise: int = 0, much: float = 0.2) -> np.ndarray:
    """A vector near an axis: pictures of one axis are each other's neighbours."""
    return np.eye(8)[axis] + np.random.default_rng([axis, noise]).normal(0, much / 3, 8)


def ids(finding: DataFinding) -> list[str]:
    return [row.id for row in finding.pictures]


def kinds(check: GalleryCheck) -> Counter[str]:
    return Counter(finding.kind for finding in check.findings)


def test_distinct_pictures_give_no_finding(gallery):
    for label in range(3):
        for view in range(4):
            gallery.add(f"{label}{view}", f"L{label}", direction(label, view))
    check = gallery.check()
    assert check.findings == ()
    assert (check.pictures, check.photos, check.k) == (12, 12, 10)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [("A", "duplicate"), ("B", "duplicate_conflict"), ("A B", "duplicate"), ("", "duplicate")],
)
def test_equal_files(gallery, render, labels, kind):
    same = Image.fromarray(render(1, width=200, height=150))
    gallery.add("a", "A", ALIKE, same)
    gallery.add("b", labels, ALIKE, same)
    gallery.add("c", "A B", ALIKE)
    gallery.add("d", "A B", ALIKE)
    check = gallery.check()
    (finding,) = check.findings
    assert (finding.kind, finding.score, ids(finding)) == (kind, 1.0, ["a", "b"])
    assert ("under A, B" in finding.note) == (kind == "duplicate_conflict")
    assert (check.pictures, check.photos) == (4, 3)


@pytest.mark.parametrize("labels", ["A", "B"])
@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: image.resize((120, 90)),
        ImageOps.mirror,
        lambda image: image.crop((20, 10, 180, 130)),
    ],
    ids=["recompressed", "resized", "mirrored", "cropped"],
)
def test_changed_copies(gallery, render, change, labels):
    photo = Image.fromarray(render(1, width=200, height=150))
    gallery.add("a", "A", ALIKE, photo, quality=95)
    gallery.add("b", labels, ALIKE, change(photo), quality=60)
    gallery.add("c", "A B", ALIKE)
    gallery.add("d", "A B", ALIKE)
    (finding,) = gallery.check(small_side=50).findings
    assert finding.kind == ("near_duplicate" if labels == "A" else "near_duplicate_conflict")
    assert ids(finding) == ["a", "b"]
    assert 0.85 <= finding.score <= 1


def test_copies_of_copies_are_one_finding(gallery, render):
    photo = Image.fromarray(render(1, width=200, height=150))
    for n, quality in enumerate((95, 80, 60)):
        gallery.add(f"p{n}", "A", ALIKE, photo, quality=quality)
    gallery.add("other", "A", ALIKE)
    (finding,) = gallery.check().findings
    assert ids(finding) == ["p0", "p1", "p2"]
    assert finding.note.startswith("3 pictures of one photo")


def test_pictures_far_apart_are_not_compared(gallery, render):
    photo = Image.fromarray(render(1, width=200, height=150))
    gallery.add("a", "A", np.eye(8)[0], photo, quality=95)
    gallery.add("b", "A", np.eye(8)[1], photo, quality=60)
    assert kinds(gallery.check()) == {}


def with_label_error(gallery: Gallery) -> None:
    for label in range(2):
        for view in range(6):
            gallery.add(f"{label}{view}", f"L{label}", direction(label, view))
    gallery.add("wrong", "L0", direction(1, 99))


def test_copies_are_found_where_the_cosines_of_a_network_are_low(gallery, render):
    """A network may tell all pictures far apart: a cosine of .4 is much there."""
    for axis in range(6):
        gallery.add(f"g{axis}", f"L{axis}", np.eye(8)[axis])
    photo = Image.fromarray(render(100, width=200, height=150))
    gallery.add("copy", "L0", 0.4 * np.eye(8)[0] + 0.916 * np.eye(8)[7], ImageOps.mirror(photo))
    (found,) = gallery.check().of("near_duplicate")
    assert ids(found) == ["g0", "copy"]


def test_the_least_cosine_goes_by_the_mean_of_the_set():
    assert least_cosine(np.eye(8, dtype=np.float32)) == pytest.approx(0.22)
    close = unit_rows(np.eye(8, dtype=np.float32) + 1)  # every two have the cosine .909
    assert least_cosine(close) == 0.6
    some = unit_rows(np.eye(64, dtype=np.float32) + 0.08)
    mean = float((some @ some.T)[0, 1])
    assert 0.1 < mean < 0.4
    assert least_cosine(some) == pytest.approx(mean + 0.22 * (1 - mean), abs=1e-5)
    assert least_cosine(some[:1]) == least_cosine(some[:0]) == 0.6


def test_a_label_error_is_found_with_the_right_label(gallery):
    with_label_error(gallery)
    (finding,) = gallery.check().findings
    assert (finding.kind, finding.suggestion) == ("label_error", "L1")
    assert finding.pictures[0].id == "wrong"
    assert all(row.labels == ("L1",) for row in finding.pictures[1:])
    vectors = dict(zip([row.id for row in gallery.rows], gallery.vectors, strict=True))
    wrong, near = (
        unit_rows(np.stack([vectors[id_] for id_ in group]))
        for group in (["wrong"], ids(finding)[1:])
    )
    assert finding.score == pytest.approx(float((near @ wrong[0]).mean()), abs=1e-6)


def test_without_labels_there_is_no_label_error(gallery):
    with_label_error(gallery)
    gallery.rows = [replace(row, labels=()) for row in gallery.rows]
    assert kinds(gallery.check()) == {}


def test_copies_have_no_vote_about_each_other(gallery, render):
    """Five copies of one wrongly labelled photo are told as copies and as wrong."""
    with_label_error(gallery)
    photo = Image.fromarray(render(1, width=200, height=150))
    for n in range(5):
        gallery.add(f"copy{n}", "L0", direction(1, 50), photo, quality=95 - 5 * n)
    check = gallery.check()
    assert len(check.of("near_duplicate")) == 1
    accused = {finding.pictures[0].id for finding in check.of("label_error")}
    assert {f"copy{n}" for n in range(5)} <= accused


def test_a_picture_under_two_labels_is_not_accused_twice(gallery, render):
    with_label_error(gallery)
    photo = Image.fromarray(render(1, width=200, height=150))
    gallery.add("first", "L0", direction(1, 50), photo)
    gallery.add("again", "L1", direction(1, 50), photo)
    check = gallery.check()
    assert ids(check.of("duplicate_conflict")[0]) == ["first", "again"]
    assert "first" not in {finding.pictures[0].id for finding in check.of("label_error")}


def test_landmarks_with_one_photo(gallery, render):
    for view in range(3):
        gallery.add(f"many{view}", "many", direction(0, view))
    gallery.add("alone", "one", direction(3))
    photo = Image.fromarray(render(1, width=200, height=150))
    gallery.add("t1", "twice", direction(5), photo)
    gallery.add("t2", "twice", direction(5), photo)
    gallery.add("n1", "near", direction(6, much=0.01), Image.fromarray(render(2, 0, 200, 150)))
    gallery.add(
        "n2", "near", direction(6, much=0.01), Image.fromarray(render(2, 0, 200, 150)), quality=50
    )
    found = {tuple(ids(finding)): finding.note for finding in gallery.check().of("single_picture")}
    assert found == {
        ("alone",): "one has one photo",
        ("n1", "n2"): "near has one photo, 2 times",
        ("t1", "t2"): "twice has one photo, 2 times",
    }


def test_k_occurrence_counts_the_lists_a_picture_is_in():
    """One picture in the middle of 60 that are each nearer to it than to one another."""
    near = {0: [(j, 0.5) for j in range(1, 11)]}
    near |= {i: [(0, 0.7), *((1 + (i + n) % 60, 0.5) for n in range(9))] for i in range(1, 61)}
    assert k_occurrence(near, 10)[0] == 60
    counts = np.array([k_occurrence(near, 10)[i] for i in near])
    assert skewness(counts) > 4


def test_hubs_of_a_gallery(gallery):
    middle, chance = np.eye(64)[0], np.random.default_rng(0)
    gallery.add("hub", "H", middle)
    for i in range(1, 61):
        gallery.add(f"p{i:02}", "L", 0.7 * middle + np.eye(64)[i] + chance.normal(0, 0.01, 64))
    check = gallery.check()
    (finding,) = check.of("hub")
    assert finding.pictures[0].id == "hub"
    assert finding.score == 6.0
    assert "of 60 pictures (mean 10), 60 with other labels" in finding.note
    assert len(finding.pictures) == 6
    occurrence = Counter(oracle_neighbours(gallery.vectors, 10))
    counts = np.array([occurrence[i] for i in range(61)])
    expected = (
        np.mean((counts - counts.mean()) ** 3) / np.mean((counts - counts.mean()) ** 2) ** 1.5
    )
    assert check.skewness == pytest.approx(expected)


def oracle_neighbours(vectors: list[np.ndarray], k: int) -> list[int]:
    """All places of all lists of k neighbours, by sorting every pair."""
    units = unit_rows(np.stack(vectors)).astype(np.float64)
    places = []
    for i, unit in enumerate(units):
        scores = (units @ unit).astype(np.float32)
        order = sorted((-score, j) for j, score in enumerate(scores) if j != i)
        places += [j for _, j in order[:k]]
    return places


def test_skewness_of_equal_counts_is_zero():
    assert skewness(np.array([3, 3, 3])) == 0
    assert skewness(np.array([], np.int64)) == 0


def test_very_small_pictures_come_worst_first(gallery, render):
    for name, width, height in (("s60", 60, 80), ("s40", 300, 40), ("ok", 100, 100)):
        gallery.add(name, "A", ALIKE, Image.fromarray(render(5, width=width, height=height)))
    small = gallery.check().of("small")
    assert [(ids(it), it.note, it.score) for it in small] == [
        (["s40"], "300 x 40 pixels", 0.6),
        (["s60"], "60 x 80 pixels", pytest.approx(0.4)),
    ]
    assert gallery.check(small_side=40).of("small") == ()


def test_unreadable_files_keep_their_reason_and_other_files_do_not_count(gallery):
    gallery.add("a", "A", direction(0))
    gallery.add("b", "A", direction(1))
    gallery.skipped = [Skipped("bad.jpg", "damaged: cut")]
    (finding,) = gallery.check().findings
    assert (finding.kind, ids(finding), finding.note) == ("unreadable", ["bad.jpg"], "damaged: cut")


@pytest.mark.parametrize("count", [0, 1])
def test_none_or_one_readable_picture(gallery, count):
    for n in range(count):
        gallery.add(f"p{n}", "A", ALIKE)
    gallery.skipped = [Skipped("bad.jpg", "empty file (0 bytes)")]
    check = gallery.check()
    assert (check.pictures, check.k, check.skewness) == (count, 0, 0.0)
    assert kinds(check) == {"unreadable": 1} | ({"single_picture": 1} if count else {})


def test_a_picture_removed_since_it_was_read_is_left_out(gallery, render, monkeypatch):
    photo = Image.fromarray(render(1, width=200, height=150))
    gallery.add("a", "A", ALIKE, photo, quality=95)
    gallery.add("b", "A", ALIKE, photo, quality=60)
    gallery.add("c", "A", ALIKE)
    search = gallery_check.FlatSearcher.search

    def search_and_remove(self, queries, k):
        (gallery.folder / "b.jpg").unlink()
        return search(self, queries, k)

    monkeypatch.setattr(gallery_check.FlatSearcher, "search", search_and_remove)
    assert kinds(gallery.check()) == {}


def test_progress_counts_the_pairs_compared(gallery):
    for n in range(13):
        gallery.add(f"p{n:02}", "A", ALIKE)
    calls: list[tuple[str, int, int]] = []
    gallery.check(on_progress=lambda *call: calls.append(call))
    assert calls[-1][1] == calls[-1][2] > 0
    assert [call[1] for call in calls] == sorted(call[1] for call in calls)


def test_findings_are_in_order_and_the_same_every_time(gallery, render):
    with_label_error(gallery)
    photo = Image.fromarray(render(1, width=80, height=60))
    gallery.add("x", "L0", direction(0, 70), photo)
    gallery.add("y", "L1", direction(0, 70), photo)
    first, second = gallery.check(), gallery.check()
    assert first == second
    order = [list(KINDS).index(finding.kind) for finding in first.findings]
    assert order == sorted(order)
    assert set(kinds(first)) == {"duplicate_conflict", "label_error", "small"}


def test_embeddings_of_other_pictures_are_refused(gallery):
    gallery.add("a", "A", ALIKE)
    with pytest.raises(ValueError, match="not those of the extracted"):
        check_gallery(
            Manifest(gallery.folder, tuple(gallery.rows)),
            Extraction((), (), 0),
            Embeddings(unit_rows(np.stack(gallery.vectors)), ("a",), "f"),
        )


def test_a_finding_checks_itself():
    with pytest.raises(ValueError, match="no kind"):
        DataFinding("odd", 1.0, (Row("a", "a.jpg"),), "note")
    with pytest.raises(ValueError, match="at least one"):
        DataFinding("hub", 1.0, (), "note")
