"""What a large gallery is taught of a change is what it would be taught anew."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.catalog.records import Picture
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.labels import Role
from lmk.index.vectors.vectors import Vectors
from lmk.index.vectors.view import View
from lmk.rerank.fit import fit as learning_module
from lmk.rerank.fit.fit import fit, fit_change
from lmk.rerank.fit.saved import saved_context, saved_pipeline, saved_state
from lmk.rerank.fit.tables import BACKGROUND, PENALTY, exact_searcher
from lmk.rerank.steps import hits as picks_module
from lmk.rerank.steps.dba import DbaStep
from lmk.rerank.steps.distractor_similarity import DistractorSimilarityStep
from lmk.rerank.steps.penalty import PenaltyStep, RescaleStep
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.voting import VoteStep

DIM, LANDMARKS = 6, 8
# Counts at which a small gallery is penalised.
PIPELINE = Pipeline(
    steps=(
        DbaStep(n=3),
        RescaleStep(),
        PenaltyStep(top=4, min_n=2, max_n=5, counts="raw"),
        DistractorSimilarityStep(m=2),
        VoteStep(k=2),
    )
)


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gallery is too large to be learnt anew."""
    monkeypatch.setattr(learning_module, "CHEAP", 0)


class World:
    """Pictures by id: vector and landmark of the gallery's, vector of the distractors'."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.centres = self.rng.standard_normal((LANDMARKS, DIM)) + 1

    def make(self, numbers: range, role: Role) -> tuple[Embeddings, list[Picture]]:
        landmarks = self.rng.integers(0, LANDMARKS, len(numbers))
        noise = self.rng.standard_normal((len(numbers), DIM))
        gallery = role == "gallery"
        vectors = self.centres[landmarks] + 0.5 * noise if gallery else noise + 1
        ids = tuple(f"{role}{n}" for n in numbers)
        labels = [(f"l{at}",) if gallery and at else () for at in landmarks]
        pictures = [
            Picture(id_, names, "/nowhere", f"{id_}.jpg", sha256(id_.encode()).hexdigest(), 1, 1)
            for id_, names in zip(ids, labels, strict=True)
        ]
        return Embeddings(unit_rows(vectors), ids, "f" * 64), pictures


def new(path: Path, *parts: tuple[tuple[Embeddings, list[Picture]], Role]) -> None:
    with GalleryWriter(path, create=True) as writer:
        writer.reset("f" * 64, DIM)
        for part, role in parts:
            writer.append(*part, role)
        fit(writer, PIPELINE)
        writer.commit()


def taught(path: Path) -> tuple[dict[str, float], float, float | None]:
    """The penalty by id, the background and the threshold."""
    with Gallery.open(path) as gallery:
        rows, penalty = np.flatnonzero(gallery.alive), gallery.array(PENALTY)
        assert penalty is not None
        by_id = dict(zip(gallery.ids(rows), penalty[rows].tolist(), strict=True))
        return by_id, gallery.setting(BACKGROUND), saved_pipeline(gallery).threshold()


def lists(path: Path) -> dict[str, dict[str, list[tuple[str, float]]]]:
    """The neighbours of each picture, and its nearest of the bank, by id."""
    found = {}
    with Gallery.open(path) as gallery:
        alive = np.flatnonzero(gallery.alive)
        ids = dict(zip(alive.tolist(), gallery.ids(alive), strict=True))
        for name in ("neighbours", "likeness"):
            rows, cosines = gallery.array(name), gallery.array(f"{name} cosines")
            assert rows is not None and cosines is not None
            assert rows.dtype == np.int32 and cosines.dtype == np.float32
            gone = ~gallery.alive
            assert (rows[gone] == -1).all() and np.isneginf(cosines[gone]).all()
            found[name] = {
                ids[row]: [
                    (ids[near], round(float(cosine), 5))
                    for near, cosine in zip(rows[row].tolist(), cosines[row], strict=True)
                    if near >= 0
                ]
                for row in alive.tolist()
            }
    return found


def assert_as_anew(path: Path, fresh: Path) -> None:
    """Against a gallery that is given the same rows at once."""
    with Gallery.open(path) as gallery, GalleryWriter(fresh, create=True) as writer:
        writer.reset("f" * 64, DIM)
        roles: tuple[Role, ...] = ("gallery", "distractor")
        for role in roles:
            rows = gallery.role_rows(role)
            vectors, pictures = gallery.stored.gather(rows), gallery.pictures(rows)
            writer.append_stored(vectors, gallery.fingerprint, pictures, role)
        fit(writer, PIPELINE)
        writer.commit()
    (penalty, background, _), (expected, known, _) = taught(path), taught(fresh)
    assert max(expected.values()) > 0.1 and min(expected.values()) == 0
    assert penalty == pytest.approx(expected, abs=1e-5)
    assert background == pytest.approx(known, abs=1e-6)
    assert lists(path) == lists(fresh)
    assert sum(map(len, lists(path)["likeness"].values())) > 0


@pytest.mark.parametrize("seed", range(4))
def test_after_changes(tmp_path: Path, seed: int) -> None:
    world, path = World(seed), tmp_path / "g.lmk"
    new(path, (world.make(range(60), "gallery"), "gallery"),
        (world.make(range(40), "distractor"), "distractor"))  # fmt: skip
    changes: list[tuple[Role, range, list[str]]] = [
        ("gallery", range(60, 61), []),
        ("gallery", range(0), ["gallery3"]),
        ("distractor", range(40, 43), ["distractor7"]),
        ("gallery", range(61, 75), [f"gallery{n}" for n in range(10, 24)]),
        ("distractor", range(43, 44), ["gallery61", "distractor40"]),
    ]
    for number, (role, numbers, gone) in enumerate(changes):
        with GalleryWriter(path) as writer, Gallery.open(path) as old:
            assert saved_state(old) is not None
            writer.append(*world.make(numbers, role), role)
            writer.remove(gone)
            fit_change(writer, old, changed=True)
            writer.commit()
        assert_as_anew(path, tmp_path / f"{number}.lmk")


def test_compacted_tables_are_renumbered_and_nothing_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FittedState of a gallery that had lost rows; and the next change goes on from there."""
    world, path = World(5), tmp_path / "g.lmk"
    new(path, (world.make(range(60), "gallery"), "gallery"),
        (world.make(range(40), "distractor"), "distractor"))  # fmt: skip
    with GalleryWriter(path) as writer, Gallery.open(path) as old:
        writer.remove(["gallery0", "gallery31", "gallery32", "distractor0", "distractor17"])
        fit_change(writer, old, changed=True)
        writer.commit()
    before, near = taught(path), lists(path)
    with monkeypatch.context() as patched:
        patched.setattr("lmk.rerank.fit.tables.exact_searcher", _no_search)
        with GalleryWriter(path) as writer, Gallery.open(path) as old:
            assert writer.compact()
            fit_change(writer, old, changed=True, compacted=True)
            writer.commit()
    with Gallery.open(path) as gallery:
        assert gallery.rows == 95 and saved_state(gallery) is not None
    assert taught(path) == before and lists(path) == near
    assert_as_anew(path, tmp_path / "compacted.lmk")
    with GalleryWriter(path) as writer, Gallery.open(path) as old:
        writer.append(*world.make(range(60, 63), "gallery"))
        writer.remove(["gallery5", "distractor5"])
        fit_change(writer, old, changed=True)
        writer.commit()
    assert_as_anew(path, tmp_path / "changed.lmk")


