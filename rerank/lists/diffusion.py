"""Diffusion: similarity spreads along the graph of mutual neighbours.

Iscen et al., "Efficient Diffusion on Region Manifolds" (CVPR 2017) and "Fast Spectral Ranking for
Similarity Search" (CVPR 2018), on global vectors. A picture that looks unlike the query (the other
side of a building) is reached through pictures in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import LinearOperator, cg

from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.vectors import row_blocks
from lmk.index.vectors.view import View
from lmk.rerank.steps.ranking import ranked

_BLOCK = 4096  # rows searched at a time


@dataclass(frozen=True, eq=False)
class NeighbourGraph:
    """The graph of mutual neighbours of a gallery.

    Attributes:
        transition: sparse symmetric [rows, rows] of max(cos, 0) ** gamma between pictures that
            are each other's neighbours, normalised: D^-1/2 A D^-1/2; a zero diagonal.
        gamma: the power.
    """

    transition: csr_array
    gamma: float

    @classmethod
    def build(
        cls, searcher: Searcher, view: View, *, neighbours: int = 50, gamma: float = 3.0
    ) -> NeighbourGraph:
        """Returns the graph of a view; memory grows with rows x neighbours.

        Args:
            searcher: a search over the view.
            view: the rows of the graph; other rows have no neighbours.
            neighbours: number of neighbours of each picture, without itself.
            gamma: the exponent of the cosine.
        """
        starts, ends, cosines = [], [], []
        for block in row_blocks(np.flatnonzero(view.mask), _BLOCK):
            near = searcher.search(view.embeddings(block), neighbours + 1)
            others = (near.rows != NO_ROW) & (near.rows != block[:, None])
            others &= np.cumsum(others, axis=1) <= neighbours
            starts.append(np.repeat(block, others.sum(axis=1)))
            ends.append(near.rows[others])
            cosines.append(near.scores[others])
        return cls.of_pairs(starts, ends, cosines, view.stored.rows, gamma)

    @classmethod
    def of_pairs(
        cls,
        starts: list[NDArray[np.int64]],
        ends: list[NDArray[np.int64]],
        cosines: list[NDArray[np.float32]],
        rows: int,
        gamma: float,
    ) -> NeighbourGraph:
        """Returns the graph of the directed pairs that exist in both directions."""
        none = np.zeros(0, np.int64)
        places = (np.concatenate([none, *starts]), np.concatenate([none, *ends]))
        cosine = np.concatenate([none.astype(np.float64), *cosines])
        strength = np.maximum(cosine, 0) ** gamma
        directed = csr_array((strength, places), shape=(rows, rows))
        affinity = directed.minimum(directed.T).tocsr()  # 0 where one direction is missing
        degree = np.asarray(affinity.sum(axis=1)).ravel()
        scale = np.zeros(rows)
        scale[degree > 0] = degree[degree > 0] ** -0.5
        by = diags_array(scale)
        transition = (by @ affinity @ by).tocsr()
        transition.eliminate_zeros()
        transition.sort_indices()
        return cls(transition, gamma)

    def rerank(
        self,
        neighbours: Neighbours,
        *,
        sources: int = 10,
        alpha: float = 0.99,
        tolerance: float = 1e-6,
        iterations: int = 20,
    ) -> Neighbours:
        """Orders each query's list by the similarity that spreads from its nearest pictures.

        Solves (I - alpha S) f = y by conjugate gradients on the part of the graph that the list
        spans (the truncation of the CVPR 2018 paper); y is max(cos, 0) ** gamma at the `sources`
        nearest and 0 elsewhere. A list of the whole gallery is diffusion without truncation.

        Returns:
            The same rows, by f falling; f is the score. Rows with equal f stay in their order.
        """
        scores = np.full(neighbours.rows.shape, -np.inf)
        for i, row in enumerate(neighbours.rows):
            listed = row[row != NO_ROW]
            start = np.zeros(listed.size)
            nearest = np.maximum(neighbours.scores[i, : min(sources, listed.size)], 0)
            start[: nearest.size] = nearest.astype(np.float64) ** self.gamma
            part = self.transition[listed][:, listed]
            scores[i, : listed.size] = _solve(part, start, alpha, tolerance, iterations)
        return ranked(neighbours.rows, scores, neighbours.query_ids, keep_order=True)


def _solve(
    part: csr_array, start: NDArray[np.float64], alpha: float, tolerance: float, iterations: int
) -> NDArray[np.float64]:
    if not start.any():
        return start
    system = LinearOperator(part.shape, matvec=lambda f: f - alpha * (part @ f), dtype=np.float64)
    flow, _ = cg(system, start, rtol=tolerance, maxiter=iterations)
    return np.asarray(flow, np.float64)
