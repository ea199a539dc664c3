"""`lmk eval`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group("eval")
def evaluate() -> None:
    """Score a submission as the contests do."""


@evaluate.command("gap")
@click.argument("submission", type=click.Path(path_type=Path))
@click.argument("solution", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def gap(submission: Path, solution: Path, as_json: bool) -> None:
    """Global average precision (GAP) of SUBMISSION (id,landmarks) against SOLUTION.

    Public and Private rows are scored apart where the solution has a column Usage; Ignored rows
    are left out.

    Example: lmk eval gap submission.csv solution.csv
    """
    from lmk.eval.gap import gap_of
    from lmk.eval.submission import Submission
    from lmk.eval.truth import Truth

    answers, truth = Submission.read(submission), Truth.read(solution)
    usages = [name for name in ("Public", "Private") if name in truth.usage]
    scores = {}
    for usage in [None, *usages]:
        result = gap_of(answers, truth, usage)
        scores[usage or "all"] = {
            "gap": result.value,
            "queries": len(truth.rows(usage)),
            "with_landmark": int(result.positives),
            "answered": result.predictions,
            "right": int(result.correct.sum()),
        }
    if as_json:
        click.echo(json.dumps(scores))
        return
    click.echo(f"{'':8} {'GAP':>8} {'queries':>8} {'landmark':>9} {'answered':>9} {'right':>7}")
    for name, row in scores.items():
        click.echo(
            f"{name:8} {row['gap']:8.4f} {row['queries']:8,} {row['with_landmark']:9,} "
            f"{row['answered']:9,} {row['right']:7,}"
        )
