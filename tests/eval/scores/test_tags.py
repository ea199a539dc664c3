"""Tag scores: golden values, a slow reference, tags and pictures without truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score

from lmk.eval.scores.average_precision import average_precisions
from lmk.eval.scores.tags import (
    lower_precision,
    precision_recall,
    score_decisions,
    score_pictures,
    score_tags,
)
from lmk.eval.tune.tag_thresholds import choose_threshold

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "tags.json").read_text())


def test_golden_threshold_table() -> None:
    table = GOLDEN["thresholds"]
    curve = precision_recall(np.array(table["scores"]), np.array(table["truth"], dtype=bool))
    assert curve.threshold.tolist() == table["scores"]
    assert curve.precision.tolist() == pytest.approx(table["precision"])
    assert curve.recall.tolist() == pytest.approx(table["recall"])
    for target in table["targets"]:
        chosen = choose_threshold(curve, target["precision"], target["recall"])
        assert (chosen.value, chosen.feasible) == (target["threshold"], target["feasible"])
        assert chosen.precision >= target["precision"]


def test_of_equal_recalls_the_higher_threshold_is_chosen() -> None:
    curve = precision_recall(np.array([0.9, 0.8]), np.array([True, False]))
    assert choose_threshold(curve, 0.4, 1.0).value == 0.9


def test_no_threshold_reaches_the_precision() -> None:
    curve = precision_recall(np.array([0.9, 0.8]), np.array([False, True]))
    chosen = choose_threshold(curve, 0.9, 0.1)
    assert (chosen.value, chosen.precision, chosen.recall, chosen.feasible) == (None, 0, 0, False)
    with pytest.raises(ValueError, match="targets must be"):
        choose_threshold(curve, 90, 0.5)


def test_a_precision_to_be_sure_of_needs_more_pictures() -> None:
    """By Wilson's bound of 80 %: six of six may be .894, seven of seven .908."""
    for right, feasible in ((6, False), (7, True)):
        scores = np.linspace(1, 0, 20)
        curve = precision_recall(scores, scores > scores[right])
        assert choose_threshold(curve, 0.9, 0.5).feasible
        chosen = choose_threshold(curve, 0.9, 0.5, confidence=0.8)
        assert chosen.feasible == feasible
        assert (chosen.value, chosen.precision) == (scores[right - 1], 1)
    for confidence in (0.5, 1.0):
        with pytest.raises(ValueError, match="confidence must be"):
            choose_threshold(curve, 0.9, 0.5, confidence)


def test_what_is_not_sure_gets_the_threshold_of_the_precision_measured() -> None:
    """Seven of seven are surely .9, nine of ten only here; twenty pictures have the tag."""
    truth = np.array([1] * 7 + [0, 1, 1] + [0] * 5 + [1] * 11, dtype=bool)
    curve = precision_recall(np.linspace(1, 0, len(truth)), truth)
    promised = choose_threshold(curve, 0.9, 0.3, confidence=0.8)
    assert (promised.precision, promised.recall, promised.feasible) == (1, 7 / 20, True)
    listed = choose_threshold(curve, 0.9, 0.4, confidence=0.8)
    assert (listed.precision, listed.recall, listed.feasible) == (0.9, 9 / 20, False)
    assert choose_threshold(curve, 0.9, 0.4).feasible


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.55, 0.99))
def test_lower_precision_against_scipy(seed: int, n: int, confidence: float) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, 9, n) / 8, rng.random(n) < 0.7
    truth[0] = True
    curve = precision_recall(scores, truth)
    found = lower_precision(curve.precision, curve.given, confidence)
    for threshold, given_, low in zip(curve.threshold, curve.given, found, strict=True):
        over = scores >= threshold
        assert given_ == over.sum()
        test = binomtest(int(truth[over].sum()), int(over.sum()), alternative="greater")
        bound = test.proportion_ci(confidence, method="wilson").low
        assert low == pytest.approx(bound, abs=1e-9)


def test_sure_thresholds_keep_their_promise_more_often() -> None:
    """Of tags that promise .7 on 200 pictures; what they keep is counted on thousands."""
    rng = np.random.default_rng(1)
    kept: dict[float | None, list[bool]] = {None: [], 0.9: []}
    for _ in range(200):
        truth = rng.random(4200) < 0.3
        scores = truth + rng.normal(0, 0.8, 4200)
        curve = precision_recall(scores[:200], truth[:200])
        for confidence, found in kept.items():
            chosen = choose_threshold(curve, 0.7, 0.3, confidence)
            if chosen.feasible:
                found.append(truth[200:][scores[200:] >= chosen.value].mean() >= 0.7)
    assert min(map(len, kept.values())) > 50
    assert np.mean(kept[None]) < 0.5 and np.mean(kept[0.9]) > 0.75


def test_golden_picture() -> None:
    want = GOLDEN["picture"]
    truth = np.zeros((1, 8), dtype=bool)
    truth[0, [0, 1, 7]] = True
    result = score_pictures(np.arange(8, 0, -1)[None].astype(float), truth, want["k"])
    assert result.precision[0] == pytest.approx(want["precision"])
    assert result.recall[0] == pytest.approx(want["recall"])
    assert result.f1[0] == pytest.approx(want["f1"])


