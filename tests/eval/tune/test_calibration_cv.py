"""Calibration and threshold judged on answers that they were not learnt on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from lmk.embed.errors import UsageError
from lmk.eval.tune.calibration_cv import calibrated, of_rows, with_distractors
from lmk.eval.tune.grid import stratified_folds
from lmk.rerank.fit.calibration import (
    AskedPhotos,
    ScoredAnswers,
    calibrate,
    expected_calibration_error,
    operating_point,
    threshold_for,
)


def answers_of(n: int, seed: int, *, noise: float) -> ScoredAnswers:
    """Half landmarks; right answers are surer by 1 than wrong ones, blurred by noise."""
    chance = np.random.default_rng(seed)
    landmark = np.arange(n) % 2 == 0
    right = landmark & (chance.random(n) < 0.9)
    confidence = (right + noise * chance.normal(size=n)).astype(np.float32)
    return ScoredAnswers.of(confidence, right, landmark)


precise = partial(threshold_for, precision=0.95)


def test_what_is_kept_is_learnt_of_all() -> None:
    answers = answers_of(400, 0, noise=0.5)
    found = calibrated(answers, precise)
    assert found.calibration == calibrate(answers)
    assert found.point == precise(answers)
    assert found.folds == 5
    logistic = calibrated(answers, precise, "logistic")
    assert logistic.calibration == calibrate(answers, "logistic")


def test_each_fold_is_judged_by_the_others() -> None:
    """A slow reference: fold by fold, answer by answer."""
    answers = answers_of(300, 1, noise=0.6).at_share(0.8)
    found = calibrated(answers, precise, seed=3)
    kinds = 4 + 2 * answers.right + answers.landmark
    fold = stratified_folds(kinds.astype(np.int64), 5, 3)
    probability, kept = np.zeros(300), np.zeros(300, bool)
    for i in range(300):
        others = of_rows(answers, fold != fold[i])
        one = answers.confidence[i : i + 1]
        probability[i] = calibrate(others).probabilities(one)[0]
        kept[i] = one[0] >= np.float32(precise(others).threshold)
    weight = answers.weight
    assert found.ece == pytest.approx(
        expected_calibration_error(probability, answers.right, weight)
    )
    right = weight[kept & answers.right].sum()
    assert found.held_out.precision == pytest.approx(right / weight[kept].sum())
    assert found.held_out.recall == pytest.approx(right / weight[answers.landmark].sum())


def test_copies_are_judged_by_what_no_copy_taught() -> None:
    once = answers_of(60, 2, noise=3)
    twice = of_rows(once, np.repeat(np.arange(60), 2))
    alone = calibrated(once, precise)
    together = calibrated(twice, precise)
    apart = calibrated(replace(twice, photo=np.arange(120)), precise)
    assert together.ece == pytest.approx(alone.ece)
    assert together.held_out == alone.held_out
    assert apart.ece < 0.7 * alone.ece  # each has learnt from its copy


def test_the_error_is_not_that_of_the_answers_it_was_learnt_on() -> None:
    answers = answers_of(60, 2, noise=3)  # isotonic steps fit this noise to perfection
    found = calibrated(answers, precise)
    fitted = calibrate(answers).probabilities(answers.confidence)
    assert expected_calibration_error(fitted, answers.right) < 0.02 < found.ece


def test_the_precision_held_out_is_that_of_fresh_answers() -> None:
    found = calibrated(answers_of(4000, 4, noise=0.5), precise)
    fresh = operating_point(answers_of(40000, 5, noise=0.5), found.point.threshold)
    assert found.held_out.precision == pytest.approx(fresh.precision, abs=0.02)
    assert found.held_out.recall == pytest.approx(fresh.recall, abs=0.05)
    assert found.ece < 0.05


@pytest.mark.parametrize("seed", range(20))
def test_two_of_each_are_enough(seed: int) -> None:
    confidence = np.array([0.9, 0.1, 0.8, 0.2, -np.inf, -np.inf], np.float32)
    right = np.array([True, False, True, False, False, False])
    landmark = np.array([True, True, True, False, False, True])
    found = calibrated(ScoredAnswers.of(confidence, right, landmark), precise, seed=seed)
    assert found.folds == 4
    assert found.point.precision == 1
    assert found.point.recall == 0.5


@pytest.mark.parametrize(
    ("right", "words"),
    [([True, False, False], "1 right and 2 wrong"), ([True, True, True], "3 right and 0 wrong")],
)
def test_fewer_are_refused(right: list[bool], words: str) -> None:
    confidence = np.array([0.9, 0.1, 0.2], np.float32)
    answers = ScoredAnswers.of(confidence, np.array(right), np.ones(3, bool))
    with pytest.raises(UsageError, match=words):
        calibrated(answers, precise)


def test_copies_count_once() -> None:
    confidence = np.array([0.9, 0.9, 0.1, 0.2], np.float32)
    right = np.array([True, True, False, False])
    answers = ScoredAnswers.of(confidence, right, np.ones(4, bool))
    assert calibrated(answers, precise).folds == 4
    with pytest.raises(UsageError, match="1 right and 2 wrong"):
        calibrated(replace(answers, photo=np.array([0, 0, 1, 2])), precise)


def test_distractors_weigh_as_what_is_missing() -> None:
    """Six photos of landmarks and one of none: distractors weigh five, two copies as one of two."""
    landmark = np.array([True] * 6 + [False])
    answers = ScoredAnswers.of(np.linspace(0, 1, 7, dtype=np.float32), landmark, landmark)
    asked = AskedPhotos(np.array([0.1, 0.2, 0.3], np.float32), np.array([0, 1, 1]))
    got = with_distractors(answers, asked)
    np.testing.assert_allclose(got.weight, [1] * 7 + [2.5, 1.25, 1.25])
    assert got.photo.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert not got.landmark[6:].any() and not got.right[6:].any()
    nobody = AskedPhotos(np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert with_distractors(answers, nobody) is answers
    others = ScoredAnswers.of(
        answers.confidence, ~landmark, ~landmark
    )  # one of a landmark, six of none
    assert with_distractors(others, asked) is others
