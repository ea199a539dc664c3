"""Rescoring: the same score to the bit as every other search gives."""

from __future__ import annotations

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.exact.searcher import ExactSearcher
from lmk.index.vectors import rescoring
from lmk.index.vectors.rescoring import score_pairs
from lmk.index.vectors.scores import scores
from lmk.index.vectors.vectors import Vectors
from lmk.index.vectors.view import View


@pytest.mark.parametrize("dim", [1, 16, 100, 515])
def test_a_pair_has_the_score_of_every_search(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescoring, "_PAIRS", 64)
    rng = np.random.default_rng(dim)
    vectors, queries = (unit_rows(rng.standard_normal((n, dim))) for n in (300, 7))
    stored = Vectors.of_array(vectors)
    query, row = np.repeat(np.arange(7), 300), np.tile(np.arange(300), 7)
    found = score_pairs(stored, queries, query, row).reshape(7, 300)
    unit = stored.read(np.arange(300))
    np.testing.assert_array_equal(found, [scores(one, unit) for one in queries])
    wide = queries.astype(np.float64) @ unit.T.astype(np.float64)
    np.testing.assert_allclose(found, wide, rtol=0, atol=1e-7)
    asked = Embeddings(queries, tuple("abcdefg"), "f")
    view = View(stored, np.ones(300, np.bool_), "f")
    exact = ExactSearcher(view).search(asked, 20)
    np.testing.assert_array_equal(exact.scores, np.take_along_axis(found, exact.rows, axis=1))
