"""Retrieval lists: the gallery pictures nearest to a query, ordered by steps that are data.

    {"steps": [{"step": "expand"}, {"step": "insert_by_label"}], "k": 100, "candidates": 200}

The steps are saved with the gallery and make the lists of a retrieval submission. Recognition has
steps of its own (pipeline.py), because it needs one label, while a list needs every picture of the
landmark.

The pictures of the gallery have labels, and only the query's label is estimated. By default a list
therefore begins with all pictures of that landmark, including those that the search missed. Without
labels the list stays in the order of the search.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import UsageError
from lmk.embed.progress import Message, no_message
from lmk.index.catalog.settings import read_setting
from lmk.index.gallery.gallery import Gallery
from lmk.index.vectors.neighbours import NO_ROW, Neighbours
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import View
from lmk.rerank.lists.diffusion import NeighbourGraph
from lmk.rerank.lists.k_reciprocal import k_reciprocal
from lmk.rerank.lists.label_order import (
    SoftLabels,
    boost_by_tags,
    insert_by_label,
    soft_labels,
    sort_by_label,
    tags_of,
)
from lmk.rerank.steps.augmentation import Neighbourhoods
from lmk.rerank.steps.expansion import augmentation_weights, expand
from lmk.rerank.steps.ranking import MOST, ranked
from lmk.rerank.steps.step import with_new_names

RETRIEVAL = "retrieval"  # the setting of a gallery
_SEARCHING = "each picture of the index is searched among the others"
_FORM = 'it must be like {"steps": [{"step": "insert_by_label"}], "k": 100}'
_BLOCK = 256  # queries at a time: bounds what inserting adds

_DATA = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, eq=False)
class Collection:
    """The pictures of lists. Data of all pictures that a step needs is computed once.

    Attributes:
        searcher: a search over the view.
        view: the gallery pictures and their labels.
        saved_neighbourhoods: the nearest pictures of each picture, if the gallery saves them. They
            are used if the lists are long enough.
        on_message: called with a line of text before a long computation.
    """

    searcher: Searcher
    view: View
    saved_neighbourhoods: Neighbourhoods | None = None
    on_message: Message = no_message

    @cached_property
    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The offsets and codes of the labels of all rows (voting.vote)."""
        labels = self.view.labels
        if labels is None:
            return np.zeros(self.view.stored.rows + 1, np.int64), np.zeros(0, np.int32)
        return labels.offsets, labels.codes

    @cached_property
    def own_labels(self) -> SoftLabels:
        """The first label of each picture, with a score of 1."""
        offsets, codes = self.labels
        has = self.view.mask & (np.diff(offsets) > 0)
        first = np.full(len(has), -1, np.int64)
        first[has] = codes[offsets[:-1][has]]
        return SoftLabels(first, has.astype(np.float32))

    @cached_property
    def _made(self) -> dict[BaseModel, Neighbourhoods | NeighbourGraph]:
        return {}

    def neighbourhoods(self, step: DbaListStep) -> Neighbourhoods:
        """Returns the nearest pictures of each picture; the first call searches them."""
        made = self._made.get(step)
        if not isinstance(made, Neighbourhoods):
            weights = augmentation_weights(step.n, step.spread)
            saved = self.saved_neighbourhoods
            if saved is not None and saved.rows.shape[1] > step.n:
                made = Neighbourhoods(saved.rows[:, : step.n + 1], weights)
            else:
                self.on_message(_SEARCHING)
                made = Neighbourhoods.build(self.searcher, self.view, weights)
            self._made[step] = made
        return made

    def graph(self, step: DiffuseStep) -> NeighbourGraph:
        """Returns the graph of mutual neighbours; the first call searches it."""
        made = self._made.get(step)
        if not isinstance(made, NeighbourGraph):
            self.on_message(_SEARCHING)
            made = self._made[step] = NeighbourGraph.build(
                self.searcher, self.view, neighbours=step.neighbours, gamma=step.gamma
            )
        return made


@dataclass(frozen=True, eq=False)
class Lists:
    """Queries and their lists between two steps."""

    queries: Embeddings
    neighbours: Neighbours


class ListStep(BaseModel):
    """A step that changes lists. A subclass has its name in the field `step`."""

    model_config = _DATA

    def apply(self, lists: Lists, collection: Collection) -> Lists:
        """Returns the lists in a new order."""
        return replace(lists, neighbours=self._reordered(lists, collection))

    def _reordered(self, lists: Lists, collection: Collection) -> Neighbours:
        raise NotImplementedError


