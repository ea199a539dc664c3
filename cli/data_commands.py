"""`lmk data`: bring data sets here, find what is wrong in one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from lmk.cli.pictures import read_pictures
from lmk.cli.printing import echo, echo_json, echo_lines
from lmk.cli.relabel_command import relabel
from lmk.cli.tag_label_commands import add_tags, caption_tags

if TYPE_CHECKING:
    from lmk.embed.gldv2 import Item, Report
    from lmk.embed.manifest import Manifest
    from lmk.eval.gallery_check import GalleryCheck

BASE_URL = "https://s3.amazonaws.com/google-landmark"
_NETWORK = "lite1"  # whose cosines the limits of `lmk data check` were measured with


@click.group()
def data() -> None:
    """Get and check sets of pictures."""


for command in (relabel, caption_tags, add_tags):
    data.add_command(command)


@data.command("gldv2", short_help="Download Google Landmarks v2, shard by shard.")
@click.option("--split", type=click.Choice(["train", "index", "test"]), required=True)
@click.option("--shards", required=True, metavar="SPEC", help="0-3, or 0,5,7-9, or all.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to fill; a second run goes on where the first stopped.",
)
@click.option("--mirror", default=BASE_URL, show_default=True, metavar="URL", help="Base address.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 32),
    default=4,
    show_default=True,
    help="Connections at a time.",
)
@click.option("--keep-archives", is_flag=True, help="Keep the tar files after unpacking.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def gldv2(
    ctx: click.Context,
    split: str,
    shards: str,
    out: Path,
    mirror: str,
    jobs: int,
    keep_archives: bool,
    as_json: bool,
) -> None:
    """Download shards of Google Landmarks v2: verified, unpacked, with metadata and attribution.

    train has 500 shards of about 1 GB, index 100 of about 850 MB, test 20 of about 500 MB.

    Example: lmk data gldv2 --split index --shards 0-3 --out gldv2
    """
    from lmk.cli.download_progress import DownloadProgress
    from lmk.embed.gldv2 import download, parse_shards

    numbers = parse_shards(shards, split)
    try:
        with DownloadProgress() as progress:
            report = download(
                split,
                numbers,
                out,
                mirror=mirror,
                jobs=jobs,
                keep_archives=keep_archives,
                on_bytes=progress.bytes_came,
                on_item=progress.item_ended,
            )
    except KeyboardInterrupt:
        echo("stopped; the same command goes on where it stopped", err=True)
        ctx.exit(130)
    if as_json:
        echo_json(_summary(report, split, out))
    else:
        echo(_sentence(report, out))
    echo(f"licences of the pictures: {out / 'LICENSES.txt'}", err=True)
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
    from lmk.cli.render import counted

    return (
        f"{out}: {counted(count('downloaded'), 'file')} downloaded, {count('present')} were here, "
        f"{count('missing')} missing; {counted(images, 'picture')}"
    )


def _raise_missing(report: Report) -> None:
    from lmk.embed.errors import DownloadError, StorageError

    missing: tuple[Item, ...] = report.missing
    for item in missing:
        if isinstance(item.error, StorageError):
            raise item.error
    if missing:
        raise DownloadError(
            f"{len(missing)} of {len(report.items)} files are missing: "
            + ", ".join(item.name for item in missing),
            remedy="run the same command again: what is here is not fetched twice",
        )


@data.command("check", short_help="Find what is wrong in a set of pictures.")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder that a table's paths start from; its own unless given.",
)
@click.option("--model", metavar="NAME", help="Preset, embedder's folder; lite1 unless given.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing left out.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a sheet with the pictures of each finding side by side.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Findings of a kind shown, in the table and on the sheet.",
)
@click.option(
    "--save-features",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Keep features here; the next run goes on from them.",
)
@click.pass_context
def check(
    ctx: click.Context,
    manifest: Path,
    root: Path | None,
    model: str | None,
    as_json: bool,
    html: Path | None,
    limit: int,
    save_features: Path | None,
) -> None:
    """Find what is wrong in a folder, CSV or Parquet file of pictures.

    Unreadable files, copies (also under different labels), pictures that look like another label,
    landmarks with one photo, hubs, very small pictures. Exits with 1 when something was found.

    Example: lmk data check gallery/ --html check.html
    """
    from lmk.cli.check_page import check_json, check_lines, check_page
    from lmk.cli.render import check_output, write_text

    if html is not None:
        check_output(html, reads=[manifest])
    pictures = read_pictures(manifest, root=root)
    found = _check(pictures, model, save_features)
    if html is not None:
        write_text(html, check_page(found, pictures, limit))
    if as_json:
        unseen = {place.path for place in pictures.unseen}
        others = sum(skip.path not in unseen for skip in pictures.skipped)
        echo_json(check_json(found, others))
    else:
        echo_lines(check_lines(found, limit))
    ctx.exit(1 if found.findings else 0)


def _check(manifest: Manifest, model: str | None, features: Path | None) -> GalleryCheck:
    from lmk.cli.progress import StageProgress
    from lmk.embed.embedder import Embedder
    from lmk.embed.embeddings import Embeddings
    from lmk.embed.extract import extract
    from lmk.embed.features import FeatureStore
    from lmk.eval.gallery_check import check_gallery

    embedder = Embedder.named(model or _NETWORK)
    with TemporaryDirectory(prefix="lmk-check-") as temporary, StageProgress() as progress:
        folder = features or Path(temporary)
        store = FeatureStore(folder, embedder.feature_fingerprint, embedder.feature_dim)
        total = len(manifest)
        extraction = extract(
            manifest, embedder, store, progress=lambda done: progress("pictures", done, total)
        )
        raw = store.read([picture.sha256 for picture in extraction.pictures])
        ids = tuple(picture.row.id for picture in extraction.pictures)
        embeddings = Embeddings(embedder.vectors(raw), ids, embedder.fingerprint)
        return check_gallery(manifest, extraction, embeddings, progress=progress)
