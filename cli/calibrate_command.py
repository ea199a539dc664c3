"""`lmk calibrate`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.index_options import PATH, as_json, wait
from lmk.cli.render import counted, echo_skipped

if TYPE_CHECKING:
    from lmk.rerank.calibrating import Calibrated
    from lmk.rerank.calibration import Answers, Method
    from lmk.rerank.recognizer import Recognizer


@click.command()
@click.argument("index", type=PATH)
@click.option(
    "--data",
    type=PATH,
    help="Photos with known answers, a folder or CSV; without a label: of no landmark.  "
    "[default: the index's own pictures and distractors]",
)
@click.option(
    "--precision",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of right ones that the answers given must reach.  [default: a balance of right "
    "answers kept and others refused]",
)
@click.option(
    "--share-none",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Of the photos that will be asked, how many show no landmark.  [default: as in the data]",
)
@click.option(
    "--method",
    type=click.Choice(["isotonic", "logistic"]),
    default="isotonic",
    show_default=True,
    help="Of making probabilities: rising steps, or a curve for few photos.",
)
@wait
@as_json
def calibrate(
    index: Path,
    data: Path | None,
    precision: float | None,
    share_none: float | None,
    method: Method,
    wait: float,
    as_json: bool,
) -> None:
    """Teach INDEX how probable its answers are, and below which confidence to say "none of these".

    Both are judged on folds of answers that they were not learnt on. They stay when INDEX changes;
    without any option what INDEX learns by itself comes back, and is learnt anew with each change.

    Example: lmk calibrate gallery.lmk --data photos.csv --precision 0.95
    """
    from lmk.embed.errors import LmkError
    from lmk.embed.images import ignore_large_picture_warnings
    from lmk.rerank.calibrating import balanced, calibrated
    from lmk.rerank.calibration import threshold_for
    from lmk.rerank.recognizer import Recognizer

    ignore_large_picture_warnings()
    with Recognizer.open(index) as recognizer:
        answers = _answers(recognizer, data)
        pipeline = recognizer.pipeline
    if share_none is not None:
        answers = answers.at_share(share_none)
    choose = balanced if precision is None else partial(threshold_for, precision=precision)
    found = calibrated(answers, choose, method)
    if precision is not None and not found.point.feasible:
        best = f"the best is {found.point.precision:.3f}, with recall {found.point.recall:.3f}"
        raise LmkError(
            f"no threshold reaches precision {precision:g}: {best}; nothing is changed",
            where=data or index,
            remedy="ask for less, or try other steps (lmk tune)",
        )
    own = data is None and precision is None and share_none is None and method == "isotonic"
    _save(index, None if own else found, pipeline, wait)
    facts = {"index": str(index), "data": None if data is None else str(data)}
    facts |= _facts(answers, found, method)
    click.echo(json.dumps(facts, ensure_ascii=False) if as_json else "\n".join(_lines(facts)))


def _answers(recognizer: Recognizer, data: Path | None) -> Answers:
    """Answers with their verdicts: to photos, or to the index's own pictures."""
    from lmk.cli.progress import StageProgress
    from lmk.cli.report_page import class_sizes
    from lmk.embed.manifest import read_manifest
    from lmk.rerank.calibrating import answers_of_index, answers_of_photos
    from lmk.rerank.known_photos import read_known_photos

    if data is None:
        return answers_of_index(recognizer.gallery)
    manifest = read_manifest(data)
    with StageProgress() as progress:
        photos = read_known_photos(
            manifest, recognizer, progress=lambda done: progress("photos", done, len(manifest))
        )
        predictions = recognizer.predict(
            photos.embeddings, features=recognizer.features_of(photos.files)
        )
    echo_skipped(photos.skipped, f"left out of {data}")
    held = {label for label, pictures in class_sizes(recognizer.gallery).items() if pictures}
    return answers_of_photos(predictions, photos, held)


def _save(index: Path, found: Calibrated | None, pipeline: Any, wait: float) -> None:
    """Saves what was found; None lets the index learn by itself again."""
    from lmk.rerank.build import save_calibration, save_pipeline

    if found is None:
        save_pipeline(index, pipeline, wait=wait)
    else:
        save_calibration(index, found.calibration, found.point.threshold, wait=wait)


def _facts(answers: Answers, found: Calibrated, method: Method) -> dict[str, Any]:
    point, held_out = found.point, found.held_out
    return {
        "answers": len(answers),
        "landmarks": int(answers.landmark.sum()),
        "method": method,
        "calibration_error": found.ece,
        "threshold": point.threshold,
        "precision": point.precision,
        "recall": point.recall,
        "held_out": {
            "folds": found.folds,
            "precision": held_out.precision,
            "recall": held_out.recall,
        },
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    held_out, source = facts["held_out"], facts["data"] or "its own pictures and distractors"
    answers, folds = counted(facts["answers"], "answer"), held_out["folds"]
    return [
        f"{facts['index']}: calibrated on {answers} to {source},"
        f" {facts['landmarks']:,} of them of its landmarks",
        f"calibration error {facts['calibration_error']:.4f} ({facts['method']}, {folds} folds,"
        " each by the others)",
        f"threshold {facts['threshold']:.4f}: precision {facts['precision']:.4f},"
        f" recall {facts['recall']:.4f}",
        f"by the others' thresholds: precision {held_out['precision']:.4f},"
        f" recall {held_out['recall']:.4f}",
    ]
