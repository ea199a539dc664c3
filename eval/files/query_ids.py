"""Queries by id, and the error for an id that a solution lacks."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

from lmk.embed.errors import SubmissionError
from lmk.embed.tables.label_forms import similar_pairs


class QueryIds:
    """Base class of submissions and solutions: queries by id."""

    query_ids: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.query_ids)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each query id."""
        return {query: row for row, query in enumerate(self.query_ids)}


def unknown_id(
    id_: str, ids: Collection[str], *, where: str, source: object, noun: str = "query id"
) -> SubmissionError:
    """Returns the error for an id of a submission that the solution lacks.

    Args:
        id_: the id in the submission.
        ids: the ids of the solution.
        where: the line of the submission.
        source: the file of the solution.
        noun: the noun for the id in the message.
    """
    return SubmissionError(f"unknown {noun} {id_}", where=where, remedy=_remedy(id_, ids, source))


def _remedy(id_: str, ids: Collection[str], source: object) -> str:
    similar = similar_pairs([id_], ids)
    if similar:
        return f"{source} spells it {similar[0][1]!r}"
    name = id_.rsplit("/", 1)[-1]
    for plain in (name, name.rsplit(".", 1)[0]):
        if plain != id_ and plain in ids:
            return f"{source} has {plain!r}, without folder and ending"
    return f"it is not in {source}"
