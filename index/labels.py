"""The labels of all rows, as the catalog keeps them and as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Membership:
    """Role and labels of every row.

    Attributes:
        distractor: bool [rows].
        names: the labels, sorted.
        offsets, codes: int64 [rows + 1], int32 [...]; row r has the labels
            names[c] for c in codes[offsets[r] : offsets[r + 1]].
    """

    distractor: NDArray[np.bool_]
    names: tuple[str, ...]
    offsets: NDArray[np.int64]
    codes: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        distractor: NDArray[np.bool_],
        counts: NDArray[np.int64],
        codes: NDArray[np.int64],
        names: Sequence[str],
    ) -> Membership:
        """Builds it from labels in the order they were first seen.

        Args:
            distractor: bool [rows].
            counts: int64 [rows], labels of each row.
            codes: int64 [sum of counts], positions in `names`, row by row.
            names: the labels in any order.
        """
        order = sorted(range(len(names)), key=names.__getitem__)
        ranks = np.empty(len(names), np.int32)
        ranks[order] = np.arange(len(names), dtype=np.int32)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return cls(distractor, tuple(names[i] for i in order), offsets, ranks[codes])


def join_codes(codes: Iterable[int]) -> str:
    """Returns the codes of one row's labels as the catalog keeps them: "3,17,"."""
    return "".join(f"{code}," for code in codes)


def parse_codes(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Parses rows joined by "|", as "3,17,||5,".

    Returns:
        The number of labels of each row, here (2, 0, 1), and the codes of all, (3, 17, 5).
    """
    data = np.frombuffer(text.encode(), np.uint8)
    ends = np.flatnonzero(np.append(data, ord("|")) == ord("|"))
    so_far = np.concatenate([[0], np.cumsum(data == ord(","))])[ends]
    return np.diff(so_far, prepend=0), np.fromstring(text.replace("|", ""), np.int64, sep=",")
