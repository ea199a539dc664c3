"""The commands `lmk index relabel` and `lmk index rename-label`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from lmk.cli.options import FILE, index_command
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import counted
from lmk.embed.errors import ManifestError, UsageError


@index_command(short_help="Give pictures other landmarks.")
@click.argument("ids", nargs=-1)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME",
    help="The new landmark of the pictures IDS. Repeat the option for several landmarks.",
)
@click.option("--no-label", is_flag=True, help="Remove the landmark of the pictures IDS.")
@click.option(
    "--remove-label",
    metavar="NAME",
    help="Remove this landmark from every picture that has it. The pictures stay.",
)
@click.option(
    "--from",
    "table",
    type=FILE,
    metavar="CSV",
    help="A table with the columns id and landmark_id; an empty cell removes the landmark.",
)
def relabel(
    index: Path,
    ids: tuple[str, ...],
    labels: tuple[str, ...],
    no_label: bool,
    remove_label: str | None,
    table: Path | None,
    wait: float,
    as_json: bool,
) -> None:
    """Give pictures of INDEX other landmarks, by their IDS or by a table.

    No picture is read or embedded. A picture gets a new row number and keeps its id and file.
    `lmk index sync` and `lmk index add` read landmarks from the folder or CSV, so change them there
    as well.

    Example: lmk index relabel gallery.lmk eiffel_tower/7.jpg --label blackpool_tower
    """
    from lmk.cli.progress import StageProgress
    from lmk.embed.tables.label_text import plain_name
    from lmk.rerank.indexing.relabel import relabel_pictures
    from lmk.rerank.indexing.relabel import remove_label as remove_everywhere

    ways = {"--label": bool(labels), "--no-label": no_label}
    ways |= {"--remove-label": remove_label is not None, "--from": table is not None}
    chosen = [name for name, given in ways.items() if given]
    if len(chosen) != 1:
        what = f"{chosen[0]} and {chosen[1]}" if chosen else "no new landmark is given"
        raise UsageError(what, where=index, remedy=f"give one of {', '.join(ways)}")
    if bool(ids) != (chosen[0] in ("--label", "--no-label")):
        remedy = "name the ids of the pictures" if not ids else "leave the ids out"
        raise UsageError(f"{chosen[0]} {'without' if not ids else 'with'} ids", remedy=remedy)
    with StageProgress() as progress:
        if remove_label is not None:
            report = remove_everywhere(index, remove_label, wait=wait, on_progress=progress)
        else:
            own = [plain_name(label) for label in labels]
            given = dict.fromkeys(ids, own) if table is None else _read_labels(table)
            report = relabel_pictures(index, given, wait=wait, on_progress=progress)
    if as_json:
        echo_json({"index": str(index)} | asdict(report))
        return
    if report.emptied:
        echo(f"lmk: no picture is left of {', '.join(report.emptied)}", err=True)
    echo(
        f"{index}: {counted(report.relabelled, 'picture')} with other landmarks, "
        f"{report.unchanged:,} had them already"
    )


@index_command("rename-label", short_help="Rename a landmark, or join two.")
@click.argument("old")
@click.argument("new")
def rename_label(index: Path, old: str, new: str, wait: float, as_json: bool) -> None:
    """Rename the landmark OLD of INDEX to NEW. If NEW exists already, the two are joined.

    No picture is read or embedded. `lmk index sync` reads landmarks from the folder or CSV, so
    rename the landmark there as well.

    Example: lmk index rename-label gallery.lmk eifel_tower eiffel_tower
    """
    from lmk.cli.progress import StageProgress
    from lmk.embed.tables.label_text import plain_name
    from lmk.rerank.indexing.relabel import rename_label as rename

    name = plain_name(new)
    with StageProgress() as progress:
        report = rename(index, old, name, wait=wait, on_progress=progress)
    if as_json:
        echo_json({"index": str(index), "old": old, "new": name} | asdict(report))
    elif report.again:
        echo(f"{index}: {old} was renamed to {name} before; nothing is left to do")
    elif report.merged_into:
        echo(
            f"{index}: {counted(report.renamed, 'picture')} of {old} joined the "
            f"{report.merged_into:,} of {name}"
        )
    else:
        echo(f"{index}: {old} is {name} now ({counted(report.renamed, 'picture')})")


def _read_labels(table: Path) -> dict[str, Sequence[str]]:
    """Returns the labels of each picture in a table, by id."""
    from lmk.embed.data.label_table import LabelTable

    rows = LabelTable(table)
    if rows.column is None:
        remedy = "name a CSV with the columns id and landmark_id"
        raise ManifestError("has no column of landmarks", where=table, remedy=remedy)
    return dict(rows.labels)
