"""Options that several commands share, and checks of the options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from lmk.cli.index_path import INDEX
from lmk.cli.printing import echo
from lmk.cli.ranges import FloatRange
from lmk.cli.render import counted
from lmk.embed.errors import UsageError
from lmk.embed.shell_words import shell_word

if TYPE_CHECKING:
    from lmk.embed.data.label_table import LabelTable
    from lmk.embed.tags.hierarchy import RelationGraph
    from lmk.index.search.settings import SearchSettings

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)

pictures_argument = click.argument(
    "images",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="IMAGE|FOLDER|CSV|-...",
)
index = click.option(
    "-i", "--index", type=INDEX, help="The index to search.  [default: the only *.lmk folder here]"
)
json_lines = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per picture, one per line."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
wait = click.option(
    "--wait",
    type=FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Seconds to wait for another process that is changing the index.",
)
duplicates = click.option(
    "--duplicates",
    is_flag=True,
    help="Also add pictures whose file the index already holds under another id.",
)
root = click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder at which relative paths in a CSV start.  [default: the folder of the CSV]",
)
labels = click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME",
    help="Only pictures of this landmark. Repeat the option for several landmarks.",
)
kind = click.option(
    "--kind",
    metavar="KIND",
    help="Kind of search: auto, exact, flat, ivf, ivfpq, hnsw or a FAISS factory string.  "
    "[default: auto]",
)
recall = click.option(
    "--recall",
    type=FloatRange(0, 1),
    help="Share of the 10 nearest pictures that an approximate search must return; 1 makes auto "
    "choose exact search.  [default: 0.99]",
)
backend = click.option(
    "--backend",
    type=click.Choice(["local", "milvus"]),
    help="Where the search runs: on this machine, or on a Milvus server.  [default: local]",
)
uri = click.option(
    "--uri", metavar="URI", help="Address of the Milvus server, such as http://localhost:19530."
)
collection = click.option(
    "--collection",
    metavar="NAME",
    help='Name of the collection on the server.  [default: "lmk_" and the name of INDEX]',
)
landmarks = click.option(
    "--landmarks",
    "landmarks",
    multiple=True,
    type=FILE,
    metavar="CSV",
    help="Names, coordinates and links of landmarks (docs/landmarks.md). Repeat the option for "
    "several files.",
)
retrieval_steps = click.option(
    "--retrieval-steps",
    metavar="FILE|none|default",
    help="Steps that order retrieval lists: a JSON file (docs/retrieval.md), none for the order of "
    "the search, or default for lmk's own.  [default: those saved with the index]",
)


def hide(command: click.Command, *names: str) -> None:
    """Hides options in the help of a command; the options still work.

    Args:
        command: the command.
        *names: the parameter names of the options.
    """
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name in names:
            parameter.hidden = True


def index_command(
    name: str | None = None, *, short_help: str
) -> Callable[[Callable[..., None]], click.Command]:
    """Returns a decorator for a command that changes an index.

    The command takes INDEX before its other arguments, and --wait and --json after its other
    options.

    Args:
        name: the name of the command; by default the name of the function.
        short_help: the line of the command in the list of commands.
    """

    @click.command()
    @click.argument("index", type=INDEX)
    @wait
    @as_json
    def shared() -> None:
        """Holds the parameters."""

    first, *last = shared.params

    def decorate(function: Callable[..., None]) -> click.Command:
        command = click.command(name, short_help=short_help)(function)
        command.params = [first, *command.params, *last]
        return command

    return decorate


def check_backend(given: SearchSettings, saved: SearchSettings | None = None) -> None:
    """Checks that the options of a backend are consistent with each other and with an index.

    Args:
        given: the options of the call.
        saved: the settings of the index; None without an index.

    Raises:
        click.UsageError: the options are inconsistent.
    """
    used = given if saved is None else given.over(saved)
    if used.backend != "milvus":
        if given.uri is not None:
            raise click.UsageError("--uri is the address of a Milvus server: add --backend milvus")
        return
    if used.uri is None:
        raise click.UsageError("--backend milvus needs the address of the server: add --uri URI")
    if given.kind is not None or given.recall is not None:
        option = "--kind" if given.kind is not None else "--recall"
        own = f"{option} applies to --backend local only: Milvus has an index of its own"
        if given.backend is None:
            own = f"the index is searched on a Milvus server: add --backend local to {option}"
        raise click.UsageError(own)


def neighbour_count(neighbours: int, pictures: int) -> int:
    """Returns the number of neighbours, at most `pictures`; prints a note if -k is larger.

    Args:
        neighbours: the value of the option -k.
        pictures: the number of pictures in the index.
    """
    source = click.get_current_context().get_parameter_source("neighbours")
    if neighbours > pictures and source is not ParameterSource.DEFAULT:
        only = f"the index has only {counted(pictures, 'picture')}"
        echo(f"lmk: -k {neighbours}: {only}", err=True)
    return min(neighbours, pictures)


def tell(text: str) -> None:
    """Prints a message of the library on stderr."""
    echo(f"lmk: {text}", err=True)


relations_option = click.option(
    "--relations",
    type=PATH,
    metavar="FILE",
    help="CSV with the columns child and parent, such as forest,tree: a child tag implies its "
    "parent. docs/tags.md describes other formats.",
)
relations_by_option = click.option(
    "--relations-by",
    type=click.Choice(["name", "id", "index"]),
    help="How a hierarchy file (.txt, .tsv) of --relations refers to tags.  [default: name]",
)


def named_relations(path: Path | None, by: str | None) -> RelationGraph | None:
    """Returns the tag relations that --relations names, or None.

    Raises:
        UsageError: --relations-by has no hierarchy file; see read_relations.
    """
    from lmk.embed.tags.hierarchy import HIERARCHY_SUFFIXES, read_relations

    if by is not None and (path is None or path.suffix.lower() not in HIERARCHY_SUFFIXES):
        remedy = "leave it out, or name a hierarchy file (.txt, .tsv) with --relations"
        raise UsageError("applies to a hierarchy file only", where="--relations-by", remedy=remedy)
    return None if path is None else read_relations(path, by=cast("Any", by or "name"))


def note_root(table: LabelTable, output: Path) -> None:
    """Prints the folder at which a table's paths start, if `output` is in another folder."""
    folder = table.path.parent
    if table.has_paths and folder.resolve() != output.parent.resolve():
        echo(
            f"lmk: {output}: its paths start at {folder}; read it with --root {shell_word(folder)}",
            err=True,
        )


def refuse_idle(options: Mapping[str, object], why: str) -> None:
    """Raises UsageError for an option that would have no effect.

    Args:
        options: the values of the options by name; None stands for an absent option.
        why: the reason, such as "without --html".

    Raises:
        UsageError: an option is present; the message names the first one.
    """
    for name, given in options.items():
        if given is not None:
            raise UsageError(f"has no effect {why}", where=name, remedy="leave it out")
