"""Scores side by side: each the library's own, and the contest's interval draw by draw."""

from __future__ import annotations

import numpy as np
import pytest

from lmk.embed.errors import SubmissionError
from lmk.eval.scores.bootstrap import gap_interval, mean_interval
from lmk.eval.scores.gap import contest_gap, gap_of_judged
from lmk.eval.scores.gap_scores import contest_interval, gap_scores
from lmk.eval.scores.judged import Judged


def make_judged(queries: int = 60, share: float = 0.4) -> Judged:
    rng = np.random.default_rng(5)
    landmark = rng.random(queries) < share
    answered = rng.random(queries) < 0.9
    correct = landmark & answered & (rng.random(queries) < 0.7)
    confidence = np.where(answered, np.round(correct + rng.normal(size=queries), 1), -np.inf)
    ids = tuple(f"{row:04}" for row in range(queries))
    return Judged(ids, landmark, answered, correct, confidence)


def written_out(judged: Judged, drawn: np.ndarray) -> Judged:
    """The draw as queries of their own; repeats follow each other in rank, as ids do."""
    rows = np.sort(drawn)
    return Judged(
        tuple(f"{place:05}" for place in range(len(rows))),
        judged.has_landmark[rows],
        judged.answered[rows],
        judged.correct[rows],
        judged.confidence[rows],
    )


def test_each_score_is_the_librarys_own() -> None:
    judged = make_judged()
    scores = gap_scores(judged, "Public", resamples=50, seed=3)
    assert scores.name == "Public"
    assert (scores.queries, scores.with_landmark) == (60, judged.positives)
    assert (scores.answered, scores.right) == (judged.answered.sum(), judged.correct.sum())
    for found, wanted in (
        (scores.gap, gap_interval(judged, resamples=50, seed=3)),
        (
            scores.landmark_only,
            gap_interval(judged, ignore_non_landmark=True, resamples=50, seed=3),
        ),
        (scores.contest, contest_interval(judged, resamples=50, seed=3)),
        (
            scores.accuracy,
            mean_interval(judged.correct[judged.has_landmark].astype(float), resamples=50, seed=3),
        ),
    ):
        assert found is not None
        assert (found.value, found.low, found.high) == (wanted.value, wanted.low, wanted.high)
        assert wanted.low < wanted.value < wanted.high
    assert scores.gap.value == gap_of_judged(judged).value
    assert scores.accuracy.value == judged.accuracy()


def test_without_draws_there_are_no_intervals() -> None:
    scores = gap_scores(make_judged(), resamples=0)
    assert scores.contest is not None
    for each in (scores.gap, scores.landmark_only, scores.contest, scores.accuracy):
        assert (each.low, each.high) == (None, None)


def test_where_every_query_shows_a_landmark_there_is_no_contest_mix() -> None:
    judged = make_judged(share=1.1)
    assert gap_scores(judged, resamples=0).contest is None
    with pytest.raises(SubmissionError, match="every query shows a landmark"):
        contest_interval(judged)


def test_the_contest_interval_is_that_of_draws_written_out() -> None:
    judged = make_judged()
    found = contest_interval(judged, resamples=40, level=0.8, seed=11)
    rng = np.random.default_rng(11)
    draws = [
        contest_gap(written_out(judged, rng.integers(0, len(judged), len(judged)))).value
        for _ in range(40)
    ]
    assert found.value == contest_gap(judged).value
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.1, 0.9])))
    assert (found.level, found.resamples, found.seed) == (0.8, 40, 11)


def test_draws_of_one_sort_of_query_are_left_out() -> None:
    judged = written_out(make_judged(), np.array([0, 1]))
    judged = Judged(
        judged.query_ids,
        np.array([True, False]),
        np.array([True, True]),
        np.array([True, False]),
        np.array([1.0, 0.5]),
    )
    found = contest_interval(judged, resamples=100)
    assert 0 < found.resamples < 100  # half of the draws hold one query twice
    assert (found.low, found.high) == (1, 1)
    with pytest.raises(ValueError, match="no draw has a defined score"):
        contest_interval(judged, resamples=1, seed=_seed_of_a_repeat())


def _seed_of_a_repeat() -> int:
    return next(
        seed
        for seed in range(100)
        if len(set(np.random.default_rng(seed).integers(0, 2, 2).tolist())) == 1
    )


@pytest.mark.parametrize(("resamples", "level"), [(0, 0.9), (10, 0), (10, 1)])
def test_a_senseless_interval_is_refused(resamples: int, level: float) -> None:
    with pytest.raises(ValueError, match="resamples must be"):
        contest_interval(make_judged(), resamples=resamples, level=level)
