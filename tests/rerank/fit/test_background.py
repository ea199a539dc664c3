"""The background of a gallery: against all pairs, and brought up to date after changes."""

from __future__ import annotations

import numpy as np
import pytest

from lmk.embed.embeddings import unit_rows
from lmk.index.vectors.labels import Membership
from lmk.index.vectors.vectors import Vectors
from lmk.index.vectors.view import View
from lmk.rerank.fit import background as background_module
from lmk.rerank.fit.background import LandmarkSums, landmark_sums
from lmk.rerank.steps.context import PipelineContext

Labels = list[tuple[str, ...]]
CHOICES: Labels = [("a",), ("b",), ("a", "b"), ("b", "a"), ()]


def view_of(vectors: np.ndarray, labels: Labels, mask: np.ndarray | None = None) -> View:
    n = len(vectors)
    mask = np.ones(n, np.bool_) if mask is None else mask
    context = PipelineContext.of_labels(
        [names if m else () for names, m in zip(labels, mask, strict=True)]
    )
    membership = Membership(
        np.zeros(n, np.bool_), mask, context.label_names, context.label_offsets, context.label_codes
    )
    return View(Vectors.of_array(vectors), mask, "f", membership)


def all_pairs(vectors: np.ndarray, labels: Labels) -> float:
    n = range(len(vectors))
    pairs = [
        float(vectors[i].astype(float) @ vectors[j])
        for i in n
        for j in n
        if i != j and (set(labels[i]) != set(labels[j]) or not labels[i])
    ]
    return float(np.clip(np.mean(pairs), 0, 0.9)) if pairs else 0.0


@pytest.mark.parametrize("block", [3, 100])
@pytest.mark.parametrize("seed", range(5))
def test_against_all_pairs(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_module, "_BLOCK", block)
    rng = np.random.default_rng(seed)
    vectors = unit_rows(rng.standard_normal((25, 4)) + 1)
    labels = [CHOICES[i] for i in rng.integers(0, 5, 25)]
    got = landmark_sums(view_of(vectors, labels)).mean_cosine()
    assert got == pytest.approx(all_pairs(vectors, labels), abs=1e-6) and got > 0.1


def test_bounds() -> None:
    same = unit_rows(np.ones((3, 4)))
    assert landmark_sums(view_of(same, [("a",)] * 3)).mean_cosine() == 0
    assert landmark_sums(view_of(same, [("a",), ("b",), ()])).mean_cosine() == 0.9
    opposite = np.array([[1, 0], [-1, 0]], np.float32)
    assert landmark_sums(view_of(opposite, [("a",), ("b",)])).mean_cosine() == 0
    assert landmark_sums(view_of(same[:0], [])).mean_cosine() == 0
    unlabelled = View(Vectors.of_array(opposite), np.ones(2, np.bool_), "f")
    assert landmark_sums(unlabelled).mean_cosine() == 0


@pytest.mark.parametrize("seed", range(20))
def test_brought_up_to_date_it_is_what_it_would_be_anew(seed: int) -> None:
    """Rows come and go, their labels with them, in several steps."""
    rng = np.random.default_rng(seed)
    vectors = unit_rows(rng.standard_normal((40, 4)) + 1)
    labels = [CHOICES[i] for i in rng.integers(0, 5, 40)]
    sums = LandmarkSums.none(4)
    before = view_of(vectors[:0], [])
    for rows in (10, 25, 25, 40, 40):
        mask = rng.random(rows) < 0.7
        mask[rows // 2] = True
        view = view_of(vectors[:rows], labels[:rows], mask)
        sums = LandmarkSums.of_json(sums.as_json(), len(sums.total))
        sums = sums.updated(before=before, after=view)
        anew = landmark_sums(view)
        assert (sums.pictures, sums.pairs) == (anew.pictures, anew.pairs)
        assert sums.mean_cosine() == pytest.approx(anew.mean_cosine(), abs=1e-9)
        there = np.flatnonzero(mask)
        expected = all_pairs(vectors[there], [labels[row] for row in there])
        assert sums.mean_cosine() == pytest.approx(expected, abs=1e-6)
        before = view
