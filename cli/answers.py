"""Answers ready to be shown: their neighbours, what was taken off, the points they share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmk.cli.match_drawing import drawing_of
from lmk.cli.render import NONE_OF_THESE, counted, page
from lmk.cli.tag_options import tags_text

if TYPE_CHECKING:
    from lmk.rerank.geometry import Match
    from lmk.rerank.given_tags import GivenTag
    from lmk.rerank.predictions import Predictions
    from lmk.rerank.recognizer import Recognizer


@dataclass(frozen=True)
class Evidence:
    """One neighbour of an answer.

    Attributes:
        id, path, labels: of the picture.
        place: among the neighbours by cosine, from 1.
        score: the cosine.
        penalty: what the penalties took off.
        score_after: what the steps left of the cosine; this votes.
        vote: what it gave to the best landmark; 0 where it did not vote for it.
        share: of all that was given to the best landmark, 0 to 1.
        score_before: what neighbourhood and rescaling made of the cosine, before penalty and gain.
        gain: what shared points added.
        inliers: points shared with the query; None where the geometric check did not look.
        match: the points that were compared, for drawing; not part of the JSON.
        sha256: of the file that the index was built from; not part of the JSON.
    """

    id: str
    path: str
    labels: tuple[str, ...]
    place: int
    score: float
    penalty: float
    score_after: float
    vote: float
    share: float
    score_before: float
    gain: float = 0.0
    inliers: int | None = None
    match: Match | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Answer:
    """One query's answer.

    Attributes:
        query: the picture's path or id.
        label: the landmark, or None for "none of these".
        best: the best landmark, even below the threshold; None where nothing has a label.
        confidence: of `best`; None where there is none.
        threshold: below it the answer is "none of these"; None where all is answered.
        neighbours: those that gave most to `best` first, then by what the steps left of the
            cosine, then by cosine.
        probability: calibrated, that `best` is right; None where nothing was calibrated.
        query_penalty: taken off the confidence, as the query is like the distractors.
        landmark_score: above 0 for a query more like the gallery than like the distractors; None
            without these.
        geometry_seconds: time that the geometric check took.
        tags: of what is none of these, where a tagger was asked.
        labelled: whether any picture of the index has a landmark.
        path: of the picture, where `query` is its id in a folder or table.
    """

    query: str
    label: str | None
    best: str | None
    confidence: float | None
    threshold: float | None
    neighbours: tuple[Evidence, ...]
    probability: float | None = None
    query_penalty: float = 0.0
    landmark_score: float | None = None
    geometry_seconds: float = 0.0
    tags: tuple[GivenTag, ...] | None = None
    labelled: bool = True
    path: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        known = {name: value for name, value in vars(self).items() if name != "labelled"}
        if self.path in ("", self.query):
            del known["path"]
        tags = None if self.tags is None else [asdict(tag) for tag in self.tags]
        neighbours = [
            {name: value for name, value in vars(near).items() if name not in ("match", "sha256")}
            for near in self.neighbours
        ]
        return known | {"neighbours": neighbours, "tags": tags}


def answers_of(predictions: Predictions, recognizer: Recognizer, k: int) -> list[Answer]:
    """Predictions with up to k neighbours each, looked up in the gallery.

    Those that voted for the answer come first, as the penalty may have brought forward what is not
    among the k nearest by cosine.
    """
    labelled = recognizer.gallery.has_labels
    return [_answer(predictions, i, recognizer, k, labelled) for i in range(len(predictions))]


def _answer(
    predictions: Predictions, i: int, recognizer: Recognizer, k: int, labelled: bool
) -> Answer:
    rows, votes, after = predictions.neighbours.rows[i], predictions.votes[i], predictions.scores[i]
    shown = sorted(
        (j for j in range(len(rows)) if rows[j] >= 0), key=lambda j: (-votes[j], -after[j], j)
    )[:k]
    confidence, threshold = float(predictions.confidence[i]), predictions.threshold
    calibrated, landmark = predictions.probability, predictions.landmark
    named = predictions.labels[i] is not None
    return Answer(
        query=predictions.query_ids[i],
        label=predictions.answers()[i],
        best=predictions.labels[i],
        confidence=confidence if named else None,
        threshold=threshold if threshold > float("-inf") else None,
        neighbours=_evidence(predictions, i, shown, recognizer),
        probability=float(calibrated[i]) if named and calibrated is not None else None,
        query_penalty=float(predictions.bank[i]),
        landmark_score=None if landmark is None else float(landmark[i]),
        geometry_seconds=float(predictions.seconds[i]),
        labelled=labelled,
    )


def _evidence(
    predictions: Predictions, i: int, shown: list[int], recognizer: Recognizer
) -> tuple[Evidence, ...]:
    """The neighbours of query i that stand at the places `shown`."""
    import numpy as np

    from lmk.rerank.geometry import fused
    from lmk.rerank.steps import GeometryStep

    gallery, rows = recognizer.gallery, predictions.neighbours.rows[i]
    given = float(predictions.votes[i].sum())
    step = recognizer.pipeline.step(GeometryStep)
    evidence = []
    for j, picture in zip(shown, gallery.pictures(rows[shown]), strict=True):
        penalty, after = float(predictions.penalty[i, j]), float(predictions.scores[i, j])
        vote, inliers = float(predictions.votes[i, j]), int(predictions.inliers[i, j])
        gain = 0.0 if step is None else float(fused(np.zeros(1), np.array([inliers]), step)[0])
        evidence.append(
            Evidence(
                id=picture.id,
                path=_shown_path(gallery.file(picture)),
                labels=picture.labels,
                place=j + 1,
                score=float(predictions.neighbours.scores[i, j]),
                penalty=penalty,
                score_after=after,
                vote=vote,
                share=vote / given if given else 0.0,
                score_before=after + penalty - gain,
                gain=gain,
                inliers=inliers if inliers >= 0 else None,
                match=predictions.matches.get((i, int(rows[j]))),
                sha256=picture.sha256,
            )
        )
    return tuple(evidence)


def _shown_path(path: Path) -> str:
    """Relative to the working directory where that is shorter to read."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def answer_lines(answer: Answer) -> list[str]:
    """An answer as text: one line, then one for each neighbour.

    A neighbour's line: place by cosine, cosine, what the steps left of it, share of the votes for
    the best landmark ("-" for none), landmark, file; then what changed the cosine, where anything
    but rescaling and the neighbourhood did.
    """
    lines = [f"{answer.query}: {_head(answer)}"]
    if answer.tags is not None:
        lines.append(f"  tags: {tags_text(answer.tags)}")
    labels = [" ".join(near.labels) or "(no landmark)" for near in answer.neighbours]
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
        some = "no picture that is near" if answer.labelled else "no picture in the index"
        return f"{NONE_OF_THESE} ({some} has a landmark)"
    notes = []
    if answer.threshold is not None:
        notes.append(f"{answer.threshold:.3f} is needed")
    if answer.query_penalty > 0:
        notes.append(f"{answer.query_penalty:.3f} was taken off for its likeness to distractors")
    if answer.probability is not None:
        notes.append(f"{100 * answer.probability:.0f} % likely right")
    if answer.label is None:
        guess = f"the best guess, {answer.best}, has confidence {answer.confidence:.3f}"
        return f"{NONE_OF_THESE}  ({'; '.join([guess, *notes])})"
    needed = f" ({'; '.join(notes)})" if notes else ""
    return f"{answer.label}  confidence {answer.confidence:.3f}{needed}"


def notes_of(near: Evidence) -> list[str]:
    """What changed a neighbour's score after rescaling, in words."""
    notes = []
    if near.penalty > 0:
        notes.append(f"penalty {near.penalty:.3f}")
    if near.inliers is not None:
        gain = f" +{near.gain:.3f}" if near.gain > 0 else ""
        notes.append(counted(near.inliers, "shared point") + gain)
    return notes


def answers_page(answers: Sequence[Answer], failed: Mapping[str, str], *, more: int = 0) -> str:
    """One self-contained HTML page with the pictures, and the points they share.

    Args:
        answers: to be shown.
        failed: pictures without an answer, and why.
        more: answers that are not shown.
    """
    shown = {"notes_of": notes_of, "drawing_of": drawing_of, "counted": counted}
    shown["tags_text"] = tags_text
    return page("query.html", answers=answers, failed=failed, more=more, **shown)
