"""Arguments and options that several commands of `lmk index` take."""

from __future__ import annotations

from pathlib import Path

import click

PATH = click.Path(path_type=Path)

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
wait = click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for another process that is writing to the index.",
)
duplicates = click.option(
    "--duplicates",
    is_flag=True,
    help="Also take pictures whose very content the index has under another id.",
)
root = click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where the paths of a CSV start.  [default: the folder of the CSV]",
)
labels = click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME",
    help="Only pictures of this landmark; may be given again.",
)
