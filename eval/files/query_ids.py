"""The error for an id that a solution does not have, with the solution's spelling."""

from __future__ import annotations

from collections.abc import Collection

from lmk.embed.errors import SubmissionError
from lmk.embed.tables.label_forms import similar_pairs


def unknown_id(
    id_: str, known: Collection[str], *, where: str, source: object, noun: str = "query id"
) -> SubmissionError:
    """The error of an id that stands in a submission and not in its solution.

    Args:
        id_: as the submission has it.
        known: the ids of the solution.
        where: the line of the submission.
        source: the file of the solution.
        noun: of what it is the id.
    """
    return SubmissionError(f"unknown {noun} {id_}", where=where, remedy=_remedy(id_, known, source))


def _remedy(id_: str, known: Collection[str], source: object) -> str:
    similar = similar_pairs([id_], known)
    if similar:
        return f"{source} spells it {similar[0][1]!r}"
    name = id_.rsplit("/", 1)[-1]
    for plain in (name, name.rsplit(".", 1)[0]):
        if plain != id_ and plain in known:
            return f"{source} has {plain!r}, without folder and ending"
    return f"it is not in {source}"
