"""`lmk build-index` and `lmk info`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from lmk.cli.render import NONE_OF_THESE, echo_skipped, human_bytes

SUFFIX = ".lmk"
FEW_PICTURES = 30  # a threshold learnt from fewer, without distractors, is a guess


@click.command("build-index")
@click.argument("gallery", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "index",
    type=click.Path(path_type=Path),
    help="The index to write.  [default: GALLERY.lmk]",
)
@click.option(
    "--distractors",
    type=click.Path(path_type=Path),
    metavar="FOLDER|CSV",
    help="Pictures that show none of the landmarks: they teach the index what to refuse.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where the paths of both CSVs start.  [default: the folder of each]",
)
@click.option(
    "--model",
    metavar="NAME|DIR",
    default="lite1",
    show_default=True,
    help="lite1, lite0 (faster), an embedder's folder, or any timm model.",
)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Weights of a timm model, a local file."
)
@click.option("--pretrained", is_flag=True, help="Fetch the timm model's weights from its hub.")
@click.option("--size", type=click.IntRange(32, 2048), help="Side of the pictures in pixels.")
@click.option(
    "--whiten/--no-whiten",
    default=None,
    help="Learn a whitening.  [default: with distractors and 1,000 pictures or more]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build_index(
    gallery: Path,
    index: Path | None,
    distractors: Path | None,
    root: Path | None,
    model: str,
    weights: Path | None,
    pretrained: bool,
    size: int | None,
    whiten: bool | None,
    as_json: bool,
) -> None:
    """Build an index from GALLERY: a folder with one sub-folder for each landmark, or a CSV.

    A CSV needs the columns id and landmark_id, and path where pictures do not lie as a/b/c/ID.jpg.
    Stopped or killed, the same command goes on where it was; an index that is there already
    answers until the new one is whole.

    Example: lmk build-index gallery/ --distractors not-landmarks/
    """
    from lmk.cli.progress import StageProgress
    from lmk.embed.embedder import Embedder
    from lmk.embed.images import ignore_large_picture_warnings
    from lmk.embed.manifest import read_manifest
    from lmk.rerank.build import build_index as build

    ignore_large_picture_warnings()
    started = time.monotonic()
    pictures = read_manifest(gallery, root=root)
    bank = read_manifest(distractors, root=root) if distractors else None
    index = index or default_index(gallery)
    embedder = Embedder.named(model, weights=weights, pretrained=pretrained, size=size)
    with StageProgress() as progress:
        report = build(
            index, pictures, embedder, distractors=bank, whiten=whiten, progress=progress
        )
    seconds = time.monotonic() - started
    if as_json:
        summary = {
            "index": str(index),
            "pictures": report.pictures,
            "distractors": report.distractors,
            "computed": report.computed,
            "whitened": report.whitened,
            "threshold": report.threshold,
            "seconds": round(seconds, 3),
            "skipped": [asdict(skip) for skip in report.skipped],
        }
        click.echo(json.dumps(summary, ensure_ascii=False))
        return
    echo_skipped(report.skipped, f"lmk info {index} lists them")
    bank_text = f" and {report.distractors:,} distractors" if distractors else ""
    click.echo(
        f"{index}: {report.pictures:,} pictures{bank_text} in {seconds:.1f} s "
        f"({report.computed:,} newly computed)"
    )
    if not pictures.labelled:
        click.echo(
            f"lmk: {gallery}: no picture has a landmark, so the index can find similar pictures "
            "but name nothing; put each landmark's pictures into a sub-folder of its own",
            err=True,
        )
    elif report.threshold is None:
        click.echo(
            f"lmk: {index}: nothing shows what to refuse, so every picture will get a landmark; "
            "build it again with pictures of no landmark: --distractors FOLDER",
            err=True,
        )
    elif not distractors and report.pictures < FEW_PICTURES:
        click.echo(
            f"lmk: {index}: {NONE_OF_THESE!r} was learnt from {report.pictures} pictures only; "
            "pictures of no landmark make it surer: --distractors FOLDER",
            err=True,
        )


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(index: Path, as_json: bool) -> None:
    """Say what INDEX holds, after checking every file of it.

    Example: lmk info gallery.lmk
    """
    from lmk.embed.embedder import Embedder
    from lmk.index.gallery import Gallery
    from lmk.rerank.build import saved_pipeline

    with Gallery.open(index) as gallery:
        facts = asdict(gallery.info())
        embedder = Embedder.load(gallery.embedder_dir)
        steps = [step.model_dump() for step in saved_pipeline(gallery).steps]
        skipped = gallery.skipped()
    facts["path"] = str(facts["path"])
    facts["embedder"] = embedder.config.model_dump() | {"whitened": embedder.whitening is not None}
    facts["steps"] = steps
    facts["skipped_files"] = [{"path": path, "reason": reason} for path, reason in skipped]
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    whitened = ", whitened" if embedder.whitening is not None else ""
    model = f"{embedder.config.name} at {embedder.config.size} px, {facts['dim']}-d{whitened}"
    rows = {
        "index": facts["path"],
        "landmarks": f"{facts['landmarks']:,}",
        "pictures": f"{facts['pictures']:,} ({facts['unlabelled']:,} without a landmark)",
        "distractors": f"{facts['distractors']:,}",
        "skipped files": f"{facts['skipped']:,}",
        "embedder": f"{model}, fingerprint {facts['fingerprint'][:16]}",
        "steps": ", ".join(_step_text(step) for step in steps),
        "size": f"{human_bytes(facts['bytes_on_disk'])}, format {facts['format']}",
        "created": facts["created"],
        "updated": facts["updated"],
    }
    for name, text in rows.items():
        click.echo(f"{name:14} {text}")
    for path, reason in skipped:
        click.echo(f"skipped        {path}: {reason}")


def default_index(gallery: Path) -> Path:
    """GALLERY.lmk, beside the gallery: gallery/ and gallery.csv both give gallery.lmk."""
    plain = Path(gallery).resolve()
    name = plain.stem if plain.is_file() else plain.name
    folder = gallery.parent if gallery.name not in ("", ".", "..") else plain.parent
    return folder / f"{name}{SUFFIX}"


def _step_text(step: dict[str, object]) -> str:
    parameters = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in step.items()
        if name != "step"
    )
    return f"{step['step']} ({parameters})" if parameters else str(step["step"])
