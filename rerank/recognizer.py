"""Recognizer: an opened index that recognises the landmarks of pictures.

>>> import lmk
>>> with lmk.open("gallery.lmk") as recognizer:  # doctest: +SKIP
...     for answer in recognizer.answer("photo.jpg"):
...         print(answer.query, answer.label, answer.probability)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest
from lmk.embed.data.sources import PictureSource, Source, picture_source, picture_sources
from lmk.embed.embeddings import Embeddings
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import extract_stream
from lmk.embed.local.features import (
    Extractor,
    FeatureCache,
    LocalFeatures,
    cache_of,
    local_features,
)
from lmk.embed.progress import Count, no_count
from lmk.index.gallery.gallery import Gallery
from lmk.index.search.choose import choose
from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.searcher import Searcher
from lmk.rerank.answers import Answer, Answers, answers_of
from lmk.rerank.fit.calibration import Calibration
from lmk.rerank.fit.saved import saved_calibration, saved_context, saved_pipeline
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.state import QueryBatch


class Recognizer:
    """Embedder, gallery and pipeline of an opened index.

    An opened recognizer never changes; `with_pipeline` returns another one.

    Args:
        gallery: the opened gallery.
        embedder: the embedder of the gallery.
        pipeline: the steps from neighbours to answers. Default: those saved with the gallery.
        searcher: a search over the pictures of the gallery. Default: chosen on first use.
        batch: number of queries of each call, if known, for the choice of a search.
    """

    def __init__(
        self,
        gallery: Gallery,
        embedder: Embedder,
        pipeline: Pipeline | None = None,
        *,
        searcher: Searcher | None = None,
        batch: int | None = None,
    ) -> None:
        self._gallery = gallery
        self._embedder = embedder
        self._pipeline = pipeline or saved_pipeline(gallery)
        self._searcher, self._batch = searcher, batch

    @property
    def gallery(self) -> Gallery:
        """The opened gallery."""
        return self._gallery

    @property
    def embedder(self) -> Embedder:
        """The embedder of the gallery."""
        return self._embedder

    @property
    def pipeline(self) -> Pipeline:
        """The steps from neighbours to answers."""
        return self._pipeline

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        pipeline: Pipeline | None = None,
        verify: bool | None = None,
        batch: int | None = None,
    ) -> Recognizer:
        """Opens an index.

        Args:
            path: the gallery folder (NAME.lmk).
            pipeline: other steps than the saved ones.
            verify: which files are compared with their checksums (Gallery.open).
            batch: number of queries of each call, if known; another search suits many.

        Raises:
            NotAGallery, GalleryDamaged, FormatTooNew: the folder cannot be used.
        """
        gallery = Gallery.open(path, verify=verify)
        try:
            embedder = Embedder.load(gallery.embedder_dir, checked=True)
            return cls(gallery, embedder, pipeline, batch=batch)
        except BaseException:
            gallery.close()
            raise

    def with_pipeline(self, pipeline: Pipeline) -> Recognizer:
        """Returns a recognizer with other steps that shares the gallery, embedder and search.

        Closing one of the two closes the gallery of both.
        """
        return Recognizer(
            self.gallery, self.embedder, pipeline, searcher=self.searcher, batch=self._batch
        )

    def __enter__(self) -> Recognizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the gallery."""
        self.gallery.close()

    def answer(self, pictures: Source | Iterable[Source], *, k: int = 5) -> Answers:
        """Answers one picture or several.

        Args:
            pictures: as for `query`.
            k: largest number of neighbours of each answer; those that voted for it come first.

        Returns:
            An Answer for each picture that can be read, in order, and the files that cannot.

        Raises:
            TypeError, UsageError, ForkedProcess: as `query` does.
            ValueError: k is below 0.
        """
        if k < 0:
            raise ValueError(f"k must be 0 or more, got {k}")
        predictions, skipped = self.query(pictures, k=k)
        return Answers(self.answers_of(predictions, k), skipped)

    def answers_of(self, predictions: Predictions, k: int) -> list[Answer]:
        """Returns an Answer with up to k neighbours for each prediction."""
        return answers_of(predictions, self.gallery, self.pipeline, k)

    def query(
        self, pictures: Source | Iterable[Source], *, k: int = 0
    ) -> tuple[Predictions, tuple[Skipped, ...]]:
        """Returns predictions, as arrays, for one picture or several.

        Args:
            pictures: paths, bytes of picture files, PIL images, or uint8 arrays
                [height, width, 3] in RGB order; one, or an iterable of them. The ids of the
                queries are the paths, and "picture N" for a picture without a path, with N from
                0; a path given twice counts once.
            k: least number of neighbours to return, if the pipeline uses fewer; at most the number
                of gallery rows, or lmk.index.vectors.view.LEAST_WIDTH if that is larger.

        Returns:
            The predictions, and the files that cannot be read with the reasons.

        Raises:
            TypeError: `pictures` has another type; the message names the accepted types.
            UsageError: a path is a folder.
            ForkedProcess: this process is a fork of the one that opened the index.
        """
        self.gallery.check_open()
        sources = {source.id: source for source in picture_sources(pictures)}
        embeddings, skipped = self.embedder.embed(sources.values())
        features = self.features_of([sources[name] for name in embeddings.ids])
        return self.predict(embeddings, k=k, features=features), skipped

    def features_of(
        self, pictures: Sequence[Source | PictureSource]
    ) -> Callable[[int], LocalFeatures | str] | None:
        """Returns a function from the number of a query to its local features, for `predict`.

        The function reads the file when it is called, which happens for queries in doubt. Returns
        None if no step needs local features.
        """
        if self._points is None:
            return None
        return lambda number: self._of_query(pictures[number])

    def embed_stream(
        self, manifest: Manifest, *, on_progress: Count = no_count
    ) -> Iterator[tuple[Embeddings, tuple[Skipped, ...]]]:
        """Returns the embeddings of a manifest's pictures in batches (see extract_stream)."""
        return extract_stream(manifest, self.embedder, on_progress=on_progress)

    def predict(
        self,
        queries: Embeddings,
        *,
        k: int = 0,
        features: Callable[[int], LocalFeatures | str] | None = None,
    ) -> Predictions:
        """Returns predictions for embeddings of this recognizer's embedder.

        Args:
            queries: the embeddings of the pictures to be recognised.
            k: as in `query`.
            features: local features by query number, or the reason why there are none; without
                them the geometric check is left out.
        """
        self.gallery.check_open()
        near = self.search(queries, max(k, self.pipeline.candidates))
        answers = self.pipeline.predict(QueryBatch(queries, features=features), near, self.context)
        if self.calibration is None:
            return answers
        return replace(answers, probability=self.calibration.probabilities(answers.confidence))

    def search(self, queries: Embeddings, k: int) -> Neighbours:
        """Returns the k nearest gallery pictures of each query, by plain cosine."""
        return self.searcher.search(queries, k)

    @property
    def searcher(self) -> Searcher:
        """The search over the gallery's pictures, chosen on first use."""
        if self._searcher is None:
            self._searcher = choose(self.gallery, batch=self._batch)
        return self._searcher

    @cached_property
    def context(self) -> PipelineContext:
        """The values of the gallery that the steps need."""
        context = saved_context(self.gallery, self.pipeline, self.searcher, batch=self._batch)
        return context if self._points is None else replace(context, row_features=self._of_row)

    @cached_property
    def calibration(self) -> Calibration | None:
        """The map from confidence to probability; None if it was fitted for other steps."""
        saved, own = (
            pipeline.per_query().with_threshold(None)
            for pipeline in (saved_pipeline(self.gallery), self.pipeline)
        )
        same = saved == own  # a threshold and a step over all queries change no confidence
        return saved_calibration(self.gallery) if same else None

    @cached_property
    def _points(self) -> Extractor | None:
        """The extractor of local features, if a step needs them."""
        return self.pipeline.local_extractor()

    @cached_property
    def _kept_points(self) -> FeatureCache:
        return cache_of(self.gallery.path)

    def _of_row(self, row: int) -> LocalFeatures | str:
        """Returns the local features of a gallery picture, or why its file cannot be read."""
        assert self._points is not None
        picture = self.gallery.pictures([row])[0]
        return local_features(
            picture.sha256, lambda: self.gallery.read(picture), self._points, self._kept_points
        )

    def _of_query(self, picture: Source | PictureSource) -> LocalFeatures | str:
        """Returns the local features of a query, or why its file cannot be read."""
        assert self._points is not None
        data = picture_source(picture).read()
        if isinstance(data, str):
            return data
        content = hashlib.sha256(data).hexdigest()
        return local_features(content, lambda: data, self._points, self._kept_points)
