"""Answers as text and as a page, with neighbours, penalties and shared points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmk.cli.answer.match_drawing import drawing_of
from lmk.cli.landmark_names import coordinates_text, map_url, shown_name
from lmk.cli.render import NONE_OF_THESE, counted, page
from lmk.cli.tables import tags_text
from lmk.rerank.answers import Answer, Evidence


def answer_lines(answer: Answer) -> list[str]:
    """Returns the lines of an answer: its landmark, its tags, and one line for each neighbour.

    The line of a neighbour shows the rank by cosine, the cosine, the score after the steps, the
    percentage of the votes for the best landmark ("-" for no vote), the landmark and the file.
    Notes about penalties and shared points follow on the same line.
    """
    lines = [f"{answer.query}: {_head(answer)}", *_where(answer)]
    if answer.tags is not None:
        lines.append(f"  tags: {tags_text(answer.tags)}")
    labels = [labels_text(answer, near.labels) or "(no landmark)" for near in answer.neighbours]
    width = max(map(len, labels), default=0)
    for near, label in zip(answer.neighbours, labels, strict=True):
        share = f"{100 * near.share:.0f} %" if near.vote > 0 else "-"
        notes = ", ".join(notes_of(near))
        lines.append(
            f"  {near.place:3}  {near.score:.3f} -> {near.score_after:6.3f}  {share:>5}"
            f"  {label:{width}}  {near.path}" + (f"  ({notes})" if notes else "")
        )
    return lines


def _head(answer: Answer) -> str:
    if answer.best is None or answer.confidence is None:
        some = "no near picture" if answer.labelled else "no picture in the index"
        return f"{NONE_OF_THESE} ({some} has a landmark)"
    notes = []
    if answer.threshold is not None:
        notes.append(f"{answer.threshold:.3f} is needed")
    if answer.query_penalty > 0:
        similar = f"{answer.query_penalty:.3f} was subtracted for its similarity to distractors"
        notes.append(similar)
    if answer.probability is not None:
        notes.append(f"{100 * answer.probability:.0f} % likely right")
    if answer.label is None:
        best = shown_label(answer, answer.best)
        guess = f"the best guess, {best}, has confidence {answer.confidence:.3f}"
        return f"{NONE_OF_THESE}  ({'; '.join([guess, *notes])})"
    needed = f" ({'; '.join(notes)})" if notes else ""
    return f"{shown_label(answer, answer.label)}  confidence {answer.confidence:.3f}{needed}"


def _where(answer: Answer) -> list[str]:
    """Returns lines with the coordinates and the link of the landmark, if the details have them."""
    details = None if answer.label is None else answer.details_of(answer.label)
    if details is None:
        return []
    place = coordinates_text(details)
    lines = [] if place is None else [f"  coordinates: {place}"]
    return lines if details.url is None else [*lines, f"  link: {details.url}"]


def shown_label(answer: Answer, label: str) -> str:
    """Returns a label with the name of its landmark, such as "Eiffel Tower (6347)"."""
    return shown_name(label, answer.details_of(label))


def labels_text(answer: Answer, labels: Sequence[str]) -> str:
    """Returns the labels of a neighbour, with commas between them if names may contain blanks."""
    return (", " if answer.landmarks else " ").join(shown_label(answer, one) for one in labels)


def notes_of(near: Evidence) -> list[str]:
    """Returns notes about the penalty and the shared points of a neighbour."""
    notes = []
    if near.penalty > 0:
        notes.append(f"penalty {near.penalty:.3f}")
    if near.inliers is not None:
        gain = f" +{near.gain:.3f}" if near.gain > 0 else ""
        notes.append(counted(near.inliers, "shared point") + gain)
    return notes


def answers_page(answers: Sequence[Answer], failed: Mapping[str, str], *, more: int = 0) -> str:
    """Returns a self-contained HTML page with the pictures of the answers and their shared points.

    Args:
        answers: the answers to show.
        failed: the reason for each picture without an answer, by its name.
        more: the number of answers that the page leaves out.
    """
    shown = {"notes_of": notes_of, "drawing_of": drawing_of, "counted": counted}
    shown |= {"tags_text": tags_text, "shown_label": shown_label, "labels_text": labels_text}
    shown |= {"coordinates_text": coordinates_text, "map_url": map_url}
    return page("answer/query.html", answers=answers, failed=failed, more=more, **shown)
