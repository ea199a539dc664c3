"""Retrieval lists: the gallery pictures nearest to a query, ordered anew by steps that are data.

    {"steps": [{"step": "expand"}, {"step": "insert_by_label"}], "k": 100, "candidates": 200}

They are saved with the gallery and make the lists of a retrieval submission. Recognition has steps
of its own (pipeline.py): it wants one label, a list wants every picture of the landmark.

The gallery is the labelled set: what shares the query's landmark is known of each picture that has
a label, and only the query's own label is guessed. So by default a list begins with the pictures of
that landmark, those that the search missed too. Without labels it stays as it was searched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from lmk.rerank.lists.k_reciprocal import KReciprocal
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
    """The pictures that lists are made of; what a step needs of all of them is made once.

    Attributes:
        searcher: over the view.
        view: the gallery pictures and their labels.
        kept: the nearest pictures of each picture, where the gallery keeps them; used where they
            are enough.
        on_message: called with a line of text before something that takes a while.
    """

    searcher: Searcher
    view: View
    kept: Neighbourhoods | None = None
    on_message: Message = no_message

    @cached_property
    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Offsets and codes of the labels of all rows (voting.vote)."""
        labels = self.view.labels
        if labels is None:
            return np.zeros(self.view.stored.rows + 1, np.int64), np.zeros(0, np.int32)
        return labels.offsets, labels.codes

    @cached_property
    def known(self) -> SoftLabels:
        """The label of each picture, the first where it has several, with a score of 1."""
        offsets, codes = self.labels
        has = self.view.mask & (np.diff(offsets) > 0)
        first = np.full(len(has), -1, np.int64)
        first[has] = codes[offsets[:-1][has]]
        return SoftLabels(first, has.astype(np.float32))

    @cached_property
    def _made(self) -> dict[BaseModel, Neighbourhoods | NeighbourGraph]:
        return {}

    def neighbourhoods(self, step: DbaListStep) -> Neighbourhoods:
        """The nearest pictures of each picture; searched when they are first asked for."""
        made = self._made.get(step)
        if not isinstance(made, Neighbourhoods):
            weights = augmentation_weights(step.n, step.spread)
            if self.kept is not None and self.kept.rows.shape[1] > step.n:
                made = Neighbourhoods(self.kept.rows[:, : step.n + 1], weights)
            else:
                self.on_message(_SEARCHING)
                made = Neighbourhoods.build(self.searcher, self.view, weights)
            self._made[step] = made
        return made

    def graph(self, step: DiffuseStep) -> NeighbourGraph:
        """Who is whose neighbour; searched when it is first asked for."""
        made = self._made.get(step)
        if not isinstance(made, NeighbourGraph):
            self.on_message(_SEARCHING)
            made = self._made[step] = NeighbourGraph.build(
                self.searcher, self.view, neighbours=step.neighbours, gamma=step.gamma
            )
        return made


@dataclass(frozen=True, eq=False)
class Lists:
    """Queries and their lists, as one step hands them to the next."""

    queries: Embeddings
    found: Neighbours


class ExpandStep(BaseModel):
    """Asks again with each query moved towards the n nearest (expansion.expand)."""

    model_config = _DATA

    step: Literal["expand"] = "expand"
    n: int = Field(default=10, ge=1, le=MOST)
    alpha: float = Field(default=3.0, ge=0)

    def apply(self, lists: Lists, collection: Collection) -> Lists:
        """Moves the queries, and searches for as many pictures as before."""
        stored = collection.view.stored
        queries = expand(lists.queries, lists.found, stored, n=self.n, alpha=self.alpha)
        return Lists(queries, collection.searcher.search(queries, lists.found.k))


class DbaListStep(BaseModel):
    """Compares each picture together with its own nearest (neighbourhoods.py)."""

    model_config = _DATA

    step: Literal["dba"] = "dba"
    n: int = Field(default=10, ge=1, le=MOST)
    spread: float = Field(default=1.5, ge=0)

    def apply(self, lists: Lists, collection: Collection) -> Lists:
        """Orders the lists anew."""
        near = collection.neighbourhoods(self)
        found = near.rerank(lists.queries, lists.found, collection.view.stored)
        return replace(lists, found=found)


class KReciprocalStep(BaseModel):
    """Pictures that are each other's neighbours come first (k_reciprocal.py)."""

    model_config = _DATA

    step: Literal["k_reciprocal"] = "k_reciprocal"
    k1: int = Field(default=20, ge=1, le=MOST)
    k2: int = Field(default=6, ge=1, le=MOST)
    share: float = Field(default=0.3, ge=0, le=1)

    def apply(self, lists: Lists, collection: Collection) -> Lists:
        """Orders the lists anew."""
        rule = KReciprocal(self.k1, self.k2, self.share)
        found = rule.rerank(lists.queries, lists.found, collection.view.stored)
        return replace(lists, found=found)


