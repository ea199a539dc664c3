"""The command `lmk build-index`."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.index.milvus import push_to_server, pushed_text
from lmk.cli.index.notes import echo_built, echo_unlabelled
from lmk.cli.landmark_names import echo_unknown
from lmk.cli.landmark_notes import echo_landmarks, echo_shape
from lmk.cli.old_names import old_options
from lmk.cli.options import (
    PATH,
    as_json,
    backend,
    check_backend,
    collection,
    duplicates,
    hide,
    kind,
    landmarks,
    recall,
    root,
    uri,
    wait,
)
from lmk.cli.pictures import read_pictures
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import NONE_OF_THESE, counted
from lmk.embed.defaults import DEFAULT

if TYPE_CHECKING:
    from lmk.embed.data.manifest import Manifest
    from lmk.index.catalog.records import Precision
    from lmk.rerank.indexing.build import BuildReport

SUFFIX = ".lmk"
FEW_PICTURES = 30  # A threshold fitted on fewer pictures and no distractors is unreliable.


def _shard(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """Returns the value of --shard as two numbers: (2, 8) for "2/8"."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", value)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise click.BadParameter(f"{value!r} is not I/N with I from 1 to N, such as 1/4")
    return number, count


def _scales(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Returns the value of --scales as numbers: (1.0, 0.7) for "1,0.7"."""
    if value is None:
        return None
    try:
        scales = tuple(float(part) for part in value.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale <= 1 for scale in scales):
        raise click.BadParameter(f"{value!r} is not a list of factors up to 1 such as 1,0.7")
    return scales


@click.command("build-index", context_settings=old_options(precision="dtype"))
@click.argument("gallery", type=PATH)
@click.option(
    "-o", "--output", "index", type=PATH, help="The index to write.  [default: GALLERY.lmk]"
)
@click.option(
    "--distractors",
    type=PATH,
    metavar="FOLDER|CSV",
    help="Pictures that show none of the landmarks. The index uses them to refuse such photos.",
)
@landmarks
@root
@click.option(
    "--model",
    metavar="NAME|DIR",
    default=DEFAULT,
    help=f"Network: {DEFAULT}, lite1, lite0 (faster), an embedder's folder, or any timm model.",
)
@click.option("--weights", type=PATH, help="Local weights file of a timm model.")
@click.option("--pretrained", is_flag=True, help="Download the weights of the timm model.")
@click.option("--size", type=click.IntRange(32, 2048), help="Size of pictures in pixels.")
@click.option(
    "--flip", is_flag=True, help="Also embed the mirror image of each picture; takes twice as long."
)
@click.option(
    "--scales",
    metavar="S,S",
    callback=_scales,
    help="Embed each picture at several sizes, such as 1,0.7 of the full size.",
)
@click.option(
    "--whiten/--no-whiten",
    default=None,
    help="Fit a whitening of the vectors.  [default: only with distractors and 1,000 pictures]",
)
@kind
@recall
@backend
@uri
@collection
@click.option(
    "--shard",
    metavar="I/N",
    callback=_shard,
    help="Build only part I of N (I from 1 to N); `lmk index merge` joins the parts.",
)
@click.option(
    "--dtype",
    type=click.Choice(["f16", "f32"]),
    default="f16",
    help="Data type of the stored vectors: half or single precision floats.",
)
@duplicates
@click.option(
    "--allow-removals",
    is_flag=True,
    help="Rebuild an existing index even if many of its pictures cannot be accessed now.",
)
@wait
@as_json
def build_index(
    gallery: Path,
    index: Path | None,
    distractors: Path | None,
    landmarks: tuple[Path, ...],
    root: Path | None,
    model: str,
    weights: Path | None,
    pretrained: bool,
    size: int | None,
    flip: bool,
    scales: tuple[float, ...] | None,
    whiten: bool | None,
    kind: str | None,
    recall: float | None,
    backend: str | None,
    uri: str | None,
    collection: str | None,
    shard: tuple[int, int] | None,
    dtype: Precision,
    duplicates: bool,
    allow_removals: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Build an index from GALLERY: a folder with one sub-folder for each landmark, or a CSV.

    A CSV needs the columns id and landmark_id, and a column path unless the pictures are at
    a/b/c/ID.jpg or ID.jpg (docs/tables.md). If the command is stopped, run it again: it continues
    where it stopped. An index that exists already stays in use until the new one is complete.
    `lmk index set` changes how the index is searched.

    Example: lmk build-index gallery/ --distractors not-landmarks/
    """
    from lmk.cli.progress import StageProgress
    from lmk.embed.extract.embedder import Embedder
    from lmk.embed.tables.landmark_table import read_landmarks
    from lmk.index.search.settings import SearchSettings
    from lmk.rerank.indexing.build import build_index as build

    search = SearchSettings(kind, recall, backend, uri, collection)
    check_backend(search)
    if collection is not None and backend != "milvus":
        raise click.UsageError("--collection belongs to a Milvus server: add --backend milvus")
    started = time.monotonic()
    table = read_landmarks(*landmarks) if landmarks else None
    pictures = read_pictures(gallery, root=root)
    distractor_manifest = read_pictures(distractors, root=root) if distractors else None
    index = index or default_index(gallery, shard)
    echo_shape(pictures, gallery, lambda other: ["build-index", str(other), "-o", str(index)])
    embedder = Embedder.named(model, weights=weights, pretrained=pretrained, size=size)
    if flip or scales is not None:
        embedder = embedder.with_views(flip=flip, scales=scales or (1.0,))
    with StageProgress() as progress:
        report = build(
            pictures,
            index,
            embedder,
            distractors=distractor_manifest,
            whiten=whiten,
            search=search,
            shard=shard,
            precision=dtype,
            duplicates=duplicates,
            allow_removals=allow_removals,
            landmarks=table,
            wait=wait,
            on_progress=progress,
        )
        pushed = push_to_server(index, progress) if backend == "milvus" else None
    seconds = time.monotonic() - started
    if as_json:
        facts = {"index": str(index)} | asdict(report) | {"seconds": round(seconds, 3)}
        facts |= {} if pushed is None else {"pushed": asdict(pushed)}
        echo_json(facts)
        return
    echo_built(index, report)
    if table is not None:
        total = len(table.details)
        echo_unknown(table.path, report.unknown_landmarks, total, str(gallery))
    distractor_text = f" and {counted(report.distractors, 'distractor')}" if distractors else ""
    echo(
        f"{index}: {counted(report.pictures, 'picture')}{distractor_text} in {seconds:.1f} s "
        f"({report.computed:,} newly computed)"
    )
    if pushed is not None:
        echo(pushed_text(pushed))
    echo_landmarks(index)
    if shard is None:
        _advise(gallery, index, report, pictures, has_distractors=distractors is not None)


# `lmk index set` has the options of the search. The error message of a stopped build names
# --allow-removals. docs/training.md describes --scales beside --flip.
hide(build_index, "kind", "recall", "backend", "uri", "collection", "allow_removals", "scales")


def _advise(
    gallery: Path, index: Path, report: BuildReport, pictures: Manifest, *, has_distractors: bool
) -> None:
    """Prints advice on stderr if the index cannot reject photos without a landmark reliably."""
    if not pictures.labelled:
        echo_unlabelled(gallery)
        return
    landmarks = {label for row in pictures.rows for label in row.labels}
    one = f"{next(iter(landmarks))} is its only landmark, and " if len(landmarks) == 1 else ""
    if one and has_distractors:
        advice = f"{index}: {one}every picture is either that or {NONE_OF_THESE!r}" + (
            f"; each sub-folder of {gallery} is a landmark" if gallery.is_dir() else ""
        )
    elif report.threshold is None:
        advice = (
            f"{index}: {one}no threshold could be fitted, so every picture will get a landmark; "
            "build it again with pictures of no landmark: --distractors FOLDER"
        )
    elif not has_distractors and report.pictures < FEW_PICTURES:
        advice = (
            f"{index}: {NONE_OF_THESE!r} was fitted on {report.pictures} pictures only; "
            "pictures of no landmark make it more reliable: --distractors FOLDER"
        )
    else:
        return
    echo(f"lmk: {advice}", err=True)


def default_index(gallery: Path, shard: tuple[int, int] | None = None) -> Path:
    """Returns the default path of an index: gallery.lmk for gallery/ and for gallery.csv.

    The path of shard (2, 4) is gallery.2of4.lmk.
    """
    from lmk.embed.data.manifest_table import table_stem

    plain = Path(gallery).resolve()
    name = table_stem(plain) if plain.is_file() else plain.name
    folder = gallery.parent if gallery.name not in ("", ".", "..") else plain.parent
    part = "" if shard is None else f".{shard[0]}of{shard[1]}"
    return folder / f"{name}{part}{SUFFIX}"
