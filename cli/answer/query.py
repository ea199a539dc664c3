"""The command `lmk query`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmk.cli.answer.answers import answer_lines, answers_page
from lmk.cli.answer.query_stream import (
    Failed,
    Table,
    answered,
    csv_head,
    csv_line,
    table_names,
    tags_of_none,
)
from lmk.cli.index_path import TAGGER, find_index
from lmk.cli.options import FILE, index, json_lines, neighbour_count, pictures_argument, root
from lmk.cli.pictures import echo_without_landmarks, named_pictures
from lmk.cli.printing import echo, echo_json, echo_lines
from lmk.cli.render import check_output, counted, write_text
from lmk.embed.progress import Count, no_count

if TYPE_CHECKING:
    from lmk.rerank.answers import Answer

_ON_A_PAGE = 1000  # maximum number of answers on a page; each answer has several thumbnails
_SHOWN = 10  # maximum number of failures that stderr lists for a folder
_AT_ONCE = 256  # maximum number of pictures for the steps that need all answers


@click.command()
@pictures_argument
@index
@click.option(
    "-k", "neighbours", type=click.IntRange(min=1), default=5, help="Number of neighbours to show."
)
@click.option(
    "--tagger",
    type=TAGGER,
    metavar="DIR",
    help='Add tags to the answer "none of these". The tagger is a folder that `lmk train` wrote, '
    "or another index.  [default: the tagger of the index, if it has one]",
)
@root
@json_lines
@click.option(
    "--html",
    type=FILE,
    help=f"Write a page with the first {_ON_A_PAGE:,} pictures and their neighbours.",
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="CSV",
    help="Write the answers to a CSV file, one row per picture, instead of printing them.",
)
def query(
    images: tuple[Path, ...],
    index: Path | None,
    neighbours: int,
    tagger: Path | None,
    root: Path | None,
    as_json: bool,
    html: Path | None,
    output: Path | None,
) -> None:
    """Print the landmark that each picture shows, or "none of these", with the evidence.

    The neighbours follow each answer, those that voted for it first. A line has the rank by
    similarity, the similarity -> the score after the steps of the index, the percentage of the
    votes, the landmark, the file, and notes about penalties and shared points. --json has all
    numbers, --html shows the pictures and the shared points.

    The answers to a folder, a CSV or paths on stdin (-) are printed as a table with one line per
    picture, for any number of pictures. A picture that cannot be read is reported, and the exit
    code is 1.

    Example: lmk query photo.jpg -i gallery.lmk --html answer.html

    Then: lmk query holiday/ -i gallery.lmk -o answers.csv
    """
    from lmk.embed.files import write_whole
    from lmk.rerank.recognizer import Recognizer

    for path in (html, output):
        check_output(path, reads=images)
    named = named_pictures(images, root)
    files, several = named.files, named.several
    report = _Report(as_json=as_json, quiet=output is not None, page=html is not None, many=several)
    missing = _missing(files) | named.unseen
    for name, reason in missing.items():  # An unusable index ends the command below.
        report.add_failure(name, reason)
    with ExitStack() as held:
        results: Iterator[Answer | Failed]
        if len(missing) < len(files):
            recognizer = held.enter_context(Recognizer.open(find_index(index), batch=len(files)))
            tagged = held.enter_context(tags_of_none(recognizer, tagger))
            if several:
                echo_without_landmarks(recognizer)
                names, calibrated = (
                    table_names(recognizer.gallery),
                    recognizer.calibration is not None,
                )
                report.table = Table(list(files), names, calibrated)
            if several or len(files) > _AT_ONCE:
                # lmk reads pictures in blocks, but some steps count answers over all pictures.
                recognizer = recognizer.with_pipeline(recognizer.pipeline.per_query())
            k = neighbour_count(neighbours, len(recognizer.gallery.role_rows("gallery")))
            progress = _progress(held, len(files), shown=output is not None)
            results = answered(recognizer, list(files.items()), k, missing, tagged, progress)
        else:
            results = (Failed(n, str(p), missing[n]) for n, p in files.items())
        rows = report.rows(results)
        if output is not None:
            write_whole(output, rows)
        for _ in rows:  # The loop prints the results that are left.
            pass
    report.end(html, output)
    if report.failed:
        click.get_current_context().exit(1)


@dataclass
class _Report:
    """Printer of results, which collects the answers for the page."""

    as_json: bool
    quiet: bool  # print nothing but JSON for each result
    page: bool  # collect answers for a page
    many: bool  # limit the number of failures on stderr
    table: Table | None = None  # formats an answer as a line
    failed: dict[str, str] = field(default_factory=dict)  # reason for each failure, by name
    answers: list[Answer] = field(default_factory=list)  # answers on the page
    answered: int = 0
    named: int = 0  # number of answers with a landmark

    def rows(self, results: Iterator[Answer | Failed]) -> Iterator[bytes]:
        """Yields the lines of a CSV file, and prints each result on the way."""
        yield csv_head().encode()
        if self.table is not None and not self.as_json and not self.quiet:
            echo(self.table.head)
        for one in results:
            if isinstance(one, Failed):
                self.add_failure(one.query, one.reason)
                if self.as_json:
                    echo_json({"query": one.query, "error": one.reason})
            else:
                self._print(one)
            yield csv_line(one).encode("utf-8", "surrogateescape")

    def _print(self, answer: Answer) -> None:
        self.answered += 1
        self.named += answer.label is not None
        if self.page and len(self.answers) < _ON_A_PAGE:
            self.answers.append(answer)
        if self.as_json:
            echo_json(answer.as_dict())
        elif not self.quiet and self.table is not None:
            echo(self.table.line(answer))
        elif not self.quiet:
            echo_lines(answer_lines(answer))

    def add_failure(self, name: str, reason: str) -> None:
        """Records the reason why a picture has no answer, and prints it on stderr."""
        if name in self.failed:
            return
        self.failed[name] = reason
        if not self.many or len(self.failed) <= _SHOWN:
            echo(f"lmk: {name}: {reason}; it has no answer", err=True)

    def end(self, html: Path | None, output: Path | None) -> None:
        """Writes the page, and prints the numbers of answers and failures."""
        if self.many and len(self.failed) > _SHOWN:
            more = len(self.failed) - _SHOWN
            where = f" (see {output})" if output else " (--json lists them)"
            echo(f"lmk: {more:,} more have no answer{where}", err=True)
        if html is not None:
            left = self.answered - len(self.answers)
            write_text(html, answers_page(self.answers, self.failed, more=left))
            if left:
                shown = len(self.answers)
                echo(f"lmk: {html} has the first {shown:,} of {self.answered:,} answers", err=True)
        if output is not None and not self.as_json:
            pictures = counted(self.answered, "picture")
            without = f", {len(self.failed):,} without an answer" if self.failed else ""
            echo(f"{output}: {pictures}, {self.named:,} of them with a landmark{without}")


def _missing(files: Mapping[str, Path]) -> dict[str, str]:
    """Returns the reason for each picture whose file does not exist, by name."""
    from lmk.embed.data.sources import url_reason

    missing = {}
    for name, path in files.items():
        try:
            path.stat()
        except (FileNotFoundError, ValueError):  # ValueError: The name contains a NUL.
            missing[name] = url_reason(name) or "no such file"
        except OSError:  # The reader of the picture reports this reason.
            pass
    return missing


def _progress(held: ExitStack, total: int, *, shown: bool) -> Count:
    """Returns a function that updates a progress bar, or one without effect unless `shown`."""
    if not shown:
        return no_count
    from lmk.cli.progress import StageProgress

    bar = held.enter_context(StageProgress())
    return lambda done: bar("pictures", done, total)
