"""Tags that may be missing or wrong, and the verdicts of people about these tags.

A tag may be missing if a trained tagger gives it a high probability, or if the nearest other
pictures have it. A tag may be wrong if neither the tagger nor the neighbours support it.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.label_table import LabelTable
from lmk.embed.data.manifest import Row
from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import ManifestError, UsageError
from lmk.embed.tables.csv_file import CsvFile
from lmk.embed.tables.label_text import plain_name
from lmk.embed.tables.text_lines import at
from lmk.embed.tags.cooccurrence import pseudo_labels
from lmk.index.exact.flat import FlatSearcher
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.state import leave_out
from lmk.rerank.tags.votes import VOTERS, tag_votes

Kind = Literal["missing", "wrong"]
COLUMNS = ("id", "path", "tag", "kind", "tagger", "neighbours", "verdict")
_VERDICTS = {"yes": True, "y": True, "1": True, "no": False, "n": False, "0": False}


@dataclass(frozen=True)
class Candidate:
    """A tag of a picture that a person should confirm or reject.

    Attributes:
        row: the picture with its tags.
        tag: the tag.
        kind: "missing" for a tag that the picture may lack, "wrong" for one that it has.
        tagger: the tagger's probability; None without a tagger or if the tagger lacks the tag.
        neighbours: the proportion of the nearest pictures with the tag; None if no other picture
            has it.
    """

    row: Row
    tag: str
    kind: Kind
    tagger: float | None
    neighbours: float | None

    @property
    def evidence(self) -> float:
        """The mean of tagger and neighbours for a missing tag; 1 minus this mean for a wrong one.

        The maximum would be worse: all neighbours of an unusual picture may share one wrong tag.
        """
        values = [value for value in (self.tagger, self.neighbours) if value is not None]
        support = sum(values) / max(len(values), 1)
        return support if self.kind == "missing" else 1 - support


def neighbour_tags(
    embeddings: Embeddings, labels: Sequence[tuple[str, ...]], content: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Returns the tags of the nearest other pictures of the same set (tag_votes).

    Args:
        embeddings: the embeddings of n pictures.
        labels: the tags of each picture.
        content: a digest of each file; copies of a picture do not vote for it.

    Returns:
        The t tags in ascending order, and the votes as float32 [n, t]. A tag of a single picture
        (or of copies of one) has NaN, since no other picture can vote for it.
    """
    context = PipelineContext.of_labels(labels)
    same = defaultdict(list)
    for row, digest in enumerate(content):
        same[digest].append(row)
    k = min(VOTERS + max(map(len, same.values())), len(embeddings))
    nearest = FlatSearcher.of_embeddings(embeddings).search(embeddings, k)
    others = leave_out(nearest, [np.array(same[digest], np.int64) for digest in content], VOTERS)
    tags = len(context.label_names)
    votes = tag_votes(others.rows, others.scores, context.label_offsets, context.label_codes, tags)
    pairs = {(name, digest) for own, digest in zip(labels, content, strict=True) for name in own}
    pictures = Counter(name for name, _ in pairs)
    votes[:, [pictures[name] < 2 for name in context.label_names]] = np.nan
    return context.label_names, votes


def relabel_candidates(
    rows: Sequence[Row],
    names: Sequence[str],
    votes: NDArray[np.float32],
    tagger_names: Sequence[str] = (),
    probabilities: NDArray[np.float32] | None = None,
    *,
    top: int = 5,
    above: float = 0.5,
    doubt: float = 0.05,
) -> list[Candidate]:
    """Returns the candidates, a missing and a wrong tag in turn, by descending evidence.

    Ties are ordered by id, then by tag.

    A tag may be missing if it is among the tagger's `top` tags with a probability above `above`, or
    if more than the proportion `above` of the neighbours have it. A tag may be wrong if the
    neighbours' proportion and the tagger's probability are both below `doubt`. A tag of a single
    picture has no vote of neighbours, and a tag that the tagger lacks has no probability. A tag
    with neither is not a candidate.

    Args:
        rows: n pictures with their tags.
        names, votes: the result of neighbour_tags for the same pictures.
        tagger_names, probabilities: tags and float32 [n, tags] of a trained tagger.
        top, above, doubt: see above.

    Raises:
        ValueError: the shapes do not match.
    """
    if votes.shape != (len(rows), len(names)):
        raise ValueError(f"{len(rows)} pictures, {len(names)} tags, votes {votes.shape}")
    every = sorted({*names, *tagger_names})
    own = np.array([[name in row.labels for name in every] for row in rows], np.bool_)
    by_votes = _columns(every, names, votes, len(rows))
    by_tagger = np.full(by_votes.shape, np.nan, np.float32)
    likely = np.zeros_like(own)
    if probabilities is not None:
        by_tagger = _columns(every, tagger_names, probabilities, len(rows))
        filled = np.nan_to_num(by_tagger, nan=-1.0)
        likely = pseudo_labels(filled, np.zeros_like(own), top=top, above=above)
    missing = ~own & (likely | (np.nan_to_num(by_votes) > above))
    judged = np.isfinite(by_votes) | np.isfinite(by_tagger)
    unseen = (np.nan_to_num(by_votes) < doubt) & (np.nan_to_num(by_tagger) < doubt)
    kinds: tuple[tuple[Kind, NDArray[np.bool_]], ...] = (
        ("missing", missing), ("wrong", own & judged & unseen),
    )  # fmt: skip
    by_kind = []
    for kind, which in kinds:
        candidates = [
            Candidate(rows[i], every[t], kind, _number(by_tagger[i, t]), _number(by_votes[i, t]))
            for i, t in np.argwhere(which).tolist()
        ]
        by_kind.append(sorted(candidates, key=lambda one: (-one.evidence, one.row.id, one.tag)))
    return [one for both in zip_longest(*by_kind) for one in both if one is not None]


