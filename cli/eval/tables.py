"""Output of `lmk eval`: tables, JSON dictionaries and notes on stderr."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lmk.cli.printing import echo
from lmk.cli.tables import echo_table

if TYPE_CHECKING:
    from lmk.eval.files.validate import SubmissionFinding
    from lmk.eval.scores.bootstrap import Interval
    from lmk.eval.scores.gap_scores import Estimate, GapScores


def bounds_text(low: float | None, high: float | None) -> str:
    """Returns an interval as text, such as " [0.812 to 0.870]"; "" without bounds."""
    return "" if low is None or high is None else f" [{low:.3f} to {high:.3f}]"


def score_text(value: float, bounds: Sequence[float] | None) -> str:
    """Returns a score as text: "0.8422 [0.812 to 0.870]", or "0.8422" without bounds."""
    return f"{value:.4f}{bounds_text(*(bounds or (None, None)))}"


def bounds_of(estimate: Estimate | Interval | None) -> list[float] | None:
    """Returns the bounds of an interval for JSON; None without an interval."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return None
    return [estimate.low, estimate.high]


def gap_dict(scores: GapScores) -> dict[str, Any]:
    """Returns the scores of one part of the queries as a JSON object."""
    return {
        "gap": scores.gap.value,
        "queries": scores.queries,
        "with_landmark": scores.with_landmark,
        "answered": scores.answered,
        "right": scores.right,
        "gap_interval": bounds_of(scores.gap),
        "landmark_only_gap": scores.landmark_only.value,
        "landmark_only_interval": bounds_of(scores.landmark_only),
        "contest_gap": None if scores.contest is None else scores.contest.value,
        "contest_interval": bounds_of(scores.contest),
        "accuracy": scores.accuracy.value,
        "accuracy_interval": bounds_of(scores.accuracy),
        "resamples": scores.resamples,
        "seed": scores.seed,
        "level": scores.level,
    }


def echo_gap(parts: Sequence[GapScores]) -> None:
    """Prints the two tables of `lmk eval gap`."""
    echo_table(
        ("", "GAP", "queries", "landmark", "answered", "right"),
        [
            (
                each.name,
                f"{each.gap.value:.4f}",
                f"{each.queries:,}",
                f"{each.with_landmark:,}",
                f"{each.answered:,}",
                f"{each.right:,}",
            )
            for each in parts
        ],
    )
    echo()
    columns = [("", *(each.name for each in parts))]
    for name, estimates in (
        ("GAP", [each.gap for each in parts]),
        ("landmark queries only", [each.landmark_only for each in parts]),
        ("98 % without landmark", [each.contest for each in parts]),
        ("acc@1", [each.accuracy for each in parts]),
    ):
        cells = (
            "-" if each is None else score_text(each.value, bounds_of(each)) for each in estimates
        )
        columns.append((name, *cells))
    echo_table(columns[0], columns[1:])


def echo_warnings(file: object, warnings: Iterable[str]) -> None:
    """Prints one line on stderr for each warning about a file."""
    for warning in warnings:
        echo(f"lmk: {file}: {warning}", err=True)


def echo_findings(file: object, findings: Sequence[SubmissionFinding]) -> None:
    """Prints on stderr, for each kind of finding, the first finding and the number of others."""
    by_kind: dict[str, list[SubmissionFinding]] = {}
    for finding in findings:
        by_kind.setdefault(finding.kind, []).append(finding)
    for kind, findings_of_kind in by_kind.items():
        first, others = findings_of_kind[0], len(findings_of_kind) - 1
        where = "" if first.line is None else f", line {first.line}"
        more = f"; {others:,} more like it" if others else ""
        query = f"(query {first.query_id})"
        echo(f"lmk: {file}{where}: {kind}: {first.reason} {query}{more}", err=True)


def echo_missing(
    file: object, missing: Collection[str], count: int, noun: str, consequence: str
) -> None:
    """Prints on stderr the number of rows that a file lacks.

    Args:
        file: the file.
        missing: the ids without a row.
        count: the number of ids in the solution.
        noun: "queries" or "pictures".
        consequence: the end of the line.
    """
    if missing:
        first = next(iter(missing))
        echo(
            f"lmk: {file}: {len(missing):,} of {count:,} {noun} have no row (the first is "
            f"{first}): {consequence}",
            err=True,
        )
