"""Makes a gallery hold what a folder holds, with as little work as that takes.

Size and time of change say which files are read; their content says which are embedded. A picture
that was moved, touched or given another landmark keeps its vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest
from lmk.embed.extract.embedder import Embedder
from lmk.embed.extract.extract import identify
from lmk.embed.extract.feature_store import FeatureStore
from lmk.embed.progress import Count, Progress, no_progress
from lmk.index.catalog.records import Picture
from lmk.index.catalog.settings import read_setting
from lmk.index.gallery.deduplicate import LabelDifference
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.labels import Role
from lmk.rerank.fit.fit import fit_change
from lmk.rerank.fit.tables import SHARD
from lmk.rerank.indexing.ingest import (
    BLOCK,
    DISTRACTOR_PREFIX,
    DUPLICATES,
    NOTHING,
    append_all,
    entries_of,
    extract_all,
    landmarks_without_own_picture,
    open_store,
    prefix_of,
    prune_features,
    record_skipped,
    require_pictures,
    shared_ids,
)
from lmk.rerank.indexing.removals import Kept, Removals, require_few
from lmk.rerank.indexing.sync_plan import COMPUTED, VERBS, Plan, Stamp, Verb

_STAGES: dict[Role, str] = {"gallery": "pictures", "distractor": "distractors"}
_UNREADABLE = "unreadable"  # setting: size and time of files that are no pictures
_MOST_UNUSED = 2.0  # times the pictures of the gallery: so many features may be in the cache
_SOME_UNUSED = 10_000  # and so many in any case


@dataclass(frozen=True)
class SyncReport:
    """Result of a sync, or of a dry run.

    Attributes:
        added: pictures that are new.
        changed: that have another content than before.
        moved: whose content was there under another id or path.
        relabelled: that are where they were, with other labels.
        removed: that are gone.
        unchanged: all others.
        kept: of the unchanged, those whose files could not be looked at: they would have been
            taken for removed.
        computed: whose features were not in the cache.
        skipped: files that gave nothing, and why.
        duplicates: (id left out, id that has its content).
        shared: ids of distractors that are not used, as a gallery picture is the same file; none
            are looked for in a dry run.
        threshold: below it an answer is "none of these"; None where everything is answered.
        conflicts, without_own: as in AddReport.
        vanishing: landmarks that lose all their pictures; all of them where fewer others take
            their place.
        asks: whether the sync stops unless removals are allowed, as whole landmarks would vanish,
            or more than a fifth of the pictures or distractors.
        would: ("add", id), ("change", id), ... of a dry run, in the order of the manifest.
    """

    added: int = 0
    changed: int = 0
    moved: int = 0
    relabelled: int = 0
    removed: int = 0
    unchanged: int = 0
    kept: tuple[Kept, ...] = ()
    computed: int = 0
    skipped: tuple[Skipped, ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()
    shared: tuple[str, ...] = ()
    threshold: float | None = None
    conflicts: tuple[LabelDifference, ...] = ()
    without_own: tuple[str, ...] = ()
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
    """Makes a gallery hold the pictures of a manifest: adds, replaces, and removes what is gone.

    A picture of the gallery goes when its file is gone. It stays as it is when its file may be
    there: below a folder that could not be looked at (Manifest.unseen), behind a link that leads
    nowhere, or as a file from which no picture can be read now. Such a file is not tried again
    before its size or time of change is another. In a gallery that is one part of several
    (build_index), only the pictures that belong to the part are looked at.

    Args:
        path: the gallery.
        manifest: all of its pictures.
        distractors: all of its distractors; those there are stay unless this is given.
        wait: seconds to wait for another writer.
        dry_run: only say what would be done; files are read, nothing is written.
        allow_removals: remove whole landmarks, and more than a fifth of the pictures.
        on_progress: called with (stage, done, total).

    Raises:
        ManifestError: when not one picture can be read, as of a drive that is not there.
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: as the folder is.
        GalleryError: when a distractor has an id of the gallery, or the other way round; when whole
            landmarks, or more than a fifth of the pictures or of the distractors, would be removed
            and `allow_removals` is not given: then nothing is changed.
    """
    if dry_run:
        with Gallery.open(path) as old:
            size = Embedder.load(old.embedder_dir, checked=True).config.size
            plans = _compared(old, manifest, distractors, on_progress)
            for plan in plans:
                files, said = plan.candidates, _files_of(plan, on_progress)
                plan.sort(identify(files, size, plan.held, on_progress=said))
                _require_some(plan)
                if not old.setting(DUPLICATES):
                    plan.leave_out_duplicates()
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
            for start in range(0, len(plan.going), BLOCK):
                writer.remove(old.ids(plan.going[start : start + BLOCK]))
        added = sum(_append(plan, writer, old, store, embedder) for plan in plans)
        _record_skipped(writer, old, plans)
        taken = len(writer.relabelled)  # pictures that stayed, and gave way to one with a label
        changed = bool(added or taken) or any(len(plan.going) for plan in plans)
        threshold = fit_change(writer, old, changed=changed, on_progress=on_progress)
        without_own = landmarks_without_own_picture(writer)
        writer.commit()
        found = _report(plans, losses)
        report = replace(
            found,
            added=added,
            relabelled=found.relabelled + taken,
            unchanged=found.unchanged - taken,
            computed=sum(plan.found.computed for plan in plans),
            duplicates=tuple(writer.duplicates),
            shared=shared_ids(writer),
            threshold=threshold,
            conflicts=tuple(writer.conflicts),
            without_own=without_own,
            asks=False,
            would=(),
        )
        with Gallery.open(path) as new:  # before another writer keeps features for its pictures
            if len(store) > _MOST_UNUSED * np.count_nonzero(new.alive) + _SOME_UNUSED:
                prune_features(path, new)
    return report


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
    """Checks that a plan has a picture (ManifestError), as far as its part of the whole has one."""
    if len(plan.manifest):
        known = plan.unchanged + len(plan.relabelled) - len(plan.hidden)
        require_pictures(plan.manifest, plan.found, others=known)


def _files_of(plan: Plan, on_progress: Progress) -> Count:
    total = len(plan.candidates)
    return lambda done: on_progress(_STAGES[plan.role], done, total)


def _append(
    plan: Plan, writer: GalleryWriter, old: Gallery, store: FeatureStore, embedder: Embedder
) -> int:
    """Appends what a plan has to append; returns how many pictures are new."""
    root, role = plan.manifest.root, plan.role
    duplicates = bool(old.setting(DUPLICATES))

    def held(rows: NDArray[np.int64], entries: list[Picture], *, twins: bool) -> int:
        vectors = old.stored.gather(rows)  # to the bit, as they were stored
        return writer.append_stored(vectors, old.fingerprint, entries, role, duplicates=twins)

    for rows, entries in plan.relabelled_batches():
        held(rows, entries, twins=True)
    for verb in VERBS:  # the new ones last: what moved is no duplicate of them
        appended = 0
        for rows, pictures in plan.batches(verb):
            computed = rows == COMPUTED
            kept = [picture for picture, new in zip(pictures, computed, strict=True) if not new]
            new = [picture for picture, new in zip(pictures, computed, strict=True) if new]
            same = verb in ("touch", "relabel", "move")
            entries = entries_of(kept, root, role)
            appended += held(rows[~computed], entries, twins=same or duplicates)
            appended += append_all(
                writer, store, embedder, new, root, role=role, duplicates=duplicates
            )
    return appended


def _record_skipped(writer: GalleryWriter, old: Gallery, plans: Sequence[Plan]) -> None:
    """Records what was skipped and is skipped now, and forgets the rest of these roles."""
    before, synced = old.skipped(), {plan.role for plan in plans}
    now = {(plan.role, skip.path) for plan in plans for skip in plan.skipped}
    stamps: dict[str, Stamp] = {}
    for path, _ in before:
        role: Role = "distractor" if path.startswith(DISTRACTOR_PREFIX) else "gallery"
        if role in synced and (role, path.removeprefix(prefix_of(role))) not in now:
            writer.unskip(path)
    for path, stamp in (read_setting(old, _UNREADABLE, dict[str, Stamp]) or {}).items():
        role = "distractor" if path.startswith(DISTRACTOR_PREFIX) else "gallery"
        if role not in synced:
            stamps[path] = stamp
    for plan in plans:
        record_skipped(writer, plan.found.skipped, plan.role)
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
        would=tuple(one for plan in plans for one in plan.would()),
    )