class _NoSearch:
    def search(self, *asked: object) -> None:
        raise AssertionError("nothing has to be searched")


def _no_search(view: View) -> _NoSearch:
    return _NoSearch()


def test_the_threshold_is_kept_until_a_tenth_has_changed(tmp_path: Path) -> None:
    world, path = World(9), tmp_path / "g.lmk"
    new(path, (world.make(range(50), "gallery"), "gallery"),
        (world.make(range(30), "distractor"), "distractor"))  # fmt: skip
    first = taught(path)[2]
    assert first is not None
    seen = []
    for number in range(50, 57):
        with GalleryWriter(path) as writer, Gallery.open(path) as old:
            writer.append(*world.make(range(number, number + 1), "gallery"))
            fit_change(writer, old, changed=True)
            writer.commit()
        seen.append(taught(path)[2])
    assert seen[:5] == [first] * 5 and seen[5] != first and seen[6] == seen[5]
    with Gallery.open(path) as gallery:
        learnt = saved_state(gallery)
        assert learnt is not None and (learnt.weighed, learnt.changed) == (56, 1)


STAGES = (
    "picks of distractors",
    "neighbourhoods",
    "likeness to distractors",
    "penalty and threshold",
)


def test_each_search_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picks_module, "_BATCH", 16)
    world, told = World(7), list[tuple[str, int, int]]()
    with GalleryWriter(tmp_path / "g.lmk", create=True) as writer:
        writer.reset("f" * 64, DIM)
        writer.append(*world.make(range(60), "gallery"), "gallery")
        writer.append(*world.make(range(40), "distractor"), "distractor")
        fit(writer, PIPELINE, on_progress=lambda *step: told.append(step))
    by_stage = {stage: [step[1:] for step in told if step[0] == stage] for stage in STAGES}
    assert tuple(dict.fromkeys(stage for stage, _, _ in told)) == STAGES
    blocks = [(16, 60), (32, 60), (48, 60), (60, 60)]
    assert by_stage["picks of distractors"] == [(16, 40), (32, 40), (40, 40)]
    assert by_stage["neighbourhoods"] == by_stage["likeness to distractors"] == [(0, 60), *blocks]
    assert by_stage["penalty and threshold"] == [(0, 1), (1, 1)]


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_in_a_search_the_old_gallery_stays(tmp_path: Path, stage: str) -> None:
    world, path = World(8), tmp_path / "g.lmk"
    new(path, (world.make(range(40), "gallery"), "gallery"),
        (world.make(range(30), "distractor"), "distractor"))  # fmt: skip
    before, near = taught(path), lists(path)

    def stop(at: str, done: int, total: int) -> None:
        if at == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), GalleryWriter(path) as writer, Gallery.open(path) as old:
        writer.append(*world.make(range(40, 50), "gallery"))
        fit_change(writer, old, changed=True, on_progress=stop)
    assert taught(path) == before and lists(path) == near
    with Gallery.open(path) as gallery:
        assert gallery.rows == 70 and saved_state(gallery) is not None


