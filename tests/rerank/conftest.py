from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.index.vectors.view import Allow
from lmk.rerank.steps.context import PipelineContext


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
def context() -> Callable[..., PipelineContext]:
    """facts("a", "b c", "", penalty=None): the labels of each row, several by blanks."""

    def make(*labels: str, penalty: list[float] | None = None) -> PipelineContext:
        taken = None if penalty is None else np.array(penalty, np.float32)
        return PipelineContext.of_labels([tuple(text.split()) for text in labels], taken)

    return make


@dataclass(frozen=True)
class Scan:
    """A Searcher that cannot be wrong: every score, then a stable sort."""

    known: Embeddings
    reason: str = "a test"

    def search(self, queries: Embeddings, k: int, allow: Allow | None = None) -> Neighbours:
        assert allow is None or isinstance(allow, np.ndarray)
        rows = np.full((len(queries), k), NO_ROW, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        wide = queries.vectors.astype(np.float64) @ self.known.vectors.T.astype(np.float64)
        for i, cosines in enumerate(wide.astype(np.float32)):
            order = [g for g in np.argsort(-cosines, kind="stable") if allow is None or allow[g]]
            kept = order[:k]
            rows[i, : len(kept)], scores[i, : len(kept)] = kept, cosines[kept]
        return Neighbours(rows, scores, queries.ids)


@pytest.fixture(scope="session")
def scan() -> type[Scan]:
    """scan(embeddings): a Searcher over them; their positions are the row numbers."""
    return Scan
