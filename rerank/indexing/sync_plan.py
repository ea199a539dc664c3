"""Plan of a sync: the difference between a gallery and a folder, by ids, stamps and content.

A plan stores only the row numbers of differences, so a large gallery needs little memory.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest, Row
from lmk.embed.data.unseen import hidden_by
from lmk.embed.extract.extract import Extracted, Extraction
from lmk.embed.plain_files import NotPlainError, open_plain
from lmk.embed.progress import Progress
from lmk.index.catalog.records import Picture
from lmk.index.gallery.gallery import Gallery
from lmk.index.vectors.labels import Role
from lmk.index.vectors.vectors import row_blocks
from lmk.rerank.indexing.ingest import BLOCK, NOTHING, part_of, prefix_of
from lmk.rerank.indexing.removals import (
    Removals,
    UnseenPictures,
    present_landmarks,
    removals,
    unseen_pictures,
)

# The verb "touch" means that only the modification time is new.
Verb = Literal["add", "change", "move", "relabel", "touch"]
VERBS: tuple[Verb, ...] = ("touch", "relabel", "move", "change", "add")
COMPUTED = -1  # the row of a picture whose vector must be computed

Stamp = list[int]  # size and modification time in ns; JSON has lists only


@dataclass
class Items:
    """Pictures with the same verb, each as the row whose vector is reused and a number."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def add(self, row: int, number: int) -> None:
        """Adds a picture by its row and its number."""
        self.rows.append(row)
        self.numbers.append(number)

    def __len__(self) -> int:
        return len(self.rows)


