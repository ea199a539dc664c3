"""Several pipelines answer the same photos: what tuning compares."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from lmk.embed.progress import Count, no_count
from lmk.eval.tune.labelled_photos import KnownPhotos
from lmk.rerank.recognizer import Recognizer
from lmk.rerank.steps.context import PipelineContext
from lmk.rerank.steps.pipeline import Pipeline
from lmk.rerank.steps.predictions import Predictions
from lmk.rerank.steps.state import QueryBatch
from lmk.rerank.steps.steps import DbaStep, DistractorSimilarityStep, GeometryStep, PenaltyStep


def try_pipelines(
    recognizer: Recognizer,
    pipelines: Sequence[Pipeline],
    photos: KnownPhotos,
    *,
    on_progress: Count = no_count,
) -> list[Predictions]:
    """The predictions of each pipeline; the photos are searched once.

    Args:
        recognizer: the opened index; its own pipeline plays no part.
        pipelines: to be tried. What they must know of the gallery and is not saved with it is
            learnt, once for all pipelines that need the same.
        photos: what is asked.
        on_progress: called with the number of pipelines done.
    """
    depth = max(pipeline.candidates for pipeline in pipelines)
    found = recognizer.search(photos.embeddings, depth)
    known: dict[Hashable, PipelineContext] = {}
    predictions = []
    for done, pipeline in enumerate(pipelines, 1):
        other = recognizer.with_pipeline(pipeline)
        needs = _needs(pipeline)
        if needs not in known:
            known[needs] = other.context
        queries = QueryBatch(photos.embeddings, features=other.features_of(photos.files))
        predictions.append(pipeline.predict(queries, found, known[needs]))
        on_progress(done)
    return predictions


def _needs(pipeline: Pipeline) -> Hashable:
    """What a pipeline's facts depend on."""
    kinds = (DbaStep, PenaltyStep, DistractorSimilarityStep, GeometryStep)
    return (
        tuple(step for step in pipeline.steps if isinstance(step, kinds)),
        pipeline.rescales(),
        pipeline.asks_bank(),
    )
