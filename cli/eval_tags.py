"""`lmk eval tags`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.eval_options import FILE, as_json, bootstrap
from lmk.cli.eval_tables import bounds_text, echo_table, interval_note

if TYPE_CHECKING:
    from lmk.eval.tags import PictureScores, TagScores
    from lmk.eval.uncertainty import Interval


@click.command("tags", short_help="Tags of pictures: F1 and average precision.")
@click.argument("predictions", type=FILE)
@click.argument("solution", type=FILE)
@click.option(
    "-k",
    "best",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Tags of each picture that are taken for P, R and F1.",
)
@as_json
@bootstrap
def tags(
    predictions: Path, solution: Path, best: int, as_json: bool, resamples: int, seed: int
) -> None:
    """Scores of PREDICTIONS (id,tags with "tag:score" pairs) against SOLUTION (id,tags).

    In both files blanks stand between the tags of a picture, as in `cat:0.98 sofa:0.4`; further
    columns are skipped. A tag that a prediction does not name ranks below all that it names.
    Precision, recall and F1 of the k best tags are means over pictures that have a true tag.

    Example: lmk eval tags predictions.csv tags.csv -k 5
    """
    from lmk.eval.tag_files import read_tag_table
    from lmk.eval.tags import score_pictures, score_tags
    from lmk.eval.uncertainty import mean_interval

    table = read_tag_table(predictions, solution)
    by_tag = score_tags(table.finite_scores(), table.truth, table.names)
    pictures = score_pictures(*table.padded(best), best)
    interval = mean_interval(pictures.f1, resamples=resamples, seed=seed) if resamples else None
    if table.missing:
        click.echo(
            f"lmk: {predictions}: {len(table.missing):,} of {len(table.ids):,} pictures have no "
            f"row (the first is {table.missing[0]}): they count as without tags",
            err=True,
        )
    if as_json:
        click.echo(json.dumps(_as_dict(by_tag, pictures, interval, resamples, seed)))
    else:
        _echo(by_tag, pictures, interval, len(table.ids))
        click.echo(interval_note(resamples, seed))


def _as_dict(
    by_tag: TagScores,
    pictures: PictureScores,
    interval: Interval | None,
    resamples: int,
    seed: int,
) -> dict[str, object]:
    precision, recall, f1 = pictures.means()
    return {
        "k": pictures.k,
        "pictures": len(pictures.rows),
        "without_true_tag": pictures.skipped,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "f1_interval": [interval.low, interval.high] if interval else None,
        "macro_map": by_tag.macro,
        "micro_map": by_tag.micro,
        "tags": {
            name: {
                "support": int(support),
                "average_precision": float(average) if support else None,
            }
            for name, support, average in zip(
                by_tag.names, by_tag.support, by_tag.average_precision, strict=True
            )
        },
        "resamples": resamples,
        "seed": seed,
    }


def _echo(
    by_tag: TagScores, pictures: PictureScores, interval: Interval | None, count: int
) -> None:
    precision, recall, f1 = pictures.means()
    bounds = f" [{bounds_text(interval.low, interval.high)}]" if interval else ""
    k = pictures.k
    click.echo(
        f"P@{k} {precision:.4f}  R@{k} {recall:.4f}  F1@{k} {f1:.4f}{bounds}  "
        f"(means over {len(pictures.rows):,} pictures; {pictures.skipped:,} have no true tag)"
    )
    known = sum(support > 0 for support in by_tag.support)
    click.echo(
        f"mAP macro {by_tag.macro:.4f} (over {known:,} tags)  micro {by_tag.micro:.4f}  "
        f"({count:,} pictures)"
    )
    click.echo()
    scored = [
        (name, int(support), float(average))
        for name, support, average in zip(
            by_tag.names, by_tag.support, by_tag.average_precision, strict=True
        )
        if support
    ]
    scored.sort(key=lambda each: (-each[2], each[0]))
    echo_table(
        ("tag", "pictures", "AP"),
        [(name, f"{support:,}", f"{average:.4f}") for name, support, average in scored],
    )
