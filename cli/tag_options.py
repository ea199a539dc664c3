"""Options that the commands about tags have in common, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from lmk.cli.index_path import INDEX, TAGGER
from lmk.cli.printing import echo
from lmk.embed.shell_words import shell_word

if TYPE_CHECKING:
    from lmk.embed.label_table import LabelTable
    from lmk.embed.relations import RelationGraph
    from lmk.rerank.given_tags import GivenTag
    from lmk.rerank.tagging import Tagger

_PATH = click.Path(path_type=Path)

index_option = click.option(
    "-i",
    "--index",
    type=INDEX,
    help="Let the pictures of this index vote.",
)
tagger_option = click.option(
    "--tagger",
    type=TAGGER,
    metavar="DIR",
    help="Ask a tagger that `lmk train` wrote, an index that was built with one, or tags-lite1, "
    "which lmk comes with: 18 everyday things.",
)
relations_option = click.option(
    "--relations",
    type=_PATH,
    metavar="FILE",
    help="What follows from a tag, as in forest,tree: a CSV with the columns child and parent, or "
    "another form of docs/tags.md.",
)
relations_by_option = click.option(
    "--relations-by",
    type=click.Choice(["name", "id", "index"]),
    help="What the tags are called in a hierarchy file (.txt, .tsv) of --relations.  [default: "
    "name]",
)
tiles_option = click.option(
    "--tiles",
    is_flag=True,
    help="Also look at nine overlapping tiles of each photo, for small things; ten times the work.",
)


@contextmanager
def named_tagger(index: Path | None, tagger: Path | None) -> Iterator[Tagger]:
    """The tagger that --index and --tagger name; without either the one that lmk comes with.

    Raises:
        UsageError: both are given.
    """
    from lmk.embed.errors import UsageError
    from lmk.rerank.tagging import open_tagger

    if index is not None and tagger is not None:
        remedy = "give one of --index and --tagger"
        raise UsageError("an index and a tagger", where="--tagger", remedy=remedy)
    with open_tagger(index or tagger, votes=index is not None) as opened:
        yield opened


def named_relations(path: Path | None, by: str | None) -> RelationGraph | None:
    """What --relations and --relations-by name; None for none.

    Raises:
        UsageError: --relations-by without a file that it could be for; see read_relations.
    """
    from lmk.embed.errors import UsageError
    from lmk.embed.relations import HIERARCHY_SUFFIXES, read_relations

    if by is not None and (path is None or path.suffix.lower() not in HIERARCHY_SUFFIXES):
        remedy = "leave it out, or give such a file (.txt, .tsv) with --relations"
        raise UsageError("is for a hierarchy file", where="--relations-by", remedy=remedy)
    return None if path is None else read_relations(path, by=cast("Any", by or "name"))


def note_root(table: LabelTable, output: Path) -> None:
    """Says where the paths of a table start that was written into another folder."""
    folder = table.path.parent
    if table.has_paths and folder.resolve() != output.parent.resolve():
        echo(
            f"lmk: {output}: its paths still start at {folder}: --root {shell_word(folder)}",
            err=True,
        )


def refuse_idle(options: Mapping[str, object], why: str) -> None:
    """Refuses options that are given and would do nothing.

    Args:
        options: value by name, None where it is not given.
        why: "without --html".

    Raises:
        UsageError: names the first.
    """
    from lmk.embed.errors import UsageError

    for name, given in options.items():
        if given is not None:
            raise UsageError(f"does nothing {why}", where=name, remedy="leave it out")


def tags_text(tags: Sequence[GivenTag]) -> str:
    """Tags in a line: "cat 0.98, animal 0.98 (relation)"."""
    notes = {"tagger": "", "detector": " (detector)", "relation": " (relation)"}
    if not tags:
        return "none"
    return ", ".join(f"{one.tag} {one.score:.2f}{notes[one.source]}" for one in tags)
