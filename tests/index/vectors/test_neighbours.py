from __future__ import annotations

import numpy as np
import pytest

from lmk.index.vectors.neighbours import NO_ROW, Neighbours

ROWS = np.array([[4, 2, 9], [1, NO_ROW, NO_ROW]])
SCORES = np.array([[0.9, 0.9, -0.5], [0.1, -np.inf, -np.inf]], np.float32)


def changed(array: np.ndarray, place: tuple[int, int], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


def test_neighbours_say_how_many_there_are() -> None:
    neighbours = Neighbours(ROWS, SCORES, ("a", "b"))
    assert (len(neighbours), neighbours.k) == (2, 3)
    assert Neighbours(ROWS[:, :1], SCORES[:, :1], ("a", "b")).k == 1
    assert len(Neighbours(ROWS[:0], SCORES[:0], ())) == 0


@pytest.mark.parametrize(
    ("rows", "scores", "ids", "message"),
    [
        (ROWS.astype(np.int32), SCORES, "ab", "rows must be int64"),
        (ROWS[0], SCORES[0], "ab", "rows must be int64"),
        (ROWS, SCORES[:, :2], "ab", "scores must be float32"),
        (ROWS, SCORES.astype(np.float64), "ab", "scores must be float32"),
        (ROWS, SCORES, "a", "2 rows of neighbours, 1 queries"),
        (ROWS, changed(SCORES, (0, 1), np.nan), "ab", "a score is NaN"),
        (ROWS, changed(SCORES, (1, 1), 0.05), "ab", "-inf exactly where there is no row"),
        (ROWS, changed(SCORES, (0, 2), -np.inf), "ab", "-inf exactly where there is no row"),
        (ROWS, changed(SCORES, (0, 2), 0.95), "ab", "scores must fall"),
        (changed(ROWS, (0, 2), 4), SCORES, "ab", "a row is repeated"),
    ],
)
def test_neighbours_built_wrong_are_refused(
    rows: np.ndarray, scores: np.ndarray, ids: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Neighbours(rows, scores, tuple(ids))
