"""What single answers cost, against changing each answer and scoring again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.errors import SubmissionError
from lmk.eval.scores.gap import gap_of_judged
from lmk.eval.scores.judged import Judged
from lmk.eval.scores.what_if import gain_if_blank, gain_if_right


def judged_of(queries: list[tuple[str, float]]) -> Judged:
    """From ("right" | "wrong" | "missed" | "lured" | "quiet", confidence) for each query."""
    kinds = [kind for kind, _ in queries]
    answered = np.array([kind in ("right", "wrong", "lured") for kind in kinds], dtype=bool)
    confidence = np.array([value for _, value in queries], dtype=np.float64)
    return Judged(
        tuple(f"q{i:03}" for i in range(len(queries))),
        np.array([kind in ("right", "wrong", "missed") for kind in kinds], dtype=bool),
        answered,
        np.array([kind == "right" for kind in kinds], dtype=bool),
        np.where(answered, confidence, -np.inf),
    )


QUERIES = st.lists(
    st.tuples(
        st.sampled_from(["right", "wrong", "missed", "lured", "quiet"]),
        st.integers(0, 5).map(float),  # ties on purpose
    ),
    min_size=1,
    max_size=20,
).filter(lambda queries: any(kind in ("right", "wrong", "missed") for kind, _ in queries))


@given(QUERIES)
def test_blanking_each_wrong_answer_gains_what_is_said(queries: list[tuple[str, float]]) -> None:
    gains = gain_if_blank(judged_of(queries))
    before = gap_of_judged(judged_of(queries)).value
    for place, (kind, confidence) in enumerate(queries):
        if kind not in ("wrong", "lured"):
            assert gains[place] == 0
            continue
        blank = "missed" if kind == "wrong" else "quiet"
        changed = [*queries[:place], (blank, confidence), *queries[place + 1 :]]
        after = gap_of_judged(judged_of(changed)).value
        assert gains[place] == pytest.approx(after - before, abs=1e-12)


@given(QUERIES)
def test_righting_each_miss_gains_what_is_said(queries: list[tuple[str, float]]) -> None:
    gains = gain_if_right(judged_of(queries))
    before = gap_of_judged(judged_of(queries)).value
    for place, (kind, confidence) in enumerate(queries):
        if kind not in ("wrong", "missed"):
            assert gains[place] == 0
            continue
        given_confidence = confidence if kind == "wrong" else -1.0  # a blank comes last
        changed = [*queries[:place], ("right", given_confidence), *queries[place + 1 :]]
        after = gap_of_judged(judged_of(changed)).value
        assert gains[place] == pytest.approx(after - before, abs=1e-12)


def test_a_worked_example() -> None:
    """A false positive on top of two right answers: (1/2 + 2/3)/2 becomes 1 without it."""
    judged = judged_of([("lured", 9), ("right", 8), ("right", 7)])
    assert gain_if_blank(judged) == pytest.approx([1 - (1 / 2 + 2 / 3) / 2, 0, 0])
    assert gain_if_right(judged) == pytest.approx([0, 0, 0])


def test_nothing_is_defined_without_a_landmark() -> None:
    with pytest.raises(SubmissionError, match="no query shows a landmark"):
        gain_if_blank(judged_of([("lured", 1)]))
    with pytest.raises(SubmissionError, match="no query shows a landmark"):
        gain_if_right(judged_of([("quiet", 1)]))
