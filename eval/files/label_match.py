"""Warnings where the names of a submission and of its solution cannot match.

A score of 0 may mean that every answer is wrong, or that both files spell the labels otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set

from lmk.embed.tables.label_forms import similar_pairs, similar_text
from lmk.embed.tables.label_text import MISSING_WORDS
from lmk.eval.files.submission import RetrievalSubmission, Submission
from lmk.eval.files.truth import IGNORED, RetrievalTruth, Truth

FEW = 0.05  # of the solution's names that are answered at all: fewer hardly meet
_SHOWN = 60  # letters of an example


def label_warnings(submission: Submission, truth: Truth) -> tuple[str, ...]:
    """Warnings about the labels of a submission, compared with those of its solution.

    Answers that name no landmark of the solution give no warning by themselves: most queries of a
    contest show none. Warnings are given where the solution's landmarks are hardly ever answered,
    and where labels differ only in form: in case, by a leading zero, as a float.
    """
    answers = zip(submission.query_ids, submission.labels, strict=True)
    answered = {query for query, label in answers if label is not None}
    rows = (truth.row_of[query] for query in answered if query in truth.row_of)
    scored = [truth.labels[row] for row in rows if truth.usage[row] != IGNORED]
    several = {"_".join(labels): labels for labels in scored if len(labels) > 1}
    given = {label for label in submission.labels if label is not None}
    return (
        *_all_landmarks(truth),
        *_meeting(given, {label for labels in scored for label in labels}, "label", "answered"),
        *_missing_words(submission.labels),
        *_split(given, several),
    )


def _all_landmarks(truth: Truth) -> tuple[str, ...]:
    """A warning where every scored query shows a landmark, so that none can be refused rightly."""
    scored = [
        labels for labels, usage in zip(truth.labels, truth.usage, strict=True) if usage != IGNORED
    ]
    if not scored or not all(scored):
        return ()
    return (
        "every query of the solution shows a landmark: GAP says nothing about how well others are "
        "refused",
    )


def image_warnings(submission: RetrievalSubmission, truth: RetrievalTruth) -> tuple[str, ...]:
    """Warnings about the pictures of a retrieval submission, compared with its solution."""
    lists = zip(submission.query_ids, submission.images, strict=True)
    listed = [truth.row_of[query] for query, images in lists if images and query in truth.row_of]
    wanted = {image for row in listed for image in truth.images[row]}
    found = {image for images in submission.images for image in images}
    return _meeting(found, wanted, "picture id", "found")


def tag_warnings(predicted: Iterable[str], true: Iterable[str]) -> tuple[str, ...]:
    """Warnings about the tags of predictions, compared with the true tags."""
    return _meeting(set(predicted), set(true), "tag", "predicted", "of the solution")


def _meeting(
    given: Set[str], wanted: Set[str], noun: str, verb: str, of: str = "that answered queries show"
) -> tuple[str, ...]:
    """Warnings where two sets of names hardly meet, or differ only in form."""
    if not given or not wanted:
        return ()
    met = len(given & wanted)
    warnings = []
    if met < FEW * len(wanted) and len(wanted) > 1:  # one wrong answer says nothing
        one, other = min(wanted - given), min(given - wanted, default="")
        warnings.append(
            f"{met or 'none'} of the {len(wanted):,} {noun}s {of} is {verb}: do "
            f"both files use the same names? ({_short(one)} there, {_short(other)} here)"
        )
    pairs = similar_pairs(given, wanted)
    if pairs:
        text = similar_text(pairs, noun, others="the solution's")
        warnings.append(f"{text}, so they never match")
    return tuple(warnings)


def _missing_words(labels: Sequence[str | None]) -> tuple[str, ...]:
    words = [label for label in labels if label in MISSING_WORDS]
    if not words:
        return ()
    count = "1 answer is" if len(words) == 1 else f"{len(words):,} answers are"
    return (f"{count} {words[0]!r}, which counts as a landmark: leave the cell empty instead",)


def _split(answered: Collection[str], several: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Warns of a label of several words that the solution's column has split at its blanks."""
    found = sorted(name for name in several if name in answered)
    if not found:
        return ()
    words = " ".join(several[found[0]])
    return (
        f"the solution's column separates labels by blanks, so {words!r} is "
        f"{len(several[found[0]])} labels there and {found[0]!r} is answered: name the column "
        "landmark_id, or write '_' for a blank",
    )


def _short(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
