"""Files of tags: what a tagger says of each picture, and what is true.

Both are CSV with a header and the columns `id,tags` (others are skipped). In a file of predictions
a cell holds `tag:score` pairs apart by blanks, as in `cat:0.98 sofa:0.4`; in a file of truth it
holds tags apart by blanks. An empty cell is a picture without any. Predictions may have a column
`given` too, with the tags that were decided on.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import SubmissionError
from lmk.embed.notices import notice
from lmk.embed.tables.csv_file import CsvFile, parse_id
from lmk.embed.tables.label_text import MISSING_WORDS, missing_note, nfc, split_labels
from lmk.embed.tables.text_lines import at
from lmk.embed.tags.hierarchy import RelationGraph
from lmk.eval.files.query_ids import unknown_id
from lmk.rerank.tags.thresholds import close_given

_COLUMNS = ("id", "tags", "given")
Parse = Callable[[str, str], dict[str, float]]  # of a cell, and where it stands


@dataclass(frozen=True, eq=False)
class TagTable:
    """Scores of tags beside the truth.

    Attributes:
        ids: the n pictures of the truth, in its order.
        names: the t tags of either file, ascending.
        scores: float64 [n, t], -inf where the prediction does not name the tag.
        truth: bool [n, t].
        missing: pictures that the predictions do not name; all their scores are -inf.
        given: bool [n, t], the tags that the predictions decided on; None where they do not say.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    scores: NDArray[np.float64]
    truth: NDArray[np.bool_]
    missing: tuple[str, ...]
    given: NDArray[np.bool_] | None = None

    @property
    def predicted(self) -> list[str]:
        """The tags that a prediction names."""
        return [self.names[tag] for tag in np.flatnonzero(np.isfinite(self.scores).any(axis=0))]

    @property
    def true(self) -> list[str]:
        """The tags that a picture has."""
        return [self.names[tag] for tag in np.flatnonzero(self.truth.any(axis=0))]

    def with_ancestors(self, relations: RelationGraph) -> TagTable:
        """The same scores beside a truth with all that follows from its tags.

        A tag that stands in neither file and follows from a true one becomes a tag that is not
        named.
        """
        more = {parent for name in self.names for parent in relations.ancestors(name)}
        names = tuple(sorted(more.union(self.names)))
        place = [names.index(name) for name in self.names]
        shape = (len(self.ids), len(names))
        scores, truth = np.full(shape, -np.inf), np.zeros(shape, np.bool_)
        scores[:, place], truth[:, place] = self.scores, self.truth
        given = None
        if self.given is not None:
            given = np.zeros(shape, np.bool_)
            given[:, place] = self.given
        truth = close_given(truth, names, relations)
        return TagTable(self.ids, names, scores, truth, self.missing, given)

    def finite_scores(self) -> NDArray[np.float64]:
        """float64 [n, t]: `scores` with a number below all others where a tag is not named."""
        named = np.isfinite(self.scores)
        lowest = float(self.scores[named].min()) if named.any() else 0.0
        return np.where(named, self.scores, lowest - max(1.0, abs(lowest)))

    def padded(self, k: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Scores and truth with k tags more that no picture has.

        They stand between the named and the unnamed tags, so that the k best tags of a picture that
        names fewer are filled up with wrong ones and never with lucky ones.
        """
        filler = np.full((len(self.ids), k), np.finfo(np.float64).min)
        return (
            np.concatenate([self.scores, filler], axis=1),
            np.concatenate([self.truth, np.zeros_like(filler, dtype=bool)], axis=1),
        )


def read_tag_table(predictions: str | os.PathLike[str], truth: str | os.PathLike[str]) -> TagTable:
    """Reads both files and lays them beside each other.

    Raises:
        UsageError: no such file.
        SubmissionError: with line and reason: a missing column, a repeated or empty id, a pair
            without a score, a score that is no finite number, a tag twice in a cell, a prediction
            for a picture that the truth does not have, no true tag at all.
    """
    wanted = _read(truth, "tags", _parse_tags)
    if not any(tags for _, tags in wanted.values()):
        raise SubmissionError("no picture has a tag", where=truth, remedy="is it the right file?")
    given = _read(predictions, "tags", _parse_scores)
    decided = _read(predictions, "given", _parse_tags) if _has_given(predictions) else None
    for id_, (line, _) in given.items():
        if id_ not in wanted:
            where = at(predictions, line)
            raise unknown_id(id_, wanted, where=where, source=truth, noun="picture")
    cells = (*wanted.values(), *given.values(), *(decided or {}).values())
    names = sorted({tag for _, tags in cells for tag in tags})
    column = {name: place for place, name in enumerate(names)}
    scores = np.full((len(wanted), len(names)), -np.inf)
    true = np.zeros(scores.shape, dtype=bool)
    yes = None if decided is None else np.zeros_like(true)
    for place, (id_, (_, tags)) in enumerate(wanted.items()):
        true[place, [column[tag] for tag in tags]] = True
        for tag, score in given.get(id_, (0, {}))[1].items():
            scores[place, column[tag]] = score
        if yes is not None and decided is not None:
            yes[place, [column[tag] for tag in decided.get(id_, (0, {}))[1]]] = True
    missing = tuple(id_ for id_ in wanted if id_ not in given)
    return TagTable(tuple(wanted), tuple(names), scores, true, missing, yes)


def read_predictions(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """The score of each tag by picture, of a file of predictions.

    Raises:
        UsageError, SubmissionError: see read_tag_table.
    """
    return {id_: scores for id_, (_, scores) in _read(path, "tags", _parse_scores).items()}


def _has_given(path: str | os.PathLike[str]) -> bool:
    with CsvFile(path, _COLUMNS) as rows:
        return "given" in rows.columns


def _read(
    path: str | os.PathLike[str], column: str, parse: Parse
) -> dict[str, tuple[int, dict[str, float]]]:
    """For each id its line and its cell in a column as `parse` reads it."""
    found: dict[str, tuple[int, dict[str, float]]] = {}
    with CsvFile(path, _COLUMNS) as rows:
        columns = rows.columns
        if not {"id", "tags"} <= set(columns):
            raise SubmissionError(
                f"the header must name the columns id and tags, it says {','.join(columns)[:60]}",
                where=at(path, rows.line),
                remedy="put the names of the columns on the first line",
            )
        missing = Counter[str]()
        for row in rows:
            cells = dict(zip(columns, row.cells, strict=True))
            id_ = parse_id(path, row.line, cells["id"])
            if id_ in found:
                raise SubmissionError(
                    f"id {id_} is repeated",
                    where=at(path, row.line),
                    remedy=f"it stands on line {found[id_][0]}",
                )
            if (word := cells[column].strip()) in MISSING_WORDS:
                missing[word] += 1
            found[id_] = (row.line, parse(cells[column], at(path, row.line)))
    if missing:
        notice(path, missing_note(missing, column))
    if not found:
        raise SubmissionError("no rows below the header", where=path)
    return found


def _parse_scores(cell: str, where: str) -> dict[str, float]:
    """ "cat:0.98 sofa:0.4" -> {"cat": 0.98, "sofa": 0.4}."""
    found: dict[str, float] = {}
    if cell.strip() in MISSING_WORDS:
        return found
    for pair in nfc(cell).split():
        tag, colon, number = pair.rpartition(":")
        if not tag or not colon:
            raise SubmissionError(
                f"{pair[:60]!r} must be a tag and its score", where=where, remedy="as in cat:0.98"
            )
        try:
            score = float(number) if number.isascii() and "_" not in number else math.nan
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise SubmissionError(f"score {number[:60]!r} is no finite number", where=where)
        if tag in found:
            raise SubmissionError(f"the tag {tag} stands twice", where=where)
        found[tag] = score
    return found


def _parse_tags(cell: str, where: str) -> dict[str, float]:
    """ "cat sofa" -> {"cat": 1, "sofa": 1}."""
    tags = () if cell.strip() in MISSING_WORDS else split_labels(cell, several=True)
    if len(set(tags)) != len(tags):
        raise SubmissionError("a tag stands twice", where=where)
    return dict.fromkeys(tags, 1.0)
