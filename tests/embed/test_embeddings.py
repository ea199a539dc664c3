"""The value object of vectors, and its errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmk.embed.embeddings import Embeddings, unit_rows

EYE = np.eye(3, dtype=np.float32)


def test_built_right() -> None:
    embeddings = Embeddings(EYE * 1.0005, ("a", "b", "c"), "f")
    assert len(embeddings) == embeddings.dim == 3


@pytest.mark.parametrize(
    ("vectors", "ids", "says"),
    [
        (EYE.astype(np.float64), "abc", "float32"),
        (EYE[0], "a", "float32"),
        (EYE, "ab", "3 vectors but 2 ids"),
        (EYE, "aba", "repeated"),
        (EYE * 1.002, "abc", "length"),
        (EYE * np.float32(np.nan), "abc", "length nan"),
        (EYE * 0, "abc", "length 0"),
    ],
)
def test_built_wrong(vectors: np.ndarray, ids: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Embeddings(vectors, tuple(ids), "f")


@given(arrays(np.float32, (4, 3), elements=st.floats(-1e3, 1e3, width=32)))
def test_unit_rows(vectors: np.ndarray) -> None:
    units = unit_rows(vectors)
    assert units.dtype == np.float32 and units.shape == (4, 3)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    for row, unit, length in zip(vectors, units, lengths, strict=True):
        if length < 9e-16:
            assert unit.tolist() == [1, 0, 0]
        elif length > 1.1e-15:
            np.testing.assert_allclose(unit, row / length, atol=1e-5)
    Embeddings(units, tuple("abcd"), "f")
