"""Synchronisation of a gallery with a folder.

A sync reads only files with another size or modification time, and embeds only files with new
content. A picture that was moved, touched or relabelled keeps its vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.manifest import Manifest
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import identify
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.progress import Count, Progress, no_progress
from lmk.index.catalog.records import Picture
from lmk.index.catalog.settings import read_setting
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.labels import Role
from lmk.index.vectors.vectors import row_blocks
from lmk.rerank.fit.fit import fit_change
from lmk.rerank.fit.tables import SHARD
from lmk.rerank.indexing.ingest import (
    BLOCK,
    DISTRACTOR_PREFIX,
    DUPLICATES,
    NOTHING,
    IngestReport,
    append_all,
    entries_of,
    extract_all,
    ingest_results,
    open_store,
    prefix_of,
    prune_features,
    record_skipped,
    require_pictures,
)
from lmk.rerank.indexing.removals import Removals, UnseenPictures, require_few
from lmk.rerank.indexing.sync_plan import COMPUTED, VERBS, Plan, Stamp, Verb

_STAGES: dict[Role, str] = {"gallery": "pictures", "distractor": "distractors"}
_UNREADABLE = "unreadable"  # setting: sizes and times of files that are not pictures
_MOST_UNUSED = 2.0  # multiple of the number of pictures above which the cache is pruned ...
_SOME_UNUSED = 10_000  # ... after the addition of this number


@dataclass(frozen=True, kw_only=True)
class SyncReport(IngestReport):
    """Result of a sync, or of a dry run.

    Attributes:
        added: number of new pictures.
        changed: number of pictures whose content has changed.
        moved: number of pictures that had another id or path before.
        relabelled: number of pictures with other labels than before.
        removed: number of pictures whose files no longer exist.
        unchanged: number of all other pictures.
        kept: unchanged pictures whose files could not be read, counted by unreadable path.
        vanishing: landmarks that lose all their pictures; all landmarks if fewer other landmarks
            replace all of them.
        asks: True if the sync needs `allow_removals`, because it would remove whole landmarks or
            more than a fifth of the pictures or distractors.
        would: planned changes of a dry run as (verb, id) pairs, in the order of the manifest.
    """

    added: int = 0
    changed: int = 0
    moved: int = 0
    relabelled: int = 0
    removed: int = 0
    unchanged: int = 0
    kept: tuple[UnseenPictures, ...] = ()
    vanishing: tuple[str, ...] = ()
    asks: bool = False
    would: tuple[tuple[str, str], ...] = ()


def sync_index(
    path: Path,
    manifest: Manifest,
    *,
    distractors: Manifest | None = None,
    wait: float = 0.0,
    dry_run: bool = False,
    allow_removals: bool = False,
    on_progress: Progress = no_progress,
) -> SyncReport:
    """Adds, replaces and removes pictures so that a gallery has the pictures of a manifest.

    A picture is removed if its file no longer exists. A picture stays if its file may exist: below
    an unreadable folder (Manifest.unseen), behind a broken link, or as a file that cannot be
    decoded now. A sync reads such a file again only after its size or modification time changes.
    If the gallery is one shard of several (build_index), only pictures of the shard count.

    Args:
        path: the gallery.
        manifest: all pictures of the gallery.
        distractors: all distractors of the gallery. Default: the distractors do not change.
        wait: seconds to wait for another writer.
        dry_run: whether to report the changes only. A dry run reads files and writes nothing.
        allow_removals: whether the sync may remove whole landmarks or more than a fifth of the
            pictures.
        on_progress: called with (stage, done, total).

    Raises:
        ManifestError: no picture can be read, for example from a drive that is not mounted.
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: the folder cannot be used.
        GalleryError: a distractor has the id of a gallery picture or the reverse; or the sync
            would remove whole landmarks, or more than a fifth of the pictures or distractors,
            without `allow_removals`. Nothing changes.
    """
    if dry_run:
        with Gallery.open(path) as old:
            plans = planned_sync(old, manifest, distractors, on_progress)
            return _report(plans, [plan.losses for plan in plans])
    with GalleryWriter(path, wait=wait) as writer, Gallery.open(path) as old:
        embedder = Embedder.load(old.embedder_dir, checked=True)
        store = open_store(path, embedder)
        plans = _compared(old, manifest, distractors, on_progress)
        for plan in plans:
            files, stage = plan.candidates, _STAGES[plan.role]
            plan.sort(extract_all(files, embedder, store, stage, on_progress, plan.held))
            _require_some(plan)
        losses = [plan.losses for plan in plans]
        if not allow_removals:
            require_few(path, losses)
        for plan in plans:
            for block in row_blocks(plan.going, BLOCK):
                writer.remove(old.ids(block))
        added = sum(_append(plan, writer, old, store, embedder) for plan in plans)
        _record_skipped(writer, old, plans)
        taken = len(writer.relabelled)  # number of unlabelled copies that labelled ones replace
        changed = bool(added or taken) or any(len(plan.going) for plan in plans)
        threshold = fit_change(writer, old, changed=changed, on_progress=on_progress)
        results = ingest_results(writer)
        writer.commit()
        report = _report(plans, losses)
        report = replace(
            report,
            added=added,
            relabelled=report.relabelled + taken,
            unchanged=report.unchanged - taken,
            computed=sum(plan.extraction.computed for plan in plans),
            threshold=threshold,
            asks=False,
            would=(),
            **results,
        )
        with Gallery.open(path) as new:  # The writer still has the lock.
            if len(store) > _MOST_UNUSED * np.count_nonzero(new.alive) + _SOME_UNUSED:
                prune_features(path, new)
    return report


def planned_sync(
    old: Gallery, manifest: Manifest, distractors: Manifest | None, on_progress: Progress
) -> list[Plan]:
    """Returns the plan of a sync for each role with a manifest, without embedding pictures."""
    size = Embedder.load(old.embedder_dir, checked=True).config.size
    plans = _compared(old, manifest, distractors, on_progress)
    for plan in plans:
        on_file = _count_of(plan, on_progress)
        plan.sort(identify(plan.candidates, size, plan.held, on_progress=on_file))
        _require_some(plan)
        if not old.setting(DUPLICATES):
            plan.leave_out_duplicates()
    return plans


def _compared(
    old: Gallery, manifest: Manifest, distractors: Manifest | None, on_progress: Progress
) -> list[Plan]:
    shard = read_setting(old, SHARD, tuple[int, int])
    given: list[tuple[Role, Manifest | None]] = [("gallery", manifest), ("distractor", distractors)]
    plans = []
    for role, whole in given:
        if whole is not None:
            if not len(whole):
                require_pictures(whole, NOTHING)
            plans.append(Plan(role, whole, old, shard))
    unreadable = read_setting(old, _UNREADABLE, dict[str, Stamp]) or {}
    for plan in plans:
        plan.compare(unreadable, on_progress)
    return plans


def _require_some(plan: Plan) -> None:
    """Raises ManifestError if no picture of a non-empty manifest is readable or unchanged."""
    if len(plan.manifest):
        known = plan.unchanged + len(plan.relabelled) - len(plan.hidden)
        require_pictures(plan.manifest, plan.extraction, others=known)


def _count_of(plan: Plan, on_progress: Progress) -> Count:
    """Returns a function that reports a number of finished files of a plan's stage."""
    total = len(plan.candidates)
    return lambda done: on_progress(_STAGES[plan.role], done, total)


