"""Answers with known verdicts, made of a gallery alone.

Right ones: each labelled picture of a sample asked of the gallery without itself, where its
landmark has another picture. Wrong ones: the same pictures without their whole landmark (a place
nobody has heard of), and the bank. A bank picture is asked of a gallery that was taught without
it, as no photo of a user is in the bank: else its own likeness to itself would refuse it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lmk.embed.embeddings import Embeddings
from lmk.index.search import Searcher
from lmk.index.view import View
from lmk.rerank.answering import Queries, leave_out
from lmk.rerank.calibration import Answers
from lmk.rerank.facts import GalleryFacts
from lmk.rerank.picks import blocks
from lmk.rerank.pipeline import Pipeline
from lmk.rerank.predictions import Predictions

SAMPLE = 2000  # pictures of each kind that are asked
MOST_LEFT_OUT = 1000  # neighbours searched beyond the usual number, for the largest landmarks

Taught = Callable[[NDArray[np.int64]], GalleryFacts]


def answers_of_gallery(
    pipeline: Pipeline,
    searcher: Searcher,
    facts: GalleryFacts,
    gallery: View,
    bank: View,
    taught_without: Taught,
) -> Answers:
    """What a pipeline answers to the pictures of its own gallery and bank.

    Steps that need all queries at once are left out, and so is the geometric check, which needs
    the files.

    Args:
        pipeline: its threshold does not matter.
        searcher: over the gallery's pictures, exact.
        facts: of the gallery, by the rows of `gallery`.
        gallery: its labelled and unlabelled pictures.
        bank: distractors, maybe none.
        taught_without: the facts of the gallery if it were taught without these rows of the bank.
            A bank of up to 2 * SAMPLE is asked in two halves, each without itself; of a larger
            one SAMPLE pictures are.

    Returns:
        Of no answer where the gallery has no labelled picture.
    """
    pipeline = pipeline.for_one()
    known, right, strangers = _of_pictures(pipeline, searcher, facts, gallery)
    confidences = [np.zeros(0, np.float32)]
    if np.diff(facts.label_offsets)[gallery.mask].any():
        for part in _parts(bank):
            without = taught_without(part) if pipeline.uses_bank() else facts
            asked = _embeddings(bank, part)
            found = searcher.search(asked, pipeline.candidates)
            confidences.append(pipeline.predict(Queries(asked), found, without).confidence)
    return Answers.of_gallery(known, right, strangers, np.concatenate(confidences))


def _of_pictures(
    pipeline: Pipeline, searcher: Searcher, facts: GalleryFacts, gallery: View
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Confidences of pictures without themselves, whether they are right, and as strangers."""
    rows = _spread(np.flatnonzero(gallery.mask & (np.diff(facts.label_offsets) > 0)))
    if not rows.size:
        none = np.zeros(0, np.float32)
        return none, none.astype(np.bool_), none
    k = pipeline.candidates
    own = [facts.label_codes[slice(*facts.label_offsets[row : row + 2])] for row in rows]
    landmarks = _landmarks(facts, rows, own, gallery.mask)
    # As deep as it takes to have k neighbours left when a whole landmark is left out.
    deeper = min(max(len(members) for members in landmarks), MOST_LEFT_OUT)
    asked = _embeddings(gallery, rows)
    found = searcher.search(asked, k + deeper)

    def answered(without: list[NDArray[np.int64]]) -> Predictions:
        return pipeline.predict(Queries(asked, without), leave_out(found, without, k), facts)

    answers = answered(list(rows[:, None]))
    right = [
        label in {facts.label_names[code] for code in codes}
        for label, codes in zip(answers.labels, own, strict=True)
    ]
    several = np.array([len(members) > 1 for members in landmarks])
    strangers = answered(landmarks).confidence
    return answers.confidence[several], np.array(right, np.bool_)[several], strangers


def _parts(bank: View) -> list[NDArray[np.int64]]:
    """The rows of the bank to ask, those together that are taken out together.

    Chance decides, by the vectors alone: which row a picture has says when it came, and would
    let a bank that grew differ from the same one built at once.
    """
    rows = np.flatnonzero(bank.mask)
    chance = [
        zlib.crc32(vector.tobytes()) for _, some in blocks(bank.stored, rows) for vector in some
    ]
    rows = rows[np.argsort(np.array(chance, np.int64), kind="stable")]
    if len(rows) > 2 * SAMPLE:
        return [np.sort(rows[:SAMPLE])]
    half = (len(rows) + 1) // 2
    return [np.sort(part) for part in (rows[:half], rows[half:]) if part.size]


def _spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """SAMPLE of the rows, evenly; all where there are fewer."""
    if len(rows) <= SAMPLE:
        return rows
    places = np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(np.int64))
    return np.asarray(rows[places], np.int64)


def _embeddings(view: View, rows: NDArray[np.int64]) -> Embeddings:
    return Embeddings(view.stored.read(rows), tuple(map(str, rows)), view.fingerprint)


def _landmarks(
    facts: GalleryFacts,
    rows: NDArray[np.int64],
    own: list[NDArray[np.int32]],
    gallery: NDArray[np.bool_],
) -> list[NDArray[np.int64]]:
    """For each of the rows, itself and the gallery rows of its landmarks (`own`, label codes)."""
    row_of = np.repeat(np.arange(len(facts.label_offsets) - 1), np.diff(facts.label_offsets))
    order = np.argsort(facts.label_codes, kind="stable")
    order = order[gallery[row_of[order]]]
    row_of, codes = row_of[order], facts.label_codes[order]
    landmarks = []
    for row, wanted in zip(rows, own, strict=True):
        first, last = (np.searchsorted(codes, wanted, side) for side in ("left", "right"))
        members = [row_of[start:stop] for start, stop in zip(first, last, strict=True)]
        landmarks.append(np.unique(np.concatenate([[row], *members])))
    return landmarks
