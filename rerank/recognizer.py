"""Recognizer: an opened index that answers questions about pictures.

>>> from lmk.rerank.recognizer import Recognizer
>>> with Recognizer.open("gallery.lmk") as recognizer:  # doctest: +SKIP
...     predictions, skipped = recognizer.query([Path("photo.jpg")])
...     print(predictions.answers())
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embedder import Embedder
from lmk.embed.embeddings import Embeddings
from lmk.embed.extract import extract_stream
from lmk.embed.images import Skipped
from lmk.embed.manifest import Manifest
from lmk.index.gallery import Gallery
from lmk.index.neighbours import Neighbours
from lmk.index.search import Searcher, choose
from lmk.rerank.answering import Queries
from lmk.rerank.facts import GalleryFacts
from lmk.rerank.learning import BACKGROUND, PENALTY, saved_pipeline
from lmk.rerank.local_features import LocalFeatures
from lmk.rerank.pipeline import Pipeline
from lmk.rerank.predictions import Predictions


class Recognizer:
    """Embedder, gallery and pipeline together: pictures in, predictions out.

    Attributes:
        gallery: the opened gallery.
        embedder: the gallery's own.
        pipeline: the steps from neighbours to answers.
    """

    def __init__(
        self, gallery: Gallery, embedder: Embedder, pipeline: Pipeline | None = None
    ) -> None:
        self.gallery = gallery
        self.embedder = embedder
        self.pipeline = pipeline or saved_pipeline(gallery)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        pipeline: Pipeline | None = None,
        verify: bool | None = None,
    ) -> Recognizer:
        """Opens an index.

        Args:
            path: the gallery folder (NAME.lmk).
            pipeline: other steps than the saved ones.
            verify: which files are compared with their checksums (Gallery.open).

        Raises:
            NotAGallery, GalleryDamaged, FormatTooNew: as the folder is.
        """
        gallery = Gallery.open(path, verify=verify)
        try:
            return cls(gallery, Embedder.load(gallery.embedder_dir), pipeline)
        except BaseException:
            gallery.close()
            raise

    def __enter__(self) -> Recognizer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the gallery."""
        self.gallery.close()

    def query(
        self, pictures: Sequence[Path], *, k: int = 0
    ) -> tuple[Predictions, tuple[Skipped, ...]]:
        """Answers for picture files; ids are their paths.

        Args:
            pictures: the files.
            k: neighbours to return at least, if that is more than the pipeline looks at.

        Returns:
            The predictions, and the files that cannot be read with the reasons.
        """
        embeddings, skipped = self.embedder.embed(pictures)
        return self.predict(embeddings, k=k), skipped

    def embed_stream(
        self, manifest: Manifest, *, progress: Callable[[int], None] = lambda done: None
    ) -> Iterator[tuple[Embeddings, tuple[Skipped, ...]]]:
        """The embeddings of a manifest's pictures, a batch at a time (see extract_stream)."""
        return extract_stream(manifest, self.embedder, progress=progress)

    def predict(
        self,
        queries: Embeddings,
        *,
        k: int = 0,
        features: Callable[[int], LocalFeatures | str] | None = None,
    ) -> Predictions:
        """Answers for embeddings of this recognizer's embedder.

        Args:
            queries: what is asked.
            k: as in `query`.
            features: local features by query number, or the reason why there are none; without
                them the geometric check is left out.
        """
        found = self.search(queries, max(k, self.pipeline.candidates))
        return self.pipeline.predict(Queries(queries, features=features), found, self.facts)

    def search(self, queries: Embeddings, k: int) -> Neighbours:
        """The k nearest gallery pictures of each query, by plain cosine."""
        return self.searcher.search(queries, k)

    @cached_property
    def searcher(self) -> Searcher:
        """Over the gallery's pictures, made on first use."""
        return choose(self.gallery)

    @cached_property
    def facts(self) -> GalleryFacts:
        """What the steps know of the gallery."""
        gallery = self.gallery
        background = gallery.setting(BACKGROUND) or 0.0
        return GalleryFacts(
            gallery.label_names,
            gallery.label_offsets,
            gallery.label_codes,
            self._penalty(background),
            background,
        )

    def _penalty(self, background: float) -> NDArray[np.float32] | None:
        """The saved penalty if it is the pipeline's own; else it is learnt from the bank again."""
        if self.pipeline.penalty() is None:
            return None
        saved: NDArray[np.float32] | None = self.gallery.array(PENALTY)
        kept = saved_pipeline(self.gallery)
        same = (
            kept.penalty() == self.pipeline.penalty()
            and kept.rescales() == self.pipeline.rescales()
        )
        if saved is not None and same:
            return saved
        return self.pipeline.learn_penalty(
            self.searcher,
            self.gallery.view("distractor"),
            rows=self.gallery.rows,
            gallery=len(self.gallery.role_rows("gallery")),
            background=background,
        )