class ExpandStep(ListStep):
    """Searches again with each query moved towards its n nearest pictures (expansion.expand)."""

    step: Literal["expand"] = "expand"
    n: int = Field(default=10, ge=1, le=MOST)
    alpha: float = Field(default=3.0, ge=0)

    def apply(self, lists: Lists, collection: Collection) -> Lists:
        """Moves the queries, and searches for as many pictures as before."""
        stored = collection.view.stored
        queries = expand(lists.queries, lists.neighbours, stored, n=self.n, alpha=self.alpha)
        return Lists(queries, collection.searcher.search(queries, lists.neighbours.k))


class DbaListStep(ListStep):
    """Compares each picture together with its own nearest pictures (augmentation.py)."""

    step: Literal["dba"] = "dba"
    n: int = Field(default=10, ge=1, le=MOST)
    spread: float = Field(default=1.5, ge=0)

    def _reordered(self, lists: Lists, collection: Collection) -> Neighbours:
        near, neighbours = collection.neighbourhoods(self), lists.neighbours
        cosines = near.cosines(lists.queries, neighbours, collection.view.stored)
        return ranked(neighbours.rows, cosines, neighbours.query_ids)


class KReciprocalStep(ListStep):
    """Puts mutual neighbours first (k_reciprocal.py)."""

    step: Literal["k_reciprocal"] = "k_reciprocal"
    k1: int = Field(default=20, ge=1, le=MOST)
    k2: int = Field(default=6, ge=1, le=MOST)
    share: float = Field(default=0.3, ge=0, le=1)

    def _reordered(self, lists: Lists, collection: Collection) -> Neighbours:
        stored, near = collection.view.stored, lists.neighbours
        return k_reciprocal(lists.queries, near, stored, k1=self.k1, k2=self.k2, share=self.share)


class DiffuseStep(ListStep):
    """Spreads similarity along the graph of mutual neighbours (diffusion.py).

    The scores of a list are divided by its largest one.
    """

    step: Literal["diffuse"] = "diffuse"
    neighbours: int = Field(default=50, ge=1, le=MOST)
    gamma: float = Field(default=3.0, gt=0)
    sources: int = Field(default=10, ge=1, le=MOST)
    alpha: float = Field(default=0.99, ge=0, lt=1)

    def _reordered(self, lists: Lists, collection: Collection) -> Neighbours:
        graph = collection.graph(self)
        spread = graph.rerank(lists.neighbours, sources=self.sources, alpha=self.alpha)
        largest = np.abs(np.where(spread.rows == NO_ROW, 0, spread.scores)).max(
            axis=1, keepdims=True, initial=0
        )
        scores = spread.scores / np.where(largest > 0, largest, 1)
        return ranked(spread.rows, scores, spread.query_ids, keep_order=True)


class SortByLabelStep(ListStep):
    """Moves pictures of the query's landmark to the front (label_order.sort_by_label).

    Attributes:
        n: number of nearest pictures that determine the landmark of the query.
    """

    step: Literal["sort_by_label"] = "sort_by_label"
    n: int = Field(default=3, ge=1, le=MOST)

    def _reordered(self, lists: Lists, collection: Collection) -> Neighbours:
        queries = soft_labels(lists.neighbours, *collection.labels, n=self.n)
        return sort_by_label(lists.neighbours, queries, collection.own_labels)


class InsertByLabelStep(ListStep):
    """Sorts by label, and adds the pictures of the landmark that the search missed.

    Attributes:
        sure: pictures are added if the score of the query's landmark exceeds this value. The score
            is the mean cosine of its n nearest pictures; other landmarks count as 0. The contest
            required .6 for the sum of this score and the picture's own, which is 1 here.
        n: number of nearest pictures that determine the landmark of the query.
    """

    step: Literal["insert_by_label"] = "insert_by_label"
    sure: float = Field(default=0.0, ge=0, le=1)
    n: int = Field(default=3, ge=1, le=MOST)

    def _reordered(self, lists: Lists, collection: Collection) -> Neighbours:
        neighbours = lists.neighbours
        queries = soft_labels(neighbours, *collection.labels, n=self.n)
        return insert_by_label(
            neighbours, queries, collection.own_labels, sure=1 + self.sure, k=neighbours.k
        )