def test_labelled_distractors_are_no_pictures_of_a_landmark(tmp_path: Path) -> None:
    """As those of a folder with sub-folders; a prior counts the gallery's pictures."""
    world, path = World(6), tmp_path / "g.lmk"
    bank, others = world.make(range(10), "distractor")
    others = [replace(picture, labels=("l1", "crowd")) for picture in others]
    new(path, (world.make(range(30), "gallery"), "gallery"), ((bank, others), "distractor"))
    with Gallery.open(path) as gallery:
        counts = Counter(name for p in gallery.pictures(np.arange(30)) for name in p.labels)
        learnt = saved_state(gallery)
        assert learnt is not None
        for known in (
            saved_context(gallery, PIPELINE, exact_searcher(gallery.view())),
            learnt.tables.context(PIPELINE),
        ):
            assert "crowd" in known.label_names and counts["l1"] > 0
            expected = [counts[name] for name in known.label_names]
            assert known.label_pictures.tolist() == expected


def test_a_small_gallery_keeps_no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, path = World(1), tmp_path / "g.lmk"
    parts = [(world.make(range(30), role), role) for role in ("gallery", "distractor")]  # type: ignore[arg-type]
    new(path, *parts)  # type: ignore[arg-type]
    before = taught(path)
    with Gallery.open(path) as gallery:
        assert saved_state(gallery) is not None
    monkeypatch.setattr(learning_module, "CHEAP", 1e11)
    with GalleryWriter(path) as writer, Gallery.open(path) as old:
        fit_change(writer, old, changed=True)
        writer.commit()
    assert taught(path)[0] == pytest.approx(before[0], abs=1e-6)
    assert taught(path)[1:] == pytest.approx(before[1:])
    with Gallery.open(path) as gallery:
        assert saved_state(gallery) is None
        assert gallery.array("picks") is None and gallery.array("worst picks") is None
        assert gallery.array("neighbours") is not None  # answers need them


