"""Synthetic unit vectors clustered like the pictures of landmarks, for the benchmarks of search.

    python benchmarks/landmark_vectors.py [--rows 100000]

A landmark has 20 pictures on average, the most photographed of a million pictures some 4,500 and
the rarest 5 (Google Landmarks v2, clean: 1.58 million pictures of 81,313 landmarks). Two pictures
of one landmark have a cosine of .6 to .8, another number for each landmark. Landmarks resemble each
other as learnt features do, more in some directions than in others: the variance of the i-th
principal direction falls as i^-.7, in a random rotation, so that no component stands out.

Run as a script it prints what it makes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

PER_LANDMARK = 20
_DRAWN = 4096  # rows drawn from one seed, so that the size of a block changes nothing
_GALLERY, _QUERIES, _LANDMARKS = 0, 1, 2


def landmark_vectors(
    rows: int, dim: int = 512, seed: int = 0, block: int = 65_536
) -> Iterator[NDArray[np.float32]]:
    """Yields `rows` unit vectors, float32 [block or fewer, dim]; `block` changes no number."""
    landmarks = Landmarks.of(rows, dim, seed)
    for start in range(0, rows, block):
        yield landmarks.rows(start, min(start + block, rows), _GALLERY)


def gallery(rows: int, dim: int = 512, seed: int = 0) -> NDArray[np.float32]:
    """Returns the vectors of `landmark_vectors` as one array, float32 [rows, dim]."""
    whole = np.empty((rows, dim), np.float32)
    done = 0
    for part in landmark_vectors(rows, dim, seed):
        whole[done : done + len(part)] = part
        done += len(part)
    return whole


def queries(n: int, rows: int, dim: int = 512, seed: int = 0) -> NDArray[np.float32]:
    """Returns n other pictures of the landmarks of a gallery of `rows`, float32 [n, dim]."""
    return Landmarks.of(rows, dim, seed).rows(0, n, _QUERIES)


class Landmarks:
    """The landmarks of a gallery of some size: how often each is photographed, and its centre."""

    def __init__(self, rows: int, dim: int, seed: int) -> None:
        count = max(rows // PER_LANDMARK, 1)
        rng = np.random.default_rng([seed, _LANDMARKS])
        spread = np.arange(1, dim + 1) ** -0.35  # standard deviations
        rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        self._colour = (spread[:, None] * rotation).astype(np.float32)
        self._centres = _units(rng.standard_normal((count, dim), np.float32) @ self._colour)
        self._cosines = rng.uniform(0.6, 0.8, count).astype(np.float32)
        shares = (np.arange(count) + 10.0) ** -0.8
        self.shares = shares / shares.sum()
        self._seed = seed

    @staticmethod
    @lru_cache(maxsize=1)
    def of(rows: int, dim: int, seed: int) -> Landmarks:
        """The landmarks of one gallery, kept for its queries."""
        return Landmarks(rows, dim, seed)

    def rows(self, start: int, stop: int, purpose: int) -> NDArray[np.float32]:
        """Returns rows `start` to `stop` of an endless series of pictures."""
        first, last = start // _DRAWN, -(-stop // _DRAWN)
        drawn = [self._draw(number, purpose)[0] for number in range(first, last)]
        if not drawn:
            return np.empty((0, self._colour.shape[0]), np.float32)
        return np.concatenate(drawn)[start - first * _DRAWN : stop - first * _DRAWN]

    def _draw(self, number: int, purpose: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rng = np.random.default_rng([self._seed, purpose, number])
        landmark = rng.choice(len(self.shares), _DRAWN, p=self.shares)
        noise = rng.standard_normal((_DRAWN, self._colour.shape[0]), np.float32) @ self._colour
        cosine = self._cosines[landmark][:, None]
        vectors = np.sqrt(cosine) * self._centres[landmark] + np.sqrt(1 - cosine) * _units(noise)
        return _units(vectors), landmark


def _units(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    landmarks = Landmarks.of(rows, 512, 0)
    vectors, landmark = landmarks._draw(0, _GALLERY)
    cosines = vectors @ vectors.T
    same = landmark[:, None] == landmark
    np.fill_diagonal(same, False)
    other = landmark[:, None] != landmark
    sizes = landmarks.shares * rows
    print(f"{rows} pictures of {len(sizes)} landmarks, {sizes[-1]:.0f} to {sizes[0]:.0f} of each")
    for name, chosen in (("one landmark", same), ("two landmarks", other)):
        low, middle, high = np.percentile(cosines[chosen], [5, 50, 95])
        print(f"cosines of {name}: {low:.2f} {middle:.2f} {high:.2f} (5, 50, 95 %)")


if __name__ == "__main__":
    main()
