"""The commands `lmk index verify` and `lmk index repair`."""

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


@click.command(short_help="Check every file for damage.")
@click.argument("index", type=INDEX)
@as_json
@click.pass_context
def verify(ctx: click.Context, index: Path, as_json: bool) -> None:
    """Compare every file of INDEX with its checksum, and name each damage and its repair.

    The exit code is 1 if something is damaged.

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


@index_command(short_help="Repair what is damaged.")
@click.option(
    "--model",
    metavar="NAME|DIR",
    help="The model that INDEX was built with. Needed if its own copy is damaged and the model is "
    "not part of lmk.",
)
@click.option(
    "--weights", type=PATH, help="Local file with the weights of --model, for a timm model."
)
@click.option(
    "--size",
    type=click.IntRange(32, 2048),
    help="Height and width of pictures that --model was used with, in pixels.",
)
@click.option(
    "--drop-lost",
    is_flag=True,
    help="Also remove pictures with damaged vectors whose files cannot be accessed now, such as "
    "on a drive that is not mounted.",
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
    """Repair INDEX: recompute damaged parts, and embed again pictures with damaged vectors.

    A picture with damaged vectors whose file is gone or changed is removed and named, and the exit
    code is 1. If the folder of such files is missing or cannot be read, nothing is removed.

    Example: lmk index repair gallery.lmk
    """
    from lmk.cli.progress import StageProgress
    from lmk.embed.extract.embedder import Embedder
    from lmk.rerank.indexing.repair import repair_index

    if model is None and (weights is not None or size is not None):
        raise click.UsageError("--weights and --size describe a model: add --model")
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
    """Returns a finding as a JSON object; `rows` is the half-open range of damaged rows."""
    rows = [finding.rows.start, finding.rows.stop]
    return asdict(finding) | {"where": str(finding.where), "rows": rows}
