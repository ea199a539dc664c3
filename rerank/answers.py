"""Answers: one query's landmark, its probability, and the neighbours that voted."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    import pandas as pd

    from lmk.embed.data.images import Skipped
    from lmk.embed.tables.landmark_details import LandmarkDetails
    from lmk.index.gallery.gallery import Gallery
    from lmk.rerank.steps.pipeline import Pipeline
    from lmk.rerank.steps.predictions import Predictions
    from lmk.rerank.steps.state import Match


# The fields that an answer shares with a prediction.
_COPIED = (
    "query", "label", "best", "confidence", "probability", "threshold", "query_penalty",
    "landmark_score",
)  # fmt: skip
_COLUMNS = (*_COPIED, "name", "nearest", "nearest_score")
_THUMBNAIL_PIXELS = 96


@dataclass(frozen=True)
class Evidence:
    """One neighbour of an answer.

    Attributes:
        id, path, labels: id, file and landmarks of the picture.
        place: rank among the neighbours by cosine, from 1.
        score: the cosine.
        penalty: the number subtracted from the score.
        score_after: the score after all steps, with which the picture votes.
        vote: the weight of its vote for the best landmark; 0 where it did not vote for it.
        share: the fraction of `vote` in all votes for the best landmark, 0 to 1.
        score_before: the score after neighbourhood and rescaling, before penalty and gain.
        gain: the number added to the score for shared points.
        inliers: number of points shared with the query; None without a geometric check.
        match: the points that were compared, for drawing; not part of the JSON.
        sha256: hash of the file that the index was built from; not part of the JSON.
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
class GivenTag:
    """A tag that a picture is given.

    Attributes:
        tag: the name of the tag.
        score: 0 to 1, the largest score of the tagger, the detector and the tags that imply it.
        source: the origin: the tagger before the detector, both before relations.
    """

    tag: str
    score: float
    source: Literal["tagger", "detector", "relation"]


