"""Files of tags: the predictions of a tagger, and the true tags.

Both are CSV files with a header and the columns `id,tags`; other columns are ignored. In a file of
predictions, blanks separate the `tag:score` pairs of a cell, as in `cat:0.98 sofa:0.4`. In a file
of truth, blanks separate tags. An empty cell means a picture without tags. Predictions may also
have a column `given` with the assigned tags.
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
Parse = Callable[[str, str], dict[str, float]]  # called with a cell and its place in the file


@dataclass(frozen=True, eq=False)
class TagTable:
    """Scores of tags joined with the truth.

    Attributes:
        ids: the n pictures of the truth, in its order.
        names: the t tags of either file, ascending.
        scores: float64 [n, t], -inf if the predictions have no score.
        truth: bool [n, t].
        missing: pictures without a row in the predictions; all their scores are -inf.
        given: bool [n, t], the assigned tags; None without a column `given`.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    scores: NDArray[np.float64]
    truth: NDArray[np.bool_]
    missing: tuple[str, ...]
    given: NDArray[np.bool_] | None = None

    @property
    def predicted(self) -> list[str]:
        """The tags with a score for at least one picture."""
        return [self.names[tag] for tag in np.flatnonzero(np.isfinite(self.scores).any(axis=0))]

    @property
    def true(self) -> list[str]:
        """The tags that at least one picture has in the truth."""
        return [self.names[tag] for tag in np.flatnonzero(self.truth.any(axis=0))]

    def with_ancestors(self, relations: RelationGraph) -> TagTable:
        """Returns the table with the ancestors of the true tags added to the truth.

        An ancestor that is in neither file becomes a tag without scores.
        """
        ancestors = {parent for name in self.names for parent in relations.ancestors(name)}
        names = tuple(sorted(ancestors.union(self.names)))
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
        """Returns float64 [n, t]: `scores` with a number below all others instead of -inf."""
        named = np.isfinite(self.scores)
        lowest = float(self.scores[named].min()) if named.any() else 0.0
        return np.where(named, self.scores, lowest - max(1.0, abs(lowest)))

    def padded(self, k: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Returns scores and truth with k more tags that no picture has.

        The additional tags rank between the tags with and without a score. A picture with fewer
        than k scores thus has wrong tags among its k best, and never a true tag by chance.
        """
        filler = np.full((len(self.ids), k), np.finfo(np.float64).min)
        return (
            np.concatenate([self.scores, filler], axis=1),
            np.concatenate([self.truth, np.zeros_like(filler, dtype=bool)], axis=1),
        )


def read_tag_table(predictions: str | os.PathLike[str], truth: str | os.PathLike[str]) -> TagTable:
    """Returns the predictions of a file joined with the truth of another.

    Raises:
        UsageError: there is no such file.
        SubmissionError: a column is missing, an id is repeated or empty, a pair has no score, a
            score is not a finite number, a cell has a tag twice, the truth lacks a picture of the
            predictions, or there is no true tag. The message states the line and the reason.
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
    """Returns the score of each tag by picture, from a file of predictions.

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
    """Returns the line and the parsed cell of each id in a column."""
    rows_by_id: dict[str, tuple[int, dict[str, float]]] = {}
    with CsvFile(path, _COLUMNS) as rows:
        columns = rows.columns
        if not {"id", "tags"} <= set(columns):
            what = f"the header must name the columns id and tags, it says {','.join(columns)[:60]}"
            remedy = "put the names of the columns on the first line"
            raise SubmissionError(what, where=at(path, rows.line), remedy=remedy)
        missing = Counter[str]()
        for row in rows:
            cells = dict(zip(columns, row.cells, strict=True))
            id_ = parse_id(path, row.line, cells["id"])
            if id_ in rows_by_id:
                what = f"id {id_} is repeated"
                remedy = f"it stands on line {rows_by_id[id_][0]}"
                raise SubmissionError(what, where=at(path, row.line), remedy=remedy)
            if (word := cells[column].strip()) in MISSING_WORDS:
                missing[word] += 1
            rows_by_id[id_] = (row.line, parse(cells[column], at(path, row.line)))
    if missing:
        notice(path, missing_note(missing, column))
    if not rows_by_id:
        raise SubmissionError("no rows below the header", where=path)
    return rows_by_id


def _parse_scores(cell: str, where: str) -> dict[str, float]:
    """Returns {"cat": 0.98, "sofa": 0.4} for "cat:0.98 sofa:0.4"."""
    scores: dict[str, float] = {}
    if cell.strip() in MISSING_WORDS:
        return scores
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
        if tag in scores:
            raise SubmissionError(f"the tag {tag} stands twice", where=where)
        scores[tag] = score
    return scores


def _parse_tags(cell: str, where: str) -> dict[str, float]:
    """Returns {"cat": 1, "sofa": 1} for "cat sofa"."""
    tags = () if cell.strip() in MISSING_WORDS else split_labels(cell, several=True)
    if len(set(tags)) != len(tags):
        raise SubmissionError("a tag stands twice", where=where)
    return dict.fromkeys(tags, 1.0)
