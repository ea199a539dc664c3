"""`lmk query`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from lmk.cli.answers import answer_lines, answers_of, answers_page
from lmk.cli.printing import echo, echo_json, echo_lines
from lmk.cli.render import check_output, counted, write_text

if TYPE_CHECKING:
    from lmk.cli.answers import Answer
    from lmk.rerank.recognizer import Recognizer
    from lmk.rerank.tagging import Tagger


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-i",
    "--index",
    type=click.Path(path_type=Path),
    help="The index to ask.  [default: the only *.lmk folder here]",
)
@click.option(
    "-k",
    "neighbours",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Neighbours to show.",
)
@click.option(
    "--tagger",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Say the tags of what is none of these: by a tagger that `lmk train` wrote, or by another "
    "index.  [default: the index's own, if it was built with one]",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a picture, a line each."
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page with the pictures and their neighbours.",
)
def query(
    images: tuple[Path, ...],
    index: Path | None,
    neighbours: int,
    tagger: Path | None,
    as_json: bool,
    html: Path | None,
) -> None:
    """Say which landmark each of IMAGES shows, or "none of these", and why.

    Below each answer stand the neighbours, those that voted for it first: number among the
    nearest, similarity -> what the index's steps left of it, share of the votes, landmark, file,
    and what penalties took off or shared points added. --json has all the numbers, --html shows
    the pictures and the points.

    Example: lmk query photo.jpg -i gallery.lmk --html answer.html
    """
    from lmk.cli.find_index import find_index
    from lmk.embed.errors import UsageError
    from lmk.rerank.recognizer import Recognizer

    context = click.get_current_context()
    asked = context.get_parameter_source("neighbours") is not ParameterSource.DEFAULT
    for image in images:
        if image.is_dir():
            raise UsageError(
                "is a folder, not a picture",
                where=image,
                remedy=f"for many pictures use: lmk submit {image} -o submission.csv",
            )
    if html is not None:
        check_output(html, reads=images)
    failed: dict[str, str] = {}
    for image in images:  # first, as an index that cannot be used would hide it
        if str(image) not in failed and _missing(image):
            _say_failed(failed, str(image), "no such file")
    there = [image for image in images if str(image) not in failed]
    answers = []
    if there:
        with Recognizer.open(find_index(index)) as recognizer:
            held = len(recognizer.gallery.role_rows("gallery"))
            if neighbours > held and asked:
                holds = f"the index holds {counted(held, 'picture')}, no more can be shown"
                echo(f"lmk: -k {neighbours}: {holds}", err=True)
            predictions, skipped = recognizer.query(there, k=min(neighbours, held))
            answers = _with_tags(
                answers_of(predictions, recognizer, neighbours), recognizer, tagger
            )
        for skip in skipped:
            _say_failed(failed, skip.path, skip.reason)
    by_query = {answer.query: answer for answer in answers}
    for name in dict.fromkeys(map(str, images)):
        if name in failed:
            if as_json:
                echo_json({"query": name, "error": failed[name]})
        elif as_json:
            echo_json(by_query[name].as_dict())
        else:
            echo_lines(answer_lines(by_query[name]))
    if html is not None:
        write_text(html, answers_page(answers, failed))
    if failed:
        context.exit(1)


def _with_tags(answers: list[Answer], recognizer: Recognizer, named: Path | None) -> list[Answer]:
    """Answers with the tags of those that are none of these, where there is a tagger."""
    from lmk.rerank.given_tags import given_tags
    from lmk.rerank.tagging import HeadTagger, open_tagger, tag_files

    asked = [(answer.query, Path(answer.query)) for answer in answers if answer.label is None]
    with ExitStack() as held:
        if named is not None:
            tagger: Tagger | None = held.enter_context(open_tagger(named))
        else:
            tagger = HeadTagger.of_index(recognizer)
        if tagger is None:
            return answers
        rules = tagger.thresholds
        tags = {
            id_: given
            for batch in tag_files(tagger, asked, tiles=rules.tiles)
            for id_, given in zip(
                batch.ids, given_tags(batch.scores, tagger.names, rules), strict=True
            )
        }
    return [replace(answer, tags=tags.get(answer.query)) for answer in answers]


def _missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:  # another reason, which is found and named when the picture is read
        return False
    return False


def _say_failed(failed: dict[str, str], name: str, reason: str) -> None:
    """Notes that a picture has no answer, and why, and says so on stderr."""
    failed[name] = reason
    echo(f"lmk: {name}: {reason}; it has no answer", err=True)
