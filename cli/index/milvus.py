"""The command `lmk index push`, which copies an index to a Milvus server."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.index_path import INDEX
from lmk.cli.options import as_json, collection
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import counted
from lmk.embed.errors import UsageError
from lmk.embed.shell_words import shell_word

if TYPE_CHECKING:
    from lmk.cli.progress import StageProgress
    from lmk.index.milvus.push import PushReport


@click.command(short_help="Copy the vectors to a Milvus server.")
@click.argument("index", type=INDEX)
@click.option(
    "--uri",
    metavar="URI",
    help="Address of the server, such as http://localhost:19530.  [default: the saved one]",
)
@collection
@click.option(
    "--replace", is_flag=True, help="First delete a collection of that name, whatever it contains."
)
@as_json
def push(
    index: Path, uri: str | None, collection: str | None, replace: bool, as_json: bool
) -> None:
    """Copy the vectors of INDEX to a Milvus server, which can then search them.

    Push again after every change of INDEX; only the difference is sent. Then
    `lmk index set INDEX --backend milvus --uri URI` makes queries search on the server.

    Example: lmk index push gallery.lmk --uri http://localhost:19530
    """
    from lmk.cli.progress import StageProgress

    with StageProgress() as progress:
        report = push_to_server(index, progress, uri, collection, replace=replace)
    if as_json:
        echo_json({"path": str(index)} | asdict(report))
    else:
        options = f"--uri {shell_word(report.uri)}"
        options += f" --collection {shell_word(collection)}" if collection else ""
        hint = f"; search it with `lmk index set {shell_word(index)} --backend milvus {options}`"
        echo(pushed_text(report) + hint * (uri is not None or collection is not None))


def push_to_server(
    index: Path,
    on_progress: StageProgress,
    uri: str | None = None,
    collection: str | None = None,
    *,
    replace: bool = False,
) -> PushReport:
    """Copies an index to a Milvus server, by default to the server saved with the index.

    Raises:
        UsageError: `uri` is None, and no server is saved with the index.
    """
    from lmk.index.gallery.gallery import Gallery
    from lmk.index.milvus.push import push as push_gallery
    from lmk.index.search.settings import SearchSettings

    with Gallery.open(index) as gallery:
        search = SearchSettings(uri=uri, collection=collection).over(SearchSettings.saved(gallery))
        if search.uri is None:
            raise UsageError(
                "no Milvus server is saved with it", where=index, remedy="name one with --uri"
            )
        return push_gallery(
            gallery,
            search.uri,
            collection=search.collection,
            replace=replace,
            on_progress=lambda done, total: on_progress("rows", done, total),
        )


def pushed_text(report: PushReport) -> str:
    """Returns the result of a push as one line."""
    return (
        f"{report.uri}: collection {report.collection} holds {counted(report.rows, 'row')} "
        f"({report.sent:,} sent, {report.deleted:,} deleted)"
    )
