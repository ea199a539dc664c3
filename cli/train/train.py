"""The command `lmk train`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.old_names import old_options
from lmk.cli.options import PATH, as_json, root, tell
from lmk.cli.pictures import read_pictures
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import counted, echo_skipped, require_folder
from lmk.embed.errors import UsageError
from lmk.embed.progress import no_message, no_progress
from lmk.embed.shell_words import shell_word

if TYPE_CHECKING:
    from lmk.cli.progress import StageProgress
    from lmk.embed.data.manifest import Manifest
    from lmk.embed.train.loop import Validate
    from lmk.embed.train.task_config import Tags

_SHORT = {"tags": "tags-lite1"}  # short names of presets


@click.command(context_settings=old_options(out="output"))
@click.argument("config", metavar="PRESET|CONFIG")
@click.option(
    "--data",
    type=PATH,
    multiple=True,
    required=True,
    metavar="FOLDER|CSV",
    help="Pictures to train on. Repeat the option to train on several sets.",
)
@click.option(
    "-o",
    "--output",
    "out",
    type=PATH,
    required=True,
    metavar="DIR",
    help="Folder of the embedder to write.",
)
@click.option(
    "--val",
    "held_out",
    type=PATH,
    metavar="FOLDER|CSV",
    help="Other pictures with labels for validation. After each epoch GAP, mAP@100 and acc@1 (or "
    "the mAP of tags) are measured on them; the best epoch becomes the result.",
)
@click.option(
    "--val-gallery",
    type=PATH,
    metavar="FOLDER|CSV",
    help="Gallery for the validation.  [default: the other pictures of --val]",
)
@click.option(
    "--distractors",
    type=PATH,
    metavar="FOLDER|CSV",
    help="Pictures of no landmark, added to the queries for the GAP of --val.",
)
@root
@click.option(
    "--resume", is_flag=True, help="Continue from the last checkpoint in DIR, if there is one."
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Device to train on; auto uses a GPU if there is one.",
)
@click.option(
    "--weights",
    metavar="FILE|DIR",
    help="Initial weights: a file for the backbone, or an embedder's folder.",
)
@click.option("--pretrained", is_flag=True, help="Download timm's weights as initial weights.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting, such as optimizer.lr=0.01. Repeat the option for several settings.",
)
@click.option(
    "--features",
    type=PATH,
    metavar="DIR",
    help="Folder for features of teachers, which other runs reuse.",
)
@as_json
def train(
    config: str,
    data: tuple[Path, ...],
    out: Path,
    held_out: Path | None,
    val_gallery: Path | None,
    distractors: Path | None,
    root: Path | None,
    resume: bool,
    device: str,
    weights: str | None,
    pretrained: bool,
    changes: tuple[str, ...],
    features: Path | None,
    as_json: bool,
) -> None:
    """Train an embedder for `lmk build-index --model DIR`.

    PRESET names settings that are part of lmk; CONFIG is a JSON file with your own settings
    (docs/training.md). `tags` is short for tags-lite1. If the command is stopped, run it again with
    --resume: the result is the same as without the stop. For several GPUs, run: torchrun
    --nproc-per-node 8 -m lmk.cli train ...

    Example: lmk train gcresnext26 --data gallery/ --val held-out/ -o my-embedder
    """
    from lmk.cli.progress import StageProgress
    from lmk.cli.train.page import write_page
    from lmk.embed.train.config import training_config
    from lmk.embed.train.loop import train as run
    from lmk.embed.train.task_config import Tags

    if weights and pretrained:
        what = "weights are given twice, as a file and from the hub"
        remedy = "give one of --weights and --pretrained"
        raise UsageError(what, where="--weights", remedy=remedy)
    require_folder(out)
    start = "hub" if pretrained else weights
    chosen = [] if start is None else [f"model.weights={json.dumps(start)}"]
    settings = training_config(_SHORT.get(config, config), [*changes, *chosen])
    first = os.environ.get("RANK", "0") == "0"  # Under torchrun, only one process prints.
    manifests = [read_pictures(each, root=root, on_message=first) for each in data]
    if held_out is not None and first:
        _warn_of_training_pictures(read_pictures(held_out, root=root), manifests)
    with StageProgress() as progress:
        tags = next((task for task in settings.tasks if isinstance(task, Tags)), None)
        validate = _validation(held_out, val_gallery, distractors, root, tags, progress)

        def epoch_done(row: Mapping[str, Any]) -> None:
            write_page(out)
            if not as_json:
                echo(_epoch_line(row, settings.epochs), err=True)

        result = run(
            settings,
            manifests,
            out,
            resume=resume,
            device=device,
            features=features,
            validate=validate,
            on_progress=progress if first else no_progress,
            epoch_done=epoch_done,
            on_message=tell if first else no_message,
        )
    if not first:
        return
    report = write_page(out)
    if as_json:
        summary = {
            "embedder": str(result.folder),
            "report": str(report),
            "best_epoch": result.best,
            "epochs": [_numbers(row) for row in result.epochs],
            "skipped": [asdict(skip) for skip in result.skipped],
        }
        echo_json(summary)
        return
    echo_skipped(result.skipped, f"{out / 'training' / 'skipped.csv'} lists them")
    pictures = counted(sum(map(len, manifests)), "picture")
    echo(
        f"{out}: trained on {pictures} in {counted(len(result.epochs), 'epoch')}, weights of epoch "
        f"{result.best}; curves: {report}; "
        f"next: lmk build-index GALLERY --model {shell_word(out)}"
    )


def _validation(
    held_out: Path | None,
    gallery: Path | None,
    distractors: Path | None,
    root: Path | None,
    tags: Tags | None,
    on_progress: StageProgress,
) -> Validate | None:
    from lmk.eval.tune.train_validation import TagValidation, Validation

    if held_out is None or tags is not None:
        for name, given in (("--val-gallery", gallery), ("--distractors", distractors)):
            if given is not None:
                what = "the validation of landmarks, not of tags" if tags else "a validation"
                remedy = "leave it out" if tags else "add --val"
                raise UsageError(f"belongs to {what}", where=name, remedy=remedy)
    if held_out is None:
        return None
    if tags is not None:
        return TagValidation(
            read_pictures(held_out, root=root, on_message=False), tags, on_progress=on_progress
        )
    first = os.environ.get("RANK", "0") == "0"
    of_landmarks = Validation(
        read_pictures(held_out, root=root, on_message=False),
        None if distractors is None else read_pictures(distractors, root=root, on_message=first),
        None if gallery is None else read_pictures(gallery, root=root, on_message=first),
        on_progress=on_progress,
    )
    return lambda embedder, _: of_landmarks(embedder)


def _warn_of_training_pictures(held_out: Manifest, training: Sequence[Manifest]) -> None:
    """Prints a warning on stderr if validation pictures are also training pictures."""
    folder = f"{held_out.root.resolve()}/"
    validated = {folder + row.path for row in held_out.rows}
    both: set[str] = set()
    for manifest in training:
        folder = f"{manifest.root.resolve()}/"  # Millions of Path objects would take minutes.
        both.update(path for row in manifest.rows if (path := folder + row.path) in validated)
    if both:
        pictures = counted(len(held_out), "picture")
        echo(
            f"lmk: --val: {len(both):,} of its {pictures} are training pictures too (the first is "
            f"{min(both)}), so its scores are too high",
            err=True,
        )


def _epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    text = ", ".join(
        f"{name} {value}" for name, value in row.items() if name != "epoch" and value != ""
    )
    return f"epoch {row['epoch']} of {epochs}: {text}"


def _numbers(row: Mapping[str, str]) -> dict[str, float | None]:
    return {name: float(value) if value else None for name, value in row.items()}