@pytest.mark.parametrize(
    ("pictures", "distractors", "steps", "cheap"),
    [
        (500, 300, (DbaStep(n=10), VoteStep()), True),
        (3000, 2000, (DbaStep(n=10), VoteStep()), False),
        (3000, 2000, (PenaltyStep(), VoteStep()), True),
        (40_000, 2000, (PenaltyStep(), VoteStep()), False),
        (0, 0, (DbaStep(n=10), VoteStep()), True),
        (10_000, 8000, (VoteStep(),), False),  # the distractors count without a penalty, too
    ],
)
def test_what_is_learnt_anew_takes_a_second_or_two(
    monkeypatch: pytest.MonkeyPatch, pictures: int, distractors: int, steps: Any, cheap: bool
) -> None:
    """Comparing neighbourhoods takes the most of it: 6 s for 3,000 and 2,000 pictures."""
    monkeypatch.setattr(learning_module, "CHEAP", 1e11)
    rows = np.arange(pictures + distractors)
    stored = Vectors.of_array(np.zeros((len(rows), 512), np.float32))
    gallery, bank = (View(stored, mask, "f") for mask in (rows < pictures, rows >= pictures))
    assert learning_module._is_cheap(gallery, bank, Pipeline(steps=steps)) is cheap


def test_tables_that_do_not_fit_are_not_used(tmp_path: Path) -> None:
    """Rows that came by another way, as through GalleryWriter alone."""
    world, path = World(2), tmp_path / "g.lmk"
    parts = [(world.make(range(30), role), role) for role in ("gallery", "distractor")]  # type: ignore[arg-type]
    new(path, *parts)  # type: ignore[arg-type]
    for change in ("add", "remove"):
        with GalleryWriter(path) as writer:
            if change == "add":
                writer.append(*world.make(range(30, 35), "gallery"))
            else:
                writer.remove(["gallery31"])
            writer.commit()
        with GalleryWriter(path) as writer, Gallery.open(path) as old:
            assert saved_state(old) is None
            fit_change(writer, old, changed=True)
            writer.commit()
        assert_as_anew(path, tmp_path / f"{change}.lmk")


def test_another_rule_is_learnt_anew(tmp_path: Path) -> None:
    world, path = World(3), tmp_path / "g.lmk"
    parts = [(world.make(range(30), role), role) for role in ("gallery", "distractor")]  # type: ignore[arg-type]
    new(path, *parts)  # type: ignore[arg-type]
    steps = (PenaltyStep(top=2, min_n=1, max_n=3, counts="raw"), VoteStep(k=2))
    with GalleryWriter(path) as writer, Gallery.open(path) as old:
        fit(writer, Pipeline(steps=steps), before=saved_state(old))
        writer.commit()
    with Gallery.open(path) as gallery:
        picks = gallery.array("picks")
        assert picks is not None and picks[:, 0].sum() == 30 * 2
    none = Pipeline(steps=(VoteStep(k=2),))
    with GalleryWriter(path) as writer, Gallery.open(path) as old:
        fit(writer, none, before=saved_state(old))
        writer.commit()
    with Gallery.open(path) as gallery:
        assert gallery.array(PENALTY) is None and saved_state(gallery) is not None
        assert saved_pipeline(gallery).step_that_needs("hits") is None
    with GalleryWriter(path) as writer:
        writer.remove(["gallery3"])
        writer.commit()
    with Gallery.open(path) as gallery:
        assert saved_state(gallery) is None


@pytest.mark.parametrize("left", ["gallery", "distractor", "nothing"])
def test_what_is_left_of_a_gallery(tmp_path: Path, left: str) -> None:
    """All pictures removed, or all distractors, or both; and some come back."""
    world, path = World(4), tmp_path / "g.lmk"
    parts = {role: world.make(range(30), role) for role in ("gallery", "distractor")}  # type: ignore[arg-type]
    new(path, *((part, role) for role, part in parts.items()))  # type: ignore[arg-type, misc]
    with GalleryWriter(path) as writer, Gallery.open(path) as old:
        for role, (embeddings, _) in parts.items():
            writer.remove(embeddings.ids if role != left else ())
        threshold = fit_change(writer, old, changed=True)
        writer.commit()
    with Gallery.open(path) as gallery:
        assert gallery.array(PENALTY) is None
        assert (threshold is None) == (left != "gallery")
        assert (gallery.setting(BACKGROUND) > 0) == (left == "gallery")
    with GalleryWriter(path) as writer, Gallery.open(path) as old:
        for role, part in parts.items():
            writer.append(*part, role)  # type: ignore[arg-type]
        fit_change(writer, old, changed=True)
        writer.commit()
    assert_as_anew(path, tmp_path / "fresh.lmk")
