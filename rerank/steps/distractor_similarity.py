"""Further rules against non-landmarks, by similarity to distractors.

penalty.py holds the rule that counts the hits of distractors. The rules here use the distractors
that are nearest to a picture. Two come from the Google Landmark Recognition contest of 2020. The
first place subtracts B(g), the mean of the 5 largest cosines of a gallery picture g to the
distractors, from every cosine with g before neighbours are chosen, and C(q), the mean of the
query's 10 largest, from the confidence. The second place uses the third largest cosine. The third
place of 2019 demotes labels that are predicted too often.

All rules are functions over arrays; without distractors they subtract nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import UsageError
from lmk.rerank.steps.hits import Hits

if TYPE_CHECKING:
    import pandas as pd


def mean_of(cosines: NDArray[np.float32], m: int) -> NDArray[np.float32]:
    """Returns the mean of the m largest, or of all where there are fewer: float32 [n], 0 for none.

    Args:
        cosines: [n, at least m], falling; -inf where there are fewer (Neighbours.scores).
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
    """Returns factor * t where t, the nth largest cosine to distractors, is at least `at`; else 0.

    The second place of 2020 subtracted it from a confidence (float32 [n], never negative).

    Args:
        cosines: [n, at least nth], of the queries to distractors, falling.
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
    """Returns confidences in which labels of more than `limit` queries have -count.

    A label that many photos of a contest get attracts everything. An answer then depends on the
    other queries, so this rule is for contests only.

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
    """Returns the mean of the m largest cosines to the gallery minus that to the distractors.

    Above 0 the query is more similar to the gallery than to non-landmarks, whatever its label:
    float32 [q].

    Args:
        gallery_cosines: [q, at least m], falling (Neighbours.scores).
        cosines: the same of distractors.
        m: nearest pictures of each that count.
    """
    return mean_of(gallery_cosines, m) - mean_of(cosines, m)


def hits_table(picks: Hits, ids: Sequence[str], rows: NDArray[np.int64]) -> pd.DataFrame:
    """Returns the hits as a table with a row for each picture: id, mean_cosine, n_picked.

    Args:
        picks: of penalty.count_hits.
        ids: the picture ids of `rows`.
        rows: int64 [n], gallery rows, in the order wanted.
    """
    import pandas as pd  # takes half a second

    columns = {"id": list(ids), "mean_cosine": picks.mean[rows], "n_picked": picks.counts[rows]}
    return pd.DataFrame(columns)


def shared_content(
    first: Sequence[str | None], second: Sequence[str | None]
) -> list[tuple[int, int]]:
    """Returns positions of equal files in two sets, each of `first` with its first match.

    Args:
        first, second: SHA-256 of the files; None where it is not known, which equals nothing.
    """
    where = {content: place for place, content in reversed([*enumerate(second)])}
    matches = ((place, where.get(content)) for place, content in enumerate(first) if content)
    return [(place, match) for place, match in matches if match is not None]


def refuse_queries_in_distractors(
    queries: Sequence[str],
    query_content: Sequence[str | None],
    distractor_content: Sequence[str | None],
) -> None:
    """Refuses to evaluate on pictures that are distractors, because the score would flatter.

    Args:
        queries: ids.
        query_content, distractor_content: SHA-256 of the files; None where it is not known.

    Raises:
        UsageError: names the first such query and says how many there are.
    """
    shared = shared_content(query_content, distractor_content)
    if shared:
        raise UsageError(
            f"{len(shared)} of {len(queries)} evaluation queries are also among the distractors,"
            " so the score would flatter",
            where=queries[shared[0][0]],
            remedy="remove them from the queries or from the distractors",
        )
