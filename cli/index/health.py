"""`lmk index verify` and `lmk index repair`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.index_path import INDEX
from lmk.cli.options import PATH, as_json, index_command
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import counted

if TYPE_CHECKING:
    from lmk.index.gallery.verify import DamageFinding


@click.command(short_help="Find what is damaged.")
@click.argument("index", type=INDEX)
@as_json
@click.pass_context
def verify(ctx: click.Context, index: Path, as_json: bool) -> None:
    """Compare every byte of INDEX with its checksum, and say what is wrong and what mends it.

    Exits with 1 when something was found.

    Example: lmk index verify gallery.lmk
    """
    from lmk.index.gallery.verify import verify as verify_gallery

    findings = verify_gallery(index)
    if as_json:
        facts = {"index": str(index), "findings": [_facts(finding) for finding in findings]}
        echo_json(facts)
    else:
        for finding in findings:
            echo(f"{finding.where}: {finding.what}; {finding.remedy}")
        echo(f"{index}: {counted(len(findings), 'finding') if findings else 'all is well'}")
    ctx.exit(1 if findings else 0)


@index_command(short_help="Mend what is damaged.")
@click.option(
    "--model",
    metavar="NAME|DIR",
    help="What INDEX was built with, where its own copy is damaged and the model is none of "
    "those that come with lmk.",
)
@click.option(
    "--weights", type=PATH, help="Weights of --model, where it is a timm model: a local file."
)
@click.option(
    "--size",
    type=click.IntRange(32, 2048),
    help="Side of the pictures that --model was used with, in pixels.",
)
@click.option(
    "--drop-lost",
    is_flag=True,
    help="Also drop pictures with damaged vectors whose files cannot be reached, as those of a "
    "drive that is not mounted.",
)
@click.pass_context
def repair(
    ctx: click.Context,
    index: Path,
    model: str | None,
    weights: Path | None,
    size: int | None,
    drop_lost: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Mend INDEX: make again what can be, embed again the pictures whose vectors are damaged.

    Pictures whose vectors are lost and whose files are gone or changed are dropped and named;
    then it exits with 1. It stops before that where their folder is missing or cannot be read.

    Example: lmk index repair gallery.lmk
    """
    from lmk.cli.progress import StageProgress
    from lmk.embed.extract.embedder import Embedder
    from lmk.rerank.indexing.repair import repair_index

    if model is None and (weights is not None or size is not None):
        raise click.UsageError("--weights and --size are of a model: give --model with them")
    embedder = None if model is None else Embedder.named(model, weights=weights, size=size)
    with StageProgress() as progress:
        report = repair_index(
            index, embedder=embedder, drop_lost=drop_lost, wait=wait, on_progress=progress
        )
    if as_json:
        echo_json({"index": str(index)} | asdict(report))
    else:
        echo(
            f"{index}: {counted(len(report.remade), 'part')} made again, "
            f"{counted(report.reembedded, 'picture')} embedded again, {len(report.lost):,} lost"
        )
        for picture in report.lost:
            echo(f"lmk: lost {picture}", err=True)
    ctx.exit(1 if report.lost else 0)


def _facts(finding: DamageFinding) -> dict[str, Any]:
    """For JSON; `rows` are the first one and the one behind the last."""
    rows = [finding.rows.start, finding.rows.stop]
    return asdict(finding) | {"where": str(finding.where), "rows": rows}
