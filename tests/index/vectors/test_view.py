"""How wide the answer of a search may be."""

from __future__ import annotations

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.exact.flat import FlatSearcher
from lmk.index.exact.searcher import ExactSearcher
from lmk.index.vectors.vectors import Vectors
from lmk.index.vectors.view import LEAST_WIDTH, View


@pytest.mark.parametrize("searcher", [ExactSearcher, FlatSearcher])
@pytest.mark.parametrize("rows", [20, LEAST_WIDTH + 500])
def test_an_endless_k_gives_all_rows_and_takes_no_endless_memory(searcher: type, rows: int) -> None:
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng.standard_normal((rows, 8)).astype(np.float32))
    view = View(Vectors.of_array(vectors), np.ones(rows, np.bool_), "f")
    asked = Embeddings(vectors[:2], ("a", "b"), "f")
    found = searcher(view).search(asked, 10**12)
    assert found.k == max(rows, LEAST_WIDTH)
    assert sorted(found.rows[0][found.rows[0] >= 0].tolist()) == list(range(rows))
    few = searcher(view).search(asked, 50)
    np.testing.assert_array_equal(few.rows, found.rows[:, :50])
