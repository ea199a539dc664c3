"""Learns what a gallery's answers need: background, penalty and threshold.

Where it takes about a second, all of it is learnt anew after each change. In a larger gallery the
background and the penalty are brought up to date for what changed, with the same result (see
picks.py, background.py), and the threshold is kept until a tenth of the pictures has changed: it
is read off a sample of a few thousand, which one picture does not move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lmk.index.gallery import Gallery
from lmk.index.search import Searcher, searcher_of
from lmk.index.view import View
from lmk.index.writer import GalleryWriter
from lmk.rerank.background import LandmarkSums, Pictures
from lmk.rerank.facts import GalleryFacts
from lmk.rerank.picks import PickTable, Sides
from lmk.rerank.pipeline import Pipeline
from lmk.rerank.threshold import SAMPLE, learn_threshold

PIPELINE, PENALTY, BACKGROUND = "pipeline", "penalty", "background"
SHARD = "shard"  # which part of the pictures a gallery holds, where it holds one
_PICKS, _WORST, _LEARNT = "picks", "worst picks", "learnt"
STAGE = "penalty and threshold"
CHEAP = 1e11  # products of components: a second or two on two cores
KEPT_THRESHOLD = 0.1  # of the pictures may have changed

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Learnt:
    """What was learnt of a gallery, and of which state of it.

    Attributes:
        pipeline: with the threshold.
        gallery: its pictures then.
        bank: its distractors then.
        sums: for the background.
        table: who picked whom; None without a penalty.
        weighed: pictures there were when the threshold was learnt.
        changed: rows that came or went since then.
    """

    pipeline: Pipeline
    gallery: View
    bank: View
    sums: LandmarkSums
    table: PickTable | None
    weighed: int
    changed: int


def saved_pipeline(gallery: Gallery) -> Pipeline:
    """The pipeline saved with a gallery; the default one where none is."""
    saved = gallery.setting(PIPELINE)
    return Pipeline() if saved is None else Pipeline.model_validate(saved)


def saved_learning(gallery: Gallery) -> Learnt | None:
    """What `learn` kept with a gallery to go on from; None where it kept nothing that fits."""
    kept = gallery.setting(_LEARNT)
    if kept is None:
        return None
    pipeline, table = saved_pipeline(gallery), None
    if pipeline.penalty() is not None:
        picks, worst = gallery.array(_PICKS), gallery.array(_WORST)
        if picks is None or worst is None or len(picks) != gallery.rows:
            return None
        table = PickTable(picks[:, 0].astype(np.int64), picks[:, 1].copy(), worst)
    views = gallery.view("gallery"), gallery.view("distractor")
    sums = LandmarkSums.of_json(kept["sums"])
    if sums.pictures != np.count_nonzero(views[0].mask):
        return None
    return Learnt(pipeline, *views, sums, table, kept["weighed"], kept["changed"])


def learn(
    writer: GalleryWriter,
    pipeline: Pipeline,
    *,
    before: Learnt | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Learnt:
    """Learns from the gallery as it is inside the writer's transaction, and saves it there.

    Args:
        writer: with all pictures of the transaction.
        pipeline: its threshold is learnt.
        before: what was learnt of the state before the transaction, to go on from it where
            learning anew would take long.
        progress: called with (stage, done, total).
    """
    progress(STAGE, 0, 1)
    gallery = writer.view("gallery")
    labels = gallery.labels
    assert labels is not None  # a writer's view has them
    bank = replace(gallery, mask=labels.role("distractor"))
    if before is None or _is_cheap(gallery, bank) or not _same_rule(before.pipeline, pipeline):
        before = _nothing(pipeline, gallery, bank)
    pictures, distractors = (int(view.mask.sum()) for view in (gallery, bank))
    sums = before.sums.updated(
        gallery.stored, before=_pictures(before.gallery), after=_pictures(gallery)
    )
    background = sums.mean_cosine()
    table, penalty = _picks(before, pipeline, gallery, bank), None
    if table is not None and pictures and distractors:
        top = _top(pipeline)
        picks = table.picks(bank=distractors, gallery=pictures, top=top)
        penalty = pipeline.penalty_of(picks, background)
    changed = before.changed + _changed(before.gallery, gallery) + _changed(before.bank, bank)
    kept = changed <= KEPT_THRESHOLD * before.weighed
    if kept:
        value = before.pipeline.threshold()
    else:
        facts = GalleryFacts(labels.names, labels.offsets, labels.codes, penalty, background)
        found = learn_threshold(pipeline, exact_searcher(gallery), facts, gallery, bank)
        value = found if np.isfinite(found) else None
    learnt = Learnt(
        pipeline.with_threshold(value),
        gallery,
        bank,
        sums,
        table,
        before.weighed if kept else pictures,
        changed if kept else 0,
    )
    _save(writer, learnt, penalty, background)
    progress(STAGE, 1, 1)
    return learnt


def learn_change(
    writer: GalleryWriter,
    old: Gallery,
    *,
    changed: bool,
    anew: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> float | None:
    """Learns after a change to a gallery, and returns the threshold.

    Args:
        writer: with all pictures of the transaction.
        old: the gallery before it.
        changed: without a change nothing is learnt.
        anew: whether what was learnt before is of no use, as when row numbers have changed.
        progress: called with (stage, done, total).
    """
    pipeline = saved_pipeline(old)
    if not changed or old.setting(SHARD) is not None:  # of a part nothing is learnt
        return pipeline.threshold()
    before = None if anew else saved_learning(old)
    return learn(writer, pipeline, before=before, progress=progress).pipeline.threshold()


def forget_learning(writer: GalleryWriter) -> None:
    """Forgets what a gallery was taught, as the settings of another one came into it."""
    for name in (_LEARNT, BACKGROUND):
        writer.set(name, None)
    for name in (PENALTY, _PICKS, _WORST):
        writer.drop_array(name)


def exact_searcher(view: View) -> Searcher:
    """An exact search for many queries, the fastest for the size of the view."""
    return searcher_of(view, recall=1.0, batch=SAMPLE)


def _nothing(pipeline: Pipeline, gallery: View, bank: View) -> Learnt:
    """What is known of a gallery of no picture: from here all is learnt anew."""
    empty = (
        replace(gallery, mask=np.zeros_like(gallery.mask)),
        replace(bank, mask=np.zeros_like(bank.mask)),
    )
    table = None if pipeline.penalty() is None else PickTable.empty(gallery.stored.rows)
    return Learnt(pipeline, *empty, LandmarkSums.none(gallery.dim), table, 0, 1)


def _is_cheap(gallery: View, bank: View) -> bool:
    """Whether learning everything anew takes no longer than a user would wait for it."""
    pictures, distractors = int(gallery.mask.sum()), int(bank.mask.sum())
    asked = min(pictures, SAMPLE) + min(distractors, SAMPLE) + distractors
    return asked * pictures * gallery.dim <= CHEAP


def _same_rule(one: Pipeline, other: Pipeline) -> bool:
    return one.with_threshold(None) == other.with_threshold(None)


def _top(pipeline: Pipeline) -> int:
    settings = pipeline.penalty()
    return 0 if settings is None else settings.top


def _pictures(view: View) -> Pictures:
    return Pictures(view.mask, view.labels)


def _picks(before: Learnt, pipeline: Pipeline, gallery: View, bank: View) -> PickTable | None:
    if before.table is None:
        return None
    sides = Sides(before.gallery.mask, before.bank.mask).grown(gallery.stored.rows)
    either = replace(gallery, mask=gallery.mask | sides.gallery)
    return before.table.updated(
        exact_searcher(either),
        gallery.stored,
        gallery.fingerprint,
        before=sides,
        after=Sides(gallery.mask, bank.mask),
        top=_top(pipeline),
    )


def _changed(before: View, after: View) -> int:
    mask = np.zeros_like(after.mask)
    mask[: len(before.mask)] = before.mask
    return int(np.count_nonzero(mask != after.mask))


def _save(
    writer: GalleryWriter, learnt: Learnt, penalty: NDArray[np.float32] | None, background: float
) -> None:
    writer.set(PIPELINE, learnt.pipeline.model_dump(mode="json"))
    writer.set(BACKGROUND, background)
    if penalty is None:
        writer.drop_array(PENALTY)
    else:
        writer.put_array(PENALTY, penalty, by_row=True)
    if _is_cheap(learnt.gallery, learnt.bank):  # and will be learnt anew by the next change
        writer.set(_LEARNT, None)
        for name in (_PICKS, _WORST):
            writer.drop_array(name)
        return
    if learnt.table is not None:
        picks = np.stack([learnt.table.counts.astype(np.float64), learnt.table.sums], axis=1)
        writer.put_array(_PICKS, picks, by_row=True)
        writer.put_array(_WORST, learnt.table.worst, by_row=True)
    kept = {"sums": learnt.sums.as_json(), "weighed": learnt.weighed, "changed": learnt.changed}
    writer.set(_LEARNT, kept)
