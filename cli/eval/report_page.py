"""The HTML page of `lmk eval gap --report`, with pictures and neighbours of wrong answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lmk.cli.landmark_names import shown_name
from lmk.cli.render import check_output, page, require_folder, write_text
from lmk.embed.errors import UsageError, storage_errors
from lmk.index.gallery.gallery import class_sizes
from lmk.rerank.answers import Evidence

if TYPE_CHECKING:
    from lmk.embed.data.manifest import Manifest
    from lmk.eval.files.submission import Submission
    from lmk.eval.files.truth import Truth
    from lmk.eval.report.report import Case
    from lmk.eval.scores.gap_scores import GapScores
    from lmk.index.gallery.gallery import Gallery
    from lmk.rerank.recognizer import Recognizer

PAGE = "report.html"
_NEIGHBOURS = 5  # number of neighbours on the page for each query
_SEARCHED = 100  # maximum number of neighbours that are searched for the true landmark


@dataclass(frozen=True)
class Shown:
    """The pictures of one wrong answer.

    Attributes:
        path: the file of the query; None if --queries lacks the query.
        neighbours: gallery pictures, first the ones that voted for the answer of the index.
        true: the nearest picture of the true landmark; None if `neighbours` shows the landmark.
        true_rank: the rank, from 1, of the nearest picture of the true landmark; None without one.
        searched: the number of neighbours that the search returned.
    """

    path: str | None
    neighbours: tuple[Evidence, ...] = ()
    true: Evidence | None = None
    true_rank: int | None = None
    searched: int = 0


def check_folder(folder: Path) -> None:
    """Checks, before the scores are computed, that a report can be written to a folder.

    Raises:
        UsageError: the parent of the folder does not exist, the folder is a file, or its page
            cannot be written.
    """
    require_folder(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError("is a file, not a folder", where=folder, remedy="name another folder")
    if folder.exists():
        check_output(folder / PAGE)


def write_report(
    folder: Path,
    submission: Submission,
    truth: Truth,
    scores: Sequence[GapScores],
    warnings: Sequence[str],
    *,
    gallery: Gallery | None,
    recognizer: Recognizer | None,
    queries: Manifest | None,
) -> Path:
    """Writes report.html, one page that needs no other file, and returns its path.

    Args:
        folder: the folder to write to.
        submission, truth: the answers and the solution.
        scores: the scores of all queries, then the scores of the parts.
        warnings: warnings about the labels; the page shows them above the scores.
        gallery: the gallery of the index, for class sizes.
        recognizer: the recognizer of the index, for the neighbours of the query pictures.
        queries: the query pictures with the ids of the submission.

    Raises:
        SubmissionError: a query id is unknown, or no query shows a landmark.
        StorageError: the folder cannot be written.
    """
    from lmk.eval.report.report import report_of

    report = report_of(
        submission, truth, class_sizes=None if gallery is None else class_sizes(gallery)
    )
    cases = (*report.false_positives, *report.misses)
    pictures, others = _pictures(cases, queries, recognizer)
    text = page(
        "eval/report.html",
        submission=Path(submission.source).name,
        solution=Path(truth.source).name,
        index=None if gallery is None else gallery.path.name,
        queries=queries is not None,
        scores=scores,
        warnings=warnings,
        report=report,
        pictures=pictures,
        other_answers=others,
        named=_named(gallery),
    )
    path = folder / PAGE
    with storage_errors(path):
        folder.mkdir(exist_ok=True)
    write_text(path, text)
    return path


def _named(gallery: Gallery | None) -> Callable[[str], str]:
    """Returns a function from a label to the landmark's name in the index."""
    return cache(
        lambda label: shown_name(
            label, None if gallery is None else gallery.landmark_details(label)
        )
    )


def _pictures(
    cases: Sequence[Case], manifest: Manifest | None, recognizer: Recognizer | None
) -> tuple[dict[str, Shown], int]:
    """Returns the pictures of each case, and the number of answers unlike the submission's."""
    if manifest is None:
        return {}, 0
    wanted = {case.query for case in cases}
    file_of = {row.id: manifest.file(row) for row in manifest.rows if row.id in wanted}
    shown = {
        case.query: Shown(str(file_of[case.query]) if case.query in file_of else None)
        for case in cases
    }
    if recognizer is None or not file_of:
        return shown, 0
    held = len(recognizer.gallery.role_rows("gallery"))
    searched = min(_SEARCHED, held)
    predictions, _ = recognizer.query(list(dict.fromkeys(file_of.values())), k=searched)
    answers = {answer.query: answer for answer in recognizer.answers_of(predictions, searched)}
    others = 0
    for case in cases:
        answer = answers.get(str(file_of.get(case.query)))
        if answer is None:
            continue  # The picture does not exist or cannot be read.
        others += answer.best != case.answer
        near = answer.neighbours
        first = near[:_NEIGHBOURS]
        of_truth = [each for each in near if not set(case.truth).isdisjoint(each.labels)]
        nearest = min(of_truth, key=lambda each: each.place, default=None)
        among = any(each in first for each in of_truth)
        shown[case.query] = Shown(
            answer.query,
            first,
            None if among else nearest,
            None if nearest is None else nearest.place,
            len(near),
        )
    return shown, others
