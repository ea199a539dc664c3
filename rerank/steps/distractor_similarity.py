"""Further ways of telling non-landmarks by their likeness to a bank of them.

penalty.py holds the rule that counts who attracts the bank; here are the rules that ask each
picture for its own nearest pictures of the bank. From the Google Landmark Recognition contest of
2020: the first place takes B(g), the mean of the 5 largest cosines of a gallery picture g to the
bank, off every cosine with g before neighbours are chosen, and C(q), the mean of the query's 10
largest, off the confidence; the second place goes by the third largest cosine. From that of 2019:
the third place demotes labels that are predicted too often.

All are plain functions over arrays; what is missing (an empty bank) takes nothing away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import UsageError
from lmk.index.vectors.searcher import Searcher
from lmk.rerank.steps.hits import Hits

if TYPE_CHECKING:
    import pandas as pd


def bank_cosines(bank: Searcher, pictures: Embeddings, top: int) -> NDArray[np.float32]:
    """The `top` largest cosines of each picture to the bank, falling: float32 [n, top].

    -inf where the bank has fewer. Mean of the first 5 of a gallery picture: B; of the first 10 of
    a query: C (`mean_of`).
    """
    return bank.search(pictures, top).scores


def mean_of(cosines: NDArray[np.float32], m: int) -> NDArray[np.float32]:
    """Mean of the m largest, or of what there is; 0 where there is none: float32 [n].

    Args:
        cosines: [n, at least m], falling (bank_cosines).
        m: how many.

    Raises:
        ValueError: when there are not m columns, or m is below 1.
    """
    if not 1 <= m <= cosines.shape[1]:
        raise ValueError(f"the mean of {m} largest of {cosines.shape[1]} cosines")
    first = cosines[:, :m]
    there = ~np.isneginf(first)
    sums = np.where(there, first, 0).sum(axis=1, dtype=np.float64)
    return np.asarray(sums / np.maximum(there.sum(axis=1), 1), np.float32)


def thresholded_demotion(
    cosines: NDArray[np.float32], *, nth: int = 3, at: float = 0.3, factor: float = 1.5
) -> NDArray[np.float32]:
    """factor * t where t, the nth largest cosine to the bank, is at least `at`; else 0.

    What the second place of 2020 took off a confidence (float32 [n], never negative). The same
    numbers of gallery pictures tell which attract non-landmarks.

    Args:
        cosines: [n, at least nth], falling (bank_cosines).
        nth: counted from 1.
        at: where the demotion begins.
        factor: of the cosine.

    Raises:
        ValueError: when there are not nth columns, or a number is negative.
    """
    if not 1 <= nth <= cosines.shape[1]:
        raise ValueError(f"the {nth}. largest of {cosines.shape[1]} cosines")
    if at < 0 or factor < 0:
        raise ValueError(f"at and factor must not be negative, got {at} and {factor}")
    t = cosines[:, nth - 1]
    return np.where(t >= at, factor * np.maximum(t, 0), 0).astype(np.float32)


def demote_overpredicted(
    winner: NDArray[np.int64], confidence: NDArray[np.float32], *, limit: int = 30
) -> NDArray[np.float32]:
    """Answers whose label more than `limit` queries got have -count as their confidence.

    A label that many photos of a contest get is one that attracts everything. It needs all
    queries at once: an answer depends on what else is asked, so this is for contests only.

    Args:
        winner: int64 [q], label codes; -1 for none, which is never demoted.
        confidence: float32 [q].
        limit: answers a label may have.
    """
    known = winner >= 0
    counts = np.bincount(winner[known])
    times = np.zeros(len(winner), np.int64)
    times[known] = counts[winner[known]]
    return np.where(times > limit, -times, confidence).astype(np.float32)


def landmark_score(
    gallery_cosines: NDArray[np.float32], cosines: NDArray[np.float32], m: int = 5
) -> NDArray[np.float32]:
    """Landmark or not: mean of the m largest cosines to the gallery minus that to the bank.

    Above 0 the query is more like the gallery than like non-landmarks, whatever its label:
    float32 [q].

    Args:
        gallery_cosines: [q, at least m], falling (Neighbours.scores).
        cosines: [q, at least m], falling (bank_cosines).
        m: nearest pictures of each that count.
    """
    return mean_of(gallery_cosines, m) - mean_of(cosines, m)


def picks_table(picks: Hits, ids: Sequence[str], rows: NDArray[np.int64]) -> pd.DataFrame:
    """What the bank picked, as a table: id, mean_cosine, n_picked; one line a gallery picture.

    Args:
        picks: of penalty.pick.
        ids: the picture ids of `rows`.
        rows: int64 [n], gallery rows, in the order wanted.
    """
    import pandas as pd  # takes half a second

    return pd.DataFrame(
        {
            "id": list(ids),
            "mean_cosine": picks.mean[rows],
            "n_picked": picks.counts[rows],
        }
    )


def shared_content(
    first: Sequence[str | None], second: Sequence[str | None]
) -> list[tuple[int, int]]:
    """Positions of pictures with equal content in two sets, each of `first` with its first match.

    Args:
        first, second: SHA-256 of the files; None where it is not known, which equals nothing.
    """
    where: dict[str, int] = {}
    for place, content in enumerate(second):
        if content is not None:
            where.setdefault(content, place)
    return [
        (place, where[content])
        for place, content in enumerate(first)
        if content is not None and content in where
    ]


def refuse_queries_in_bank(
    queries: Sequence[str], query_content: Sequence[str | None], bank_content: Sequence[str | None]
) -> None:
    """Refuses to evaluate on pictures that the bank holds: the score would flatter.

    Args:
        queries: ids.
        query_content, bank_content: SHA-256 of the files; None where it is not known.

    Raises:
        UsageError: names the first such query and says how many there are.
    """
    shared = shared_content(query_content, bank_content)
    if shared:
        raise UsageError(
            f"{len(shared)} of {len(queries)} evaluation queries are also in the bank of"
            " distractors, so the score would flatter",
            where=queries[shared[0][0]],
            remedy="take them out of the queries or out of the bank",
        )
