"""Options that the commands about tags share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.index_path import INDEX, TAGGER
from lmk.embed.errors import UsageError

if TYPE_CHECKING:
    from lmk.rerank.tags.taggers import Tagger


index_option = click.option(
    "-i",
    "--index",
    type=INDEX,
    help="Take the tags from the pictures of this index, by a vote of the nearest ones.",
)
tagger_option = click.option(
    "--tagger",
    type=TAGGER,
    metavar="DIR",
    help="Folder of a tagger that `lmk train` wrote, or an index that was built with one, or "
    "tags-lite1, lmk's own tagger for 18 everyday things.",
)
tiles_option = click.option(
    "--tiles",
    is_flag=True,
    help="Also score nine overlapping tiles of each photo, for small things; ten times slower.",
)


@contextmanager
def named_tagger(index: Path | None, tagger: Path | None) -> Iterator[Tagger]:
    """Yields the open tagger that --index or --tagger names, by default lmk's own tagger.

    Raises:
        UsageError: the call has both options.
    """
    from lmk.rerank.tags.taggers import open_tagger

    if index is not None and tagger is not None:
        remedy = "give one of --index and --tagger"
        raise UsageError("both an index and a tagger are given", where="--tagger", remedy=remedy)
    with open_tagger(index or tagger, votes=index is not None) as opened:
        yield opened
