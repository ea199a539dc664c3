"""Recognizer: an opened index that answers questions about pictures.

>>> from lmk.rerank.recognizer import Recognizer
>>> with Recognizer.open("gallery.lmk") as recognizer:  # doctest: +SKIP
...     predictions, skipped = recognizer.query([Path("photo.jpg")])
...     print(predictions.answers())
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from lmk.embed.embedder import Embedder
from lmk.embed.embeddings import Embeddings
from lmk.embed.extract import extract_stream
from lmk.embed.images import Skipped
from lmk.embed.manifest import Manifest
from lmk.index.gallery import Gallery
from lmk.index.neighbours import Neighbours
from lmk.index.search import Searcher, choose
from lmk.rerank.build import BACKGROUND, PENALTY, saved_pipeline
from lmk.rerank.penalty import penalty_of, pick
from lmk.rerank.pipeline import GalleryFacts, Pipeline
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
        self._searcher: Searcher | None = None
        self._facts: GalleryFacts | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        pipeline: Pipeline | None = None,
        verify: bool = True,
    ) -> Recognizer:
        """Opens an index.

        Args:
            path: the gallery folder (NAME.lmk).
            pipeline: other steps than the saved ones.
            verify: check every file against its checksum.

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

    def predict(self, queries: Embeddings, *, k: int = 0) -> Predictions:
        """Answers for embeddings of this recognizer's embedder (k as in `query`)."""
        found = self.search(queries, max(k, self.pipeline.candidates))
        return self.pipeline.predict(found, self.facts)

    def search(self, queries: Embeddings, k: int) -> Neighbours:
        """The k nearest gallery pictures of each query, by plain cosine."""
        if self._searcher is None:
            self._searcher = choose(self.gallery)
        return self._searcher.search(queries, k)

    @property
    def facts(self) -> GalleryFacts:
        """What the steps know of the gallery."""
        if self._facts is None:
            gallery = self.gallery
            self._facts = GalleryFacts(
                gallery.label_names,
                gallery.label_offsets,
                gallery.label_codes,
                self._penalty(),
                gallery.setting(BACKGROUND) or 0.0,
            )
        return self._facts

    def _penalty(self) -> np.ndarray[tuple[int], np.dtype[np.float32]] | None:
        """The saved penalty if it is the pipeline's own; else it is learnt from the bank again."""
        settings = self.pipeline.penalty()
        if settings is None:
            return None
        saved = self.gallery.array(PENALTY)
        kept = saved_pipeline(self.gallery)
        same = kept.penalty() == settings and kept.rescales() == self.pipeline.rescales()
        if saved is not None and same:
            return saved
        bank = self.gallery.embeddings("distractor")
        rows = self.gallery.role_rows("gallery")
        if not len(bank) or not len(rows):
            return None
        if self._searcher is None:
            self._searcher = choose(self.gallery)
        picks = pick(
            self._searcher, bank, rows=self.gallery.rows, gallery=len(rows), top=settings.top
        )
        background = self.gallery.setting(BACKGROUND) if self.pipeline.rescales() else 0.0
        return penalty_of(picks, settings, background=background or 0.0)
