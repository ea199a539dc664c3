"""Answers to any number of pictures, computed in blocks and yielded in order."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmk.cli.answer.answers import shown_label
from lmk.cli.landmark_names import shown_names
from lmk.cli.render import NONE_OF_THESE
from lmk.embed.progress import Count, no_count
from lmk.rerank.answers import Answer

if TYPE_CHECKING:
    from lmk.index.gallery.gallery import Gallery
    from lmk.rerank.recognizer import Recognizer
    from lmk.rerank.tags.taggers import Tagger

_NAMES_READ = 10_000  # maximum number of names that determine the width of a column
_WIDEST = 60  # maximum width of a column in characters
_COLUMNS = (
    "query", "path", "landmark", "confidence", "probability", "best", "threshold",
    "query_penalty", "landmark_score", "neighbour", "neighbour_landmark", "similarity", "error",
    "landmark_name",
)  # fmt: skip


@dataclass(frozen=True)
class Failed:
    """A picture without an answer, and the reason."""

    query: str
    path: str
    reason: str


def answered(
    recognizer: Recognizer,
    files: Sequence[tuple[str, Path]],
    k: int,
    missing: Mapping[str, str],
    tagged: Callable[[list[Answer]], list[Answer]],
    on_progress: Count = no_count,
) -> Iterator[Answer | Failed]:
    """Yields an answer or a failure for each picture; memory holds one block of pictures.

    Args:
        recognizer: the open index.
        files: the name and the file of each picture.
        k: the number of neighbours of each answer.
        missing: the reason for each picture that does not exist, by name.
        tagged: adds tags to a block of answers.
        on_progress: called with the number of finished pictures.
    """
    from lmk.embed.data.manifest import Manifest, Row
    from lmk.embed.embeddings import Embeddings

    existing = [place for place, (name, _) in enumerate(files) if name not in missing]
    rows = tuple(Row(str(place), _below_root(files[place][1])) for place in existing)
    places = {row.path: int(row.id) for row in rows}
    waiting: dict[int, Answer | Failed] = {
        place: Failed(name, str(path), missing[name])
        for place, (name, path) in enumerate(files)
        if name in missing
    }
    searched, yielded = max(k, 1), 0
    for embeddings, skipped in recognizer.embed_stream(
        Manifest(Path("/"), rows), on_progress=on_progress
    ):
        own = [files[int(number)] for number in embeddings.ids]
        queries = Embeddings(
            embeddings.vectors, tuple(name for name, _ in own), embeddings.fingerprint
        )
        features = recognizer.features_of([path for _, path in own])
        predictions = recognizer.predict(queries, k=searched, features=features)
        answers = [
            replace(answer, path=str(path))
            for answer, (_, path) in zip(
                recognizer.answers_of(predictions, searched), own, strict=True
            )
        ]
        numbers = map(int, embeddings.ids)
        waiting.update(dict(zip(numbers, tagged(answers), strict=True)))
        for skip in skipped:
            name, path = files[places[skip.path]]
            waiting[places[skip.path]] = Failed(name, str(path), skip.reason)
        while yielded in waiting:
            yield waiting.pop(yielded)
            yielded += 1
    yield from (waiting[place] for place in sorted(waiting))


def _below_root(file: Path) -> str:
    """Returns the path of a file for a manifest: relative to "/" and without ".."."""
    folder = os.path.realpath(file.parent)
    return os.path.join(folder, file.name).lstrip("/")  # noqa: PTH118


@contextmanager
def tags_of_none(
    recognizer: Recognizer, named: Path | None
) -> Iterator[Callable[[list[Answer]], list[Answer]]]:
    """Yields a function that adds tags to the answers "none of these", if a tagger exists.

    Args:
        recognizer: the open index, which may have a tagger.
        named: the folder of another tagger; None for the tagger of the index.
    """
    from lmk.rerank.tags.taggers import HeadTagger, open_tagger

    if named is not None:
        with open_tagger(named) as opened:
            yield lambda answers: _with_tags(answers, opened)
        return
    own = HeadTagger.of_index(recognizer)
    yield lambda answers: answers if own is None else _with_tags(answers, own)


def _with_tags(answers: list[Answer], tagger: Tagger) -> list[Answer]:
    from lmk.rerank.tags.assign import assign_tags
    from lmk.rerank.tags.taggers import tag_files

    unnamed = [(answer.query, Path(answer.path)) for answer in answers if answer.label is None]
    rules = tagger.thresholds
    tags = {
        id_: given
        for batch in tag_files(tagger, unnamed, tiles=rules.tiles)
        for id_, given in zip(
            batch.ids, assign_tags(batch.scores, tagger.names, rules), strict=True
        )
    }
    return [replace(answer, tags=tags.get(answer.query)) for answer in answers]


def table_names(gallery: Gallery) -> list[str]:
    """Returns the landmarks of an index in the form of a table, at most _NAMES_READ."""
    labels = gallery.label_names[:_NAMES_READ]
    return shown_names(labels, gallery.details_of(labels))


class Table:
    """A table of answers, with column widths that do not depend on the answers.

    Args:
        names: the names of all pictures.
        landmarks: the result of `table_names` for the index.
        calibrated: whether the answers have probabilities.
    """

    def __init__(self, names: Sequence[str], landmarks: Sequence[str], calibrated: bool) -> None:
        self._calibrated = calibrated
        self._name = min(max(map(len, (*names, "picture"))), _WIDEST)
        self._landmark = min(max(map(len, (*landmarks, NONE_OF_THESE))), _WIDEST)

    @property
    def head(self) -> str:
        """The line with the names of the columns."""
        return self._line("picture", "landmark", "confidence", "probability")

    def line(self, answer: Answer) -> str:
        """Returns the line of an answer."""
        confidence = "" if answer.confidence is None else f"{answer.confidence:.3f}"
        probability = "" if answer.probability is None else f"{100 * answer.probability:.0f} %"
        landmark = NONE_OF_THESE if answer.label is None else shown_label(answer, answer.label)
        return self._line(answer.query, landmark, confidence, probability)

    def _line(self, name: str, landmark: str, confidence: str, probability: str) -> str:
        line = f"{name:{self._name}}  {landmark:{self._landmark}}  {confidence:>10}"
        return f"{line}  {probability:>11}" if self._calibrated else line


def csv_head() -> str:
    """Returns the header of a CSV file of answers."""
    return _csv_line(_COLUMNS)


def csv_line(one: Answer | Failed) -> str:
    """Returns the row of an answer or a failure; an empty landmark means "none of these"."""
    if isinstance(one, Failed):
        blank = [""] * (len(_COLUMNS) - 4)
        return _csv_line([one.query, one.path, *blank, one.reason, ""])
    nearest = min(one.neighbours, key=lambda near: near.place, default=None)
    near = ["", "", ""]
    if nearest is not None:
        near = [nearest.id, " ".join(nearest.labels), _number(nearest.score)]
    return _csv_line(
        [
            one.query,
            one.path,
            one.label or "",
            _number(one.confidence),
            _number(one.probability),
            one.best or "",
            _number(one.threshold),
            _number(one.query_penalty),
            _number(one.landmark_score),
            *near,
            "",
            one.name or "",
        ]
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
