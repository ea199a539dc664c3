"""The threshold of "none of these", learnt from the gallery itself and its bank.

Right answers: each picture of a sample asked of the gallery without itself. Wrong ones: the same
pictures with their whole landmark left out (a landmark nobody has heard of), and the bank; each
of these two kinds weighs the same.
The threshold is where the share of right answers kept plus the share of wrong ones refused is
largest (Youden's J). Where no landmark has two pictures there are no right answers to learn from:
then it is where 95 % of the wrong ones are refused.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.index.neighbours import NO_ROW, Neighbours
from lmk.index.search import Searcher
from lmk.rerank.pipeline import GalleryFacts, Pipeline

SAMPLE = 2000  # pictures of each kind that are asked
REFUSED = 0.95  # of wrong answers, where there are no right ones to weigh them against
MOST_LEFT_OUT = 1000  # neighbours searched beyond the usual number, for the largest landmarks


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
        -inf (everything is answered) where there is no wrong answer to learn from: there is one
        landmark only and no bank.
    """
    chosen = np.unique(np.linspace(0, len(gallery) - 1, min(SAMPLE, len(gallery))).astype(int))
    asked = _some(gallery, chosen)
    k = pipeline.candidates
    own = [_codes(facts, int(row)) for row in rows[chosen]]
    members = _members(facts)
    landmarks = [
        np.concatenate([[row], *(members[code] for code in codes)])
        for row, codes in zip(rows[chosen], own, strict=True)
    ]
    # As deep as it takes to have k neighbours left when a whole landmark is left out.
    deeper = min(max(len(members_) for members_ in landmarks), MOST_LEFT_OUT)
    found = searcher.search(asked, k + deeper)
    answers = pipeline.predict(_without(found, list(rows[chosen, None]), k), facts)
    right = np.array(
        [
            label in {facts.label_names[code] for code in codes}
            for label, codes in zip(answers.labels, own, strict=True)
        ],
        np.bool_,
    )
    strangers = _without(found, landmarks, k)
    wrong = [_finite(pipeline.predict(strangers, facts).confidence)]
    if len(bank):
        some = _some(bank, np.arange(0, len(bank), -(-len(bank) // SAMPLE)))
        answers_bank = pipeline.predict(searcher.search(some, pipeline.candidates), facts)
        wrong.append(_finite(answers_bank.confidence))
    return _cut(_finite(answers.confidence[right]), [part for part in wrong if part.size])


def _cut(right: NDArray[np.float32], wrong: list[NDArray[np.float32]]) -> float:
    """The cut between two values that keeps most of `right` and least of each of `wrong`."""
    if not wrong:
        return float("-inf")
    if not right.size:
        return float(np.mean([np.quantile(part, REFUSED) for part in wrong]))
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


def _codes(facts: GalleryFacts, row: int) -> NDArray[np.int32]:
    return facts.label_codes[facts.label_offsets[row] : facts.label_offsets[row + 1]]


def _members(facts: GalleryFacts) -> list[NDArray[np.int64]]:
    """The rows of each label code."""
    row_of = np.repeat(np.arange(len(facts.label_offsets) - 1), np.diff(facts.label_offsets))
    order = np.argsort(facts.label_codes, kind="stable")
    ends = np.searchsorted(facts.label_codes[order], np.arange(len(facts.label_names)), "right")
    return np.split(row_of[order], ends)[:-1]


def _without(found: Neighbours, banned: list[NDArray[np.int64]], k: int) -> Neighbours:
    """The k nearest of the neighbours that are not banned for their query."""
    rows, scores = found.rows.copy(), found.scores.copy()
    for i, ban in enumerate(banned):
        out = np.isin(rows[i], ban)
        rows[i, out], scores[i, out] = NO_ROW, -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Neighbours(
        np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1), found.query_ids
    )
