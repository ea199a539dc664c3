"""The command group `lmk data`: commands that download, check and label pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.data.check import check
from lmk.cli.data.label_tables import add_tags, caption_tags
from lmk.cli.data.relabel import relabel
from lmk.cli.old_names import old_options
from lmk.cli.options import FOLDER, as_json
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import counted
from lmk.embed.errors import DownloadError, StorageError

if TYPE_CHECKING:
    from lmk.embed.gldv2.dataset import Item, Report

BASE_URL = "https://s3.amazonaws.com/google-landmark"


@click.group()
def data() -> None:
    """Download, check and label sets of pictures."""


for command in (check, relabel, caption_tags, add_tags):
    data.add_command(command)


@data.command(
    "gldv2",
    short_help="Download Google Landmarks v2, shard by shard.",
    context_settings=old_options(out="output"),
)
@click.option(
    "--split",
    type=click.Choice(["train", "index", "test"]),
    required=True,
    help="Part of the data set.",
)
@click.option(
    "--shards", required=True, metavar="SPEC", help="Shards to download: 0-3, or 0,5,7-9, or all."
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=FOLDER,
    help="Folder to write. A second run continues where the first stopped.",
)
@click.option("--mirror", default=BASE_URL, metavar="URL", help="Base address of the server.")
@click.option(
    "--jobs", type=click.IntRange(1, 32), default=4, help="Number of simultaneous connections."
)
@click.option("--keep-archives", is_flag=True, help="Keep the tar files after unpacking.")
@as_json
@click.pass_context
def gldv2(
    ctx: click.Context,
    split: str,
    shards: str,
    output: Path,
    mirror: str,
    jobs: int,
    keep_archives: bool,
    as_json: bool,
) -> None:
    """Download, verify and unpack shards of Google Landmarks v2, with metadata and attribution.

    train has 500 shards of about 1 GB, index 100 of about 850 MB, test 20 of about 500 MB.

    Example: lmk data gldv2 --split index --shards 0-3 -o gldv2
    """
    from lmk.cli.progress import DownloadProgress
    from lmk.embed.gldv2.dataset import download, parse_shards

    numbers = parse_shards(shards, split)
    try:
        with DownloadProgress() as progress:
            report = download(
                split,
                numbers,
                output,
                mirror=mirror,
                jobs=jobs,
                keep_archives=keep_archives,
                on_bytes=progress.bytes_came,
                on_item=progress.item_ended,
            )
    except KeyboardInterrupt:
        echo("stopped; run the same command again to continue", err=True)
        ctx.exit(130)
    if as_json:
        echo_json(_summary(report, split, output))
    else:
        echo(_sentence(report, output))
    echo(f"licences of the pictures: {output / 'LICENSES.txt'}", err=True)
    _raise_missing(report)


def _summary(report: Report, split: str, out: Path) -> dict[str, object]:
    return {
        "split": split,
        "out": str(out),
        "complete": not report.missing,
        "images": sum(item.images for item in report.items),
        "missing": [item.name for item in report.missing],
        "items": [
            {
                "name": item.name,
                "status": item.status,
                "images": item.images,
                "bytes": item.size,
                "md5": item.md5,
                "error": None if item.error is None else str(item.error),
            }
            for item in report.items
        ],
    }


def _sentence(report: Report, out: Path) -> str:
    def count(status: str) -> int:
        return sum(item.status == status for item in report.items)

    images = sum(item.images for item in report.items)
    return (
        f"{out}: {counted(count('downloaded'), 'file')} downloaded, {count('present')} present, "
        f"{count('missing')} missing; {counted(images, 'picture')}"
    )


def _raise_missing(report: Report) -> None:
    missing: tuple[Item, ...] = report.missing
    for item in missing:
        if isinstance(item.error, StorageError):
            raise item.error
    if missing:
        raise DownloadError(
            f"{len(missing)} of {len(report.items)} files are missing: "
            + ", ".join(item.name for item in missing),
            remedy="run the same command again; it downloads only the missing files",
        )
