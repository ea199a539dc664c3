"""PictureTable: reads the pictures of a catalog by row, id or content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lmk.embed.tables.label_text import name_forms, nfc
from lmk.index.catalog.catalog import Catalog, reads
from lmk.index.catalog.records import (
    Picture,
    PictureRow,
    checked_picture,
    checksum,
    picture_of,
    text_bytes,
)
from lmk.index.vectors.files import runs
from lmk.index.vectors.labels import Role

_PICTURE = ", ".join((*PictureRow._fields, "crc"))


class PictureTable:
    """Pictures of an open catalog; each entry is compared with its checksum (GalleryDamaged)."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._all = catalog.all
        self.damaged = catalog.damaged

    @reads
    def rows(self, rows: NDArray[np.int64]) -> list[PictureRow]:
        """Returns the entries of rows that were not removed, in the order of `rows`."""
        order = np.argsort(rows, kind="stable")
        wanted = rows[order]
        entries: list[PictureRow | None] = [None] * len(rows)
        query = f"SELECT {_PICTURE} FROM picture WHERE row BETWEEN ? AND ? ORDER BY row"
        for start, stop in runs(wanted):
            first, last = int(wanted[start]), int(wanted[stop - 1])
            block = {values[0]: values for values in self._all(query, (first, last))}
            for position, row in zip(order[start:stop], wanted[start:stop].tolist(), strict=True):
                if row not in block:
                    raise self.damaged(f"the picture of row {row} is missing")
                *values, crc = block[row]
                self._catalog.compare(crc, *values)
                entries[position] = checked_picture(values)
        return entries  # type: ignore[return-value]  # none is None now

    @reads
    def pictures(self, rows: NDArray[np.int64]) -> list[Picture]:
        """Returns the pictures of rows that were not removed, in the order of `rows`."""
        entries, roots, names = self.rows(rows), self._catalog.roots(), self._catalog.codes("label")
        pictures = []
        for entry in entries:
            labels = tuple(nfc(names[int(code)]) for code in entry.labels.split(",")[:-1])
            pictures.append(picture_of(entry, labels, roots[entry.root]))
        return pictures

    @reads
    def labels(self, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """Returns the labels of rows that were not removed, in the order of `rows`.

        Only the names of their labels are read, so a few rows cost little in a large gallery.
        """
        names: dict[int, str] = {}
        labels = []
        for entry in self.rows(np.array(rows, np.int64)):
            codes = [int(code) for code in entry.labels.split(",")[:-1]]
            for code in codes:
                if code not in names:
                    names[code] = self._label(code)
            labels.append(tuple(names[code] for code in codes))
        return labels

    @reads
    def _label(self, code: int) -> str:
        rows = self._all("SELECT text, crc FROM label WHERE code = ?", (code,))
        if not rows or rows[0][1] != checksum(code, rows[0][0]):
            raise self.damaged(f"label {code} has changed or is missing")
        return nfc(str(rows[0][0]))

    @reads
    def lookup(self, ids: Iterable[str]) -> dict[str, tuple[int, str]]:
        """Returns (row, SHA-256) of those pictures among `ids` that are in the gallery.

        If an id is missing, its other forms are tried: the form of manifests, and the decomposed
        form (NFD) of older galleries.
        """
        query = "SELECT row, sha256 FROM picture WHERE id = CAST(? AS TEXT)"
        rows_by_id: dict[str, tuple[int, str]] = {}
        for id_ in ids:
            for form in name_forms(id_):
                if rows := self._all(query, (text_bytes(form),)):
                    rows_by_id[id_] = rows[0]
                    break
        return rows_by_id

    @reads
    def same_content(self, sha256: str, role: Role) -> list[tuple[int, str]]:
        """Returns (row, id) of the pictures of that role with that content, by row."""
        # With "AND sha256 = ?" SQLite would put the constant into substr() too and use no index.
        query = (
            "SELECT row, id, sha256 FROM picture INDEXED BY picture_content"
            " WHERE substr(sha256, 1, 16) = ?"
        )
        rows = sorted(self._all(query, (sha256[:16],)))
        same = [(row, id_) for row, id_, own in rows if own == sha256]
        return [(row, id_) for row, id_ in same if self._catalog.role(row) == role]

    def picture_count(self) -> int:
        """Returns the number of pictures.

        count(*) is not used, as SQLite runs it as one step, which no limit on steps can end.
        """
        return int(self._all("SELECT count(1) FROM picture NOT INDEXED")[0][0])
