"""Axes: ticks are round, within the ends and told apart; places are right."""

from __future__ import annotations

from itertools import pairwise
from math import log10

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.eval.report.axes import LONGEST_TEXT, Axis, axis_of

FINITE = st.floats(-1e300, 1e300, allow_subnormal=False)


@given(FINITE, FINITE)
def test_ticks_lie_within_and_rise(a: float, b: float) -> None:
    low, high = sorted((a, b))
    axis = axis_of(low, high, exact=True)
    assert axis.low == low
    assert axis.high >= high
    values = [value for value, _ in axis.ticks]
    assert all(first < second for first, second in pairwise(values))
    width = axis.high / 2 - axis.low / 2
    assert all(-1e-6 <= axis.at(value) <= 1 + 1e-6 for value in values), width
    assert len(values) <= 7


@given(st.integers(1, 10**9))
def test_counts_have_ticks_of_different_short_texts_from_0_past_the_top(top: int) -> None:
    axis = axis_of(0, top, whole=True)
    assert all(value == round(value) for value, _ in axis.ticks)
    texts = [text for _, text in axis.ticks]
    assert texts[0].strip("0.") == ""
    assert axis.ticks[-1][0] == pytest.approx(axis.high)
    assert axis.high >= top
    assert len(set(texts)) == len(texts) >= 2
    assert max(map(len, texts)) <= LONGEST_TEXT


@pytest.mark.parametrize(
    ("high", "texts"),
    [
        (2, ["1", "2"]),
        (9, ["1", "2", "4", "6", "8"]),
        (72, ["1", "20", "40", "60"]),
        (14_000, ["1", "5k", "10k"]),
    ],
)
def test_ranks_begin_at_1_and_are_whole(high: int, texts: list[str]) -> None:
    axis = axis_of(1, high, exact=True, whole=True)
    assert [text for _, text in axis.ticks] == texts
    assert (axis.low, axis.high) == (1, high)


@pytest.mark.parametrize(("top", "texts"), [(1, ["0", "1"]), (2, ["0", "1", "2"])])
def test_few_counts_have_no_fractions(top: int, texts: list[str]) -> None:
    assert [text for _, text in axis_of(0, top, whole=True).ticks] == texts


@given(st.integers(2, 10**9))
def test_a_logarithmic_axis_gives_equal_lengths_to_equal_ratios(top: int) -> None:
    axis = axis_of(1, top, logarithmic=True)
    assert axis.at(1) == 0
    assert axis.at(top) == pytest.approx(1)
    assert axis.at(top**0.5) == pytest.approx(0.5)
    assert all(0 <= axis.at(value) <= 1 + 1e-9 for value, _ in axis.ticks)
    assert len({text for _, text in axis.ticks}) == len(axis.ticks) >= 2
    mantissas = {round(value / 10 ** int(log10(value) + 1e-9)) for value, _ in axis.ticks}
    assert mantissas <= {1, 2, 5}


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 14_000, ["0", "5k", "10k"]),
        (0, 1818, ["0", "500", "1,000", "1,500"]),
        (-20_000, 20_500, ["-20k", "-10k", "0", "10k", "20k"]),
        (0.9999, 0.99999, ["0.99990", "0.99992", "0.99994", "0.99996", "0.99998"]),
        (1e-9, 3e-9, ["1e-09", "1.5e-09", "2e-09", "2.5e-09", "3e-09"]),
        (1e6, 1e6 + 0.01, ["1,000,000.000", "1,000,000.010"]),  # too long: the ends alone
        (5, 5, ["5", "6", "7", "8", "9", "10"]),
    ],
)
def test_texts(low: float, high: float, texts: list[str]) -> None:
    assert [text for _, text in axis_of(low, high, exact=True).ticks] == texts


def test_texts_of_a_logarithmic_axis() -> None:
    def texts(high: float) -> list[str]:
        return [text for _, text in axis_of(1, high, logarithmic=True).ticks]

    assert texts(117_577) == ["1", "10", "100", "1,000", "10k", "100k"]
    assert texts(30) == ["1", "2", "5", "10", "20"]


def test_the_largest_floats_do_not_overflow() -> None:
    assert axis_of(0, 1.7e308).high >= 1.7e308
    assert axis_of(-1.7e308, 1.7e308, exact=True).at(0) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("low", "high", "logarithmic"),
    [(1, 0, False), (0, float("inf"), False), (float("nan"), 1, False), (0, 1, True)],
)
def test_an_axis_built_wrong_is_refused(low: float, high: float, logarithmic: bool) -> None:
    with pytest.raises(ValueError, match="axis cannot"):
        Axis(low, high, (), logarithmic)
