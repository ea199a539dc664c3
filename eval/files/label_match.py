"""Warnings about names of a submission that cannot match the names of its solution.

A score of 0 may mean that every answer is wrong, or that the two files spell labels differently.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set

from lmk.embed.tables.label_forms import similar_pairs, similar_text
from lmk.embed.tables.label_text import MISSING_WORDS
from lmk.eval.files.submission import RetrievalSubmission, Submission
from lmk.eval.files.truth import IGNORED, RetrievalTruth, Truth

FEW = 0.05  # a submission with a smaller proportion of the solution's names causes a warning
_SHOWN = 60  # characters of an example


def label_warnings(submission: Submission, truth: Truth) -> tuple[str, ...]:
    """Returns warnings about the labels of a submission, compared with those of its solution.

    Answers that are not landmarks of the solution cause no warning, since most queries of a contest
    show no landmark. A warning is returned if hardly any landmark of the solution is an answer, or
    if labels differ only in form: in case, by a leading zero, or as a float.
    """
    answers = zip(submission.query_ids, submission.labels, strict=True)
    answered = {query for query, label in answers if label is not None}
    rows = (truth.row_of[query] for query in answered if query in truth.row_of)
    scored = [truth.labels[row] for row in rows if truth.usage[row] != IGNORED]
    several = {"_".join(labels): labels for labels in scored if len(labels) > 1}
    given = {label for label in submission.labels if label is not None}
    return (
        *_all_landmarks(truth),
        *_common_names(
            given, {label for labels in scored for label in labels}, "label", "answered"
        ),
        *_missing_words(submission.labels),
        *_split(given, several),
    )


def _all_landmarks(truth: Truth) -> tuple[str, ...]:
    """Returns a warning if every scored query shows a landmark."""
    scored = [
        labels for labels, usage in zip(truth.labels, truth.usage, strict=True) if usage != IGNORED
    ]
    if not scored or not all(scored):
        return ()
    return (
        "every query of the solution shows a landmark: GAP does not measure how well others "
        "are refused",
    )


def image_warnings(submission: RetrievalSubmission, truth: RetrievalTruth) -> tuple[str, ...]:
    """Returns warnings about the picture ids of a retrieval submission."""
    lists = zip(submission.query_ids, submission.images, strict=True)
    listed = [truth.row_of[query] for query, images in lists if images and query in truth.row_of]
    wanted = {image for row in listed for image in truth.images[row]}
    listed_images = {image for images in submission.images for image in images}
    return _common_names(listed_images, wanted, "picture id", "in the lists")


def tag_warnings(predicted: Iterable[str], true: Iterable[str]) -> tuple[str, ...]:
    """Returns warnings about the tags of predictions, compared with the true tags."""
    return _common_names(set(predicted), set(true), "tag", "predicted", "of the solution")


def _common_names(
    given: Set[str], wanted: Set[str], noun: str, verb: str, of: str = "that answered queries show"
) -> tuple[str, ...]:
    """Returns warnings if two sets of names have little in common, or differ only in form."""
    if not given or not wanted:
        return ()
    common = len(given & wanted)
    warnings = []
    if common < FEW * len(wanted) and len(wanted) > 1:  # one wrong answer proves nothing
        one, other = min(wanted - given), min(given - wanted, default="")
        warnings.append(
            f"{common or 'none'} of the {len(wanted):,} {noun}s {of} is {verb}: do "
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
    """Returns a warning about a label of several words that the solution's column splits."""
    split = sorted(name for name in several if name in answered)
    if not split:
        return ()
    words = " ".join(several[split[0]])
    return (
        f"the solution's column separates labels by blanks, so {words!r} is "
        f"{len(several[split[0]])} labels there and {split[0]!r} is answered: name the column "
        "landmark_id, or write '_' for a blank",
    )


def _short(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
