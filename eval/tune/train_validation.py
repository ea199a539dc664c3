"""Validation scores of `lmk train` after each epoch: landmarks by nearest neighbour, or tags."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.manifest import Manifest
from lmk.embed.embeddings import Embeddings
from lmk.embed.errors import ManifestError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import extract_stream, feature_stream
from lmk.embed.progress import Progress, no_progress
from lmk.embed.tags.head import TagHead
from lmk.embed.train.tag_targets import positive_tags
from lmk.embed.train.task_config import Tags
from lmk.eval.scores.average_precision import average_precisions
from lmk.eval.scores.gap import gap
from lmk.eval.scores.tags import score_tags

RANKS = 100
_BLOCK = 1024  # queries at a time


@dataclass(frozen=True)
class _Labelled:
    """Embeddings with the labels of their pictures."""

    embeddings: Embeddings
    labels: tuple[frozenset[str], ...]


class Validation:
    """GAP, mAP@100 and accuracy of an embedder on pictures held out of its training.

    Each held-out picture is a query to the gallery. Without a gallery it is a query to the other
    held-out pictures, which measures landmarks that are not in the training set. The landmark of
    the nearest neighbour is the answer, and its cosine is the confidence. Distractors are queries
    too, and every answer to a distractor is wrong.

    Args:
        held_out: pictures with labels.
        distractors: pictures without a landmark, or None.
        gallery: pictures with labels to search, or None.

    Raises:
        ManifestError: no query has a true neighbour: there are no labels, or no landmark has a
            second picture.
    """

    def __init__(
        self,
        held_out: Manifest,
        distractors: Manifest | None = None,
        gallery: Manifest | None = None,
        *,
        on_progress: Progress = no_progress,
    ) -> None:
        self._held_out = held_out
        self._distractors = distractors
        self._gallery = gallery
        self._progress = on_progress
        labels = [set(row.labels) for row in held_out.rows]
        searched = labels if gallery is None else [set(row.labels) for row in gallery.rows]
        counts: dict[str, int] = {}
        for own in searched:
            for label in own:
                counts[label] = counts.get(label, 0) + 1
        least = 2 if gallery is None else 1
        if not any(counts.get(label, 0) >= least for own in labels for label in own):
            what = "no picture shares a landmark with another one"
            remedy = "give pictures with labels, two or more of a landmark, or --val-gallery"
            raise ManifestError(what, where="--val", remedy=remedy)

    def __call__(self, embedder: Embedder) -> dict[str, float]:
        """Returns the scores "gap", "map" and "accuracy", each 0 to 1."""
        queries = self._embed(embedder, self._held_out, "validation")
        alone = self._gallery is None
        gallery = (
            queries
            if self._gallery is None
            else self._embed(embedder, self._gallery, "validation, gallery")
        )
        hits, relevant, confidence = _ranked(queries, gallery, leave_out=alone)
        labelled = np.array([bool(labels) for labels in queries.labels])
        right = hits[:, 0] & labelled
        if self._distractors is not None:
            others = self._embed(embedder, self._distractors, "validation, distractors")
            _, _, cosine = _ranked(others, gallery, leave_out=False)
            confidence = np.concatenate([confidence, cosine])
            right = np.concatenate([right, np.zeros(len(cosine), dtype=bool)])
        scored = relevant > 0
        return {
            "gap": gap(confidence, right, int(labelled.sum())).value,
            "map": float(average_precisions(hits[scored], relevant[scored]).mean()),
            "accuracy": float(right[: len(labelled)].sum() / labelled.sum()),
        }

    def _embed(self, embedder: Embedder, manifest: Manifest, stage: str) -> _Labelled:
        parts = []
        total = len(manifest)
        for embeddings, _ in extract_stream(
            manifest, embedder, on_progress=lambda done: self._progress(stage, done, total)
        ):
            parts.append(embeddings)
        vectors = np.concatenate([part.vectors for part in parts])
        ids = tuple(id_ for part in parts for id_ in part.ids)
        labels_of = {row.id: frozenset(row.labels) for row in manifest.rows}
        labels = tuple(labels_of[id_] for id_ in ids)
        return _Labelled(Embeddings(vectors, ids, embedder.fingerprint), labels)


class TagValidation:
    """Mean average precision over tags, on pictures held out of the training.

    Tags that no held-out picture has, and tags that the head lacks, are left out. A picture without
    tags is a negative example of each tag.

    Args:
        held_out: pictures with tags.
        settings: the settings of the task, which define whether labels have weights.

    Raises:
        ManifestError: no picture has a tag, or a label lacks the weight that it should have.
    """

    def __init__(
        self, held_out: Manifest, settings: Tags, *, on_progress: Progress = no_progress
    ) -> None:
        self._held_out = held_out
        self._progress = on_progress
        self._tags = {row.id: positive_tags(row.labels, settings, "--val") for row in held_out.rows}
        if not any(self._tags.values()):
            remedy = "give a CSV with a column tags, which blanks separate"
            raise ManifestError("no picture has a tag", where="--val", remedy=remedy)

    def __call__(self, embedder: Embedder, head: TagHead | None) -> dict[str, float]:
        """Returns the score "tag_map", 0 to 1; 0 if the head has none of the tags."""
        if head is None:
            raise ValueError("the embedder has no tags")
        ids: list[str] = []
        parts = []
        total = len(self._held_out)
        for own, features, _ in feature_stream(
            self._held_out,
            embedder,
            on_progress=lambda done: self._progress("validation", done, total),
        ):
            ids += own
            parts.append(head.probabilities(features))
        tags = self._tags
        truth = np.array([[name in tags[id_] for name in head.names] for id_ in ids], dtype=bool)
        if not truth.any():
            return {"tag_map": 0.0}
        return {"tag_map": score_tags(np.concatenate(parts), truth, head.names).macro}


def _ranked(
    queries: _Labelled, gallery: _Labelled, *, leave_out: bool
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float32]]:
    """Returns hits bool [q, k], true pictures int64 [q] and the best cosine float32 [q]."""
    names = sorted(set().union(*gallery.labels, *queries.labels))
    number = {name: i for i, name in enumerate(names)}
    own, theirs = (
        np.zeros((len(side.labels), len(names)), dtype=np.float32) for side in (queries, gallery)
    )
    for matrix, side in ((own, queries), (theirs, gallery)):
        for row, labels in enumerate(side.labels):
            matrix[row, [number[label] for label in labels]] = 1
    k = min(RANKS, len(gallery.labels) - leave_out)
    hits = np.zeros((len(queries.labels), k), dtype=bool)
    relevant = np.zeros(len(hits), dtype=np.int64)
    confidence = np.zeros(len(hits), dtype=np.float32)
    for start in range(0, len(hits), _BLOCK):
        block = slice(start, start + _BLOCK)
        cosines = queries.embeddings.vectors[block] @ gallery.embeddings.vectors.T
        same = own[block] @ theirs.T > 0
        if leave_out:
            here = np.arange(len(cosines))
            cosines[here, start + here] = -np.inf
            same[here, start + here] = False
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        hits[block] = np.take_along_axis(same, order, axis=1)
        relevant[block] = same.sum(axis=1)
        confidence[block] = np.take_along_axis(cosines, order[:, :1], axis=1)[:, 0]
    return hits, relevant, confidence
