"""The command `lmk calibrate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.answer.labelled_photos import (
    echo_all_landmarks,
    echo_unknown,
    indexed_landmarks,
    read_photos,
    require_writable,
)
from lmk.cli.index_path import INDEX
from lmk.cli.options import PATH, as_json, root, wait
from lmk.cli.pictures import read_pictures
from lmk.cli.printing import echo_json, echo_lines
from lmk.cli.ranges import FloatRange
from lmk.cli.render import counted
from lmk.embed.errors import LmkError, UsageError

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
    help="Labelled photos, a folder or CSV. A photo without a label shows no landmark.  "
    "[default: the pictures and distractors of INDEX]",
)
@root
@click.option(
    "--precision",
    type=FloatRange(0, 1, min_open=True),
    help="Share of right answers among the answers that the threshold accepts.  [default: a "
    "threshold that balances accepted right answers and refused others]",
)
@click.option(
    "--share-none",
    type=FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Expected share of queries that show no landmark.  [default: as in the data]",
)
@click.option(
    "--method",
    type=click.Choice(["isotonic", "logistic"]),
    default="isotonic",
    help="Method of the calibration: isotonic regression, or logistic for few photos.",
)
@click.option(
    "--distractors/--no-distractors",
    default=True,
    help="Add the distractors of INDEX where fewer than 10 photos of --data show no landmark.",
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
    """Fit the probabilities of answers of INDEX, and the threshold for "none of these".

    Both are judged by cross-validation. They stay when INDEX changes. Without any option the
    automatic threshold and probabilities return, which are fitted again with each change of INDEX.

    Example: lmk calibrate gallery.lmk --data photos.csv --precision 0.95
    """
    from lmk.rerank.fit.fit import save_calibration, save_pipeline
    from lmk.rerank.recognizer import Recognizer

    if root is not None and data is None:
        raise click.UsageError("--root is for --data")
    if not distractors and data is None:
        raise click.UsageError("--no-distractors is for --data")
    manifest = None if data is None else read_pictures(data, root=root)
    require_writable(index, wait)
    with Recognizer.open(index) as recognizer:
        answers, without_landmark = _answers(recognizer, data, manifest, distractors=distractors)
        pipeline = recognizer.pipeline
    automatic = data is None and precision is None and share_none is None and method == "isotonic"
    calibrated, reason = None, None
    try:
        if share_none is not None:
            answers = answers.at_share(share_none)
        calibrated = _calibrated(answers, precision, method, data or index)
    except UsageError as error:
        if not automatic:  # Automatic calibration needs no threshold.
            raise UsageError(error.what, where=data or index, remedy=error.remedy) from error
        reason = error.what
    if data is not None and without_landmark is not None and not any(without_landmark.values()):
        more = f", and {index} has no distractors" if distractors else ""
        echo_all_landmarks(data, f"{more}; add photos without a landmark")
    if automatic or calibrated is None:
        threshold = save_pipeline(index, pipeline, wait=wait).pipeline.threshold()
    else:
        threshold = calibrated.point.threshold
        save_calibration(index, calibrated.calibration, threshold, wait=wait)
    facts = {"index": str(index), "data": None if data is None else str(data)}
    facts |= _facts(answers, calibrated, threshold, method) | {"without_landmark": without_landmark}
    if as_json:
        echo_json(facts)
    else:
        echo_lines(_lines(facts) if reason is None else _not_judged(facts, reason))


def _answers(
    recognizer: Recognizer, data: Path | None, manifest: Manifest | None, *, distractors: bool
) -> tuple[ScoredAnswers, dict[str, int] | None]:
    """Returns scored answers, and the numbers of photos and distractors without a landmark.

    Without photos, lmk answers for the pictures of the index, and the numbers are None.
    """
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
        count = progress.stage(str(data), len(manifest))
        photos = read_photos(manifest, data, recognizer, count)
        echo_unknown(photos, data, recognizer, 'the right answer is "none of these"')
        predictions = recognizer.predict(
            photos.embeddings, features=recognizer.features_of(photos.files)
        )
        answers = answers_of_photos(predictions, photos, indexed_landmarks(recognizer))
        photos_answered, without = len(answers), int((~answers.landmark).sum())
        if distractors and without < ENOUGH:
            answers = with_distractors(answers, answers_of_distractors(recognizer.gallery))
    return answers, {"photos": without, "distractors": len(answers) - photos_answered}


def _calibrated(
    answers: ScoredAnswers, precision: float | None, method: Method, where: Path
) -> Calibrated:
    """Returns the calibration with its threshold; raises LmkError if no threshold fits."""
    from lmk.eval.tune.calibration_cv import balanced, calibrated
    from lmk.rerank.fit.calibration import threshold_for

    choose = balanced if precision is None else partial(threshold_for, precision=precision)
    result = calibrated(answers, choose, method)
    point = result.point
    if precision is not None and not point.feasible:
        best = f"the best is {point.precision:.3f}, with recall {point.recall:.3f}"
        what = f"no threshold reaches precision {precision:g}: {best}; nothing is changed"
        remedy = "set a lower --precision, or try other steps (lmk tune)"
        raise LmkError(what, where=where, remedy=remedy)
    return result


def _facts(
    answers: ScoredAnswers, result: Calibrated | None, threshold: float | None, method: Method
) -> dict[str, Any]:
    """Returns the results for JSON, with null for each result that was not measured."""
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
    if result is None:
        return facts
    point, held_out = result.point, result.held_out
    facts |= {"calibration_error": result.ece, "precision": point.precision, "recall": point.recall}
    by_fold = {"precision": held_out.precision, "recall": held_out.recall}
    return facts | {"held_out": {"folds": result.folds} | by_fold}


def _lines(facts: dict[str, Any]) -> list[str]:
    held_out, source = facts["held_out"], facts["data"] or "its pictures and distractors"
    without = facts["without_landmark"]
    added = without["distractors"] if without else 0
    answers, folds = counted(facts["answers"] - added, "answer"), held_out["folds"]
    lines = [
        f"{facts['index']}: calibrated on {answers} to {source},"
        f" {facts['landmarks']:,} of them to photos of its landmarks",
        f"calibration error {facts['calibration_error']:.4f} ({facts['method']}, {folds}-fold"
        " cross-validation)",
        f"threshold {facts['threshold']:.4f}: precision {facts['precision']:.4f},"
        f" recall {facts['recall']:.4f}",
        f"by cross-validation: precision {held_out['precision']:.4f},"
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
    state = "no threshold" if threshold is None else f"threshold {threshold:.4f}"
    return [f"{facts['index']}: automatic calibration; {state}; quality not measured: {reason}"]
