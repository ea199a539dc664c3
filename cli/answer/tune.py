"""The command `lmk tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.answer.labelled_photos import (
    echo_all_landmarks,
    echo_unknown,
    read_photos,
    require_writable,
)
from lmk.cli.index_path import INDEX
from lmk.cli.options import FILE, PATH, as_json, root, wait
from lmk.cli.pictures import read_pictures
from lmk.cli.printing import echo, echo_json, echo_lines
from lmk.cli.render import counted
from lmk.cli.tables import echo_table
from lmk.embed.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmk.cli.progress import StageProgress
    from lmk.embed.data.manifest import Manifest
    from lmk.eval.tune.labelled_photos import LabelledPhotos
    from lmk.eval.tune.scores import Scores
    from lmk.rerank.recognizer import Recognizer
    from lmk.rerank.steps.pipeline import Pipeline


@click.command()
@click.argument("index", type=INDEX)
@click.option(
    "--data",
    type=PATH,
    required=True,
    help="Labelled photos, a folder or CSV. A photo without a label shows no landmark.",
)
@click.option("--test", type=PATH, help="Other labelled photos, on which the choice is tested.")
@root
@click.option(
    "--folds", type=click.IntRange(min=2), default=5, show_default=True, help="Number of folds."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Random seed for the folds.")
@click.option(
    "--grid",
    type=FILE,
    help="JSON file with the steps to try (docs/answers.md).  [default: the grid of lmk]",
)
@click.option("--geometry", is_flag=True, help="Also try steps that match points, which is slow.")
@click.option("--apply", is_flag=True, help="Save the best steps with INDEX.")
@wait
@as_json
def tune(
    index: Path,
    data: Path,
    test: Path | None,
    root: Path | None,
    folds: int,
    seed: int,
    grid: Path | None,
    geometry: bool,
    apply: bool,
    wait: float,
    as_json: bool,
) -> None:
    """Find the steps that answer labelled photos best, and measure their quality.

    Each pipeline of a small grid answers all photos, and GAP is averaged over folds. The line
    "tuned" is the unbiased estimate: for each fold the steps were chosen on the other folds. The
    score of the best pipeline is too high, since it was chosen on the same photos. The steps of the
    index stay the best unless others gain more than one standard error.

    Example: lmk tune gallery.lmk --data photos.csv --apply
    """
    from lmk.cli.progress import StageProgress
    from lmk.eval.tune.grid import default_grid, read_grid
    from lmk.eval.tune.labelled_photos import refuse_shared_photos
    from lmk.eval.tune.scores import candidates, try_pipelines, tuning_of
    from lmk.rerank.recognizer import Recognizer

    if grid is not None and geometry:
        remedy = "add the geometry step to the grid"
        raise UsageError("--geometry excludes --grid", where=grid, remedy=remedy)
    tried = default_grid(geometry=geometry) if grid is None else read_grid(grid)
    labelled = read_pictures(data, root=root)
    held_out = None if test is None else read_pictures(test, root=root)
    if apply:
        require_writable(index, wait)
    with Recognizer.open(index, batch=len(labelled)) as recognizer, StageProgress() as progress:
        photos = _photos(labelled, data, recognizer, progress)
        others = None
        if held_out is not None and test is not None:
            others = _photos(held_out, test, recognizer, progress)
            refuse_shared_photos(photos, others)
        pipelines = candidates(recognizer.pipeline, tried)
        count = progress.stage("pipelines", len(pipelines))
        predictions = try_pipelines(recognizer, pipelines, photos, on_progress=count)
        tuning = tuning_of(pipelines, predictions, photos, folds=folds, seed=seed)
        best = pipelines[tuning.best]
        tested = None if others is None else _test(recognizer, pipelines[0], best, others)
    threshold = _save(index, best, wait) if apply else None
    facts = {"index": str(index), "photos": len(photos), "seed": seed} | tuning.as_dict()
    facts |= {"test": tested, "applied": apply, "threshold": threshold}
    if as_json:
        echo_json(facts)
    else:
        _echo(facts)


def _photos(
    manifest: Manifest, source: Path, recognizer: Recognizer, on_progress: StageProgress
) -> LabelledPhotos:
    """Returns labelled photos with embeddings; prints notes about the photos on stderr."""
    count = on_progress.stage(str(source), len(manifest))
    photos = read_photos(manifest, source, recognizer, count)
    without = sum(not labels for labels in photos.labels)
    if without == len(photos):
        what = "no photo shows a landmark, so there is no score"
        remedy = "give labels in the column landmark_id of a CSV, or as sub-folders"
        raise UsageError(what, where=source, remedy=remedy)
    echo_unknown(photos, source, recognizer, "they are always missed")
    if not without:
        echo_all_landmarks(source)
    return photos


def _test(
    recognizer: Recognizer, saved: Pipeline, best: Pipeline, others: LabelledPhotos
) -> dict[str, int | Scores]:
    """Returns the scores of plain search, the saved steps and the best steps on other photos."""
    from lmk.eval.tune.scores import PLAIN, judged_of, scores_of, try_pipelines

    compared = {"plain": PLAIN, "saved": saved, "best": best}
    predictions = try_pipelines(recognizer, list(compared.values()), others)
    scores = {
        name: scores_of(judged_of(each, others))
        for name, each in zip(compared, predictions, strict=True)
    }
    return {"photos": len(others), **scores}


def _save(index: Path, best: Pipeline, wait: float) -> float | None:
    from lmk.cli.progress import StageProgress
    from lmk.rerank.fit.fit import save_pipeline

    with StageProgress() as progress:
        return save_pipeline(index, best, wait=wait, on_progress=progress).pipeline.threshold()


def _echo(facts: dict[str, Any]) -> None:
    photos, folds = counted(facts["photos"], "photo"), facts["folds"]
    echo(f"{photos}, mean over {folds} folds (seed {facts['seed']}), sd of GAP over them")
    header = ("", "GAP", "sd", "acc@1", "GAP at 98 % without")
    named = {
        "plain": "nearest picture alone",
        "saved": "the index's steps",
        "tuned": "tuned (chosen on the other folds)",
        "best": "the best (chosen on these photos)",
    }
    echo_table(header, [_cells(text, facts[name], sd=True) for name, text in named.items()])
    stay = facts["best"]["name"] == facts["pipelines"][0]["name"]
    own = " (those of the index: no others gain more than one standard error)" if stay else ""
    echo_lines(["", f"the best: {facts['best']['name']}{own}"])
    tested = facts["test"]
    if tested is not None:
        echo_lines(["", f"{counted(tested['photos'], 'photo')} of --test"])
        rows = [_cells(named[name], tested[name]) for name in ("plain", "saved")]
        echo_table((*header[:2], *header[3:]), [*rows, _cells("the best", tested["best"])])
    if facts["applied"]:
        threshold = facts["threshold"]
        needed = "everything is answered" if threshold is None else f"threshold {threshold:.3f}"
        echo_lines(["", f"{facts['index']}: the best steps are saved; {needed}"])


def _cells(name: str, scores: Scores, *, sd: bool = False) -> Sequence[str]:
    wanted = ("gap", *(("gap_sd",) if sd else ()), "accuracy", "contest_gap")
    values = [scores[each] for each in wanted]
    return [name, *("-" if value is None else f"{value:.4f}" for value in values)]
