"""The threshold of "none of these", learnt from the gallery itself and its bank.

Right answers: each picture of a sample asked of the gallery without itself. Wrong ones: the same
pictures with their whole landmark left out (a landmark nobody has heard of), and the bank.
The threshold is where the share of right answers kept plus the share of wrong ones refused is
largest (Youden's J).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.index.neighbours import NO_ROW, Neighbours
from lmk.index.search import Searcher
from lmk.rerank.pipeline import GalleryFacts, Pipeline

SAMPLE = 2000  # pictures of each kind that are asked


def learn_threshold(
    pipeline: Pipeline,
    searcher: Searcher,
    facts: GalleryFacts,
    gallery: Embeddings,
    rows: NDArray[np.int64],
    bank: Embeddings,
) -> float:
    """The threshold for a pipeline over a gallery.

    Args:
        pipeline: without a threshold.
        searcher: over the gallery.
        facts: of the gallery.
        gallery: its labelled and unlabelled pictures.
        rows: int64 [n], the row number of each of them.
        bank: distractors, maybe none.

    Returns:
        -inf (everything is answered) where there is nothing to learn from: no landmark has two
        pictures, or there is one landmark only and no bank.
    """
    chosen = np.unique(np.linspace(0, len(gallery) - 1, min(SAMPLE, len(gallery))).astype(int))
    asked = _some(gallery, chosen)
    found = searcher.search(asked, pipeline.candidates + 1)
    own = [_labels(facts, int(row)) for row in rows[chosen]]
    alone = _without(found, [{int(row)} for row in rows[chosen]])
    answers = pipeline.predict(alone, facts)
    right = np.array([label in names for label, names in zip(answers.labels, own, strict=True)])
    strangers = _without(
        found, [_rows_with(facts, row, names) for row, names in zip(found.rows, own, strict=True)]
    )
    wrong = [_finite(pipeline.predict(strangers, facts).confidence)]
    if len(bank):
        some = _some(bank, np.arange(0, len(bank), -(-len(bank) // SAMPLE)))
        answers_bank = pipeline.predict(searcher.search(some, pipeline.candidates), facts)
        wrong.append(_finite(answers_bank.confidence))
    return _youden(_finite(answers.confidence[right]), [part for part in wrong if part.size])


def _youden(right: NDArray[np.float32], wrong: list[NDArray[np.float32]]) -> float:
    """The cut between two values that keeps most of `right` and least of each of `wrong`."""
    if not right.size or not wrong:
        return float("-inf")
    values = np.unique(np.concatenate([right, *wrong]))
    cuts = np.append((values[1:] + values[:-1]) / 2, values[-1])
    kept = 1 - np.searchsorted(np.sort(right), cuts) / right.size
    refused = np.mean([np.searchsorted(np.sort(part), cuts) / part.size for part in wrong], axis=0)
    return float(cuts[np.argmax(kept + refused)])


def _some(embeddings: Embeddings, chosen: NDArray[np.integer]) -> Embeddings:
    ids = tuple(embeddings.ids[i] for i in chosen)
    return Embeddings(embeddings.vectors[chosen], ids, embeddings.fingerprint)


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values[np.isfinite(values)]


def _labels(facts: GalleryFacts, row: int) -> set[str]:
    codes = facts.label_codes[facts.label_offsets[row] : facts.label_offsets[row + 1]]
    return {facts.label_names[code] for code in codes}


def _rows_with(facts: GalleryFacts, rows: NDArray[np.int64], names: set[str]) -> set[int]:
    """Those of `rows` that have one of these labels (an unlabelled picture is its own stranger)."""
    return {int(row) for row in rows if row != NO_ROW and _labels(facts, int(row)) & names}


def _without(found: Neighbours, banned: list[set[int]]) -> Neighbours:
    """The neighbours less those banned for each query; gaps go to the end."""
    rows, scores = found.rows.copy(), found.scores.copy()
    for i, ban in enumerate(banned):
        out = np.isin(rows[i], list(ban))
        rows[i, out], scores[i, out] = NO_ROW, -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    return Neighbours(
        np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1), found.query_ids
    )
