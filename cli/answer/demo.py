"""`lmk demo`: the commands a user would type, on the sample gallery."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import click

from lmk.cli.printing import echo_lines

_IN_A_CLONE, _PACKAGED = Path("examples"), Path(__file__).parent / "sample"
_ASKED = 6  # pictures with a landmark, and as many without, that the report shows


@click.command()
@click.option(
    "--examples",
    type=click.Path(path_type=Path),
    help="The sample gallery.  [default: examples/ of a clone of lmk, else a smaller one]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="The folder to write to.",
)
def demo(examples: Path | None, output: Path) -> None:
    """Index the sample gallery, ask it, write a submission, score it, write a report.

    Every line that starts with $ is a command you could type yourself.

    Example: lmk demo
    """
    from lmk.embed.errors import UsageError, storage_errors

    if examples is None:
        examples = _IN_A_CLONE if (_IN_A_CLONE / "solution.csv").is_file() else _PACKAGED
    if not (examples / "solution.csv").is_file():
        raise UsageError(
            "the sample gallery is not here",
            where=examples,
            remedy="leave out --examples for the one that lmk comes with",
        )
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
            f"The answers above with their pictures: {report}",
            "Now your own: a folder with one sub-folder of pictures for each place, then",
            "  lmk build-index my-places/",
            "  lmk query photo.jpg -i my-places.lmk --html answer.html",
            "With a folder of pictures that show none of the places lmk learns what to refuse:",
            "  lmk build-index my-places/ --distractors other-pictures/",
        )
    )


def _run(*words: object) -> None:
    """Prints a command and runs it, in this process; its failure ends the demo."""
    context = click.get_current_context()
    program = context.find_root().command
    arguments = [str(word) for word in words]
    echo_lines(["", f"$ lmk {shlex.join(arguments)}"])
    if code := program.main(arguments, prog_name="lmk", standalone_mode=False):
        context.exit(code)


def _some_queries(examples: Path) -> list[Path]:
    """Some sample queries, with and without a landmark in turn, each landmark once."""
    shown: dict[str, str] = {}
    without: list[str] = []
    with (examples / "solution.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["landmarks"]:
                shown.setdefault(row["landmarks"], row["id"])
            else:
                without.append(row["id"])
    pairs = zip(list(shown.values())[:_ASKED], without[:_ASKED], strict=True)
    return [examples / "queries" / f"{id_}.jpg" for pair in pairs for id_ in pair]
