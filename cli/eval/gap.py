"""The commands `lmk eval gap` and `lmk eval compare`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from lmk.cli.eval.options import Draws, bootstrap, parts
from lmk.cli.eval.tables import (
    bounds_of,
    echo_findings,
    echo_gap,
    echo_warnings,
    gap_dict,
    score_text,
)
from lmk.cli.index_path import INDEX
from lmk.cli.options import FILE, PATH, as_json, root
from lmk.cli.pictures import read_pictures
from lmk.cli.printing import echo, echo_json
from lmk.cli.render import check_output
from lmk.cli.tables import echo_table
from lmk.embed.errors import SubmissionError, UsageError

if TYPE_CHECKING:
    from lmk.eval.files.submission import Submission
    from lmk.eval.files.truth import Truth
    from lmk.eval.scores.compare import GapDifference
    from lmk.index.gallery.gallery import Gallery


@click.command("gap", short_help="Recognition: GAP of a submission.")
@click.argument("submission", type=PATH)
@click.argument("solution", type=PATH)
@as_json
@bootstrap
@click.option(
    "--report",
    metavar="DIR",
    type=PATH,
    help="Write DIR/report.html with curves, confusions and the worst answers.",
)
@click.option(
    "-i",
    "--index",
    type=INDEX,
    help="The index. Labels that it lacks are reported; a report shows its neighbours.",
)
@click.option(
    "--queries", type=PATH, help="The pictures of the queries for the report, a folder or CSV."
)
@root
def gap(
    submission: Path,
    solution: Path,
    as_json: bool,
    draws: Draws,
    report: Path | None,
    index: Path | None,
    queries: Path | None,
    root: Path | None,
) -> None:
    """Score SUBMISSION (id,landmarks) against SOLUTION by global average precision (GAP).

    Where the solution has a column Usage, Public and Private rows are also scored separately, and
    Ignored rows are left out. Queries without a row count as blank. The other scores are GAP over
    landmark queries only, GAP with queries weighted so that 98 % of the weight shows no landmark
    (as in a contest), and acc@1.

    Example: lmk eval gap submission.csv solution.csv --report out -i gallery.lmk --queries photos/
    """
    from lmk.eval.files.label_match import label_warnings
    from lmk.eval.files.submission import Submission
    from lmk.eval.files.truth import Truth
    from lmk.eval.scores.gap_scores import gap_scores
    from lmk.eval.scores.judged import judge
    from lmk.index.gallery.gallery import Gallery

    if report is None and queries:
        raise UsageError("--queries needs --report", remedy="add --report DIR")
    if root is not None and queries is None:
        raise UsageError("--root needs --queries", remedy="add --queries CSV")
    answers, truth = Submission.read(submission), Truth.read(solution)
    with ExitStack() as opened:
        gallery = recognizer = pictures = written = None
        if report is not None:
            from lmk.cli.eval.report_page import check_folder, write_report

            check_folder(report)
            pictures = None if queries is None else read_pictures(queries, root=root)
        if index is not None and pictures is not None:
            from lmk.rerank.recognizer import Recognizer

            recognizer = opened.enter_context(Recognizer.open(index))
            gallery = recognizer.gallery
        elif index is not None:
            gallery = opened.enter_context(Gallery.open(index))
        scores = [
            gap_scores(judge(answers, truth, usage), name, **vars(draws))
            for name, usage in parts(truth)
        ]
        warnings = label_warnings(answers, truth)
        if report is not None:
            written = write_report(
                report, answers, truth, scores, warnings,
                gallery=gallery, recognizer=recognizer, queries=pictures,
            )  # fmt: skip
        _echo_findings(answers, truth, gallery)
        echo_warnings(submission, warnings)
    if written is not None:
        echo(f"lmk: wrote {written}", err=True)
    if as_json:
        facts = {each.name: gap_dict(each) for each in scores}
        facts["all"]["warnings"] = list(warnings)
        echo_json(facts)
    else:
        echo_gap(scores)
        echo(draws.note())


def _echo_findings(submission: Submission, truth: Truth, gallery: Gallery | None) -> None:
    """Prints the faults of a submission on stderr, such as missing rows and unknown labels."""
    from lmk.eval.files.truth import IGNORED
    from lmk.eval.files.validate import validate
    from lmk.index.gallery.gallery import class_sizes

    ignored = {
        query for query, of in zip(truth.query_ids, truth.usage, strict=True) if of == IGNORED
    }
    labels = None
    if gallery is not None:
        labels = {label for label, pictures in class_sizes(gallery).items() if pictures}
    findings = validate(submission, queries=truth.query_ids, gallery_labels=labels)
    echo_findings(submission.source, [each for each in findings if each.query_id not in ignored])


@click.command("compare", short_help="Compare submissions by GAP, and blend them.")
@click.argument("submissions", nargs=-1, required=True, type=PATH)
@click.argument("solution", type=PATH)
@click.option(
    "--usage",
    type=click.Choice(["Public", "Private"]),
    help="Score only these queries.  [default: all]",
)
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=10,
    help="Number of queries to list, those that change GAP most.",
)
@click.option(
    "--blend",
    "blended",
    type=FILE,
    help="Write the blend of all SUBMISSIONS to this file, and score it too.",
)
@click.option(
    "--weights", metavar="W,W...", help="Weights of the submissions in the blend.  [default: equal]"
)
@click.option(
    "--rule",
    type=click.Choice(["rank", "score"]),
    default="rank",
    help="Values that the blend adds up: ranks, or the confidences themselves.",
)
@as_json
@bootstrap
def compare(
    submissions: tuple[Path, ...],
    solution: Path,
    usage: str | None,
    top: int,
    blended: Path | None,
    weights: str | None,
    rule: str,
    as_json: bool,
    draws: Draws,
) -> None:
    """Compare two or more SUBMISSIONS (id,landmarks) by their GAP against one SOLUTION.

    Each other submission is tested against the first one on the same bootstrap draws. The queries
    that contribute most to the difference are listed; all contributions add up to it.

    Example: lmk eval compare old.csv new.csv solution.csv --blend both.csv --weights 1,2
    """
    from lmk.eval.files.label_match import label_warnings
    from lmk.eval.files.submission import Submission
    from lmk.eval.files.truth import Truth
    from lmk.eval.scores.compare import compare as compare_two

    if len(submissions) < 2:
        raise UsageError(
            "two submissions or more are needed", remedy="lmk eval compare OLD NEW SOLUTION"
        )
    if blended is None and weights is not None:
        raise UsageError("--weights needs --blend", remedy="add --blend OUT.csv")
    shares = _weights(weights, len(submissions))
    check_output(blended, reads=(*submissions, solution))
    read = [Submission.read(path) for path in submissions]
    truth = Truth.read(solution)
    if blended is not None:
        read.append(_blend(read, shares, rule))
    names = [str(path) for path in (*submissions, *((blended,) if blended else ()))]
    warnings = [label_warnings(each, truth) for each in read]
    pairs = [compare_two(read[0], other, truth, usage) for other in read[1:]]
    entries = _compared(names, pairs, draws)
    for name, entry, own in zip(names, entries, warnings, strict=True):
        echo_warnings(name, own)
        entry["warnings"] = list(own)
    for entry, pair, other in zip(entries[1:], pairs, read[1:], strict=True):
        entry["changes"] = _changes(pair, truth, read[0], other, top)
    if blended is not None:
        read[-1].write(blended)
    if as_json:
        echo_json({"usage": usage or "all", "submissions": entries})
    else:
        _echo_compared(entries)
        echo(draws.note())
        _echo_changes(entries)


def _weights(text: str | None, count: int) -> list[float] | None:
    if text is None:
        return None
    try:
        weights = [float(word) for word in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != count or not all(0 < weight < float("inf") for weight in weights):
        raise UsageError(
            f"needs {count} numbers above 0, separated by commas; got {text!r}", where="--weights"
        )
    return weights


def _blend(submissions: list[Submission], weights: list[float] | None, rule: str) -> Submission:
    from lmk.eval.scores.compare import BlendRule, blend

    rules: dict[str, BlendRule] = {name: name for name in get_args(BlendRule)}
    try:
        return blend(submissions, weights, rules[rule])
    except ValueError as error:  # The rule "score" refuses negative and infinite confidences.
        raise SubmissionError(str(error)) from error


def _compared(names: list[str], pairs: list[GapDifference], draws: Draws) -> list[dict[str, Any]]:
    """Returns the GAP of each submission, and the tests of the others against the first."""
    from lmk.eval.scores.bootstrap import gap_interval, gap_test

    judged = [pairs[0].first, *(pair.second for pair in pairs)]
    gaps = [pairs[0].first_gap, *(pair.second_gap for pair in pairs)]
    entries: list[dict[str, Any]] = []
    for place, (name, each, value) in enumerate(zip(names, judged, gaps, strict=True)):
        entry: dict[str, Any] = {"submission": name, "gap": value, "gap_interval": None}
        if draws.resamples:
            entry["gap_interval"] = bounds_of(gap_interval(each, **vars(draws)))
        if place:
            entry |= {"difference": value - gaps[0], "difference_interval": None, "p_value": None}
            if draws.resamples:
                test = gap_test(judged[0], each, **vars(draws))
                entry |= {"difference_interval": [test.low, test.high], "p_value": test.p_value}
        entries.append(entry)
    return entries


def _changes(
    pair: GapDifference, truth: Truth, first: Submission, second: Submission, top: int
) -> list[dict[str, Any]]:
    """Returns the `top` queries that change GAP most, with the answers of both submissions."""

    def answer(submission: Submission, query: str) -> str | None:
        row = submission.row_of.get(query)
        return None if row is None else submission.labels[row]

    rows = []
    for row in pair.largest(top):
        query = pair.first.query_ids[row]
        rows.append(
            {
                "query": query,
                "change": float(pair.change[row]),
                "truth": list(truth.labels[truth.row_of[query]]),
                "before": answer(first, query),
                "after": answer(second, query),
            }
        )
    return rows


def _echo_compared(entries: list[dict[str, Any]]) -> None:
    header, rows = ["", "GAP", "difference", "p"], []
    for entry in entries:
        row = [entry["submission"], score_text(entry["gap"], entry["gap_interval"])]
        if "difference" in entry:
            low, high = entry["difference_interval"] or (None, None)
            inner = "" if low is None else f" [{low:+.4f} to {high:+.4f}]"
            p_value = entry["p_value"]
            row += [
                f"{entry['difference']:+.4f}{inner}",
                "" if p_value is None else f"{p_value:.3g}",
            ]
        rows.append([*row, "", ""][:4])
    echo_table(header, rows)


def _echo_changes(entries: list[dict[str, Any]]) -> None:
    for entry in entries[1:]:
        if not entry["changes"]:
            continue
        echo()
        first, second = entries[0]["submission"], entry["submission"]
        echo(f"queries that change GAP most from {first} to {second}")
        echo_table(
            ("query", "change", "truth", "before", "after"),
            [
                (
                    change["query"],
                    f"{change['change']:+.5f}",
                    " ".join(change["truth"]) or "(none)",
                    change["before"] or "(blank)",
                    change["after"] or "(blank)",
                )
                for change in entry["changes"]
            ],
        )
