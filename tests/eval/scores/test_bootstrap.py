"""Bootstrap intervals and the paired test: draws written out, and known ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmk.embed.errors import SubmissionError
from lmk.eval.scores.bootstrap import _Ranked, gap_interval, gap_test, mean_interval, mean_test
from lmk.eval.scores.gap import gap, gap_of_judged
from lmk.eval.scores.judged import Judged


def make_judged(
    queries: int, seed: int, share: float = 0.3, skill: float = 0.8, noise: float = 1.0
) -> Judged:
    # The truth comes from one generator and the answers from another: same queries, two systems.
    landmark = np.random.default_rng(99).random(queries) < share
    rng = np.random.default_rng(seed)
    correct = landmark & (rng.random(queries) < skill)
    confidence = correct + noise * rng.normal(size=queries)
    return Judged(
        tuple(f"{row:07}" for row in range(queries)),
        landmark,
        np.ones(queries, dtype=bool),
        correct,
        confidence.astype(np.float64),
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.1, 0.2, 0.3, -1.0]),
            st.sampled_from(["right", "wrong", "blank", "none", "none blank"]),
            st.integers(0, 4),
        ),
        max_size=25,
    ),
    st.booleans(),
)
def test_a_draw_scores_as_queries_written_out(
    rows: list[tuple[float, str, int]], ignore_non_landmark: bool
) -> None:
    rows = [*rows, (0.2, "right", 2)]
    kinds = np.array([kind for _, kind, _ in rows])
    answered = np.isin(kinds, ["right", "wrong", "none"])
    confidence = np.where(answered, [value for value, _, _ in rows], -np.inf)
    landmark, correct = np.isin(kinds, ["right", "wrong", "blank"]), kinds == "right"
    judged = Judged(
        tuple(f"{row:03}" for row in range(len(rows))), landmark, answered, correct, confidence
    )
    counts = np.array([count for *_, count in rows])
    # `counts` may draw more than there are queries: the harmonic numbers must reach that far.
    counts = counts % 3
    while counts.sum() > len(rows):
        counts[counts.argmax()] -= 1
    copies = np.repeat(np.arange(len(rows)), counts)
    used = copies[answered[copies] & (landmark[copies] | (not ignore_non_landmark))]
    got = _Ranked(judged, ignore_non_landmark).gap(counts)
    if not landmark[copies].any():
        assert np.isnan(got)
    else:
        expected = gap(confidence[used], correct[used], int(landmark[copies].sum())).value
        assert got == pytest.approx(expected, abs=1e-12)


def test_the_interval_holds_the_value_and_narrows_with_more_queries() -> None:
    small = gap_interval(make_judged(200, 1), resamples=300)
    large = gap_interval(make_judged(20_000, 1), resamples=300)
    for interval in (small, large):
        assert interval.low < interval.value < interval.high
        assert (interval.resamples, interval.level, interval.seed) == (300, 0.95, 0)
    ratio = (small.high - small.low) / (large.high - large.low)
    assert 6 < ratio < 16  # the square root of 100 is 10


def test_the_value_is_the_gap_and_a_seed_repeats_itself() -> None:
    judged = make_judged(300, 2)
    assert gap_interval(judged, resamples=50).value == gap_of_judged(judged).value
    assert gap_interval(judged, resamples=50) == gap_interval(judged, resamples=50)
    assert gap_interval(judged, resamples=50, seed=1).low != gap_interval(judged, resamples=50).low
    landmark_only = gap_interval(judged, resamples=50, ignore_non_landmark=True)
    assert landmark_only.value == gap_of_judged(judged, ignore_non_landmark=True).value
    assert landmark_only.low > gap_interval(judged, resamples=50).low


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = sum(
        interval.low <= 0.3 <= interval.high
        for interval in (
            mean_interval((rng.random(200) < 0.3).astype(float), resamples=200, level=0.9)
            for _ in range(200)
        )
    )
    assert 165 <= covered <= 195  # 180 expected


def test_a_perfect_system_has_an_interval_of_no_width() -> None:
    yes = np.ones(20, dtype=bool)
    judged = Judged(tuple(f"{row:02}" for row in range(20)), yes, yes, yes, np.arange(20.0))
    interval = gap_interval(judged, resamples=100)
    assert (interval.low, interval.value, interval.high) == pytest.approx((1, 1, 1))


def test_draws_without_a_landmark_are_left_out() -> None:
    one = np.arange(10) == 4
    judged = Judged(tuple("0123456789"), one, ~one | one, one, np.arange(10.0))
    interval = gap_interval(judged, resamples=400)
    assert 200 < interval.resamples < 300  # 1 - (1 - 1/10)^10 = 65 %


def test_a_clear_difference_is_found_and_none_is_not() -> None:
    weak, strong = make_judged(3000, 1, skill=0.6), make_judged(3000, 2, skill=0.9)
    better = gap_test(weak, strong, resamples=300)
    assert better.low > 0
    assert better.p_value == pytest.approx(2 / 301)
    assert better.difference == gap_of_judged(strong).value - gap_of_judged(weak).value
    worse = gap_test(strong, weak, resamples=300)
    assert (worse.high, worse.p_value) == (pytest.approx(-better.low), better.p_value)
    same = gap_test(make_judged(3000, 3), make_judged(3000, 4), resamples=300)
    assert same.p_value > 0.05
    assert same.low < 0 < same.high
    itself = gap_test(weak, weak, resamples=100)
    assert (itself.difference, itself.low, itself.high, itself.p_value) == (0, 0, 0, 1)


def test_means_per_query() -> None:
    values = np.array([0.0, 1.0, np.nan, 1.0, 0.5])
    interval = mean_interval(values, resamples=500)
    assert interval.value == 0.625
    assert 0 <= interval.low < 0.625 < interval.high <= 1
    better = mean_test(values, values + 0.25)
    assert better.difference == better.low == better.high == 0.25
    assert better.p_value < 0.01


def test_refusals() -> None:
    judged = make_judged(20, 1)
    none = Judged(("a",), *(np.zeros(1, dtype=bool),) * 3, np.array([-np.inf]))
    with pytest.raises(SubmissionError, match="no query shows a landmark"):
        gap_interval(none)
    with pytest.raises(ValueError, match="resamples"):
        gap_interval(judged, resamples=0)
    with pytest.raises(ValueError, match="level"):
        gap_interval(judged, level=1.0, resamples=5)
    with pytest.raises(ValueError, match="same queries"):
        gap_test(judged, make_judged(21, 1))
    with pytest.raises(ValueError, match="same queries"):
        mean_test(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="no query has a value"):
        mean_interval(np.array([np.nan]))
    with pytest.raises(ValueError, match=r"must be \[q\]"):
        mean_interval(np.zeros((2, 2)))
