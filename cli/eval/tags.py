"""The command `lmk eval tags`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.eval.options import Draws, bootstrap
from lmk.cli.eval.tables import echo_missing, echo_warnings, score_text
from lmk.cli.options import PATH, as_json, named_relations, relations_by_option, relations_option
from lmk.cli.printing import echo, echo_json
from lmk.cli.ranges import Float
from lmk.cli.tables import echo_table

if TYPE_CHECKING:
    from lmk.eval.scores.tags import DecisionScores, PictureScores, TagScores


@click.command("tags", short_help="Tags of pictures: F1 and average precision.")
@click.argument("predictions", type=PATH)
@click.argument("solution", type=PATH)
@click.option(
    "-k",
    "best",
    type=click.IntRange(min=1),
    default=5,
    help="Number of best tags of each picture that count for P, R and F1.",
)
@click.option(
    "--threshold",
    type=Float(),
    help="Also score the tags with at least this score.  [default: those in a column given]",
)
@relations_option
@relations_by_option
@as_json
@bootstrap
def tags(
    predictions: Path,
    solution: Path,
    best: int,
    threshold: float | None,
    relations: Path | None,
    relations_by: str | None,
    as_json: bool,
    draws: Draws,
) -> None:
    """Score PREDICTIONS (id,tags with "tag:score" pairs) against SOLUTION (id,tags).

    In both files blanks separate the tags of a picture, as in `cat:0.98 sofa:0.4`. Other columns
    are ignored. A tag without a score ranks below all tags with one. Precision, recall and F1 of
    the k best tags are means over pictures that have a true tag. With --threshold, or where
    PREDICTIONS has a column `given` (`lmk tag -o` writes it), precision, recall and F1 of the
    assigned tags are computed for each tag too. --relations adds the ancestors of the true tags.

    Example: lmk eval tags predictions.csv tags.csv -k 5
    """
    from lmk.eval.files.label_match import tag_warnings
    from lmk.eval.files.tag_files import read_tag_table
    from lmk.eval.scores.tags import score_decisions, score_pictures, score_tags

    table = read_tag_table(predictions, solution)
    graph = named_relations(relations, relations_by)
    if graph is not None:
        table = table.with_ancestors(graph)
    given = table.given if threshold is None else table.scores >= threshold
    decided = None if given is None else score_decisions(given, table.truth, table.names)
    by_tag = score_tags(table.finite_scores(), table.truth, table.names)
    pictures = score_pictures(*table.padded(best), best)
    f1_bounds = draws.bounds_of_mean(pictures.f1)
    warnings = tag_warnings(table.predicted, table.true)
    echo_warnings(predictions, warnings)
    echo_missing(
        predictions, table.missing, len(table.ids), "pictures", "they count as without tags"
    )
    if as_json:
        facts = _as_dict(by_tag, pictures, f1_bounds) | vars(draws)
        facts |= {"warnings": list(warnings)}
        facts |= {"given": None if decided is None else _given_dict(decided)}
        echo_json(facts)
    else:
        _echo(by_tag, pictures, f1_bounds, len(table.ids), decided)
        echo(draws.note())


def _as_dict(
    by_tag: TagScores, pictures: PictureScores, f1_bounds: list[float] | None
) -> dict[str, object]:
    precision, recall, f1 = pictures.means()
    return {
        "k": pictures.k,
        "pictures": len(pictures.rows),
        "without_true_tag": pictures.skipped,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "f1_interval": f1_bounds,
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
    }


def _given_dict(decided: DecisionScores) -> dict[str, object]:
    each = zip(decided.names, decided.support, decided.precision, decided.recall, decided.f1,
               strict=True)  # fmt: skip
    keys = ("precision", "recall", "f1")
    return {
        "macro": dict(zip(keys, decided.macro, strict=True)),
        "micro": dict(zip(keys, decided.micro, strict=True)),
        "tags": {
            name: dict(zip(keys, map(float, values), strict=True)) if support else None
            for name, support, *values in each
        },
    }


def _echo(
    by_tag: TagScores,
    pictures: PictureScores,
    f1_bounds: list[float] | None,
    count: int,
    decided: DecisionScores | None,
) -> None:
    precision, recall, f1 = pictures.means()
    k = pictures.k
    echo(
        f"P@{k} {precision:.4f}  R@{k} {recall:.4f}  F1@{k} {score_text(f1, f1_bounds)}  "
        f"(means over {len(pictures.rows):,} pictures; {pictures.skipped:,} have no true tag)"
    )
    with_support = sum(support > 0 for support in by_tag.support)
    echo(
        f"mAP macro {by_tag.macro:.4f} (over {with_support:,} tags)  micro {by_tag.micro:.4f}  "
        f"({count:,} pictures)"
    )
    if decided is not None:
        for kind, values in (("micro", decided.micro), ("macro", decided.macro)):
            precision, recall, f1 = values
            echo(f"assigned tags, {kind}: P {precision:.4f}  R {recall:.4f}  F1 {f1:.4f}")
    echo()
    scored = [tag for tag in range(len(by_tag.names)) if by_tag.support[tag]]
    scored.sort(key=lambda tag: (-by_tag.average_precision[tag], by_tag.names[tag]))
    columns = [by_tag.average_precision]
    header = ["tag", "pictures", "AP"]
    if decided is not None:
        columns += [decided.precision, decided.recall, decided.f1]
        header += ["P", "R", "F1"]
    echo_table(
        header,
        [
            (by_tag.names[tag], f"{by_tag.support[tag]:,}", *(f"{c[tag]:.4f}" for c in columns))
            for tag in scored
        ],
    )
