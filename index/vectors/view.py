"""View: the rows of one role with their vectors and labels, for a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import EmbedderMismatch, UsageError
from lmk.embed.process import start_threads
from lmk.embed.tables.label_forms import similar_pairs
from lmk.embed.tables.label_text import plain_name
from lmk.index.vectors.derived_files import DerivedFiles
from lmk.index.vectors.labels import Membership
from lmk.index.vectors.vectors import Vectors

LEAST_WIDTH = 1024  # neighbours that a search of any gallery can return, including NO_ROW
# Rows that may be returned: bool [rows], or labels, of which a picture must have at least one.
Allow = NDArray[np.bool_] | Sequence[str]


@dataclass(frozen=True, eq=False)
class View:
    """The rows to search; the view stays usable when its gallery closes.

    Attributes:
        stored: the vectors of all rows of the gallery.
        mask: bool [rows], the rows of the view: those of one role, without removed rows.
        fingerprint: fingerprint of the embedder of the vectors.
        labels: roles and labels of all rows; None if the rows have no labels.
        derived: files that a search derives from the vectors.
    """

    stored: Vectors
    mask: NDArray[np.bool_]
    fingerprint: str
    labels: Membership | None = None
    derived: DerivedFiles = DerivedFiles(None)  # noqa: RUF009 (it holds no state)

    def __post_init__(self) -> None:
        if self.mask.shape != (self.stored.rows,) or self.mask.dtype != np.bool_:
            got = f"{self.mask.dtype} {self.mask.shape}"
            raise ValueError(f"the mask must be bool [{self.stored.rows}], got {got}")

    @classmethod
    def of_embeddings(cls, embeddings: Embeddings) -> View:
        """Returns a view of embeddings; their positions are the row numbers."""
        stored = Vectors.of_array(np.ascontiguousarray(embeddings.vectors))
        return cls(stored, np.ones(len(embeddings), np.bool_), embeddings.fingerprint)

    @property
    def dim(self) -> int:
        """The number of components of a vector."""
        return self.stored.dim

    def embeddings(self, rows: NDArray[np.int64]) -> Embeddings:
        """Returns the vectors of rows as queries, each with the number of its row as its id."""
        return Embeddings(self.stored.read(rows), tuple(map(str, rows)), self.fingerprint)

    def allowed(self, allow: Allow | None) -> NDArray[np.bool_]:
        """Returns a mask of the rows of the view that `allow` contains, bool [rows].

        Labels may be in any Unicode form, with blanks.

        Raises:
            UsageError: no row has one of the labels.
            ValueError: a mask has another length or dtype.
        """
        if allow is None:
            return self.mask
        if isinstance(allow, np.ndarray):
            if allow.shape != self.mask.shape or allow.dtype != np.bool_:
                got = f"{allow.dtype} {allow.shape}"
                raise ValueError(f"the rows allowed must be bool {self.mask.shape}, got {got}")
            return self.mask & allow
        return self.mask & self._labelled(allow)

    def check(self, queries: Embeddings, k: int) -> int:
        """Checks a search before it begins, and returns the number of neighbours of each query.

        The number is k, limited to the larger one of LEAST_WIDTH and the rows of the gallery, as
        the memory of a search grows with it.

        Raises:
            UsageError: k is below 1.
            EmbedderMismatch: the queries have another embedder.
            ValueError: the queries have another dim.
            GalleryDamaged: a file of the vectors was cut since it was opened.
            ForkedProcess: this process is a fork of one in which a search has run.
        """
        start_threads()
        if k < 1:
            raise UsageError(f"{k} neighbours asked for", remedy="ask for at least 1")
        if queries.fingerprint != self.fingerprint:
            raise EmbedderMismatch(
                f"queries of embedder {queries.fingerprint[:16]} for a gallery of embedder"
                f" {self.fingerprint[:16]}",
                remedy="embed the queries with the gallery's own embedder, or rebuild the gallery"
                " with `lmk build-index`",
            )
        if queries.dim != self.dim:
            raise ValueError(f"queries of {queries.dim} components, vectors of {self.dim}")
        self.stored.check()
        return min(k, max(len(self.mask), LEAST_WIDTH))

    def _labelled(self, names: Sequence[str]) -> NDArray[np.bool_]:
        names = [names] if isinstance(names, str) else names
        known = () if self.labels is None else self.labels.names
        code_of = {name: code for code, name in enumerate(known)}
        for name in names:
            if name not in code_of and plain_name(name) not in code_of:
                remedy = "`lmk index list` shows the labels there are"
                if similar := similar_pairs([plain_name(name)], code_of):
                    remedy = f"there is {similar[0][1]!r}, and {remedy}"
                raise UsageError(f"no picture has the label {name!r}", remedy=remedy)
        names = [name if name in code_of else plain_name(name) for name in names]
        mask = np.zeros(len(self.mask), np.bool_)
        if self.labels is not None:
            wanted = np.isin(self.labels.codes, [code_of[name] for name in names])
            counts = np.diff(self.labels.offsets)
            mask[np.repeat(np.arange(len(counts)), counts)[wanted]] = True
        return mask