def _append(
    plan: Plan, writer: GalleryWriter, old: Gallery, store: FeatureStore, embedder: Embedder
) -> int:
    """Appends the pictures of a plan; returns the number of new pictures."""
    root, role = plan.manifest.root, plan.role
    duplicates = bool(old.setting(DUPLICATES))

    def held(rows: NDArray[np.int64], entries: list[Picture], *, twins: bool) -> int:
        vectors = old.stored.gather(rows)  # bit for bit the stored vectors
        return writer.append_stored(vectors, old.fingerprint, entries, role, duplicates=twins)

    for rows, entries in plan.relabelled_batches():
        held(rows, entries, twins=True)
    for verb in VERBS:  # New pictures come last, so that a moved picture is no duplicate.
        appended = 0
        for rows, pictures in plan.batches(verb):
            computed = rows == COMPUTED
            stored = [picture for picture, new in zip(pictures, computed, strict=True) if not new]
            new = [picture for picture, new in zip(pictures, computed, strict=True) if new]
            same = verb in ("touch", "relabel", "move")
            entries = entries_of(stored, root, role)
            appended += held(rows[~computed], entries, twins=same or duplicates)
            appended += append_all(
                writer, store, embedder, new, root, role=role, duplicates=duplicates
            )
    return appended


def _record_skipped(writer: GalleryWriter, old: Gallery, plans: Sequence[Plan]) -> None:
    """Updates the catalog's list of skipped files for the synchronised roles."""
    synced = {plan.role for plan in plans}
    now = {prefix_of(plan.role) + skip.path for plan in plans for skip in plan.skipped}

    def is_synced(path: str) -> bool:
        role = "distractor" if path.startswith(DISTRACTOR_PREFIX) else "gallery"
        return role in synced

    for path, _ in old.skipped():
        if is_synced(path) and path not in now:
            writer.unskip(path)
    stamps = read_setting(old, _UNREADABLE, dict[str, Stamp]) or {}
    stamps = {path: stamp for path, stamp in stamps.items() if not is_synced(path)}
    for plan in plans:
        record_skipped(writer, plan.extraction.skipped, plan.role)
        stamps |= plan.stamps
    writer.set(_UNREADABLE, stamps)


def _report(plans: Sequence[Plan], losses: Sequence[Removals]) -> SyncReport:
    def count(verb: Verb) -> int:
        return sum(len(plan.items[verb]) for plan in plans)

    return SyncReport(
        added=count("add"),
        changed=count("change"),
        moved=count("move"),
        relabelled=count("relabel") + sum(len(plan.relabelled) for plan in plans),
        removed=sum(len(plan.removed) for plan in plans),
        unchanged=sum(plan.unchanged for plan in plans),
        kept=tuple(kept for plan in plans for kept in plan.kept),
        skipped=tuple(skip for plan in plans for skip in plan.skipped),
        vanishing=tuple(name for loss in losses for name in loss.vanishing),
        asks=any(loss.many for loss in losses),
        would=tuple(one for plan in plans for one in plan.changes()),
    )
