"""Calibration: golden values, slow references, and what cannot be learnt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmk.embed.errors import UsageError
from lmk.rerank.fit.calibration import (
    AskedPhotos,
    Calibration,
    ScoredAnswers,
    calibrate,
    expected_calibration_error,
    operating_point,
    threshold_for,
)


def answers(
    confidence: list[float],
    right: list[int],
    landmark: list[int] | None = None,
    weight: list[float] | None = None,
) -> ScoredAnswers:
    return ScoredAnswers(
        np.array(confidence, np.float32),
        np.array(right, np.bool_),
        np.array(right if landmark is None else landmark, np.bool_),
        np.ones(len(right)) if weight is None else np.array(weight, np.float64),
    )


@st.composite
def some_answers(draw: st.DrawFn, least: int = 1) -> ScoredAnswers:
    n = draw(st.integers(least, 14))
    tenths = st.integers(0, 10).map(lambda i: i / 10)
    confidence = draw(st.lists(tenths | st.just(-math.inf), min_size=n, max_size=n))
    landmark = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    wanted = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    right = [
        int(w and known and c > -math.inf)
        for w, known, c in zip(wanted, landmark, confidence, strict=True)
    ]
    weight = draw(st.lists(st.sampled_from([0.5, 1.0, 4.0]), min_size=n, max_size=n))
    return answers(confidence, right, [int(known) for known in landmark], weight)


def pooled(confidence: list[float], right: list[float], weight: list[float]) -> dict[float, float]:
    """Pool adjacent violators: the rising values nearest to `right`, by confidence."""
    blocks: list[list[float]] = []  # value, weight, number of confidences
    levels = sorted(set(confidence))
    for level in levels:
        at = [i for i, c in enumerate(confidence) if c == level]
        total = sum(weight[i] for i in at)
        blocks.append([sum(weight[i] * right[i] for i in at) / total, total, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            value, w, n = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + value * w) / (before[1] + w)
            before[1] += w
            before[2] += n
    values = [value for value, _, n in blocks for _ in range(int(n))]
    return dict(zip(levels, values, strict=True))


@settings(deadline=None)
@given(some_answers(2))
def test_isotonic_against_pooling_by_hand(given_: ScoredAnswers) -> None:
    there = np.isfinite(given_.confidence)
    right = given_.right[there]
    assume(right.any() and not right.all())
    got = calibrate(given_, "isotonic")
    confidence = given_.confidence[there]
    expected = pooled(
        confidence.tolist(), right.astype(float).tolist(), given_.weight[there].tolist()
    )
    want = [expected[c] for c in confidence.tolist()]
    np.testing.assert_allclose(got.probabilities(confidence), want, atol=1e-6)
    assert got.answers == there.sum()


def test_isotonic_golden() -> None:
    """.4 is out of order: it and .6 share 1/2; between points the curve is a line."""
    got = calibrate(answers([0.2, 0.4, 0.6, 0.8], [0, 1, 0, 1], [1, 1, 0, 1]))
    asked = np.array([-1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 2, -np.inf], np.float32)
    expected = [0, 0, 0.25, 0.5, 0.5, 0.75, 1, 1, 0]
    np.testing.assert_allclose(got.probabilities(asked), expected, atol=1e-6)


def loss(slope: float, intercept: float, given_: ScoredAnswers) -> float:
    """Platt's: cross-entropy with his targets."""
    n_right = int(given_.right.sum())
    n_wrong = len(given_) - n_right
    total = 0.0
    for c, right, w in zip(given_.confidence, given_.right, given_.weight, strict=True):
        target = (n_right + 1) / (n_right + 2) if right else 1 / (n_wrong + 2)
        p = 1 / (1 + math.exp(-(slope * float(c) + intercept)))
        total -= w * (target * math.log(p) + (1 - target) * math.log(1 - p))
    return total


