"""The command `lmk demo`, which runs other commands on the sample gallery."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import click

from lmk.cli.options import PATH
from lmk.cli.printing import echo_lines
from lmk.embed.errors import UsageError, storage_errors

_IN_A_CLONE, _PACKAGED = Path("examples"), Path(__file__).parent / "sample"
_QUERIES = 6  # number of queries with a landmark in the report, and of those without


@click.command()
@click.option(
    "--examples",
    type=PATH,
    help="The sample gallery.  [default: examples/ in a clone of lmk, else a smaller one]",
)
@click.option("-o", "--output", type=PATH, default=Path("demo"), help="Folder to write to.")
def demo(examples: Path | None, output: Path) -> None:
    """Index the sample gallery, query it, write a submission and score it.

    Each printed line that starts with $ is a command that you can type.

    Example: lmk demo
    """
    if examples is None:
        examples = _IN_A_CLONE if (_IN_A_CLONE / "solution.csv").is_file() else _PACKAGED
    if not (examples / "solution.csv").is_file():
        remedy = "leave out --examples to use the sample gallery of lmk"
        raise UsageError("the sample gallery is not here", where=examples, remedy=remedy)
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    index, submission = output / "sample.lmk", output / "submission.csv"
    report = output / "report.html"
    _run(
        "build-index", examples / "gallery", "--distractors", examples / "distractors", "-o", index
    )
    _run("query", *_some_queries(examples), "-i", index, "-k", 3, "--html", report)
    _run("submit", examples / "queries", "-i", index, "-o", submission)
    _run("eval", "gap", submission, examples / "solution.csv")
    echo_lines(
        (
            "",
            f"The page with the answers and their pictures: {report}",
            "For your own pictures, make a folder with one sub-folder for each place, then type",
            "  lmk build-index my-places/",
            "  lmk query photo.jpg -i my-places.lmk --html answer.html",
            'With pictures that show none of the places, lmk learns to answer "none of these":',
            "  lmk build-index my-places/ --distractors other-pictures/",
        )
    )


def _run(*words: object) -> None:
    """Prints a command, runs it in this process, and ends the demo if the command fails."""
    context = click.get_current_context()
    program = context.find_root().command
    arguments = [str(word) for word in words]
    echo_lines(["", f"$ lmk {shlex.join(arguments)}"])
    if code := program.main(arguments, prog_name="lmk", standalone_mode=False):
        context.exit(code)


def _some_queries(examples: Path) -> list[Path]:
    """Returns sample queries, alternately with a landmark and without; no landmark repeats."""
    with_landmark: dict[str, str] = {}
    without: list[str] = []
    with (examples / "solution.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["landmarks"]:
                with_landmark.setdefault(row["landmarks"], row["id"])
            else:
                without.append(row["id"])
    pairs = zip(list(with_landmark.values())[:_QUERIES], without[:_QUERIES], strict=True)
    return [examples / "queries" / f"{id_}.jpg" for pair in pairs for id_ in pair]