class Plan:
    """The difference between the pictures of one role in a gallery and a manifest.

    `compare` compares ids and stamps, and collects the `candidates`, whose files must be read.
    `sort` then classifies the candidates by their content.

    Attributes:
        role: the role of the pictures.
        manifest: the pictures of the gallery's shard, or all pictures.
        stays: bool [rows], True for rows that do not change.
        held: the rows that do not stay, by the SHA-256 of their content; their vectors are reused.
        items: the pictures to append, by verb; numbers are positions in `extraction.pictures`.
        relabelled: unread pictures to append with other labels; numbers are manifest rows.
        extraction: the result of reading the candidates.
        unread: unchanged files that an earlier sync could not decode.
        hidden: (path, reason) of the unreadable path, for each row that stays because of it.
        stamps: the stamps of all files that are not pictures, by path.
        taken: in a dry run, the number of new pictures that replace an unlabelled copy.
    """

    def __init__(
        self, role: Role, whole: Manifest, old: Gallery, shard: tuple[int, int] | None = None
    ) -> None:
        self.role: Role = role
        self.manifest = manifest = part_of(whole, shard)
        self._whole = whole
        self._old = old
        self._prefix = prefix_of(role)
        self._root = str(manifest.root.resolve())
        self.alive = old.view(role).mask
        self.stays = np.zeros(old.rows, np.bool_)
        self._listed = np.zeros(old.rows, np.bool_)  # rows whose id is in the manifest
        self._again = np.zeros(old.rows, np.bool_)  # rows whose picture is appended again
        self.items: dict[Verb, Items] = {verb: Items() for verb in VERBS}
        self.relabelled = Items()
        self.extraction: Extraction = NOTHING
        self.unread: list[Skipped] = []
        self.stamps: dict[str, Stamp] = {}
        self.hidden: list[tuple[str, str]] = []
        self.taken = 0
        self._candidates: list[Row] = []
        self.held: dict[str, list[int]] = {}

    # Methods for use before the files are read

    def compare(self, unreadable: dict[str, Stamp], on_progress: Progress) -> None:
        """Compares the ids and stamps of the gallery and the manifest.

        Args:
            unreadable: the stamps, by path, that the last sync saved for files without a picture.
            on_progress: called with (stage, done, total).
        """
        reasons = dict(self._old.skipped())
        rows = self.manifest.rows
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            known = self._known(block)
            for place, row in enumerate(block, start):
                self._compare_one(place, row, known.get(row.id), unreadable, reasons)
            on_progress("comparing", min(start + BLOCK, len(rows)), len(rows))
        self._keep_unseen()
        for at, picture in self._entries(np.flatnonzero(self.alive & ~self.stays)):
            self.held.setdefault(picture.sha256, []).append(at)

    @property
    def candidates(self) -> Manifest:
        """The pictures whose files must be read."""
        return Manifest(self.manifest.root, tuple(self._candidates), self.manifest.skipped)

    # Methods for use after the files are read

    def sort(self, extraction: Extraction) -> None:
        """Classifies pictures by their content as new, changed, moved or unchanged.

        Args:
            extraction: the result of reading the `candidates`.
        """
        self.extraction = extraction
        gone = self.alive & ~self._listed
        free = {key: [row for row in rows if gone[row]] for key, rows in self.held.items()}
        for start in range(0, len(extraction.pictures), BLOCK):
            block = extraction.pictures[start : start + BLOCK]
            known = self._known(picture.row for picture in block)
            for number, picture in enumerate(block, start):
                self._sort_one(number, picture, known.get(picture.row.id), free)
        self._sort_skipped()

    def leave_out_duplicates(self) -> None:
        """Drops new pictures with the content and labels of another picture, as an append does."""
        held: dict[str, list[set[str]]] = {}
        for verb in VERBS[:-1]:
            for _, pictures in self.batches(verb):
                for picture in pictures:
                    held.setdefault(picture.sha256, []).append(set(picture.row.labels))
        for _, entries in self.relabelled_batches():
            for entry in entries:
                held.setdefault(entry.sha256, []).append(set(entry.labels))
        items, self.items["add"] = self.items["add"], Items()
        for row, number in zip(items.rows, items.numbers, strict=True):
            content = self.extraction.pictures[number].sha256
            labels = set(self.extraction.pictures[number].row.labels)
            twins = [at for at in self._old.same_content(content, self.role) if self.stays[at]]
            known = [*held.get(content, ()), *(set(self._old.labels(at)) for at in twins)]
            if self.role == "distractor":
                labels = set()
            if any(labels <= other for other in known):
                continue
            replaces = set() in known  # whether a copy has no label
            self.taken += replaces
            self.items["relabel" if replaces else "add"].add(row, number)
            held.setdefault(content, []).append(labels)

    @property
    def losses(self) -> Removals:
        """The removed pictures, and the landmarks that lose all their pictures.

        A landmark is not lost if it gets other pictures, or if other shards have its pictures.
        """
        removed, present = self.removed, set[str]()
        if len(removed):
            present = present_landmarks(self._whole, self.manifest, self.extraction)
        losses = removals(self._old, self.role, removed, present=present)
        return replace(losses, replaced=self._replaced())

    def _replaced(self) -> tuple[str, ...]:
        """Returns all landmarks of the gallery if fewer other landmarks replace them, else ().

        A sync with a folder one level above or below the right folder has this effect.
        """
        if self.role == "distractor" or self.hidden:
            return ()
        members = self._old.membership
        codes = members.codes[np.repeat(self.alive, np.diff(members.offsets))]
        before = {members.names[code] for code in np.unique(codes)}
        after = {label for row in self._whole.rows for label in row.labels}
        return tuple(sorted(before)) if len(after) < len(before) and not before & after else ()

    @property
    def kept(self) -> tuple[UnseenPictures, ...]:
        """The pictures that stay because of unreadable files, counted by unreadable path."""
        return unseen_pictures(self.hidden)

    @property
    def going(self) -> NDArray[np.int64]:
        """The rows to remove; the vectors of some of them are appended again."""
        return np.flatnonzero(self.alive & ~self.stays)

    @property
    def removed(self) -> NDArray[np.int64]:
        """The rows of pictures that are removed and not appended again."""
        going = self.going
        return going[~self._again[going]]

    @property
    def unchanged(self) -> int:
        """The number of pictures that do not change, except for the modification time."""
        stays = int(np.count_nonzero(self.stays)) - self.taken
        return stays + len(self.items["touch"])

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The files that are not pictures."""
        return (*self.extraction.skipped, *self.unread)

    def batches(self, verb: Verb) -> Iterator[tuple[NDArray[np.int64], list[Extracted]]]:
        """Yields (rows, pictures) for the pictures with a verb, in blocks.

        A picture reuses the vector of its row. COMPUTED (-1) marks a picture without a stored
        vector.
        """
        items = self.items[verb]
        for start in range(0, len(items), BLOCK):
            numbers = items.numbers[start : start + BLOCK]
            rows = np.array(items.rows[start : start + BLOCK], np.int64)
            yield rows, [self.extraction.pictures[number] for number in numbers]

    def relabelled_batches(self) -> Iterator[tuple[NDArray[np.int64], list[Picture]]]:
        """Yields (rows, pictures) for unread pictures with other labels, in blocks."""
        for start in range(0, len(self.relabelled), BLOCK):
            rows = np.array(self.relabelled.rows[start : start + BLOCK], np.int64)
            given = [self.manifest.rows[n] for n in self.relabelled.numbers[start : start + BLOCK]]
            old = zip(self._old.pictures(rows), given, strict=True)
            yield rows, [replace(picture, labels=row.labels) for picture, row in old]

    def changes(self) -> Iterator[tuple[str, str]]:
        """Yields the planned changes as (verb, id) pairs."""
        for verb in VERBS[1:]:
            for _, pictures in self.batches(verb):
                yield from ((verb, self._prefix + picture.row.id) for picture in pictures)
        for _, entries in self.relabelled_batches():
            yield from (("relabel", picture.id) for picture in entries)
        for block in row_blocks(self.removed, BLOCK):
            yield from (("remove", id_) for id_ in self._old.ids(block))

    def _entries(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, Picture]]:
        for part in row_blocks(rows, BLOCK):
            yield from zip(part.tolist(), self._old.pictures(part), strict=True)

    def _keep_unseen(self) -> None:
        """Marks rows to stay if the manifest omits them because of an unreadable path."""
        places = self._whole.unseen_places()
        if not places:
            return
        for at, picture in self._entries(np.flatnonzero(self.alive & ~self._listed)):
            place = places.at(picture.path)
            if place is not None:
                self._keep(at, place.path, place.reason)

    def _keep(self, at: int, path: str, reason: str) -> None:
        self.stays[at] = self._listed[at] = True
        self.hidden.append((path, reason))

    def _known(self, rows: Iterable[Row]) -> dict[str, tuple[int, Picture]]:
        """Returns row and picture in the gallery by id, for manifest rows with a known id."""
        stored = self._old.find(self._prefix + row.id for row in rows)
        ours = [row for row in stored.values() if self.alive[row]]
        pictures = self._old.pictures(ours) if ours else []
        start = len(self._prefix)
        return {old.id[start:]: (row, old) for row, old in zip(ours, pictures, strict=True)}

    def _compare_one(
        self, place: int, row: Row, known: tuple[int, Picture] | None, unreadable: dict[str, Stamp],
        reasons: dict[str, str],
    ) -> None:  # fmt: skip
        stamp, name = _stamp(self.manifest.file(row)), self._prefix + row.path
        if stamp is not None and unreadable.get(name) == stamp and name in reasons:
            self.unread.append(Skipped(row.path, reasons[name]))
            self.stamps[name] = stamp
            if known is not None:
                self._keep(known[0], row.path, reasons[name])
            return
        if known is None:
            self._candidates.append(row)
            return
        at, old = known
        self._listed[at] = True
        if [old.size, old.mtime_ns] != stamp or (old.root, old.path) != (self._root, row.path):
            self._candidates.append(row)
        elif old.labels != row.labels:
            self.relabelled.add(at, place)
            self._again[at] = True
        else:
            self.stays[at] = True

    def _sort_one(
        self, number: int, picture: Extracted, known: tuple[int, Picture] | None,
        free: dict[str, list[int]],
    ) -> None:  # fmt: skip
        held = self.held.get(picture.sha256, [COMPUTED])[0]
        if known is None:
            gone = free.get(picture.sha256)
            if gone:
                self._again[gone[0]] = True
            self.items["move" if gone else "add"].add(gone.pop(0) if gone else held, number)
            return
        at, old = known
        self._again[at] = True
        if old.sha256 != picture.sha256:
            self.items["change"].add(held, number)
        elif (old.root, old.path) != (self._root, picture.row.path):
            self.items["move"].add(at, number)
        elif old.labels != picture.row.labels:
            self.items["relabel"].add(at, number)
        else:
            self.items["touch"].add(at, number)

    def _sort_skipped(self) -> None:
        """Marks rows to stay if their file may exist; records stamps of files without a picture."""
        reasons = {skip.path: skip.reason for skip in self.extraction.skipped}
        rows = [row for row in self._candidates if row.path in reasons]
        known = self._known(rows)
        for row in rows:
            file, reason = self.manifest.file(row), reasons[row.path]
            if row.id in known and (hidden := hidden_by(file, self.manifest.root)) is not None:
                why = reason if os.path.lexists(file) else hidden
                self._keep(known[row.id][0], row.path, why)
            if not _is_closed(file) and (stamp := _stamp(file)) is not None:
                self.stamps[self._prefix + row.path] = stamp


def _stamp(file: Path) -> Stamp | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _is_closed(file: Path) -> bool:
    """Returns whether a file exists but cannot be opened now."""
    try:
        os.close(open_plain(file))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, NotPlainError):
        return False
    except OSError:
        return True
    return False
