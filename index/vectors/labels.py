"""Roles and labels of all rows, packed and as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lmk.embed.tables.label_text import nfc

Role = Literal["gallery", "distractor"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, eq=False)
class Packed:
    """Roles and labels of consecutive rows; labels are represented by their code in the catalog.

    Attributes:
        roles: uint8 [rows], positions in ROLES.
        counts: uint32 [rows], labels of each row.
        codes: uint32 [sum of counts], row by row.
    """

    roles: NDArray[np.uint8]
    counts: NDArray[np.uint32]
    codes: NDArray[np.uint32]

    @classmethod
    def of(cls, role: Role, labels: Sequence[Sequence[int]]) -> Packed:
        """Returns the packed label codes of rows with one role."""
        return cls(
            np.full(len(labels), ROLES.index(role), np.uint8),
            np.array([len(codes) for codes in labels], np.uint32),
            np.array([code for codes in labels for code in codes], np.uint32),
        )

    @classmethod
    def from_bytes(cls, data: bytes, rows: int) -> Packed:
        """Returns `rows` rows from a result of `to_bytes` (ValueError for other data)."""
        roles = np.frombuffer(data, np.uint8, rows)
        counts = np.frombuffer(data, "<u4", rows, offset=rows)
        codes = np.frombuffer(data, "<u4", offset=5 * rows)
        if codes.size != counts.sum(dtype=np.int64) or (roles >= len(ROLES)).any():
            raise ValueError("roles and labels do not fit together")
        return cls(roles, counts, codes)

    @classmethod
    def joined(cls, parts: Sequence[Packed]) -> Packed:
        """Returns the rows of all parts, in order."""
        parts = [cls.of("gallery", []), *parts]
        columns = zip(*((part.roles, part.counts, part.codes) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    def to_bytes(self) -> bytes:
        """Returns roles, counts and codes one behind the other, little-endian."""
        arrays = (self.roles, self.counts.astype("<u4"), self.codes.astype("<u4"))
        return b"".join(array.tobytes() for array in arrays)

    def keep(self, mask: NDArray[np.bool_]) -> Packed:
        """Returns the rows in a mask, bool [rows]."""
        return Packed(self.roles[mask], self.counts[mask], self.codes[np.repeat(mask, self.counts)])

    def pieces(self, rows: int) -> list[Packed]:
        """Returns pieces of `rows` rows."""
        cuts = np.arange(rows, len(self.roles), rows)
        ends = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])
        columns = (
            np.split(self.roles, cuts),
            np.split(self.counts, cuts),
            np.split(self.codes, ends[cuts]),
        )
        return [Packed(*columns) for columns in zip(*columns, strict=True)]


@dataclass(frozen=True, eq=False)
class Membership:
    """Roles and labels of all rows; a removed row has no label.

    Attributes:
        distractor: bool [rows], True for distractors.
        alive: bool [rows], False for removed rows.
        names: the labels of all rows, sorted.
        offsets, codes: int64 [rows + 1], int32 [...]; row r has the labels
            names[c] for c in codes[offsets[r] : offsets[r + 1]].
    """

    distractor: NDArray[np.bool_]
    alive: NDArray[np.bool_]
    names: tuple[str, ...]
    offsets: NDArray[np.int64]
    codes: NDArray[np.int32]

    @classmethod
    def of(cls, packed: Packed, alive: NDArray[np.bool_], names: Sequence[str]) -> Membership:
        """Returns the membership for packed roles and labels.

        Args:
            packed: roles and labels of all rows.
            alive: bool [rows], False for removed rows.
            names: the labels by their code. Labels that differ only in their Unicode form, as in
                older galleries, become one label.
        """
        codes = packed.codes[np.repeat(alive, packed.counts)]
        used = np.flatnonzero(np.bincount(codes, minlength=len(names))).tolist()
        name_of = {code: nfc(names[code]) for code in used}
        order = sorted(set(name_of.values()))
        rank_of = {name: rank for rank, name in enumerate(order)}
        ranks = np.zeros(len(names), np.int32)
        ranks[used] = [rank_of[name_of[code]] for code in used]
        counts = np.where(alive, packed.counts, 0)
        return cls(
            packed.roles == ROLES.index("distractor"),
            alive,
            tuple(order),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
            ranks[codes],
        )

    def role(self, role: Role) -> NDArray[np.bool_]:
        """Returns a mask of the rows of a role, without removed rows, bool [rows]."""
        of_role: NDArray[np.bool_] = self.distractor == (role == "distractor")
        return self.alive & of_role


def join_codes(codes: Sequence[int]) -> str:
    """Returns the codes of one row's labels in the form of the catalog: "3,17,"."""
    return "".join(f"{code}," for code in codes)
