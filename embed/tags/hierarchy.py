"""RelationGraph: implications between tags, such as "forest" implies "tree"."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.manifest_table import is_table
from lmk.embed.errors import UsageError
from lmk.embed.tables.csv_file import CsvFile
from lmk.embed.tables.label_text import nfc, plain_name

_BLANKS = re.compile(r"\s+")
HIERARCHY = ("category_index", "category_id", "index_of_parent", "name")  # Tencent ML-Images
HIERARCHY_SUFFIXES = (".txt", ".tsv")
_PAIR = ("child", "parent")
_KEYS = {"index": 0, "id": 1, "name": 3}
_NO_PARENT = "-1"


class RelationGraph:
    """Child => parent relations between tags, without cycles.

    Args:
        parents: the direct parents of each tag. A tag without parents may be left out.

    Raises:
        ValueError: the relations have a cycle, or a name is empty or has a blank.
    """

    def __init__(self, parents: Mapping[str, Iterable[str]]) -> None:
        self.parents = {
            nfc(tag): tuple(dict.fromkeys(map(nfc, own))) for tag, own in parents.items()
        }
        for tag in self.tags:
            if not tag or _BLANKS.search(tag):
                raise ValueError(f"the tag {tag!r} is empty or holds a blank")
        try:
            order = tuple(TopologicalSorter(self.parents).static_order())  # parents first
        except CycleError as error:
            # graphlib lists each tag before the tags that it is a parent of.
            raise ValueError(f"a cycle: {' => '.join(reversed(error.args[1]))}") from None
        self._ancestors: dict[str, tuple[str, ...]] = {}
        for tag in order:
            own = self.parents.get(tag, ())
            further = (older for parent in own for older in self._ancestors[parent])
            self._ancestors[tag] = tuple(dict.fromkeys((*own, *further)))

    @cached_property
    def tags(self) -> frozenset[str]:
        """All tags of the graph."""
        return frozenset(self.parents).union(*self.parents.values())

    def ancestors(self, tag: str) -> tuple[str, ...]:
        """Returns the ancestors of a tag, its parents first; none for an unknown tag."""
        return self._ancestors.get(tag, ())

    def related(self, one: str, other: str) -> bool:
        """True if the tags are the same, or one is an ancestor of the other."""
        return one == other or other in self.ancestors(one) or one in self.ancestors(other)

    def close(self, tags: Iterable[str]) -> tuple[str, ...]:
        """Returns the tags in order, then their ancestors, without repetition."""
        given = tuple(dict.fromkeys(tags))
        return tuple(dict.fromkeys((*given, *(a for tag in given for a in self.ancestors(tag)))))

    def close_scores(
        self, scores: NDArray[np.floating], names: Sequence[str]
    ) -> NDArray[np.floating]:
        """Returns the maximum of each tag's score and those of its descendants.

        Args:
            scores: float [n, t], not changed.
            names: the names of the t tags. A tag outside the graph keeps its score. A tag of the
                graph without a column passes on the scores of its descendants.

        Returns:
            float [n, t] of the same dtype.

        Raises:
            ValueError: the shapes do not fit.
        """
        if scores.ndim != 2 or scores.shape[1] != len(names):
            raise ValueError(f"got {len(names)} names for scores of shape {scores.shape}")
        column = {name: i for i, name in enumerate(names)}
        result = scores.copy()
        for name, own in column.items():
            for ancestor in self.ancestors(name):
                place = column.get(ancestor)
                if place is not None:
                    np.maximum(result[:, place], scores[:, own], out=result[:, place])
        return result


def read_relations(path: Path, *, by: Literal["name", "id", "index"] = "name") -> RelationGraph:
    """Returns the relations in a file; a blank within a name becomes "_".

    Args:
        path: a CSV with the columns child and parent; a JSON or YAML file of one object, a parent
            or a list of parents by child; or the hierarchy file of Tencent ML-Images (.txt or .tsv:
            category_index, category_id, index_of_parent (-1 for none), name, apart by tabs).
        by: the column with the names of the tags in a hierarchy file.

    Raises:
        UsageError: the file does not exist or has another form, the relations have a cycle, or two
            categories have the same name.
    """
    kind = path.suffix.lower()
    try:
        if kind in (".json", ".yaml", ".yml"):
            return _graph(_object_edges(path))
        if kind in HIERARCHY_SUFFIXES and not _has_pairs(path):
            return _graph(_hierarchy_edges(path, by))
        if kind not in HIERARCHY_SUFFIXES and not is_table(path):
            raise ValueError("relations are .csv, .json, .yaml, .txt or .tsv")
        return _graph(_csv_edges(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        what = f"cannot be read as relations: {' '.join(str(reason).split())}"
        remedy = "see docs/tags.md for the forms"
        raise UsageError(what, where=path, remedy=remedy) from None


Edges = Iterable[tuple[str, str | None]]


def _graph(edges: Edges) -> RelationGraph:
    parents: dict[str, list[str]] = {}
    for child, parent in edges:
        own = parents.setdefault(plain_name(child), [])
        if parent is not None:
            own.append(plain_name(parent))
    return RelationGraph(parents)


def _text(path: Path) -> str:
    return nfc(path.read_bytes().decode("utf-8-sig"))


def _has_pairs(path: Path) -> bool:
    """True if a file has the columns child and parent, such as a CSV with tabs."""
    try:
        with CsvFile(path, _PAIR, error=UsageError) as rows:
            return set(_PAIR) <= set(rows.columns)
    except UsageError:
        return False


def _csv_edges(path: Path) -> Edges:
    with CsvFile(path, _PAIR, error=UsageError, pad=True) as rows:
        rows.require(*_PAIR)
        child, parent = (rows.columns.index(name) for name in _PAIR)
        return [(row.cells[child], row.cells[parent]) for row in rows]


def _object_edges(path: Path) -> Edges:
    text = _text(path)
    values: Any
    if path.suffix.lower() == ".json":
        values = json.loads(text)
    else:
        import yaml  # type: ignore[import-untyped]  # timm needs it too

        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from None
    if not isinstance(values, dict):
        raise ValueError("one object of parents by child is wanted")
    edges: list[tuple[str, str | None]] = []
    for child, own in values.items():
        named = [own] if isinstance(own, str) else own
        if not isinstance(named, list) or not all(
            isinstance(each, str) for each in (child, *named)
        ):
            raise ValueError(f"the parents of {child!r} are no name and no list of names")
        edges += [(child, None), *((child, parent) for parent in named)]
    return edges


def _hierarchy_edges(path: Path, by: str) -> Edges:
    rows = [line.split("\t") for line in _text(path).splitlines() if line.strip()]
    if rows and rows[0][0].strip() == HIERARCHY[0]:
        del rows[0]
    categories: dict[str, tuple[str, str]] = {}
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if len(row) != len(HIERARCHY):
            raise ValueError(f"line {number} of the categories has {len(row)} cells, not 4")
        index, _, parent, _ = cells = [cell.strip() for cell in row]
        name = cells[_KEYS[by]]
        if name in seen:
            raise ValueError(f"the {by} {name!r} belongs to two categories: use another column")
        if index in categories:
            raise ValueError(f"the index {index} belongs to two categories")
        seen.add(name)
        categories[index] = (name, parent)
    edges: list[tuple[str, str | None]] = []
    for name, parent in categories.values():
        if parent != _NO_PARENT and parent not in categories:
            raise ValueError(f"{name!r} has the parent {parent}, which there is not")
        edges.append((name, None if parent == _NO_PARENT else categories[parent][0]))
    return edges
