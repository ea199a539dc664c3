"""Tables and lines of text that several commands print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lmk.cli.printing import echo
from lmk.embed.printable import printable

if TYPE_CHECKING:
    from lmk.rerank.answers import GivenTag


def echo_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table with the first column left-aligned and the others right-aligned."""
    lines = [tuple(map(printable, line)) for line in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        first, rest = line[0].ljust(widths[0]), zip(line[1:], widths[1:], strict=True)
        echo("  ".join([first, *(cell.rjust(width) for cell, width in rest)]).rstrip())


def tags_text(tags: Sequence[GivenTag]) -> str:
    """Returns tags as one line of text, such as "cat 0.98, animal 0.98 (relation)"."""
    notes = {"tagger": "", "detector": " (detector)", "relation": " (relation)"}
    if not tags:
        return "none"
    return ", ".join(f"{one.tag} {one.score:.2f}{notes[one.source]}" for one in tags)
