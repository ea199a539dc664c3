"""Vectors and View: reading from any mix of parts, and what a search is checked for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.embeddings import unit_rows
from lmk.embed.errors import GalleryDamaged
from lmk.index.vectors.vectors import VectorPart, Vectors


@given(
    st.lists(st.integers(0, 59), max_size=80), st.lists(st.integers(0, 60), max_size=4).map(sorted)
)
def test_vectors_come_in_the_order_asked_from_any_mix_of_parts(
    rows: list[int], cuts: list[int]
) -> None:
    stored = unit_rows(np.random.default_rng(0).standard_normal((60, 5)))
    edges = [0, *cuts, 60]
    parts = tuple(
        VectorPart(low, stored[low:high].astype("<f2" if i % 2 else "<f4"), str(i))
        for i, (low, high) in enumerate(pairwise(edges))
    )
    found = Vectors(parts, 5).read(np.array(rows, np.int64))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, stored[rows], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 60000.0])
def test_a_vector_of_another_length_than_one_is_damage(value: float) -> None:
    stored = unit_rows(np.ones((3, 4))).astype("<f2")
    stored[1] = value
    vectors = Vectors((VectorPart(0, stored, "k"),), 4, Path("g"))
    assert vectors.read(np.array([0, 2])).shape == (2, 4)
    with pytest.raises(GalleryDamaged, match="row 1 has length"):
        vectors.read(np.array([0, 1]))


def test_parts_with_a_gap_or_of_another_shape_are_refused() -> None:
    part = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match="a part begins at row 3, row 2 is next"):
        Vectors((VectorPart(0, part, "a"), VectorPart(3, part, "b")), 4)
    with pytest.raises(ValueError, match="float16 or float32"):
        Vectors((VectorPart(0, part.astype(np.float64), "a"),), 4)
    with pytest.raises(ValueError, match="float16 or float32"):
        Vectors((VectorPart(0, part, "a"),), 5)