class DiffuseStep(BaseModel):
    """Likeness flows along the graph of mutual neighbours (diffusion.py)."""

    model_config = _DATA

    step: Literal["diffuse"] = "diffuse"
    neighbours: int = Field(default=50, ge=1, le=MOST)
    gamma: float = Field(default=3.0, gt=0)
    sources: int = Field(default=10, ge=1, le=MOST)
    alpha: float = Field(default=0.99, ge=0, lt=1)

    def apply(self, lists: Lists, collection: Collection) -> Lists:
        """Orders the lists anew; the scores of each are shares of its largest one."""
        graph = collection.graph(self)
        spread = graph.rerank(lists.found, sources=self.sources, alpha=self.alpha)
        largest = np.abs(np.where(spread.rows == NO_ROW, 0, spread.scores)).max(
            axis=1, keepdims=True, initial=0
        )
        scores = spread.scores / np.where(largest > 0, largest, 1)
        found = ranked(spread.rows, scores, spread.query_ids, keep_order=True)
        return replace(lists, found=found)


class SortByLabelStep(BaseModel):
    """Pictures of the query's landmark move to the front (label_order.sort_by_label).

    Attributes:
        n: nearest pictures that tell the query's landmark.
    """

    model_config = _DATA

    step: Literal["sort_by_label"] = "sort_by_label"
    n: int = Field(default=3, ge=1, le=MOST)

    def apply(self, lists: Lists, collection: Collection) -> Lists:
        """Orders the lists anew."""
        queries = soft_labels(lists.found, *collection.labels, n=self.n)
        return replace(lists, found=sort_by_label(lists.found, queries, collection.known))


class InsertByLabelStep(BaseModel):
    """Sorts by label, and adds the pictures of the landmark that the search missed.

    Attributes:
        sure: what the score of the query's landmark (mean cosine of its n nearest, those of
            other landmarks as 0) must exceed for pictures to be added. The contest asked .6 of
            this score and the picture's own together, which is 1 where its label is known.
        n: nearest pictures that tell the query's landmark.
    """

    model_config = _DATA

    step: Literal["insert_by_label"] = "insert_by_label"
    sure: float = Field(default=0.0, ge=0, le=1)
    n: int = Field(default=3, ge=1, le=MOST)

    def apply(self, lists: Lists, collection: Collection) -> Lists:
        """Orders the lists anew, with pictures that were not in them."""
        found = lists.found
        queries = soft_labels(found, *collection.labels, n=self.n)
        inserted = insert_by_label(found, queries, collection.known, sure=1 + self.sure, k=found.k)
        return replace(lists, found=inserted)


class BoostByTagsStep(BaseModel):
    """Adds to each score the share that the picture's landmark has among the n nearest.

    Attributes:
        weight: of a share of 1.
        n: nearest pictures that have a say.
    """

    model_config = _DATA

    step: Literal["boost_by_tags"] = "boost_by_tags"
    weight: float = Field(default=1.0, gt=0)
    n: int = Field(default=3, ge=1, le=MOST)

    def apply(self, lists: Lists, collection: Collection) -> Lists:
        """Orders the lists anew."""
        tags = tags_of(lists.found, *collection.labels, n=self.n)
        codes = collection.known.codes
        found = boost_by_tags(lists.found, tags, codes, weight=self.weight)
        return replace(lists, found=found)


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

# Steps come in this order, one of each line: of two on a line the second would undo the first.
_ORDER = (
    ("expand",),
    ("dba", "k_reciprocal"),
    ("diffuse",),
    ("sort_by_label", "insert_by_label", "boost_by_tags"),
)


class Retrieval(BaseModel):
    """How lists are made; saved with a gallery as JSON.

    Attributes:
        steps: what is done to the neighbours; none leaves them as they are by cosine.
        k: pictures of a list.
        candidates: pictures searched for each query, which the steps order; at least k are.
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
    """How a gallery's lists are made: as saved with it, else by default."""
    return read_setting(gallery, RETRIEVAL, Retrieval) or Retrieval()


def read_retrieval(name: str) -> Retrieval:
    """What a user names: a JSON file, "default", or "none" for the order of the search.

    Raises:
        UsageError: no such file, no JSON, a step or parameter that there is not.
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
    """The k best pictures of each query.

    The answer to a query does not depend on what else is asked.

    Args:
        retrieval: the steps.
        queries: float32 [q, d], of the collection's embedder.
        collection: kept from call to call, so that what it needs is made once.

    Returns:
        Rows of the collection, best first; the scores are those of the last step, and only their
        order means something.
    """
    parts = [_listed(retrieval, block, collection) for block in _blocks(queries)]
    if not parts:
        return _listed(retrieval, queries, collection)
    return Neighbours(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.scores for part in parts]),
        queries.ids,
    )


def _blocks(queries: Embeddings) -> Iterator[Embeddings]:
    for start in range(0, len(queries), _BLOCK):
        part = slice(start, start + _BLOCK)
        yield replace(queries, vectors=queries.vectors[part], ids=queries.ids[part])


def _listed(retrieval: Retrieval, queries: Embeddings, collection: Collection) -> Neighbours:
    wanted = max(retrieval.k, retrieval.candidates) if retrieval.steps else retrieval.k
    lists = Lists(queries, collection.searcher.search(queries, wanted))
    for step in retrieval.steps:
        lists = step.apply(lists, collection)
    rows, scores = lists.found.rows, lists.found.scores
    return Neighbours(rows[:, : retrieval.k], scores[:, : retrieval.k], queries.ids)