@pytest.mark.parametrize("weighed", [False, True])
def test_logistic_is_where_the_loss_is_least(weighed: bool) -> None:
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0, 1, 60)
    right = rng.random(60) < 1 / (1 + np.exp(-(8 * confidence - 4)))
    weight = rng.uniform(0.5, 3, 60).tolist() if weighed else None
    given_ = answers(confidence.tolist(), right.astype(int).tolist(), weight=weight)
    got = calibrate(given_, "logistic")
    best = loss(got.slope, got.intercept, given_)
    for move in (0.05, -0.05):
        assert loss(got.slope + move, got.intercept, given_) > best
        assert loss(got.slope, got.intercept + move, given_) > best
        assert loss(got.slope + move, got.intercept - move / 2, given_) > best
    assert got.slope == pytest.approx(8, rel=0.5)
    p = got.probabilities(np.array([0.5], np.float32))[0]
    assert p == pytest.approx(1 / (1 + math.exp(-(0.5 * got.slope + got.intercept))))


def test_logistic_without_overlap_is_not_quite_sure() -> None:
    """Platt's targets: 3 of 3 right are 4/5, not 1."""
    got = calibrate(answers([0.8, 0.8, 0.8, 0.1, 0.1, 0.1], [1, 1, 1, 0, 0, 0]), "logistic")
    at = got.probabilities(np.array([0.8, 0.1, -np.inf], np.float32))
    np.testing.assert_allclose(at, [0.8, 0.2, 0], atol=1e-4)
    far = got.probabilities(np.array([1e6, -1e6], np.float32))
    assert far[0] == pytest.approx(1) and far[1] == pytest.approx(0)


@pytest.mark.parametrize("confidence", [[0.1, 0.9], [0.5, 0.5]])
def test_a_confidence_that_tells_nothing(confidence: list[float]) -> None:
    """The surer answer is the wrong one, or all are alike: the share of right ones is left."""
    given_ = answers(confidence, [1, 0])
    asked = np.array([0, 0.5, 1], np.float32)
    for method in ("logistic", "isotonic"):
        got = calibrate(given_, method).probabilities(asked)
        np.testing.assert_allclose(got, 0.5, atol=1e-6)


@settings(max_examples=30, deadline=None)  # a busy machine takes long for the first fit
@given(some_answers(2), st.sampled_from(["isotonic", "logistic"]))
def test_probabilities_never_fall_and_survive_json(given_: ScoredAnswers, method: str) -> None:
    there = np.isfinite(given_.confidence)
    assume(given_.right[there].any() and not given_.right[there].all())
    got = calibrate(given_, method)
    asked = np.concatenate([[-np.inf], np.linspace(-1, 2, 50)]).astype(np.float32)
    probability = got.probabilities(asked)
    assert (np.diff(probability) >= 0).all()
    assert (probability >= 0).all() and (probability <= 1).all()
    again = Calibration.model_validate_json(got.model_dump_json())
    assert again == got
    assert np.array_equal(again.probabilities(asked), probability)


@pytest.mark.parametrize(
    ("given_", "kind"),
    [
        (answers([0.5, 0.6], [1, 1]), "right"),
        (answers([0.5, 0.6], [0, 0]), "wrong"),
        (answers([], []), "wrong"),
        (answers([-math.inf], [0]), "wrong"),
    ],
)
def test_nothing_to_learn_from(given_: ScoredAnswers, kind: str) -> None:
    for method in ("isotonic", "logistic"):
        with pytest.raises(UsageError, match=f"all answers are {kind}; give more photos"):
            calibrate(given_, method)


def test_the_contest_share() -> None:
    """2 landmark queries of 4 become 2 %; the calibrated probability follows."""
    plain = answers([0.9, 0.9, 0.9, 0.1], [1, 1, 0, 0], [1, 1, 0, 0])
    weighed = plain.at_share(0.98)
    assert weighed.weight.sum() == pytest.approx(4)
    assert weighed.weight[:2].sum() / 4 == pytest.approx(0.02)
    top = np.array([0.9], np.float32)
    assert calibrate(plain).probabilities(top)[0] == pytest.approx(2 / 3)
    assert calibrate(weighed).probabilities(top)[0] == pytest.approx(0.02 / (0.02 + 0.49))
    again = weighed.at_share(0.98)
    np.testing.assert_allclose(again.weight, weighed.weight)