class BoostByTagsStep(ListStep):
    """Adds to each score the share that the picture's landmark has among the n nearest.

    Attributes:
        weight: the weight of a share of 1.
        n: number of nearest pictures that determine the shares.
    """

    step: Literal["boost_by_tags"] = "boost_by_tags"
    weight: float = Field(default=1.0, gt=0)
    n: int = Field(default=3, ge=1, le=MOST)

    def _reordered(self, lists: Lists, collection: Collection) -> Neighbours:
        tags = tags_of(lists.neighbours, *collection.labels, n=self.n)
        codes = collection.own_labels.codes
        return boost_by_tags(lists.neighbours, tags, codes, weight=self.weight)


RetrievalStep = Annotated[
    ExpandStep
    | DbaListStep
    | KReciprocalStep
    | DiffuseStep
    | SortByLabelStep
    | InsertByLabelStep
    | BoostByTagsStep,
    Field(discriminator="step"),
]

# Steps come in this order, one of each line; a second step of a line would undo the first.
_ORDER = (
    ("expand",),
    ("dba", "k_reciprocal"),
    ("diffuse",),
    ("sort_by_label", "insert_by_label", "boost_by_tags"),
)


class Retrieval(BaseModel):
    """The settings of retrieval lists, saved with a gallery as JSON.

    Attributes:
        steps: the steps in their order; without steps the lists are in the order of the search.
        k: number of pictures of a list.
        candidates: number of pictures that are searched for each query, at least k.
    """

    model_config = _DATA

    steps: tuple[RetrievalStep, ...] = (InsertByLabelStep(),)
    k: int = Field(default=100, ge=1)
    candidates: int = Field(default=200, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _with_new_names(cls, settings: Any) -> Any:
        return with_new_names(settings)

    @model_validator(mode="after")
    def _in_order(self) -> Retrieval:
        places = [next(i for i, names in enumerate(_ORDER) if s.step in names) for s in self.steps]
        if any(later <= earlier for earlier, later in pairwise(places)):
            order = ", then ".join(" or ".join(names) for names in _ORDER)
            raise ValueError(f"the steps must be at most one each of {order}, in this order")
        return self


def saved_retrieval(gallery: Gallery) -> Retrieval:
    """Returns the retrieval steps saved with a gallery, or the default ones."""
    return read_setting(gallery, RETRIEVAL, Retrieval) or Retrieval()


def read_retrieval(name: str) -> Retrieval:
    """Returns the retrieval steps of a JSON file, of "default", or of "none" (search order).

    Raises:
        UsageError: the file does not exist or is no JSON, or a step or parameter is unknown.
    """
    if name in ("default", "none"):
        return Retrieval() if name == "default" else Retrieval(steps=())
    try:
        return Retrieval.model_validate(json.loads(Path(name).read_text("utf-8")))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        remedy = "name a JSON file, none or default"
        raise UsageError(f"cannot be read: {reason}", where=name, remedy=remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = f"{place}: {first['msg']}" if place else first["msg"]
        raise UsageError(what, where=name, remedy=_FORM) from error
    except ValueError as error:  # of JSON or of UTF-8
        raise UsageError(f"is no JSON: {error}", where=name, remedy=_FORM) from error


def rerank_lists(retrieval: Retrieval, queries: Embeddings, collection: Collection) -> Neighbours:
    """Returns the k best pictures of each query.

    The answer to a query does not depend on the other queries.

    Args:
        retrieval: the steps.
        queries: float32 [q, d], by the embedder of the collection.
        collection: the pictures; pass the same one to all calls, so that data is computed once.

    Returns:
        Rows of the collection, best first, with the scores of the last step. Only the order of the
        scores has a meaning.
    """
    pieces = [slice(start, start + _BLOCK) for start in range(0, max(len(queries), 1), _BLOCK)]
    blocks = (replace(queries, vectors=queries.vectors[p], ids=queries.ids[p]) for p in pieces)
    parts = [_listed(retrieval, block, collection) for block in blocks]
    return Neighbours(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.scores for part in parts]),
        queries.ids,
    )


def _listed(retrieval: Retrieval, queries: Embeddings, collection: Collection) -> Neighbours:
    wanted = max(retrieval.k, retrieval.candidates) if retrieval.steps else retrieval.k
    lists = Lists(queries, collection.searcher.search(queries, wanted))
    for step in retrieval.steps:
        lists = step.apply(lists, collection)
    rows, scores = lists.neighbours.rows, lists.neighbours.scores
    return Neighbours(rows[:, : retrieval.k], scores[:, : retrieval.k], queries.ids)
