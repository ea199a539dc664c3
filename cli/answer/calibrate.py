"""`lmk calibrate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.index_path import INDEX
from lmk.cli.options import PATH, as_json, root, wait
from lmk.cli.pictures import read_pictures
from lmk.cli.printing import echo, echo_json, echo_lines
from lmk.cli.ranges import FloatRange
from lmk.cli.render import counted

if TYPE_CHECKING:
    from lmk.embed.data.manifest import Manifest
    from lmk.eval.tune.calibration_cv import Calibrated
    from lmk.rerank.fit.calibration import Method, ScoredAnswers
    from lmk.rerank.recognizer import Recognizer


@click.command()
@click.argument("index", type=INDEX)
@click.option(
    "--data",
    type=PATH,
    help="Photos with known answers, a folder or CSV; without a label: of no landmark.  "
    "[default: the index's own pictures and distractors]",
)
@root
@click.option(
    "--precision",
    type=FloatRange(0, 1, min_open=True),
    help="Share of right ones that the answers given must reach.  [default: a balance of right "
    "answers kept and others refused]",
)
@click.option(
    "--share-none",
    type=FloatRange(0, 1, min_open=True, max_open=True),
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
@click.option(
    "--distractors/--no-distractors",
    default=True,
    show_default=True,
    help="Count the distractors of INDEX as photos of no landmark where fewer than 10 photos of "
    "--data show none.",
)
@wait
@as_json
def calibrate(
    index: Path,
    data: Path | None,
    root: Path | None,
    precision: float | None,
    share_none: float | None,
    method: Method,
    distractors: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Teach INDEX how probable its answers are, and below which confidence to say "none of these".

    Both are judged on folds of answers that they were not learnt on. They stay when INDEX changes;
    without any option what INDEX learns by itself comes back, and is learnt anew with each change.

    Example: lmk calibrate gallery.lmk --data photos.csv --precision 0.95
    """
    from lmk.cli.answer.labelled_photos import require_writable
    from lmk.embed.errors import UsageError
    from lmk.rerank.fit.fit import save_calibration, save_pipeline
    from lmk.rerank.recognizer import Recognizer

    if root is not None and data is None:
        raise click.UsageError("--root is for --data")
    if not distractors and data is None:
        raise click.UsageError("--no-distractors is for --data")
    manifest = None if data is None else read_pictures(data, root=root)
    require_writable(index, wait)
    with Recognizer.open(index) as recognizer:
        answers, without = _answers(recognizer, data, manifest, distractors=distractors)
        pipeline = recognizer.pipeline
    own = data is None and precision is None and share_none is None and method == "isotonic"
    found, reason = None, None
    try:
        if share_none is not None:
            answers = answers.at_share(share_none)
        found = _found(answers, precision, method, data or index)
    except UsageError as error:
        if not own:  # else there is a way back, even to nothing
            raise UsageError(error.what, where=data or index, remedy=error.remedy) from error
        reason = error.what
    if data is not None and without is not None and not any(without.values()):
        _warn(index, data, distractors=distractors)
    if own or found is None:
        threshold = save_pipeline(index, pipeline, wait=wait).pipeline.threshold()
    else:
        threshold = found.point.threshold
        save_calibration(index, found.calibration, threshold, wait=wait)
    facts = {"index": str(index), "data": None if data is None else str(data)}
    facts |= _facts(answers, found, threshold, method) | {"without_landmark": without}
    if as_json:
        echo_json(facts)
    else:
        echo_lines(_lines(facts) if reason is None else _not_judged(facts, reason))


