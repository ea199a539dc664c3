"""The command `lmk data check`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.index_path import INDEX, INDEX_OR_OTHER, find_index, is_index
from lmk.cli.options import FILE, FOLDER, refuse_idle, root
from lmk.cli.pictures import read_pictures
from lmk.cli.printing import echo, echo_json, echo_lines
from lmk.cli.render import check_output, counted, write_text
from lmk.embed.defaults import DEFAULT

if TYPE_CHECKING:
    from lmk.embed.data.manifest import Manifest
    from lmk.eval.check.gallery_check import GalleryCheck


@click.command("check", short_help="Find faults in a set of pictures.")
@click.argument("manifest", required=False, type=INDEX_OR_OTHER, metavar="[FOLDER|CSV|INDEX]")
@click.option(
    "-i",
    "--index",
    type=INDEX,
    help="Index whose network and vectors are used. Without FOLDER or CSV, its own pictures are "
    "checked.  [default, without FOLDER or CSV: the only *.lmk folder here]",
)
@root
@click.option(
    "--model",
    metavar="NAME|DIR",
    help=f"Network, if no index is given: a preset or an embedder's folder.  [default: {DEFAULT}]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all findings.")
@click.option(
    "--html", type=FILE, help="Write a page with the pictures of each finding side by side."
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=20,
    help="Number of findings of each kind in the text and on the page.",
)
@click.option(
    "--save-features",
    type=FOLDER,
    metavar="FOLDER",
    help="Folder for computed features, which later runs reuse.",
)
@click.pass_context
def check(
    ctx: click.Context,
    manifest: Path | None,
    index: Path | None,
    root: Path | None,
    model: str | None,
    as_json: bool,
    html: Path | None,
    limit: int,
    save_features: Path | None,
) -> None:
    """Find faults in a folder, CSV or Parquet file of pictures, or in an index.

    The command lists unreadable files, copies (also under different labels), pictures that resemble
    another label, landmarks with one photo, hubs (pictures near unusually many others) and very
    small pictures. The exit code is 1 if there are findings.

    With an index, only pictures that it does not hold are embedded, so a check of its own pictures
    takes seconds.

    Example: lmk data check gallery/ --html check.html
    """
    from lmk.cli.data.check_page import check_json, check_lines, check_page

    check_output(html, reads=[] if manifest is None else [manifest])
    if index is None and (manifest is None or is_index(manifest)):
        index, manifest = find_index(manifest), None
    if index is not None:
        refuse_idle({"--model": model}, "with an index, which has its own network")
    if manifest is None:
        idle = {"--root": root, "--save-features": save_features}
        refuse_idle(idle, "for an index, which holds its vectors")
    pictures: Manifest
    if manifest is None:
        assert index is not None
        pictures, result = _check_index(index)
    else:
        pictures = read_pictures(manifest, root=root)
        result = _check(pictures, model, save_features, index)
    if html is not None:
        write_text(html, check_page(result, pictures, limit))
    if as_json:
        unseen = {place.path for place in pictures.unseen}
        others = sum(skip.path not in unseen for skip in pictures.skipped)
        echo_json(check_json(result, others))
    else:
        echo_lines(check_lines(result, limit))
    ctx.exit(1 if result.findings else 0)


def _check_index(index: Path) -> tuple[Manifest, GalleryCheck]:
    """Returns the pictures of an index, and the check of the pictures by their vectors."""
    from lmk.cli.progress import StageProgress
    from lmk.eval.check.gallery_check import check_gallery
    from lmk.eval.check.sources import changed_files, pictures_of_index
    from lmk.index.gallery.gallery import Gallery

    with Gallery.open(index) as gallery, StageProgress() as progress:
        manifest, extraction, embeddings = pictures_of_index(gallery)
        changed = changed_files(manifest, extraction)
        if changed:
            files = counted(changed, "picture file")
            echo(
                f"lmk: {index}: {files} disappeared or changed after the index was built, so their "
                "copies may be missed; `lmk index sync` brings the index up to date",
                err=True,
            )
        return manifest, check_gallery(manifest, extraction, embeddings, on_progress=progress)


def _check(
    manifest: Manifest, model: str | None, features: Path | None, index: Path | None
) -> GalleryCheck:
    from lmk.cli.progress import StageProgress
    from lmk.embed.extract.embedder import Embedder
    from lmk.embed.extract.feature_store import FeatureStore
    from lmk.embed.scratch import ScratchFolder
    from lmk.eval.check.gallery_check import check_gallery
    from lmk.eval.check.sources import pictures_of_manifest
    from lmk.index.gallery.gallery import Gallery

    with ExitStack() as held:
        gallery = None if index is None else held.enter_context(Gallery.open(index))
        if gallery is None:
            embedder = Embedder.named(model or DEFAULT)
        else:
            embedder = Embedder.load(gallery.embedder_dir)
        folder = features or held.enter_context(ScratchFolder("check"))
        progress = held.enter_context(StageProgress())
        store = FeatureStore(folder, embedder.feature_fingerprint, embedder.feature_dim)
        count = progress.stage("pictures", len(manifest))
        extraction, embeddings = pictures_of_manifest(
            manifest, embedder, store, gallery=gallery, on_progress=count
        )
        return check_gallery(manifest, extraction, embeddings, on_progress=progress)
