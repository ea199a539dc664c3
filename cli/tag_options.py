"""Options that the commands about tags have in common, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lmk.rerank.given_tags import GivenTag
    from lmk.rerank.tagging import Tagger

_PATH = click.Path(path_type=Path)

index_option = click.option(
    "-i",
    "--index",
    type=_PATH,
    help="Let the pictures of this index vote.  [default: the only *.lmk folder here]",
)
tagger_option = click.option(
    "--tagger",
    type=_PATH,
    metavar="DIR",
    help="Ask a tagger that `lmk train` wrote, or an index that was built with one.",
)
relations_option = click.option(
    "--relations",
    type=_PATH,
    metavar="FILE",
    help="What follows from a tag, as in forest,tree: a CSV with the columns child and parent, or "
    "another form of docs/tags.md.",
)
tiles_option = click.option(
    "--tiles",
    is_flag=True,
    help="Also look at nine overlapping tiles of each photo, for small things; ten times the work.",
)


@contextmanager
def named_tagger(index: Path | None, tagger: Path | None) -> Iterator[Tagger]:
    """The tagger that --index and --tagger name.

    Raises:
        UsageError: both are given; neither, and there is not one index here.
    """
    from lmk.cli.find_index import find_index
    from lmk.embed.errors import UsageError
    from lmk.rerank.tagging import open_tagger

    if index is not None and tagger is not None:
        remedy = "give one of --index and --tagger"
        raise UsageError("an index and a tagger", where="--tagger", remedy=remedy)
    path = find_index(index) if tagger is None else tagger
    with open_tagger(path, votes=tagger is None) as opened:
        yield opened


def tags_text(tags: Sequence[GivenTag]) -> str:
    """Tags in a line: "cat 0.98, animal 0.98 (relation)"."""
    notes = {"tagger": "", "detector": " (detector)", "relation": " (relation)"}
    if not tags:
        return "none"
    return ", ".join(f"{one.tag} {one.score:.2f}{notes[one.source]}" for one in tags)
