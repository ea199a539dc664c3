"""The choice of a searcher for a gallery, by kind or by size, memory and recall."""

from __future__ import annotations

from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import UsageError
from lmk.embed.process import start_threads
from lmk.embed.progress import Message, no_message
from lmk.embed.shell_words import shell_word
from lmk.index.gallery.gallery import Gallery
from lmk.index.search.settings import SearchSettings
from lmk.index.vectors.labels import Role
from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.searcher import Searcher
from lmk.index.vectors.view import Allow, View

RECALL = 0.99
LEAST_INDEXED = 1000  # rows; an index saves no time for fewer rows
FLAT_ROWS = 20_000  # up to this number, FAISS is faster for a first large batch than coding
_SECONDS_A_QUERY = 0.1  # limit for exact search
_BYTES_A_SECOND = 8e9  # codes that exact search reads for one query, on two cores
_BATCH = 64  # with this number of queries at a time or more, exact search multiplies matrices
_PRODUCTS_A_SECOND = 4e11  # multiply-adds of this matrix multiplication
_MEMORY_SHARE = 0.7  # largest part of the free memory for the codes of exact search

DEFAULT = SearchSettings()
KINDS = ("auto", "exact", "flat", "ivf", "ivfpq", "hnsw")


def choose(
    gallery: Gallery,
    role: Role = "gallery",
    *,
    settings: SearchSettings = DEFAULT,
    batch: int | None = None,
    on_message: Message = no_message,
) -> Searcher:
    """Returns a searcher over the rows of one role; it stays usable when the gallery closes.

    Args:
        gallery: the gallery to search.
        role: role of the rows to search.
        settings: settings that override the saved ones. A kind without a backend searches on this
            machine; a Milvus server uses an index of its own.
        batch: see searcher_of.
        on_message: see searcher_of.

    Raises:
        UsageError: the kind or backend is unknown, the recall is not 0 to 1, or Milvus has no URI.
        LmkError: see MilvusSearcher.
    """
    saved = SearchSettings.saved(gallery)
    check_kind(settings, gallery.dim)
    used = settings.over(saved)
    backend = settings.backend or ("local" if settings.kind else saved.backend) or "local"
    if backend == "milvus":
        if not used.uri:
            remedy = "name it with --uri http://HOST:19530"
            raise UsageError("no Milvus server is named", remedy=remedy)
        from lmk.index.milvus.searcher import MilvusSearcher

        return MilvusSearcher(gallery, used.uri, used.collection, role=role)
    if backend != "local":
        raise UsageError(f"no backend {backend!r}", remedy="choose local or milvus")
    goal = RECALL if used.recall is None else used.recall
    try:
        return searcher_of(
            gallery.view(role), used.kind or "auto", recall=goal, batch=batch, on_message=on_message
        )
    except UsageError as error:
        if not 0 <= goal <= 1:
            default = f"--recall {RECALL}"
        elif saved.kind and not settings.kind:
            default = "--kind auto"
        else:
            raise
        remedy = f"`lmk index set {shell_word(gallery.path)} {default}` restores the default"
        raise UsageError(error.what, where=gallery.path, remedy=remedy) from error


def check_kind(settings: SearchSettings, dim: int, *, rows: int | None = None) -> None:
    """Raises UsageError unless kind and recall are valid; needs no gallery.

    Args:
        settings: the kind and the recall to check.
        dim: the number of components of a vector.
        rows: the largest expected number of rows; None skips this check.

    Raises:
        UsageError: as searcher_of, except for errors of building an index.
    """
    kind = "auto" if settings.kind is None else settings.kind
    recall = RECALL if settings.recall is None else settings.recall
    if not 0 <= recall <= 1:  # also rejects NaN
        raise UsageError(f"a recall of {recall:g}", remedy="choose one from 0 to 1")
    if kind in KINDS and kind not in ("ivfpq", "hnsw"):
        return
    from lmk.index.ann.faiss_factory import factory_of, new_index

    many = 10**12 if rows is None or rows < LEAST_INDEXED else rows
    new_index(factory_of(kind, min(many, LEAST_INDEXED), dim), dim, many)