def test_means_are_of_f1_and_pictures_without_a_tag_are_counted_apart() -> None:
    truth = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]], dtype=bool)
    scores = np.tile([0.9, 0.8, 0.7, 0.6], (4, 1))
    result = score_pictures(scores, truth, 2)
    assert (result.rows.tolist(), result.skipped) == ([0, 2, 3], 1)
    assert result.f1.tolist() == pytest.approx([2 / 3, 2 / 3, 0])
    assert result.means() == pytest.approx((0.5, 0.5, 4 / 9))


def test_equal_scores_take_the_first_tag() -> None:
    truth = np.array([[False, True]])
    assert score_pictures(np.array([[0.5, 0.5]]), truth, 1).recall.tolist() == [0.0]


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 8), st.integers(1, 6), st.data())
def test_pictures_against_a_slow_reference(n: int, t: int, data: Any) -> None:
    grid = st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=t, max_size=t)
    scores = data.draw(st.lists(grid, min_size=n, max_size=n))
    truth = data.draw(
        st.lists(st.lists(st.booleans(), min_size=t, max_size=t), min_size=n, max_size=n)
    )
    truth[0][0] = True
    k = data.draw(st.integers(1, t))
    expected = []
    for row, true in zip(scores, truth, strict=True):
        if any(true):
            best = sorted(range(t), key=lambda tag: (-row[tag], tag))[:k]
            hits = sum(true[tag] for tag in best)
            p, r = hits / k, hits / sum(true)
            expected.append((p, r, 2 * p * r / (p + r) if p + r else 0.0))
    got = score_pictures(np.array(scores), np.array(truth), k)
    assert list(zip(got.precision, got.recall, got.f1, strict=True)) == [
        pytest.approx(triple) for triple in expected
    ]
    assert got.skipped == n - len(expected)


NAMES = ("sky", "tower", "dog")
SCORES = np.array([[0.9, 0.2, 0.5], [0.8, 0.7, 0.5], [0.1, 0.6, 0.4], [0.4, 0.1, 0.9]])
TRUTH = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=bool)


def test_average_precision_by_tag() -> None:
    result = score_tags(SCORES, TRUTH, NAMES)
    assert result.support.tolist() == [2, 2, 0]
    assert result.average_precision[:2].tolist() == pytest.approx([(1 + 2 / 4) / 2, 1.0])
    assert np.isnan(result.average_precision[2])
    assert result.macro == pytest.approx((0.75 + 1.0) / 2)
    # Pooled, falling: .9 yes and no (tied), .8 no, .7 yes, .6 yes, five no, .1 yes and no.
    assert result.micro == pytest.approx((1 / 2 + 2 / 4 + 3 / 5 + 4 / 12) / 4)


def test_decisions_by_tag() -> None:
    result = score_decisions(SCORES >= 0.5, TRUTH, NAMES)
    assert result.precision[:2].tolist() == [0.5, 1.0]
    assert result.recall[:2].tolist() == [0.5, 1.0]
    assert np.isnan([result.precision[2], result.recall[2], result.f1[2]]).all()
    assert result.macro == pytest.approx((0.75, 0.75, 0.75))
    assert result.micro == pytest.approx((3 / 7, 3 / 4, 6 / 11))
    never = score_decisions(np.zeros_like(TRUTH), TRUTH, NAMES)
    assert (never.macro, never.micro) == ((0, 0, 0), (0, 0, 0))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_full_rankings_without_ties_equal_scikit_learns_average_precision(hits: list[bool]) -> None:
    hits = [*hits, True]
    ours = average_precisions(np.array([hits]), np.array([sum(hits)]))[0]
    assert ours == pytest.approx(average_precision_score(hits, -np.arange(len(hits))), abs=1e-12)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="are needed"):
        score_pictures(SCORES[:2], TRUTH, 1)
    with pytest.raises(ValueError, match="float scores"):
        score_tags(SCORES.astype(int), TRUTH, NAMES)
    with pytest.raises(ValueError, match="NaN"):
        score_tags(np.full_like(SCORES, np.nan), TRUTH, NAMES)
    with pytest.raises(ValueError, match="3 tags, 2 names"):
        score_tags(SCORES, TRUTH, NAMES[:2])
    for k in (0, 4):
        with pytest.raises(ValueError, match="k must be between 1 and 3"):
            score_pictures(SCORES, TRUTH, k)
    nothing = np.zeros_like(TRUTH)
    with pytest.raises(ValueError, match="no picture has a true tag"):
        score_pictures(SCORES, nothing, 1)
    with pytest.raises(ValueError, match="no picture has a true tag"):
        score_decisions(TRUTH, nothing, NAMES)
    with pytest.raises(ValueError, match="its curve is not defined"):
        precision_recall(SCORES[:, 2], TRUTH[:, 2])
