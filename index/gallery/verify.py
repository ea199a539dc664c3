"""Verification: compares every byte of a gallery with the catalog, and lists the damage.

Opening a gallery compares only files that changed since the last comparison, and reads a part of
the catalog. Verification reads everything and does not stop at the first damage, so that a repair
knows all damage. A writer may be active: the state at the beginning is verified.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lmk.embed.errors import FormatTooNew, GalleryDamaged, GalleryError, LmkError, UnsafeIndex
from lmk.embed.extract.embedder import Embedder
from lmk.embed.tables.label_text import nfc
from lmk.index.catalog.catalog import Catalog, entry_errors
from lmk.index.catalog.database import unfinished
from lmk.index.catalog.landmarks import DetailsTable
from lmk.index.catalog.layout import CACHE, CATALOG
from lmk.index.catalog.pictures import PictureTable
from lmk.index.catalog.records import CHANGED, State
from lmk.index.gallery.checksums import damaged_files
from lmk.index.gallery.embedder_check import embedder_damage
from lmk.index.gallery.embedder_paths import embedder_files, embedder_folder
from lmk.index.gallery.gallery import moved_on
from lmk.index.gallery.verify_cache import bytes_behind, damaged_cache, drop_cached
from lmk.index.vectors.files import REBUILD, REPAIR, StoredFile
from lmk.index.vectors.vectors import row_blocks

_BLOCK_ROWS = 8192
Mend = Literal["remake", "re-embed", "none"]


@dataclass(frozen=True)
class DamageFinding:
    """A damage of a gallery.

    Attributes:
        where: the damaged file.
        what: a description of the damage.
        remedy: advice to the user.
        mend: the action of a repair. "remake" computes the file from the rest (arrays, the
            embedder's files, cache/), "re-embed" embeds the pictures of `rows` again, and "none"
            cannot repair the damage.
        rows: the rows whose vectors are lost; removed rows among them need no repair.
    """

    where: Path
    what: str
    remedy: str
    mend: Mend
    rows: range = range(0)


def verify(path: str | os.PathLike[str]) -> tuple[DamageFinding, ...]:
    """Returns all damages of a gallery; none if it is intact.

    Raises:
        NotAGallery: the folder is no gallery, or its build never finished.
        StorageError: an existing file cannot be read.
    """
    folder = Path(path)
    while True:
        try:
            catalog = Catalog.read(folder)
        except (GalleryDamaged, FormatTooNew, UnsafeIndex) as error:
            return (_finding(folder, error, "none"),)
        with closing(catalog), ExitStack() as stack:
            # Files are opened before the slow checks, as an open file outlives its replacement.
            state, opened, errors = _open_files(catalog, stack)
            if errors and moved_on(folder, state):
                continue
            findings = list(_of_catalog(catalog))
            if not findings and state is not None:
                findings += _of_files(catalog, state, opened, errors)
                findings += _of_graph(catalog, state)
        what = "the file is missing or has changed; it is made again when it is needed"
        cached = (DamageFinding(path, what, REPAIR, "remake") for path in damaged_cache(folder))
        return (*findings, *cached)


def _open_files(
    catalog: Catalog, stack: ExitStack
) -> tuple[State | None, list[StoredFile], list[GalleryError]]:
    """Returns the state, the open files and an error for each file that cannot be opened."""
    opened: list[StoredFile] = []
    errors: list[GalleryError] = []
    try:
        state, records = catalog.state(), catalog.files()
    except (GalleryDamaged, *CHANGED):
        return None, [], []  # _of_catalog reports the damage
    for record in records:
        try:
            opened.append(StoredFile(catalog.folder, record))
        except GalleryDamaged as error:
            errors.append(error)
        else:
            stack.callback(opened[-1].close)
    return state, opened, errors


def _of_catalog(catalog: Catalog) -> Iterator[DamageFinding]:
    """Yields the damage of the catalog, after reading all entries."""
    try:
        with entry_errors(catalog.damaged):
            catalog.check_structure(whole=True)
            _check_entries(catalog)
    except GalleryDamaged as error:
        yield _finding(catalog.folder, error, "none")


def _check_entries(catalog: Catalog) -> None:
    state = catalog.snapshot_state()
    if state is None:
        raise unfinished(catalog.folder)
    membership = catalog.membership(state)
    roots, labels = catalog.roots(), catalog.codes("label")
    catalog.skipped()
    catalog.check_removed_ids()
    DetailsTable(catalog).all()
    segments, inline = catalog.segments(), catalog.inline_entries()
    catalog.check_tiling([part[:2] for part in (*segments, *inline)], state.rows)
    unnamed = {path for _, _, path in segments} - {record.path for record in catalog.files()}
    if unnamed:
        raise catalog.damaged(f"nothing is said of {min(unnamed)}")
    alive = np.flatnonzero(membership.alive)
    pictures = PictureTable(catalog).picture_count()
    if pictures != len(alive):
        raise catalog.damaged(f"{pictures} pictures, {len(alive)} expected")
    for block in row_blocks(alive, _BLOCK_ROWS):
        for entry in PictureTable(catalog).rows(block):
            low, high = membership.offsets[entry.row : entry.row + 2]
            expected = [membership.names[code] for code in membership.codes[low:high]]
            given = [nfc(labels[int(code)]) for code in entry.labels.split(",")[:-1]]
            if given != expected or not 0 <= entry.root < len(roots):
                raise catalog.damaged(f"the labels or the folder of row {entry.row} have changed")


def _of_files(
    catalog: Catalog, state: State, opened: list[StoredFile], errors: list[GalleryError]
) -> Iterator[DamageFinding]:
    """Yields the damages of the files, and of vectors in the catalog."""
    behind = bytes_behind(catalog.folder)
    if behind:
        what = f"{behind:,} bytes behind its end, which are no part of it"
        yield DamageFinding(catalog.folder / CATALOG, what, REPAIR, "remake")
    segments = {path: range(first, first + rows) for first, rows, path in catalog.segments()}
    row_bytes = state.dim * state.dtype.itemsize
    for first, rows, data in catalog.inline_entries():
        if data is None or len(data) != rows * row_bytes:
            what = f"the vectors from row {first} on have changed"
            where = catalog.folder / CATALOG
            yield DamageFinding(where, what, REPAIR, "re-embed", range(first, first + rows))
    changed = damaged_files(catalog.folder, opened, verify=True)
    named = {error.where for error in changed}
    intact = [file for file in opened if str(file.path) not in named]
    for damage in (*errors, *changed, *embedder_damage(intact)):
        path = Path(damage.where or "").relative_to(catalog.folder).as_posix()
        lost = segments.get(path, range(0))
        yield _finding(catalog.folder, damage, "re-embed" if lost else "remake", lost)


def _of_graph(catalog: Catalog, state: State) -> Iterator[DamageFinding]:
    """Yields a finding if the embedder has no graph of OpenVINO."""
    files = embedder_files(state.fingerprint, catalog.files())
    if not files or any(Path(record.path).stem == "graph" for record in files):
        return  # both files of a graph are written together
    folder = embedder_folder(catalog.folder, state.fingerprint, files)
    with suppress(LmkError):
        if Embedder.load(folder, checked=True).lacks_graph():
            what = "the network has no graph, so every command makes one before it begins"
            yield DamageFinding(folder / "graph.xml", what, REPAIR, "remake")


def _finding(
    folder: Path, error: GalleryError, mend: Mend, rows: range = range(0)
) -> DamageFinding:
    where = folder if error.where is None else Path(error.where)
    return DamageFinding(where, error.what, error.remedy or REBUILD, mend, rows)


def drop_derived(path: str | os.PathLike[str], findings: tuple[DamageFinding, ...]) -> int:
    """Removes the damaged files of cache/ among findings, and returns their number."""
    folder = Path(path)
    damaged = [item.where for item in findings if item.where.is_relative_to(folder / CACHE)]
    for item in damaged:
        drop_cached(folder, item)
    return len(damaged)