def test_a_share_that_cannot_be() -> None:
    for share in (0, 1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            answers([0.5], [1]).at_share(share)
    with pytest.raises(UsageError, match="query without a landmark"):
        answers([0.5], [1]).at_share(0.5)
    with pytest.raises(UsageError, match="query with a landmark"):
        answers([0.5], [0]).at_share(0.5)


def asked(*confidence: float) -> AskedPhotos:
    return AskedPhotos(np.array(confidence, np.float32), np.arange(len(confidence)))


def test_answers_of_a_gallery() -> None:
    known, right = asked(0.9, 0.2), np.array([True, False])
    unknown_landmark, bank = asked(0.3, 0.1), asked(*[0.4] * 6)
    got = ScoredAnswers.of_gallery(known, right, unknown_landmark, bank)
    assert got.landmark.tolist() == [True, True] + [False] * 8
    assert got.right.tolist() == [True] + [False] * 9
    for kind in (slice(2, 4), slice(4, None)):
        assert got.weight[kind].sum() == pytest.approx(4)
    assert got.weight[:2].tolist() == [1, 1]
    assert got.photo.tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 6, 7]
    empty = asked()
    assert (
        ScoredAnswers.of_gallery(known, right, unknown_landmark, empty).weight.tolist() == [1] * 4
    )
    assert len(ScoredAnswers.of_gallery(empty, np.zeros(0, np.bool_), empty, empty)) == 0


def test_copies_in_a_gallery_count_once() -> None:
    """Three frames of one photo and another photo, as gallery pictures and as distractors."""
    burst = AskedPhotos(np.array([0.9, 0.8, 0.9, 0.5], np.float32), np.array([1, 1, 1, 0]))
    got = ScoredAnswers.of_gallery(burst, np.ones(4, np.bool_), burst, burst)
    third = [1 / 3] * 3
    np.testing.assert_allclose(got.weight, [*third, 1] * 3)
    assert got.photo.tolist() == [1, 1, 1, 0, 1, 1, 1, 0, 3, 3, 3, 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (([0.5], [1, 0]), r"must be \[n\]"),
        (([math.nan], [0]), "NaN"),
        (([math.inf], [0]), "infinite"),
        (([0.5], [1], [0]), "no landmark or no answer"),
        (([-math.inf], [1]), "no landmark or no answer"),
        (([0.5], [1], None, [0.0]), "weight"),
        (([0.5], [1], None, [math.nan]), "weight"),
    ],
)
def test_answers_that_cannot_be(wrong: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        answers(*wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "isotonic"},
        {"method": "isotonic", "confidence": (0, 1), "probability": (1,)},
        {"method": "isotonic", "confidence": (1, 1), "probability": (0, 1)},
        {"method": "isotonic", "confidence": (0, 1), "probability": (1, 0)},
        {"method": "isotonic", "confidence": (0, 1), "probability": (0, 2)},
        {"method": "logistic", "slope": -1},
        {"method": "logistic", "slope": math.inf},
        {"method": "other"},
        {"method": "logistic", "more": 1},
    ],
)
def test_calibrations_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Calibration(**{"answers": 1, **wrong})


def test_ece_golden() -> None:
    """Bins of a half: (.2, .4) with one of two right, (.9) right: .4/3 + .1/3... by hand."""
    probability = np.array([0.2, 0.4, 0.9])
    right = np.array([False, True, True])
    expected = (2 / 3) * abs(1 / 2 - 0.3) + (1 / 3) * abs(1 - 0.9)
    assert expected_calibration_error(probability, right, bins=2) == pytest.approx(expected)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([True, False])) == 1
    assert math.isnan(expected_calibration_error(np.zeros(0), np.zeros(0, np.bool_)))


