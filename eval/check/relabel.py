"""Tags that may be missing or wrong, for people to look at; and their verdicts put into the labels.

Candidates are, as in album tagging with noisy labels, what a trained tagger is sure of and what the
nearest other pictures have; a tag that neither sees is doubted.
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
    """A tag of a picture that somebody should look at.

    Attributes:
        row: the picture, with its own tags.
        tag: in question.
        kind: "missing": it may have it; "wrong": it has it, and may not.
        tagger: the tagger's probability; None where it does not know the tag, or there is none.
        neighbours: share of the nearest pictures that have it; None where no other picture has.
    """

    row: Row
    tag: str
    kind: Kind
    tagger: float | None
    neighbours: float | None

    @property
    def evidence(self) -> float:
        """How much speaks for looking at it: the mean of what judges the tag, or 1 minus it.

        Not the surer one: neighbours of a strange picture all have what it only looks like.
        """
        judged = [value for value in (self.tagger, self.neighbours) if value is not None]
        seen = sum(judged) / max(len(judged), 1)
        return seen if self.kind == "missing" else 1 - seen


def neighbour_tags(
    embeddings: Embeddings, labels: Sequence[tuple[str, ...]], content: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """What the nearest other pictures of the same set have (tag_votes).

    Args:
        embeddings: of n pictures.
        labels: of each, its tags.
        content: of each, a digest of its file: copies of a picture do not vote for it.

    Returns:
        The t tags, ascending, and float32 [n, t]; NaN for a tag of which there is one picture,
        or copies of one: no other can vote for it.
    """
    facts = PipelineContext.of_labels(labels)
    same = defaultdict(list)
    for row, digest in enumerate(content):
        same[digest].append(row)
    k = min(VOTERS + max(map(len, same.values())), len(embeddings))
    found = FlatSearcher.of_embeddings(embeddings).search(embeddings, k)
    others = leave_out(found, [np.array(same[digest], np.int64) for digest in content], VOTERS)
    tags = len(facts.label_names)
    votes = tag_votes(others.rows, others.scores, facts.label_offsets, facts.label_codes, tags)
    pairs = {(name, digest) for own, digest in zip(labels, content, strict=True) for name in own}
    pictures = Counter(name for name, _ in pairs)
    votes[:, [pictures[name] < 2 for name in facts.label_names]] = np.nan
    return facts.label_names, votes


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
    """The tags to look at: a missing and a wrong one in turn, those with most evidence first.

    Of equal evidence the smaller id comes first, then the smaller tag.

    Missing may be what is among the tagger's `top` tags with a probability above `above`, and what
    more than that share of the neighbours have. Wrong may be a tag of which the neighbours' share
    and the tagger's probability are both below `doubt`; what nobody can judge is not doubted: a
    tag of a single picture by neighbours, one that the tagger does not know by the tagger.

    Args:
        rows: n pictures with their tags.
        names, votes: of neighbour_tags, of the same pictures; NaN where nobody can judge.
        tagger_names, probabilities: of a trained tagger, float32 [n, its tags].

    Raises:
        ValueError: shapes do not fit.
    """
    if votes.shape != (len(rows), len(names)):
        raise ValueError(f"{len(rows)} pictures, {len(names)} tags, votes {votes.shape}")
    every = sorted({*names, *tagger_names})
    own = np.array([[name in row.labels for name in every] for row in rows], np.bool_)
    by_votes = _columns(every, names, votes, len(rows))
    by_tagger = np.full(by_votes.shape, np.nan, np.float32)
    sure = np.zeros_like(own)
    if probabilities is not None:
        by_tagger = _columns(every, tagger_names, probabilities, len(rows))
        known = np.nan_to_num(by_tagger, nan=-1.0)
        sure = pseudo_labels(known, np.zeros_like(own), top=top, above=above)
    missing = ~own & (sure | (np.nan_to_num(by_votes) > above))
    judged = np.isfinite(by_votes) | np.isfinite(by_tagger)
    unseen = (np.nan_to_num(by_votes) < doubt) & (np.nan_to_num(by_tagger) < doubt)
    kinds: tuple[tuple[Kind, NDArray[np.bool_]], ...] = (
        ("missing", missing), ("wrong", own & judged & unseen),
    )  # fmt: skip
    by_kind = []
    for kind, which in kinds:
        found = [
            Candidate(rows[i], every[t], kind, _number(by_tagger[i, t]), _number(by_votes[i, t]))
            for i, t in np.argwhere(which).tolist()
        ]
        by_kind.append(sorted(found, key=lambda one: (-one.evidence, one.row.id, one.tag)))
    return [one for both in zip_longest(*by_kind) for one in both if one is not None]


def _columns(
    every: Sequence[str], names: Sequence[str], values: NDArray[np.float32], n: int
) -> NDArray[np.float32]:
    """Columns in the order of `every`, NaN where there is none: float32 [n, len(every)]."""
    result = np.full((n, len(every)), np.nan, np.float32)
    place = {name: i for i, name in enumerate(every)}
    result[:, [place[name] for name in names]] = values
    return result


def _number(value: np.float32) -> float | None:
    return float(value) if np.isfinite(value) else None


def candidates_csv(candidates: Sequence[Candidate]) -> str:
    """A line a candidate with an empty verdict, for `read_verdicts`."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for one in candidates:
        numbers = ["" if n is None else f"{n:.3f}" for n in (one.tagger, one.neighbours)]
        rows.writerow([one.row.id, one.row.path, one.tag, one.kind, *numbers, ""])
    return text.getvalue()