def _answers(
    recognizer: Recognizer, data: Path | None, manifest: Manifest | None, *, distractors: bool
) -> tuple[ScoredAnswers, dict[str, int] | None]:
    """Answers to photos or to the index's own pictures, and counts of those without a landmark.

    The counts are those of photos and of distractors; None for the index's own pictures.
    """
    from lmk.cli.answer.labelled_photos import held_landmarks, read_photos, say_unknown
    from lmk.cli.progress import StageProgress
    from lmk.eval.tune.calibration_cv import (
        ENOUGH,
        answers_of_distractors,
        answers_of_index,
        answers_of_photos,
        with_distractors,
    )

    if data is None or manifest is None:
        return answers_of_index(recognizer.gallery), None
    with StageProgress() as progress:
        photos = read_photos(
            manifest, data, recognizer, lambda done: progress(str(data), done, len(manifest))
        )
        say_unknown(photos, data, recognizer, '"none of these" is the right answer')
        predictions = recognizer.predict(
            photos.embeddings, features=recognizer.features_of(photos.files)
        )
        answers = answers_of_photos(predictions, photos, held_landmarks(recognizer))
        shown, asked = len(answers), int((~answers.landmark).sum())
        if distractors and asked < ENOUGH:
            answers = with_distractors(answers, answers_of_distractors(recognizer.gallery))
    return answers, {"photos": asked, "distractors": len(answers) - shown}


def _warn(index: Path, data: Path, *, distractors: bool) -> None:
    """Prints on stderr that nothing was learnt about photos without a landmark."""
    what = "every photo shows a landmark, so nothing measures how well others are refused"
    if distractors:
        what += f", and {index} has no distractors"
    echo(f"lmk: {data}: {what}; give photos without a landmark too", err=True)


def _found(
    answers: ScoredAnswers,
    precision: float | None,
    method: Method,
    where: Path,
) -> Calibrated:
    """What the answers teach.

    Raises:
        UsageError: they are too few.
        LmkError: no threshold reaches the precision.
    """
    from lmk.embed.errors import LmkError
    from lmk.eval.tune.calibration_cv import balanced, calibrated
    from lmk.rerank.fit.calibration import threshold_for

    choose = balanced if precision is None else partial(threshold_for, precision=precision)
    found = calibrated(answers, choose, method)
    if precision is not None and not found.point.feasible:
        best = f"the best is {found.point.precision:.3f}, with recall {found.point.recall:.3f}"
        raise LmkError(
            f"no threshold reaches precision {precision:g}: {best}; nothing is changed",
            where=where,
            remedy="ask for less, or try other steps (lmk tune)",
        )
    return found


def _facts(
    answers: ScoredAnswers, found: Calibrated | None, threshold: float | None, method: Method
) -> dict[str, Any]:
    """For JSON; null for what could not be judged."""
    facts = {
        "answers": len(answers),
        "landmarks": int(answers.landmark.sum()),
        "method": method,
        "calibration_error": None,
        "threshold": threshold,
        "precision": None,
        "recall": None,
        "held_out": None,
    }
    if found is None:
        return facts
    point, held_out = found.point, found.held_out
    facts |= {"calibration_error": found.ece, "precision": point.precision, "recall": point.recall}
    return facts | {
        "held_out": {
            "folds": found.folds,
            "precision": held_out.precision,
            "recall": held_out.recall,
        }
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    held_out, source = facts["held_out"], facts["data"] or "its own pictures and distractors"
    without = facts["without_landmark"]
    added = without["distractors"] if without else 0
    answers, folds = counted(facts["answers"] - added, "answer"), held_out["folds"]
    lines = [
        f"{facts['index']}: calibrated on {answers} to {source},"
        f" {facts['landmarks']:,} of them of its landmarks",
        f"calibration error {facts['calibration_error']:.4f} ({facts['method']}, {folds} folds,"
        " each by the others)",
        f"threshold {facts['threshold']:.4f}: precision {facts['precision']:.4f},"
        f" recall {facts['recall']:.4f}",
        f"by the others' thresholds: precision {held_out['precision']:.4f},"
        f" recall {held_out['recall']:.4f}",
    ]
    if without:
        line = f"photos without a landmark: {without['photos']:,} of {source}"
        if added:
            line += f", and {counted(added, 'distractor')} of {facts['index']}"
        lines.append(line)
    return lines


def _not_judged(facts: dict[str, Any], reason: str) -> list[str]:
    threshold = facts["threshold"]
    needed = "everything is answered" if threshold is None else f"threshold {threshold:.4f}"
    return [f"{facts['index']}: learns by itself again; {needed}, not judged: {reason}"]
