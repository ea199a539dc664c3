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
from lmk.index.search import Searcher
from lmk.index.view import View
from lmk.rerank.answering import Queries, leave_out
from lmk.rerank.facts import GalleryFacts
from lmk.rerank.pipeline import Pipeline

SAMPLE = 2000  # pictures of each kind that are asked
REFUSED = 0.95  # of wrong answers, where there are no right ones to weigh them against
MOST_LEFT_OUT = 1000  # neighbours searched beyond the usual number, for the largest landmarks


def learn_threshold(
    pipeline: Pipeline, searcher: Searcher, facts: GalleryFacts, gallery: View, bank: View
) -> float:
    """The threshold for a pipeline over a gallery.

    Args:
        pipeline: without a threshold.
        searcher: over the gallery's pictures.
        facts: of the gallery, by the rows of `gallery`.
        gallery: its labelled and unlabelled pictures.
        bank: distractors, maybe none.

    Returns:
        -inf (everything is answered) where there is no wrong answer to learn from: there is one
        landmark only and no bank, or no picture.
    """
    rows = np.flatnonzero(gallery.mask)
    if not rows.size:
        return float("-inf")
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))]
    k = pipeline.candidates
    own = [_codes(facts, int(row)) for row in chosen]
    landmarks = _landmarks(facts, chosen, own)
    # As deep as it takes to have k neighbours left when a whole landmark is left out.
    deeper = min(max(len(members) for members in landmarks), MOST_LEFT_OUT)
    asked = _embeddings(gallery, chosen)
    found = searcher.search(asked, k + deeper)
    itself = list(chosen[:, None])
    answers = pipeline.predict(Queries(asked, itself), leave_out(found, itself, k), facts)
    right = np.array(
        [
            label in {facts.label_names[code] for code in codes}
            for label, codes in zip(answers.labels, own, strict=True)
        ],
        np.bool_,
    )
    strangers = leave_out(found, landmarks, k)
    wrong = [_finite(pipeline.predict(Queries(asked, landmarks), strangers, facts).confidence)]
    others = np.flatnonzero(bank.mask)
    if others.size:
        some = _embeddings(bank, others[:: -(-len(others) // SAMPLE)])
        near = searcher.search(some, pipeline.candidates)
        answers_bank = pipeline.predict(Queries(some), near, facts)
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


def _embeddings(view: View, rows: NDArray[np.int64]) -> Embeddings:
    return Embeddings(view.stored.read(rows), tuple(map(str, rows)), view.fingerprint)


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values[np.isfinite(values)]


def _codes(facts: GalleryFacts, row: int) -> NDArray[np.int32]:
    return facts.label_codes[facts.label_offsets[row] : facts.label_offsets[row + 1]]


def _landmarks(
    facts: GalleryFacts, rows: NDArray[np.int64], own: list[NDArray[np.int32]]
) -> list[NDArray[np.int64]]:
    """For each of the rows, itself and the rows of its landmarks (`own`, label codes)."""
    row_of = np.repeat(np.arange(len(facts.label_offsets) - 1), np.diff(facts.label_offsets))
    order = np.argsort(facts.label_codes, kind="stable")
    row_of, codes = row_of[order], facts.label_codes[order]
    landmarks = []
    for row, wanted in zip(rows, own, strict=True):
        first, last = (np.searchsorted(codes, wanted, side) for side in ("left", "right"))
        members = [row_of[start:stop] for start, stop in zip(first, last, strict=True)]
        landmarks.append(np.concatenate([[row], *members]))
    return landmarks
