"""Search with FAISS."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import EmbedderMismatch, UsageError
from lmk.index.catalog import Role
from lmk.index.gallery import Gallery
from lmk.index.neighbours import NO_ROW, Neighbours

_BLOCK_ROWS = 65_536  # vectors in memory twice while the index is filled
_BLOCK_QUERIES = 1024
_MARGIN = 32  # candidates beyond k: enough to hold the near ties at the k-th place, nearly always
_RESCORE_ROWS = 8192  # candidates in memory as float64 at a time
_BLAS_QUERIES = 16  # below, FAISS's own loop is faster
_threshold_lock = threading.Lock()


class FlatSearcher:
    """Exact search: every query against every vector.

    FAISS proposes candidates; each is scored again as the float64 dot product rounded to float32.
    FAISS's own float32 sums differ in the last bits with the number of queries and the place of a
    vector; the float64 ones do not, so a query gets the same answer alone and in a batch, and
    equal vectors get equal scores. More candidates are taken until those left out cannot belong to
    the answer: any float32 sum of d products of unit vectors is within d 2^-24 / (1 - d 2^-24) of
    the true one (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). So the
    answer is the exact one: score falling, then row rising, at the k-th place too.

    Attributes:
        reason: why this kind of search was chosen, in words for a user.
    """

    def __init__(self, index: faiss.IndexFlatIP, rows: NDArray[np.int64], fingerprint: str) -> None:
        self.reason = f"exact search: {len(rows)} vectors are compared with each query"
        self._index = index
        self._rows = rows
        self._fingerprint = fingerprint
        size = index.ntotal * index.d
        stored = faiss.rev_swig_ptr(index.get_xb(), size) if size else np.empty(0, np.float32)
        self._vectors = stored.reshape(index.ntotal, index.d)  # FAISS's own memory, not a copy
        self._error = 1.01 * index.d * 2.0**-24 + 2.0**-24  # and the rounding of the score

    @classmethod
    def of_gallery(cls, gallery: Gallery, role: Role = "gallery") -> FlatSearcher:
        """Returns a searcher over the gallery's rows of one role."""
        rows = gallery.role_rows(role)
        index = faiss.IndexFlatIP(gallery.dim)
        for start in range(0, len(rows), _BLOCK_ROWS):
            index.add(gallery.vectors(rows[start : start + _BLOCK_ROWS]))
        return cls(index, rows, gallery.fingerprint)

    @classmethod
    def of_embeddings(cls, embeddings: Embeddings) -> FlatSearcher:
        """Returns a searcher over embeddings; their positions are the row numbers."""
        index = faiss.IndexFlatIP(embeddings.dim)
        index.add(np.ascontiguousarray(embeddings.vectors))
        return cls(index, np.arange(len(embeddings), dtype=np.int64), embeddings.fingerprint)

    def search(self, queries: Embeddings, k: int) -> Neighbours:
        """Returns the k nearest rows of each query; see Searcher.search."""
        if k < 1:
            raise UsageError(f"{k} neighbours asked for", remedy="ask for at least 1")
        if queries.fingerprint != self._fingerprint:
            raise EmbedderMismatch(
                f"queries of embedder {queries.fingerprint[:16]} for a gallery of embedder"
                f" {self._fingerprint[:16]}",
                remedy="embed the queries with the gallery's own embedder, or rebuild the gallery"
                " with `lmk build-index`",
            )
        if queries.dim != self._index.d:
            raise ValueError(f"queries of {queries.dim} components, vectors of {self._index.d}")
        rows = np.full((len(queries), k), NO_ROW, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        kept = min(k, len(self._rows))
        if kept:
            for start in range(0, len(queries), _BLOCK_QUERIES):
                block = np.ascontiguousarray(queries.vectors[start : start + _BLOCK_QUERIES])
                places, values = self._search_block(block, kept)
                rows[start : start + len(block), :kept] = self._rows[places]
                scores[start : start + len(block), :kept] = values
        return Neighbours(rows, scores, queries.ids)

    def _search_block(
        self, queries: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns places in the index and scores, [q, k], for k not above the vectors there are."""
        places = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        open_ = np.arange(len(queries))
        depth = k + _MARGIN
        while open_.size:
            depth = min(depth, len(self._rows))
            with _blas(len(open_)):
                proposed, candidates = self._index.search(queries[open_], depth)
            done = np.zeros(len(open_), np.bool_)
            for i, query in enumerate(open_):
                exact = self._score(queries[query], candidates[i])
                best = np.lexsort((candidates[i], -exact))[:k]
                places[query], scores[query] = candidates[i][best], exact[best]
                left_out_at_most = proposed[i, -1] + self._error
                done[i] = depth == len(self._rows) or left_out_at_most < exact[best[-1]]
            open_ = open_[~done]
            depth *= 4
        return places, scores

    def _score(
        self, query: NDArray[np.float32], candidates: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Returns the scores of candidates, summed in float64, float32 [n]."""
        scores = np.empty(len(candidates), np.float32)
        wide = query.astype(np.float64)
        for start in range(0, len(candidates), _RESCORE_ROWS):
            chosen = self._vectors[candidates[start : start + _RESCORE_ROWS]]
            products = np.einsum("ij,j->i", chosen.astype(np.float64), wide)
            scores[start : start + len(chosen)] = products
        return scores


@contextmanager
def _blas(queries: int) -> Iterator[None]:
    """Lets FAISS multiply matrices for a batch of queries, while it is needed.

    By default it does so from some hundred queries on and leaves the others to a loop, which at 32
    is three times slower. The setting is one for the whole process, hence set back.
    """
    if queries < _BLAS_QUERIES:
        yield
        return
    with _threshold_lock:
        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = 1
        try:
            yield
        finally:
            faiss.cvar.distance_compute_blas_threshold = before
