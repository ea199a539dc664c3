"""`lmk index push`, and what `lmk build-index --backend milvus` does at its end."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.index_path import INDEX
from lmk.cli.options import as_json, collection
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import counted
from lmk.embed.shell_words import shell_word

if TYPE_CHECKING:
    from lmk.cli.progress import StageProgress
    from lmk.index.milvus.push import PushReport


@click.command(short_help="Copy the vectors to a Milvus server.")
@click.argument("index", type=INDEX)
@click.option(
    "--uri",
    metavar="URI",
    help="Of the server, as in http://localhost:19530.  [default: the one it was built for]",
)
@collection
@click.option(
    "--replace", is_flag=True, help="Drop a collection of that name first, whatever it holds."
)
@as_json
def push(
    index: Path, uri: str | None, collection: str | None, replace: bool, as_json: bool
) -> None:
    """Copy the vectors of INDEX to a Milvus server, which then can search them.

    INDEX stays what counts: it can be pushed again at any time, and only what is new is sent.
    `lmk index set INDEX --backend milvus --uri URI` makes it be searched there.

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
    """Pushes an index to a server, to the one it was built for unless another is given.

    Raises:
        UsageError: no address is given and the index has none.
    """
    from lmk.embed.errors import UsageError
    from lmk.index.gallery.gallery import Gallery
    from lmk.index.milvus.push import push as push_gallery
    from lmk.index.search.settings import SearchSettings

    with Gallery.open(index) as gallery:
        search = SearchSettings(uri=uri, collection=collection).over(SearchSettings.saved(gallery))
        if search.uri is None:
            raise UsageError(
                "was not built for a Milvus server", where=index, remedy="name one with --uri"
            )
        return push_gallery(
            gallery,
            search.uri,
            collection=search.collection,
            replace=replace,
            on_progress=lambda done, total: on_progress("rows", done, total),
        )


def pushed_text(report: PushReport) -> str:
    """What a push did, as one line."""
    return (
        f"{report.uri}: collection {report.collection} holds {counted(report.rows, 'row')} "
        f"({report.sent:,} sent, {report.deleted:,} deleted)"
    )