@dataclass(frozen=True)
class Answer:
    """One query's answer.

    Attributes:
        query: the path or id of the picture.
        label: the landmark, or None for "none of these".
        best: the best landmark, even below the threshold; None if no neighbour has a label.
        confidence: the confidence in `best`; None without `best`.
        threshold: the confidence below which the answer is "none of these"; None without one.
        neighbours: by vote for `best`, then by score after all steps, then by cosine.
        probability: calibrated chance that `best` is right; None without a calibration.
        query_penalty: the number subtracted from the confidence for similarity to distractors.
        landmark_score: above 0 for a query more similar to the gallery than to the distractors;
            None without distractors.
        geometry_seconds: time of the geometric check.
        tags: tags of a picture of "none of these"; None without a tagger.
        labelled: whether any picture of the index has a landmark.
        path: the file of the picture, if `query` is an id in a folder or table.
        landmarks: the details of `best` and of the labels of the neighbours, as far as the index
            has some.
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
    landmarks: tuple[LandmarkDetails, ...] = ()

    @property
    def name(self) -> str | None:
        """The name of `label`: of its details, or the label itself; None for "none of these"."""
        return None if self.label is None else self.name_of(self.label)

    def name_of(self, label: str) -> str:
        """Returns the name of a label of the answer: of its details, or the label itself."""
        details = self.details_of(label)
        return label if details is None else details.name

    def details_of(self, label: str) -> LandmarkDetails | None:
        """Returns the details of a label of the answer, or None where the index has none."""
        return next((one for one in self.landmarks if one.landmark_id == label), None)

    def as_dict(self) -> dict[str, Any]:
        """Returns the answer as JSON values.

        `name` and `best_name` are the names of `label` and `best`, and `landmarks` has the details
        by label.
        """
        facts = {name: value for name, value in vars(self).items() if name != "labelled"}
        if self.path in ("", self.query):
            del facts["path"]
        tags = None if self.tags is None else [asdict(tag) for tag in self.tags]
        neighbours = [
            {name: value for name, value in vars(near).items() if name not in ("match", "sha256")}
            for near in self.neighbours
        ]
        return facts | {
            "neighbours": neighbours,
            "tags": tags,
            "name": self.name,
            "best_name": None if self.best is None else self.name_of(self.best),
            "landmarks": {one.landmark_id: one.as_dict() for one in self.landmarks},
        }


class Answers(Sequence[Answer]):
    """Answers to several pictures, in order: a sequence of Answer.

    Attributes:
        skipped: files that cannot be read, with the reasons.
    """

    def __init__(self, answers: Iterable[Answer], skipped: Iterable[Skipped] = ()) -> None:
        self._answers = tuple(answers)
        self.skipped = tuple(skipped)

    def __len__(self) -> int:
        return len(self._answers)

    @overload
    def __getitem__(self, item: int) -> Answer: ...
    @overload
    def __getitem__(self, item: slice) -> Answers: ...
    def __getitem__(self, item: int | slice) -> Answer | Answers:
        if isinstance(item, slice):
            return Answers(self._answers[item], self.skipped)
        return self._answers[item]

    def __repr__(self) -> str:
        named = sum(answer.label is not None for answer in self)
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        count = f"{len(self)} {'picture' if len(self) == 1 else 'pictures'}"
        return f"<Answers: {count}, {named} with a landmark{skipped}>"

    def to_pandas(self) -> pd.DataFrame:
        """Returns a table with a row for each answer and the nearest picture of each.

        The columns are query, label, best, confidence, probability, threshold, query_penalty,
        landmark_score, name, nearest and nearest_score.
        """
        import pandas as pd

        names = _COLUMNS[:-2]
        rows = []
        for answer in self:
            near = min(answer.neighbours, key=lambda each: each.place, default=None)
            shown = (None, None) if near is None else (near.id, near.score)
            rows.append([*(getattr(answer, name) for name in names), *shown])
        return pd.DataFrame(rows, columns=list(_COLUMNS))

    def _repr_html_(self) -> str:
        """Returns a table with thumbnails, for notebooks."""
        rows = "".join(map(_html_row, self))
        head = "<th>Picture</th><th>Landmark</th><th>Probability</th><th>Near</th>"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _html_row(answer: Answer) -> str:
    sure = "" if answer.probability is None else f"{100 * answer.probability:.0f} %"
    near = " ".join(_html_picture(each.path, each.id, each.sha256) for each in answer.neighbours)
    if answer.name is not None:
        name = escape(answer.name)
    else:
        best = None if answer.best is None else answer.name_of(answer.best)
        guess = "" if best is None else f" (best guess: {escape(best)})"
        name = f"<i>none of these</i>{guess}"
    picture = _html_picture(answer.path or answer.query, answer.query)
    return f"<tr><td>{picture}</td><td>{name}</td><td>{sure}</td><td>{near}</td></tr>"


def _html_picture(path: str, name: str, sha256: str | None = None) -> str:
    """Returns a thumbnail inside the page, or the name where the file cannot be read."""
    from lmk.embed.data.images import thumbnail

    jpeg = thumbnail(Path(path), _THUMBNAIL_PIXELS, sha256=sha256)
    if jpeg is None:
        return escape(name)
    data = base64.b64encode(jpeg).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(name)}" title="{escape(name)}">'


def answers_of(
    predictions: Predictions, gallery: Gallery, pipeline: Pipeline, k: int
) -> list[Answer]:
    """Returns an Answer with up to k neighbours for each prediction, by the gallery's catalog.

    The neighbours that voted for the answer come first, because the penalty may bring forward a
    picture that is not among the k nearest by cosine.
    """
    return [_answer(predictions, i, gallery, pipeline, k) for i in range(len(predictions))]


def _answer(
    predictions: Predictions, i: int, gallery: Gallery, pipeline: Pipeline, k: int
) -> Answer:
    one, rows = predictions[i], predictions.neighbours.rows[i]
    votes, after = predictions.votes[i], predictions.scores[i]
    shown = sorted(
        (j for j in range(len(rows)) if rows[j] >= 0), key=lambda j: (-votes[j], -after[j], j)
    )[:k]
    neighbours = _evidence(predictions, i, shown, gallery, pipeline)
    named = [label for near in neighbours for label in near.labels]
    return Answer(
        **{name: getattr(one, name) for name in _COPIED},
        neighbours=neighbours,
        geometry_seconds=float(predictions.geometry_seconds[i]),
        labelled=gallery.has_labels,
        landmarks=_details([*([] if one.best is None else [one.best]), *named], gallery),
    )


def _details(labels: Iterable[str], gallery: Gallery) -> tuple[LandmarkDetails, ...]:
    found = gallery.details_of(dict.fromkeys(labels))
    return tuple(
        details if details.landmark_id == label else replace(details, landmark_id=label)
        for label, details in found.items()
    )


def _evidence(
    predictions: Predictions, i: int, shown: list[int], gallery: Gallery, pipeline: Pipeline
) -> tuple[Evidence, ...]:
    """Returns the neighbours of query i at the places `shown`."""
    rows = predictions.neighbours.rows[i]
    given = float(predictions.votes[i].sum())
    gains = pipeline.gain(predictions.inliers[i])
    evidence = []
    for j, picture in zip(shown, gallery.pictures(rows[shown]), strict=True):
        penalty, after = float(predictions.penalty[i, j]), float(predictions.scores[i, j])
        vote, inliers = float(predictions.votes[i, j]), int(predictions.inliers[i, j])
        gain = float(gains[j])
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
    """Returns the path relative to the working directory if it lies below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative
