"""Other landmarks for pictures that a gallery holds, without their files.

A picture with another landmark is appended again with its stored vector, in the place of the old
row. So everything that follows additions and removals (fitted tables, threshold, calibration, the
copy on a server) follows a change of labels too.
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
from lmk.rerank.fit.fit import fit_change
from lmk.rerank.fit.saved import saved_pipeline
from lmk.rerank.indexing.ingest import BLOCK, label_counts
from lmk.rerank.tags.thresholds import VOTES_SETTING, saved_thresholds

_LAST = "last relabelling"  # setting: the last command that ends a label; it may be run again
_ROLES: tuple[Role, ...] = ("gallery", "distractor")


@dataclass(frozen=True)
class RelabelReport:
    """Result of relabelling.

    Attributes:
        relabelled: pictures that have other labels now.
        unchanged: pictures that had these labels already.
        emptied: labels that no picture has any more, by name.
        threshold: below it an answer is "none of these"; None where everything is answered.
    """

    relabelled: int
    unchanged: int
    emptied: tuple[str, ...]
    threshold: float | None


@dataclass(frozen=True)
class RenameReport:
    """Result of renaming a label.

    Attributes:
        renamed: pictures that had the old label.
        merged_into: pictures that had the new label before.
        again: the label was renamed by an earlier run of the same command.
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
    """Gives pictures other labels, in one transaction; no picture is read.

    Args:
        path: the gallery.
        labels: the labels of each picture by id, none for a picture of no landmark. Other pictures
            keep theirs.
        wait: seconds to wait for another writer.
        on_progress: called with (stage, done, total).

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: as the folder is.
        GalleryError: for an id that the gallery does not have, or has as a distractor; then
            nothing is changed.
        UsageError: for an empty label or one with a blank.
    """
    _check_labels(label for own in labels.values() for label in own)
    return _relabel(path, lambda old: labels, None, wait, on_progress)


def remove_label(
    path: Path,
    label: str,
    *,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> RelabelReport:
    """Takes a label off all pictures that have it; the pictures stay, with their other labels.

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: as the folder is.
        UsageError: for a label that no picture has, but for the same command once more.
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
    path: Path,
    label: str,
    new: str,
    *,
    wait: float = 0.0,
    on_progress: Progress = no_progress,
) -> RenameReport:
    """Renames a label in one transaction; joins it with `new` where pictures have that already.

    Args:
        path: the gallery.
        label: the old name.
        new: the new name.
        wait: seconds to wait for another writer.
        on_progress: called with (stage, done, total).

    Raises:
        NotAGallery, GalleryDamaged, GalleryLocked, StorageError: as the folder is.
        UsageError: for a label that no picture has (but for the same rename once more), for an
            empty name or one with a blank, or where both names are the same.
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
    """Gives pictures the labels that `choose` says by id, and notes the command where it is one."""
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
    """The label in the gallery's form, as given or as manifests write it; None for an unknown."""
    names = (label, plain_name(label))
    return next((name for name in names if name in gallery.label_names), None)


def _require_done(gallery: Gallery, command: list[str], label: str) -> None:
    """Refuses an unknown label, unless the same command was the last one (UsageError)."""
    if gallery.setting(_LAST) != command:
        remedy = f"`lmk index list {shell_word(gallery.path)}` shows the landmarks there are"
        raise UsageError(f"no picture has the label {label!r}", where=gallery.path, remedy=remedy)


def _renamed(labels: Sequence[str], label: str, new: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(new if name == label else name for name in labels))


def _check_labels(labels: Iterable[str]) -> None:
    for label in labels:
        if len(label.split()) != 1 or label != label.strip():
            raise UsageError(
                f"the label {label!r} is empty or holds a blank", remedy="write '_' for a blank"
            )


def _rows_of(gallery: Gallery, ids: Iterable[str]) -> dict[str, int]:
    """The row of each id, all of them pictures with a landmark to give."""
    wanted = list(ids)
    rows = gallery.find(wanted)
    for id_ in wanted:
        if id_ not in rows:
            remedy = (
                f"`lmk index list {shell_word(gallery.path)} --pictures` shows the ids there are"
            )
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
    """Puts rows of one role, ascending, in the place of themselves with other labels."""
    for start in range(0, len(rows), BLOCK):
        some = rows[start : start + BLOCK]
        role: Role = "distractor" if old.membership.distractor[some[0]] else "gallery"
        pictures = [
            replace(picture, labels=labels[row])
            for row, picture in zip(some.tolist(), old.pictures(some), strict=True)
        ]
        writer.remove(picture.id for picture in pictures)
        vectors = old.stored.gather(some)  # every bit as it was stored
        writer.append_stored(vectors, old.fingerprint, pictures, role, duplicates=True)
