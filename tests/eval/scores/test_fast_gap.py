"""The fast value of GAP against the plain one: equal to the last bit, ties and all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lmk.eval.scores import fast_gap
from lmk.eval.scores.fast_gap import gap_value, right_ranks
from lmk.eval.scores.gap import gap

FEW = [0.0, -0.0, 0.5, 0.5000001, 1e-40, -3.0, 1e300, -1e300, np.inf, -np.inf]


@settings(max_examples=400, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.integers(1, 60),
        elements=st.one_of(
            st.sampled_from([0.0, -0.0, 0.5, 0.25, -3.0, np.inf, -np.inf]),
            st.floats(allow_nan=False, width=32),
        ),
    ),
    st.integers(0, 2**60),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_equal_to_the_plain_form(
    confidence: NDArray[np.floating], bits: int, many_right: float
) -> None:
    correct = np.array([bool(bits >> row & 1) for row in range(len(confidence))])
    expected = gap(confidence, correct, len(correct)).value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_gap, "MANY_RIGHT", many_right)
        assert gap_value(confidence, correct, len(correct)) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FEW), st.booleans()), min_size=1, max_size=50))
def test_doubles_that_a_float32_cannot_hold(rows: list[tuple[float, bool]]) -> None:
    confidence = np.array([value for value, _ in rows])
    correct = np.array([right for _, right in rows])
    assert gap_value(confidence, correct, 50) == gap(confidence, correct, 50).value


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("share", [0.01, 0.5])
@pytest.mark.parametrize("values", [7, 1000, None])
def test_large_cases(dtype: type[np.floating], share: float, values: int | None) -> None:
    rng = np.random.default_rng(5)
    correct = rng.random(30_000) < share
    confidence = rng.normal(0.4, 0.1, 30_000) + 0.1 * correct
    if values is not None:  # ties everywhere
        confidence = np.round(confidence * values) / values
    confidence = confidence.astype(dtype)
    assert gap_value(confidence, correct, 30_000) == gap(confidence, correct, 30_000).value


def test_doubles_that_differ_in_their_last_bits_keep_their_order() -> None:
    # With 2^16 rows a packed key holds 47 bits of the confidence: these all look the same.
    n = 2**16
    confidence = 0.5 + np.arange(n) * np.finfo(float).eps / 2
    correct = np.zeros(n, dtype=bool)
    correct[::2] = True
    expected = gap(confidence, correct, n).value
    assert gap_value(confidence, correct, n) == expected
    assert right_ranks(confidence, correct)[:3].tolist() == [1, 3, 5]


def test_none_right_and_undefined() -> None:
    nothing = np.zeros(3, dtype=bool)
    assert gap_value(np.ones(3), nothing, 2) == 0.0
    with pytest.raises(ValueError, match="not defined"):
        gap_value(np.ones(3), nothing, 0)
    with pytest.raises(ValueError, match="are needed"):
        gap_value(np.ones(3), nothing[:2], 1)