def searcher_of(
    view: View,
    kind: str = "auto",
    *,
    recall: float = RECALL,
    batch: int | None = None,
    on_message: Message = no_message,
) -> Searcher:
    """Returns a searcher over a view.

    Args:
        view: the view to search.
        kind: "exact", "flat" (FAISS, every vector in float32), or an approximate kind: "ivf" (exact
            search in a part of the gallery), "ivfpq", "hnsw" or a FAISS factory string. "auto" is
            exact search if this takes at most 0.1 s a query and its codes fit into memory. If not,
            "auto" is ivf, or ivfpq if the codes do not fit, provided that the index has the recall.
        recall: the recall@10 that an index must reach, from 0 to 1; with 1, "auto" is always exact.
        batch: number of queries at a time, if known; in large batches exact search is faster per
            query.
        on_message: called with a line of text before and while an index is built, which may take
            minutes. An exception from this function stops the build.

    Raises:
        UsageError: the kind is unknown, the gallery is too small for the kind, or the recall is
            not between 0 and 1.
        ForkedProcess: this process is a fork of one in which a search has run.
    """
    start_threads()
    check_kind(SearchSettings(kind, recall), view.dim)
    rows = int(view.mask.sum())
    if kind == "auto":
        return _automatic(view, rows, recall, batch, on_message)
    if kind == "flat":
        return _flat(view)
    if kind == "exact":
        return _exact(view)
    if rows < LEAST_INDEXED:
        few = f"{kind} begins at {LEAST_INDEXED} vectors"
        return Explained(_flat(view), few)
    from lmk.index.ann.searcher import ApproximateSearcher

    return ApproximateSearcher(view, kind, recall=recall, on_message=on_message)


class Explained:
    """A searcher whose reason also states why it was chosen.

    Args:
        searcher: the searcher that answers the queries.
        why: the text to add to the reason of the searcher.
    """

    def __init__(self, searcher: Searcher, why: str) -> None:
        self.searcher = searcher
        self._why = why

    @property
    def reason(self) -> str:
        """Description of the search and why it was chosen."""
        return f"{self.searcher.reason} ({self._why})"

    def search(self, queries: Embeddings, k: int, allow: Allow | None = None) -> Neighbours:
        """Returns the k nearest rows of each query; see Searcher.search."""
        return self.searcher.search(queries, k, allow)


def _automatic(
    view: View, rows: int, recall: float, batch: int | None, on_message: Message
) -> Searcher:
    """Returns the searcher that suits the number of rows, the memory, the batch and the recall."""
    many = (batch or 1) >= _BATCH
    if rows <= FLAT_ROWS:
        return _flat(view) if many else _exact(view)
    from lmk.index.vectors.memory import free_memory

    codes = rows * view.dim  # bytes
    seconds = codes / (_PRODUCTS_A_SECOND if many else _BYTES_A_SECOND)
    slow, large = seconds > _SECONDS_A_QUERY, codes > _MEMORY_SHARE * free_memory()
    if recall == 1 or not (slow or large):
        return _exact(view)
    why = (
        f"exact search would take {seconds:.1g} s a query"
        if slow
        else f"the codes of exact search, {codes / 2**30:.1f} GiB, do not fit into the free memory"
    )
    from lmk.index.ann.searcher import ApproximateSearcher

    searcher = ApproximateSearcher(
        view, "ivfpq" if large or not _codes(view) else "ivf", recall=recall, on_message=on_message
    )
    got = searcher.tuned[0].recall
    if got >= recall:
        return Explained(searcher, f"auto: {why}")
    return Explained(_exact(view), f"auto: {why}, but an index finds only {got:.3f} of the nearest")


def _codes(view: View) -> bool:
    """Returns whether this processor can search in the codes of a view."""
    from lmk.index.ann.cells import possible  # numba takes a while to import

    return possible(view)


def _flat(view: View) -> Searcher:
    from lmk.index.exact.flat import FlatSearcher  # FAISS takes a while to import

    return FlatSearcher(view)


def _exact(view: View) -> Searcher:
    from lmk.index.exact.searcher import ExactSearcher  # numba and torch take longer

    return ExactSearcher(view)
