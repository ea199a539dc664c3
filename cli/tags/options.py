"""Options that the commands about tags have in common, and what they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.index_path import INDEX, TAGGER

if TYPE_CHECKING:
    from lmk.rerank.tags.taggers import Tagger

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
    from lmk.rerank.tags.taggers import open_tagger

    if index is not None and tagger is not None:
        remedy = "give one of --index and --tagger"
        raise UsageError("an index and a tagger", where="--tagger", remedy=remedy)
    with open_tagger(index or tagger, votes=index is not None) as opened:
        yield opened
