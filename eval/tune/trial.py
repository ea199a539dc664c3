"""Predictions of several pipelines for the same photos, which tuning compares."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from lmk.embed.progress import Count, no_count
from lmk.eval.tune.labelled_photos import LabelledPhotos
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.state import QueryBatch


def try_pipelines(
    recognizer: Recognizer,
    pipelines: Sequence[Pipeline],
    photos: LabelledPhotos,
    *,
    on_progress: Count = no_count,
) -> list[Predictions]:
    """Returns the predictions of each pipeline; the photos are searched once.

    Args:
        recognizer: the opened index; its own pipeline is not used.
        pipelines: the pipelines to try. Tables that a pipeline needs and the index has not saved
            are fitted, once for all pipelines with the same needs.
        photos: the queries.
        on_progress: called with the number of pipelines done.
    """
    depth = max(pipeline.candidates for pipeline in pipelines)
    neighbours = recognizer.search(photos.embeddings, depth)
    contexts: dict[Hashable, PipelineContext] = {}
    predictions = []
    for done, pipeline in enumerate(pipelines, 1):
        other = recognizer.with_pipeline(pipeline)
        key = pipeline.context_key()
        if key not in contexts:
            contexts[key] = other.context
        queries = QueryBatch(photos.embeddings, features=other.features_of(photos.files))
        predictions.append(pipeline.predict(queries, neighbours, contexts[key]))
        on_progress(done)
    return predictions
