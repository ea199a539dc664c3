"""Copies of one photo: they are told by their vectors, and leave-one-out leaves them out."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.eval.tune.calibration_cv import answers_of_index
from lmk.index.catalog.records import Picture
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.neighbours import Neighbours
from lmk.rerank.fit.calibration import ScoredAnswers
from lmk.rerank.fit.copies import ALIKE, CopyRule, photo_numbers
from lmk.rerank.fit.fit import fit
from lmk.rerank.fit.tables import COPY_COSINE, saved_copy_rule
from lmk.rerank.steps.pipeline import Pipeline

DIM, LANDMARKS, PHOTOS, DISTRACTORS = 32, 12, 8, 60
LIKE = 0.999  # cosine of a copy, about


class TestRule:
    def test_rescaled(self) -> None:
        """The limit is as far from 1 as the background lets it be."""
        assert CopyRule.for_background(0.0).cosine == pytest.approx(ALIKE)
        assert CopyRule.for_background(0.5).cosine == pytest.approx(0.5 + ALIKE / 2)
        assert CopyRule.for_background(1.0).cosine == 1

    def test_among(self, neighbours: Callable[..., Neighbours]) -> None:
        found = neighbours([(4, 0.95), (2, 0.9), (7, 0.5)], [(1, 0.3)], [])
        got = CopyRule(0.9).among(found)
        assert [rows.tolist() for rows in got] == [[4, 2], [], []]

    def test_copies_of_copies_are_one_photo(self) -> None:
        rows = np.array([7, 3, 9, 5])
        copies = [np.array(some, np.int64) for some in ([7, 3], [3, 7, 5], [9, 100], [5, 3])]
        number = photo_numbers(rows, copies)
        assert number[0] == number[1] == number[3] != number[2]
        assert photo_numbers(rows[:0], []).tolist() == []


class World:
    """Landmarks of photos that are not alike, and distractors; copies of rows of either."""

    def __init__(self, landmarks: int = LANDMARKS) -> None:
        rng = np.random.default_rng(3)
        centres = rng.standard_normal((landmarks, DIM))
        self.labels = [f"l{n}" for n in range(landmarks) for _ in range(PHOTOS)]
        spread = 1.3 * rng.standard_normal((landmarks * PHOTOS, DIM))
        self.gallery = unit_rows((np.repeat(centres, PHOTOS, axis=0) + spread).astype(np.float32))
        self.bank = unit_rows(rng.standard_normal((DISTRACTORS, DIM)).astype(np.float32))
        self.noise = rng.standard_normal((1000, DIM)).astype(np.float32)

    def copy(self, vectors: np.ndarray) -> np.ndarray:
        noise = unit_rows(self.noise[: len(vectors)])
        return unit_rows(vectors + np.float32(np.tan(np.arccos(LIKE))) * noise)


def build(
    path: Path, world: World, *, more: np.ndarray | None = None, labels: list[str] | None = None,
    more_bank: np.ndarray | None = None,
) -> tuple[float | None, ScoredAnswers]:  # fmt: skip
    """The threshold and the answers of a gallery with more pictures and more distractors."""
    none = np.zeros((0, DIM), np.float32)
    parts = {
        "gallery": (np.concatenate([world.gallery, none if more is None else more]),
                    [*world.labels, *(labels or [])]),
        "distractor": (np.concatenate([world.bank, none if more_bank is None else more_bank]), []),
    }  # fmt: skip
    with GalleryWriter(path, create=True) as writer:
        writer.reset("f" * 64, DIM, "f32")
        for role, (vectors, names) in parts.items():
            ids = tuple(f"{role}{n}" for n in range(len(vectors)))
            pictures = [
                Picture(id_, tuple(names[n : n + 1]), "/away", id_,
                        sha256(id_.encode()).hexdigest(), 1, 1)
                for n, id_ in enumerate(ids)
            ]  # fmt: skip
            writer.append(Embeddings(vectors, ids, "f" * 64), pictures, role)  # type: ignore[arg-type]
        threshold = fit(writer, Pipeline()).pipeline.threshold()
        writer.commit()
    with Gallery.open(path) as gallery:
        return threshold, answers_of_index(gallery)


def test_copies_of_every_picture_move_the_threshold_little(tmp_path: Path) -> None:
    world = World()
    before, alone = build(tmp_path / "a.lmk", world)
    after, answers = build(
        tmp_path / "b.lmk", world, more=world.copy(world.gallery), labels=world.labels
    )
    assert before is not None and after is not None
    assert after == pytest.approx(before, abs=0.04)
    # a copy that answered would be sure: the surest answers are as sure as before
    right = [np.sort(each.confidence[each.right])[-5:].mean() for each in (alone, answers)]
    assert right[1] == pytest.approx(right[0], abs=0.1)
    assert right[1] < 0.8


def test_copies_count_once(tmp_path: Path) -> None:
    """A burst of forty frames of one photo weighs as the photo does."""
    world = World()
    burst = world.copy(np.repeat(world.gallery[:1], 40, axis=0))
    _, alone = build(tmp_path / "a.lmk", world)
    _, answers = build(tmp_path / "b.lmk", world, more=burst, labels=["l0"] * 40)
    assert answers.weight[answers.landmark].sum() == pytest.approx(
        alone.weight[alone.landmark].sum()
    )
    assert len(np.unique(answers.photo)) == len(np.unique(alone.photo))


def test_a_photo_with_copies_only_is_not_known(tmp_path: Path) -> None:
    """A landmark of one photo and its copies has no other photo to be recognised by."""
    world = World()
    lonely = unit_rows(world.noise[500:501])
    more = np.concatenate([lonely, world.copy(np.repeat(lonely, 3, axis=0))])
    _, answers = build(tmp_path / "a.lmk", world, more=more, labels=["lonely"] * 4)
    assert np.count_nonzero(answers.landmark) == LANDMARKS * PHOTOS


def test_a_copy_under_another_landmark_does_not_answer(tmp_path: Path) -> None:
    """Neither for its photo nor for its photo as a stranger."""
    world = World()
    _, alone = build(tmp_path / "a.lmk", world)
    stray = world.copy(world.gallery[:1])
    _, answers = build(tmp_path / "b.lmk", world, more=stray, labels=["l5"])
    unknown_landmark = ~answers.landmark
    assert (
        answers.confidence[unknown_landmark].max() < alone.confidence[~alone.landmark].max() + 0.1
    )
    assert answers.confidence[unknown_landmark].max() < 0.8


def test_copies_among_distractors(tmp_path: Path) -> None:
    """A copy of a gallery picture is not asked, and copies of distractors are left out together."""
    world = World()
    _, alone = build(tmp_path / "a.lmk", world)
    _, shown = build(tmp_path / "b.lmk", world, more_bank=world.copy(world.gallery[:3]))
    assert len(shown) == len(alone)
    _, twice = build(tmp_path / "c.lmk", world, more_bank=world.copy(world.bank))
    others = ~twice.landmark
    assert len(twice) == len(alone) + DISTRACTORS
    assert twice.weight[others].sum() == pytest.approx(alone.weight[~alone.landmark].sum())
    # a distractor that met its copy would be refused by it: all would be less sure
    bank = slice(-DISTRACTORS, None)
    assert twice.confidence[bank].mean() > alone.confidence[bank].mean() - 0.1


def test_the_rule_is_kept_with_the_gallery(tmp_path: Path) -> None:
    world = World()
    build(tmp_path / "a.lmk", world)
    with GalleryWriter(tmp_path / "a.lmk") as writer, Gallery.open(tmp_path / "a.lmk") as gallery:
        rule = saved_copy_rule(gallery)
        assert ALIKE <= rule.cosine < 1
        writer.set(COPY_COSINE, None)  # as of an older version
        writer.commit()
    with Gallery.open(tmp_path / "a.lmk") as gallery:
        assert saved_copy_rule(gallery).cosine == pytest.approx(rule.cosine, abs=1e-6)


def test_one_landmark_takes_the_background_of_the_distractors(tmp_path: Path) -> None:
    """Features of photos are all alike to start with; that makes them no copies."""
    world = World(1)
    shift = np.float32(4 * unit_rows(world.noise[999:])[0])
    world = replace_vectors(world, unit_rows(world.gallery + shift), unit_rows(world.bank + shift))
    threshold, answers = build(tmp_path / "a.lmk", world)
    assert threshold is not None
    assert np.count_nonzero(answers.landmark) == PHOTOS
    assert len(np.unique(answers.photo[answers.landmark])) == PHOTOS


def replace_vectors(world: World, gallery: np.ndarray, bank: np.ndarray) -> World:
    world.gallery, world.bank = gallery, bank
    return world


def test_leaving_copies_out_is_what_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same gallery without the rule: copies answer, and the threshold rises."""
    world = World()
    more = {"more": world.copy(world.gallery), "labels": world.labels}
    after, _ = build(tmp_path / "a.lmk", world, **more)  # type: ignore[arg-type]
    monkeypatch.setattr("lmk.rerank.fit.copies.ALIKE", 2.0)
    old, _ = build(tmp_path / "b.lmk", world, **more)  # type: ignore[arg-type]
    assert old is not None and after is not None
    assert old > after + 0.1