@given(some_answers(), st.integers(1, 20), st.integers(0, 1000))
def test_ece_against_a_loop(given_: ScoredAnswers, bins: int, seed: int) -> None:
    probability = np.round(np.random.default_rng(seed).random(len(given_)), 3)
    total = given_.weight.sum()
    expected = 0.0
    for b in range(bins):
        inside = [
            i
            for i, p in enumerate(probability)
            if b / bins < p <= (b + 1) / bins or (b == 0 and p == 0)
        ]
        if inside:
            w = sum(given_.weight[i] for i in inside)
            accuracy = sum(given_.weight[i] * given_.right[i] for i in inside) / w
            mean = sum(given_.weight[i] * probability[i] for i in inside) / w
            expected += w / total * abs(accuracy - mean)
    got = expected_calibration_error(probability, given_.right, given_.weight, bins=bins)
    assert got == pytest.approx(expected, abs=1e-9)


def test_isotonic_is_calibrated_where_it_was_learnt() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(500).astype(np.float32)
    right = rng.random(500) < confidence**2
    given_ = ScoredAnswers.of(confidence, right, np.ones(500, np.bool_))
    probability = calibrate(given_).probabilities(confidence)
    assert expected_calibration_error(probability, right) < 0.02
    raw = expected_calibration_error(confidence.astype(np.float64), right)
    assert raw > 0.1


@given(some_answers(), st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0]))
def test_the_threshold_against_every_cut(given_: ScoredAnswers, wanted: float) -> None:
    assume(given_.landmark.any())
    got = threshold_for(given_, wanted)
    landmarks = given_.weight[given_.landmark].sum()
    points = []
    for cut in sorted(set(given_.confidence[np.isfinite(given_.confidence)].tolist())):
        kept = given_.confidence >= np.float32(cut)
        right = given_.weight[kept & given_.right].sum()
        points.append((right / given_.weight[kept].sum(), right / landmarks, cut))
    good = [p for p in points if p[0] >= wanted - 1e-9 and p[1] > 0]
    assert got.feasible == bool(good)
    if good:
        best = max(good, key=lambda p: (p[1], p[2]))
    elif points:
        best = max(points, key=lambda p: (p[0], p[1], p[2]))
    else:
        assert got.threshold == math.inf and got.recall == 0
        return
    assert got.recall == pytest.approx(best[1]) and got.precision == pytest.approx(best[0])
    # the same answers are kept as by the confidence itself
    kept = given_.confidence >= np.float32(got.threshold)
    assert np.array_equal(kept, given_.confidence >= np.float32(best[2]))
    again = operating_point(given_, got.threshold)
    assert again.precision == pytest.approx(got.precision)
    assert again.recall == pytest.approx(got.recall)


def test_threshold_golden() -> None:
    given_ = answers([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [1, 0, 1, 1, 0, 1])
    got = threshold_for(given_, 0.7)
    assert (got.precision, got.recall, got.feasible) == (0.75, 0.75, True)
    assert got.threshold == pytest.approx(0.55)
    assert threshold_for(given_, 1).recall == 0.25
    hard = threshold_for(answers([0.9, 0.8], [0, 1]), 0.9)
    assert not hard.feasible and (hard.precision, hard.recall) == (0.5, 1.0)


def test_neighbouring_floats_are_told_apart() -> None:
    low = np.float32(0.5)
    high = np.nextafter(low, np.float32(1))
    given_ = answers([float(high), float(low)], [1, 0])
    got = threshold_for(given_, 1)
    assert got.recall == 1 and np.float32(got.threshold) == high


def test_points_that_are_not_defined() -> None:
    nobody = answers([0.5], [0])
    with pytest.raises(UsageError, match="no query shows a landmark"):
        threshold_for(nobody, 0.9)
    for wrong in (0, 1.1):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            threshold_for(answers([0.5], [1]), wrong)
    refused = operating_point(nobody, 0.9)
    assert refused.precision == 1 and math.isnan(refused.recall) and not refused.feasible
