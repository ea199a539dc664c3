"""`lmk index push`, and what `lmk build-index --backend milvus` does at its end."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.index_options import PATH, as_json
from lmk.cli.render import counted

if TYPE_CHECKING:
    from lmk.cli.progress import StageProgress
    from lmk.index.milvus import PushReport


@click.command(short_help="Copy the vectors to a Milvus server.")
@click.argument("index", type=PATH)
@click.option(
    "--uri",
    metavar="URI",
    help="Of the server, as in http://localhost:19530.  [default: the one it was built for]",
)
@as_json
def push(index: Path, uri: str | None, as_json: bool) -> None:
    """Copy the vectors of INDEX to a Milvus server, which then can search them.

    INDEX stays what counts: it can be pushed again at any time, and only what is new is sent.

    Example: lmk index push gallery.lmk --uri http://localhost:19530
    """
    from lmk.cli.progress import StageProgress

    with StageProgress() as progress:
        report, uri = push_to_server(index, uri, progress)
    if as_json:
        click.echo(json.dumps({"index": str(index), "uri": uri} | asdict(report)))
    else:
        click.echo(f"{index}: {counted(report.sent, 'row')} sent to {uri}")


def push_to_server(index: Path, uri: str | None, progress: StageProgress) -> tuple[PushReport, str]:
    """Pushes an index to the server at `uri`, or to its own; says what was sent and to where.

    Raises:
        UsageError: no address is given and the index has none.
    """
    from lmk.embed.errors import UsageError
    from lmk.index.gallery import Gallery
    from lmk.index.milvus import push as push_gallery

    with Gallery.open(index) as gallery:
        uri = uri or (gallery.setting("search") or {}).get("uri")
        if uri is None:
            raise UsageError(
                "was not built for a Milvus server", where=index, remedy="name one with --uri"
            )
        report = push_gallery(
            gallery, uri, progress=lambda done, total: progress("rows sent", done, total)
        )
    return report, uri
