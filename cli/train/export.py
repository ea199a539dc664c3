"""The command `lmk export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.options import PATH, as_json, root
from lmk.cli.pictures import read_pictures
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import check_output
from lmk.embed.errors import ManifestError, UsageError

if TYPE_CHECKING:
    from lmk.embed.data.images import Picture
    from lmk.embed.data.manifest import Manifest

_KINDS = ("openvino", "onnx", "int8")
_CALIBRATED_BY = 300  # maximum number of pictures that calibrate int8
_COMPARED = 64


@click.command()
@click.argument("model", metavar="NAME|DIR")
@click.option(
    "--format",
    "kind",
    type=click.Choice(_KINDS),
    required=True,
    help="Format to write: openvino (.xml and .bin), onnx, or int8 (quantised OpenVINO).",
)
@click.option("-o", "--output", type=PATH, required=True, metavar="FILE", help="File to write.")
@click.option(
    "--data",
    type=PATH,
    metavar="FOLDER|CSV",
    help="Pictures to compare both networks on, and to calibrate int8. If they have labels, GAP, "
    "mAP@100 and acc@1 of both networks are printed.",
)
@click.option(
    "--distractors",
    type=PATH,
    metavar="FOLDER|CSV",
    help="Pictures of no landmark, added to the queries for the GAP.",
)
@root
@as_json
def export(
    model: str,
    kind: str,
    output: Path,
    data: Path | None,
    distractors: Path | None,
    root: Path | None,
    as_json: bool,
) -> None:
    """Export an embedder's network for other programs, and compare both.

    The exported graph takes RGB pictures uint8 [n, size, size, 3] and returns features [n, d],
    before the scaling to length 1 and any whitening. The exit code is 1 if a cosine between the
    features of export and network is below 0.999 (for int8 the cosine is only printed).

    Example: lmk export my-embedder --format openvino -o my-embedder.xml
    """
    from lmk.cli.progress import StageProgress
    from lmk.embed.extract import export as exports
    from lmk.embed.extract.embedder import Embedder
    from lmk.eval.tune.train_validation import Validation

    check_output(output)
    wanted = exports.SUFFIXES[kind]
    if output.suffix != wanted:
        raise UsageError(f"must end in {wanted}", where=output, remedy="rename it")
    if distractors is not None and data is None:
        raise UsageError("needs --data", where="--distractors", remedy="add --data")
    embedder = Embedder.named(model)
    manifest = None if data is None else read_pictures(data, root=root)
    distractor_manifest = None if distractors is None else read_pictures(distractors, root=root)
    size = embedder.config.size
    pictures = exports.made_up_pictures(size) if manifest is None else _some(manifest, size)
    exports.export(embedder, kind, output, pictures if manifest is not None else ())
    cosines = exports.agreement(embedder, output, pictures[:_COMPARED])
    if kind != "int8":
        exports.require_agreement(cosines, output)
    figures = {}
    if manifest is not None and manifest.labelled:
        with StageProgress() as progress:
            validate = Validation(manifest, distractor_manifest, on_progress=progress)
            figures["fp32"] = validate(embedder)
            figures["export"] = validate(exports.exported(embedder, output))
    least, mean = float(cosines.min()), float(cosines.mean())
    if as_json:
        facts = {
            "file": str(output),
            "format": kind,
            "compared": len(cosines),
            "least_cosine": least,
            "mean_cosine": mean,
            "figures": figures,
        }
        echo_json(facts)
        return
    echo(f"{output}: cosine to the network {least:.5f} at least, {mean:.5f} on average")
    for name, values in figures.items():
        shown = ", ".join(
            f"{text} {values[key]:.4f}"
            for key, text in (("gap", "GAP"), ("map", "mAP@100"), ("accuracy", "acc@1"))
        )
        echo(f"{name:6} {shown}")


def _some(manifest: Manifest, size: int) -> list[Picture]:
    """Returns at most _CALIBRATED_BY readable pictures, evenly spaced in the manifest."""
    from lmk.embed.data.images import decode, read_bytes

    step = -(-len(manifest) // _CALIBRATED_BY)
    read = (read_bytes(manifest.file(row)) for row in manifest.rows[::step])
    decoded = (data if isinstance(data, str) else decode(data, size) for data in read)
    pictures = [each for each in decoded if not isinstance(each, str)]
    if not pictures:
        raise ManifestError(
            "no picture can be read", where=manifest.origin, remedy=manifest.unreadable_remedy
        )
    return pictures