def _columns(
    every: Sequence[str], names: Sequence[str], values: NDArray[np.float32], n: int
) -> NDArray[np.float32]:
    """Returns float32 [n, len(every)]: columns in the order of `every`, NaN for missing ones."""
    result = np.full((n, len(every)), np.nan, np.float32)
    place = {name: i for i, name in enumerate(every)}
    result[:, [place[name] for name in names]] = values
    return result


def _number(value: np.float32) -> float | None:
    return float(value) if np.isfinite(value) else None


def candidates_csv(candidates: Sequence[Candidate]) -> str:
    """Returns a CSV with a row for each candidate and empty verdicts, for `read_verdicts`."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for one in candidates:
        numbers = ["" if n is None else f"{n:.3f}" for n in (one.tagger, one.neighbours)]
        rows.writerow([one.row.id, one.row.path, one.tag, one.kind, *numbers, ""])
    return text.getvalue()


def read_verdicts(path: Path) -> dict[str, dict[str, bool]]:
    """Returns verdicts by picture and tag, from a CSV with the columns id, tag and verdict.

    A verdict is yes or no (y, n, 1, 0), in any case. An empty verdict decides nothing.

    Raises:
        UsageError: the file or a column does not exist, a verdict is another word, a tag is empty,
            or two verdicts contradict each other. The message has the line.
    """
    verdicts: dict[str, dict[str, bool]] = {}
    columns = ("id", "tag", "verdict")
    with CsvFile(path, columns, error=UsageError, pad=True) as rows:
        rows.require(*columns)
        places = [rows.columns.index(name) for name in columns]
        for row in rows:
            where = at(path, row.line)
            word = row.cells[places[2]].strip()
            id_, tag = (plain_name(row.cells[place]) for place in places[:2])
            if not word:
                continue
            verdict = _VERDICTS.get(word.lower())
            if verdict is None:
                remedy = "write yes or no, or leave it empty"
                raise UsageError(f"unknown verdict {word[:40]!r}", where=where, remedy=remedy)
            if not tag:
                remedy = "write the tag of the verdict"
                raise UsageError("the tag is empty", where=where, remedy=remedy)
            if verdicts.setdefault(id_, {}).setdefault(tag, verdict) != verdict:
                raise UsageError(f"both yes and no to {tag} of {id_}", where=where,
                                 remedy="remove one of the lines")  # fmt: skip
    return verdicts


@dataclass(frozen=True)
class Merged:
    """A table of labels after the verdicts were applied.

    Attributes:
        table: the table before.
        text: the new table as CSV, with all its columns.
        added, removed: the number of pictures that gained or lost each tag.
        new: tags that no picture had before.
    """

    table: LabelTable
    text: str
    added: Counter[str]
    removed: Counter[str]
    new: tuple[str, ...]


def merge_verdicts(table: Path, verdicts: Mapping[str, Mapping[str, bool]]) -> Merged:
    """Returns the labels of a CSV with the verdicts applied; other tags stay in their order.

    Raises:
        ManifestError: the table cannot be read, or has no column of ids or labels.
        UsageError: the table lacks a picture with a verdict.
    """
    rows = LabelTable(table)
    if rows.column is None:
        what = "verdicts need a CSV with the columns id and tags"
        remedy = "give the table that the candidates came from"
        raise ManifestError(what, where=table, remedy=remedy)
    unknown = sorted(set(verdicts) - set(rows.labels))
    if unknown:
        what = f"{len(unknown)} pictures with verdicts are not in it (the first is {unknown[0]})"
        remedy = "give the table that the candidates came from"
        raise UsageError(what, where=table, remedy=remedy)
    before = {tag for own in rows.labels.values() for tag in own}
    added: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    changed: dict[str, tuple[str, ...]] = {}
    for id_, decided in verdicts.items():
        own = rows.labels[id_]
        confirmed = [tag for tag in own if decided.get(tag, True)]
        missing = [tag for tag, yes in decided.items() if yes and tag not in own]
        removed.update(set(own) - set(confirmed))
        added.update(missing)
        changed[id_] = (*confirmed, *missing)
    return Merged(
        rows, rows.with_labels(changed), added, removed, tuple(sorted(set(added) - before))
    )
