"""Functions that change the labels of pictures in a gallery without reading their files.

A picture with a new label is appended again with its stored vector, and its old row is removed. A
change of labels therefore updates all that additions and removals update: fitted tables, threshold,
calibration, and the copy on a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import GalleryError, UsageError
from lmk.embed.progress import Progress, no_progress
from lmk.embed.shell_words import shell_word
from lmk.embed.tables.label_text import plain_name
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter
from lmk.index.vectors.labels import Role
from lmk.index.vectors.vectors import row_blocks
from lmk.rerank.fit.fit import fit_change
from lmk.rerank.fit.saved import saved_pipeline
from lmk.rerank.indexing.ingest import BLOCK, label_counts
from lmk.rerank.tags.thresholds import VOTES_SETTING, saved_thresholds

_LAST = "last relabelling"  # setting: the last rename or removal of a label, which may be repeated
_ROLES: tuple[Role, ...] = ("gallery", "distractor")


@dataclass(frozen=True)
class RelabelReport:
    """Result of a change of labels.

    Attributes:
        relabelled: number of pictures with new labels.
        unchanged: number of pictures whose labels were the same before.
        emptied: labels, sorted, that no longer have any picture.
        threshold: the score below which an answer is "none of these"; None for no threshold.
    """

    relabelled: int
    unchanged: int
    emptied: tuple[str, ...]
    threshold: float | None


@dataclass(frozen=True)
class RenameReport:
    """Result of a rename of a label.

    Attributes:
        renamed: number of pictures that had the old label.
        merged_into: number of pictures that had the new label before.
        again: True if an earlier run of the same command renamed the label.
        threshold: as in RelabelReport.
    """

    renamed: int
    merged_into: int
    again: bool
    threshold: float | None


def relabel_pictures(
    path: Path,
    labels: Mapping[str, Sequence[str]],
    *,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> RelabelReport:
    """Sets the labels of pictures, in one transaction; no picture file is read.

    Args:
        path: the gallery.
        labels: the new labels by picture id; an empty sequence for no landmark. The labels of
            other pictures do not change.
        wait: seconds to wait for another writer.
        on_progress: called with (stage, done, total).

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: the folder cannot be used.
        GalleryError: an id is not in the gallery, or is the id of a distractor. Nothing changes.
        UsageError: a label is empty or contains a blank.
    """
    _check_labels(label for own in labels.values() for label in own)
    return _relabel(path, lambda old: labels, None, wait, on_progress)


def remove_label(
    path: Path, label: str, *, wait: float = 0.0, on_progress: Progress = no_progress
) -> RelabelReport:
    """Removes a label from all its pictures; the pictures and their other labels stay.

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: the folder cannot be used.
        UsageError: no picture has the label, and the last command did not remove the same label.
    """

    def without(old: Gallery) -> Mapping[str, Sequence[str]]:
        name = _stored_name(old, label)
        if name is None:
            _require_done(old, ["remove", label], label)
            return {}
        rows = np.flatnonzero(old.view().allowed([name]))
        return {
            id_: tuple(own for own in old.labels(row) if own != name)
            for row, id_ in zip(rows.tolist(), old.ids(rows), strict=True)
        }

    return _relabel(path, without, ["remove", label], wait, on_progress)


def rename_label(
    path: Path, label: str, new: str, *, wait: float = 0.0, on_progress: Progress = no_progress
) -> RenameReport:
    """Renames a label in one transaction, or merges the label with an existing label `new`.

    The details of the landmark move to the new name, unless `new` has details already.

    Args:
        path: the gallery.
        label: the old name.
        new: the new name.
        wait: seconds to wait for another writer.
        on_progress: called with (stage, done, total).

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: the folder cannot be used.
        UsageError: no picture has the label (unless the same rename runs again), the new name is
            empty or contains a blank, or both names are the same.
    """
    _check_labels([new])
    if label == new:
        raise UsageError(f"the label {new!r} has this name", where=path, remedy="name another one")
    with GalleryWriter(path, wait=wait) as writer, Gallery.open(path) as old:
        counts, name = label_counts(writer), _stored_name(old, label)
        if name is None:
            _require_done(old, ["rename", label, new], label)
            return RenameReport(0, counts.get(new, 0), True, saved_pipeline(old).threshold())
        carrying = [np.flatnonzero(old.view(role).allowed([name])) for role in _ROLES]
        for rows in carrying:
            named = {row: _renamed(old.labels(row), name, new) for row in rows.tolist()}
            _append_again(writer, old, rows, named)
        _rename_details(writer, name, new)
        writer.set(_LAST, ["rename", label, new])
        thresholds = saved_thresholds(old, VOTES_SETTING)
        if thresholds is not None:
            renamed = thresholds.with_tag_renamed(name, new)
            writer.set(VOTES_SETTING, renamed.model_dump(mode="json"))
        threshold = fit_change(writer, old, changed=True, on_progress=on_progress)
        writer.commit()
    return RenameReport(sum(map(len, carrying)), counts.get(new, 0), False, threshold)


def _relabel(
    path: Path,
    choose: Callable[[Gallery], Mapping[str, Sequence[str]]],
    command: list[str] | None,
    wait: float,
    on_progress: Progress,
) -> RelabelReport:
    """Sets the labels that `choose` returns by id, and saves `command` if any label changes."""
    with GalleryWriter(path, wait=wait) as writer, Gallery.open(path) as old:
        labels = choose(old)
        rows, before = _rows_of(old, labels), label_counts(writer)
        given = {row: tuple(dict.fromkeys(labels[id_])) for id_, row in rows.items()}
        changed = [row for row, own in given.items() if set(old.labels(row)) != set(own)]
        _append_again(writer, old, np.sort(np.array(changed, np.int64)), given)
        threshold = fit_change(writer, old, changed=bool(changed), on_progress=on_progress)
        emptied = tuple(sorted(before.keys() - label_counts(writer).keys()))
        if changed:
            writer.set(_LAST, command)
            writer.commit()
    return RelabelReport(len(changed), len(given) - len(changed), emptied, threshold)


def _stored_name(gallery: Gallery, label: str) -> str | None:
    """Returns the stored form of a label, or None; blanks become "_" as in manifests."""
    names = (label, plain_name(label))
    return next((name for name in names if name in gallery.label_names), None)


def _require_done(gallery: Gallery, command: list[str], label: str) -> None:
    """Raises UsageError for an unknown label, unless the last command was the same."""
    if gallery.setting(_LAST) != command:
        remedy = f"`lmk index list {shell_word(gallery.path)}` lists the landmarks"
        raise UsageError(f"no picture has the label {label!r}", where=gallery.path, remedy=remedy)


def _renamed(labels: Sequence[str], label: str, new: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(new if name == label else name for name in labels))


def _rename_details(writer: GalleryWriter, label: str, new: str) -> None:
    details = {one.landmark_id: one for one in writer.uncommitted.details()}
    moved = details.pop(label, None)
    if moved is not None:
        details.setdefault(new, replace(moved, landmark_id=new))
        writer.set_landmarks(details.values())


def _check_labels(labels: Iterable[str]) -> None:
    for label in labels:
        if len(label.split()) != 1 or label != label.strip():
            raise UsageError(
                f"the label {label!r} is empty or holds a blank", remedy="write '_' for a blank"
            )


def _rows_of(gallery: Gallery, ids: Iterable[str]) -> dict[str, int]:
    """Returns the row of each id; raises GalleryError for an unknown id or a distractor."""
    wanted = list(ids)
    rows = gallery.find(wanted)
    for id_ in wanted:
        if id_ not in rows:
            remedy = f"`lmk index list {shell_word(gallery.path)} --pictures` lists the ids"
            raise GalleryError("no picture of the gallery has this id", where=id_, remedy=remedy)
        if gallery.membership.distractor[rows[id_]]:
            remedy = "remove the picture, and add it again as one of its landmark"
            raise GalleryError("is a distractor, which shows no landmark", where=id_, remedy=remedy)
    return rows


def _append_again(
    writer: GalleryWriter,
    old: Gallery,
    rows: NDArray[np.int64],
    labels: Mapping[int, tuple[str, ...]],
) -> None:
    """Replaces rows by copies with other labels; rows ascend and have one role."""
    for some in row_blocks(rows, BLOCK):
        role: Role = "distractor" if old.membership.distractor[some[0]] else "gallery"
        pictures = [
            replace(picture, labels=labels[row])
            for row, picture in zip(some.tolist(), old.pictures(some), strict=True)
        ]
        writer.remove(picture.id for picture in pictures)
        vectors = old.stored.gather(some)  # bit for bit the stored vectors
        writer.append_stored(vectors, old.fingerprint, pictures, role, duplicates=True)