def read_verdicts(path: Path) -> dict[str, dict[str, bool]]:
    """Verdicts by picture and tag, from a CSV with the columns id, tag and verdict.

    A verdict is yes or no (y, n, 1, 0), in any case; where it is empty nothing was decided.

    Raises:
        UsageError: no such file, no such columns; with the line: another verdict, an empty tag or
            one with a blank, two verdicts that differ.
    """
    found: dict[str, dict[str, bool]] = {}
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
                raise UsageError(f"the verdict {word[:40]!r}", where=where, remedy=remedy)
            if not tag:
                remedy = "name the tag that the verdict is about"
                raise UsageError("the tag is empty", where=where, remedy=remedy)
            if found.setdefault(id_, {}).setdefault(tag, verdict) != verdict:
                raise UsageError(f"both yes and no to {tag} of {id_}", where=where,
                                 remedy="keep one of the lines")  # fmt: skip
    return found


@dataclass(frozen=True)
class Merged:
    """Labels with verdicts in them.

    Attributes:
        table: as it was.
        text: the table as CSV, all its columns kept.
        added, removed: how often each tag was.
        new: tags that no picture had before.
    """

    table: LabelTable
    text: str
    added: Counter[str]
    removed: Counter[str]
    new: tuple[str, ...]


def merge_verdicts(table: Path, verdicts: Mapping[str, Mapping[str, bool]]) -> Merged:
    """The labels of a CSV with the verdicts in them; tags that stay keep their order.

    Raises:
        ManifestError: the table cannot be read, or has no column of ids or labels.
        UsageError: a verdict on a picture that the table does not have.
    """
    rows = LabelTable(table)
    if rows.column is None:
        raise ManifestError(
            "verdicts are put into a CSV with the columns id and tags",
            where=table,
            remedy="name the table that the candidates came from",
        )
    unknown = sorted(set(verdicts) - set(rows.labels))
    if unknown:
        raise UsageError(
            f"{len(unknown)} pictures with verdicts are not in it (the first is {unknown[0]})",
            where=table,
            remedy="name the table that the candidates came from",
        )
    before = {tag for own in rows.labels.values() for tag in own}
    added: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    changed: dict[str, tuple[str, ...]] = {}
    for id_, decided in verdicts.items():
        own = rows.labels[id_]
        kept = [tag for tag in own if decided.get(tag, True)]
        more = [tag for tag, yes in decided.items() if yes and tag not in own]
        removed.update(set(own) - set(kept))
        added.update(more)
        changed[id_] = (*kept, *more)
    return Merged(
        rows, rows.with_labels(changed), added, removed, tuple(sorted(set(added) - before))
    )
