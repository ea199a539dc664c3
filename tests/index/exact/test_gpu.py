"""Search on GPUs, as far as a machine without one can show: stand-ins for FAISS's GPU classes."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.exact import flat, gpu
from lmk.index.exact.flat import FlatSearcher


def embeddings(seed: int, n: int) -> Embeddings:
    vectors = unit_rows(np.random.default_rng(seed).normal(size=(n, 16)))
    return Embeddings(vectors, tuple(map(str, range(n))), "f")


class Card:
    """What a GPU of the tests was asked."""

    def __init__(self, memory: int = 10**9, rounded: bool = False) -> None:
        self.memory, self.rounded = memory, rounded
        self.adds: dict[int, list[int]] = {0: [], 1: []}
        self.searches = 0

    def put_in(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        card = self

        class Config:
            device = 0

        class Index:
            def __init__(self, resources: object, dim: int, config: Config) -> None:
                self.device, self.inner = config.device, faiss.IndexFlatIP(dim)

            def add(self, vectors: np.ndarray) -> None:
                if self.inner.ntotal + len(vectors) > card.memory:
                    raise RuntimeError("Error: 'err == cudaSuccess' failed: out of memory")
                card.adds[self.device].append(len(vectors))
                self.inner.add(vectors.astype(np.float16).astype("f4") if card.rounded else vectors)

            def search(self, queries: np.ndarray, depth: int) -> Any:
                card.searches += 1
                return self.inner.search(queries, depth)

        monkeypatch.setattr(faiss, "get_num_gpus", lambda: count)
        monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
        monkeypatch.setattr(faiss, "GpuIndexFlatConfig", Config, raising=False)
        monkeypatch.setattr(faiss, "GpuIndexFlatIP", Index, raising=False)
        monkeypatch.setattr(gpu, "LEAST_ROWS", 100)
        monkeypatch.setattr(flat, "_BLOCK_ROWS", 64)


def test_rows_are_shared_out_and_the_answer_is_that_of_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored, queries = embeddings(0, 500), embeddings(1, 30)
    expected = FlatSearcher.of_embeddings(stored).search(queries, 12)
    card = Card()
    card.put_in(monkeypatch, 2)
    searcher = FlatSearcher.of_embeddings(stored)
    found = searcher.search(queries, 12)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert card.searches == 2
    assert card.adds == {0: [64] * 4, 1: [64, 64, 64, 52]}
    assert searcher.reason == "exact search: 500 vectors are compared with each query, on GPUs (2)"
    assert searcher._held is None


def test_allowed_rows_and_many_neighbours_are_left_to_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "MOST_NEIGHBOURS", 60)
    stored, queries = embeddings(0, 500), embeddings(1, 3)
    card = Card()
    card.put_in(monkeypatch, 1)
    searcher = FlatSearcher.of_embeddings(stored)
    allow = np.arange(500) % 2 == 0
    assert (searcher.search(queries, 5, allow).rows % 2 == 0).all()
    assert (searcher.search(queries, 100).rows >= 0).all()
    assert card.searches == 0


def test_a_gpu_that_rounds_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    stored, queries = embeddings(0, 500), embeddings(1, 30)
    expected = FlatSearcher.of_embeddings(stored).search(queries, 5)
    card = Card(rounded=True)
    card.put_in(monkeypatch, 1)
    searcher = FlatSearcher.of_embeddings(stored)
    for _ in range(2):
        np.testing.assert_array_equal(searcher.search(queries, 5).rows, expected.rows)
    assert card.searches == 1 and "GPU" not in searcher.reason


@pytest.mark.parametrize(("count", "rows", "memory"), [(0, 500, 999), (2, 99, 999), (2, 500, 100)])
def test_no_gpu_few_rows_or_little_memory(
    monkeypatch: pytest.MonkeyPatch, count: int, rows: int, memory: int
) -> None:
    card = Card(memory)
    card.put_in(monkeypatch, count)
    searcher = FlatSearcher.of_embeddings(embeddings(0, rows))
    assert (searcher.search(embeddings(1, 3), 5).rows >= 0).all()
    assert card.searches == 0 and searcher._gpus == []
