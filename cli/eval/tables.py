"""What `lmk eval` prints: columns of text, and the dictionaries behind --json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lmk.cli.printing import echo
from lmk.cli.tables import echo_table

if TYPE_CHECKING:
    from lmk.eval.files.validate import SubmissionFinding
    from lmk.eval.scores.bootstrap import Interval
    from lmk.eval.scores.gap_scores import Estimate, GapScores


def bounds_text(low: float | None, high: float | None) -> str:
    """ "0.812 to 0.870", or nothing."""
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def estimate_text(estimate: Estimate | Interval | None) -> str:
    """ "0.8422 [0.812 to 0.870]"; "-" where the score is not defined."""
    if estimate is None:
        return "-"
    bounds = bounds_text(estimate.low, estimate.high)
    return f"{estimate.value:.4f} [{bounds}]" if bounds else f"{estimate.value:.4f}"


def interval_note(resamples: int, seed: int) -> str:
    """What the brackets are."""
    return (
        f"[ ]: 95 % interval of {resamples:,} bootstrap draws of the queries, seed {seed}"
        if resamples
        else "no intervals (--resamples 0)"
    )


def gap_dict(scores: GapScores) -> dict[str, Any]:
    """For JSON."""
    return {
        "gap": scores.gap.value,
        "queries": scores.queries,
        "with_landmark": scores.with_landmark,
        "answered": scores.answered,
        "right": scores.right,
        "gap_interval": _bounds(scores.gap),
        "landmark_only_gap": scores.landmark_only.value,
        "landmark_only_interval": _bounds(scores.landmark_only),
        "contest_gap": None if scores.contest is None else scores.contest.value,
        "contest_interval": None if scores.contest is None else _bounds(scores.contest),
        "accuracy": scores.accuracy.value,
        "accuracy_interval": _bounds(scores.accuracy),
        "resamples": scores.resamples,
        "seed": scores.seed,
        "level": scores.level,
    }


def echo_gap(parts: Sequence[GapScores]) -> None:
    """The two tables of `lmk eval gap`."""
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
        columns.append((name, *map(estimate_text, estimates)))
    echo_table(columns[0], columns[1:])
    first = parts[0]
    echo(interval_note(first.resamples, first.seed))


def echo_warnings(file: object, warnings: Iterable[str]) -> None:
    """One line on stderr for each warning about a file."""
    for warning in warnings:
        echo(f"lmk: {file}: {warning}", err=True)


def echo_findings(file: object, findings: Sequence[SubmissionFinding]) -> None:
    """One line on stderr for each kind of finding: how many, and the first."""
    by_kind: dict[str, list[SubmissionFinding]] = {}
    for finding in findings:
        by_kind.setdefault(finding.kind, []).append(finding)
    for kind, found in by_kind.items():
        first = found[0]
        where = "" if first.line is None else f", line {first.line}"
        more = "" if len(found) == 1 else f"; {len(found) - 1:,} more like it"
        query = f"(query {first.query_id})"
        echo(f"lmk: {file}{where}: {kind}: {first.reason} {query}{more}", err=True)


def _bounds(estimate: Estimate) -> list[float] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return [estimate.low, estimate.high]
