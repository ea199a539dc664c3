from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.neighbours import Neighbours
from lmk.rerank.build import facts_of
from lmk.rerank.pipeline import GalleryFacts


@pytest.fixture(scope="session")
def embed() -> Callable[..., Embeddings]:
    """embed(rows, prefix="g"): embeddings of any vectors."""

    def make(rows: object, prefix: str = "g") -> Embeddings:
        vectors = unit_rows(np.asarray(rows, np.float32))
        return Embeddings(vectors, tuple(f"{prefix}{i}" for i in range(len(vectors))), "f")

    return make


@pytest.fixture(scope="session")
def neighbours() -> Callable[..., Neighbours]:
    """neighbours([(row, score), ...], ...): one list a query, any order."""

    def make(*queries: list[tuple[int, float]]) -> Neighbours:
        k = max(map(len, queries), default=0)
        rows = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for i, query in enumerate(queries):
            for j, (row, score) in enumerate(sorted(query, key=lambda pair: (-pair[1], pair[0]))):
                rows[i, j], scores[i, j] = row, score
        return Neighbours(rows, scores, tuple(f"q{i}" for i in range(len(queries))))

    return make


@pytest.fixture(scope="session")
def facts() -> Callable[..., GalleryFacts]:
    """facts("a", "b c", "", penalty=None): the labels of each row, several by blanks."""

    def make(*labels: str, penalty: list[float] | None = None) -> GalleryFacts:
        taken = None if penalty is None else np.array(penalty, np.float32)
        return facts_of([tuple(text.split()) for text in labels], taken)

    return make
