"""Tables of pictures and labels: changes labels and leaves all other columns unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmk.embed.data.manifest_table import labels_of, plain_ids, read_table
from lmk.embed.errors import ManifestError
from lmk.embed.tables.label_text import join_labels

TAGS = "tags"


class LabelTable:
    """A CSV or Parquet file with a column id and, optionally, a column of labels.

    Args:
        path: the file.

    Attributes:
        path: the file.
        labels: the labels of each picture by id, in order and without repetition.
        column: the column of the labels, the first of LABEL_COLUMNS that exists, or None.
        has_paths: True if a column has the paths of the pictures.

    Raises:
        ManifestError: the table cannot be read, has no rows or no column id, or has an empty or
            repeated id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = read_table(path)
        if "id" not in self._rows:
            raise ManifestError(
                "has no column id", where=path, remedy="name a CSV with the columns id and tags"
            )
        ids = plain_ids(self._rows["id"])
        if not ids:
            raise ManifestError("holds no rows", where=path, remedy="list at least one picture")
        if repeated := [id_ for id_, count in Counter(ids).items() if count > 1]:
            remedy = "give each picture a row of its own"
            raise ManifestError(f"has the id {repeated[0]!r} twice", where=path, remedy=remedy)
        if not all(ids):
            raise ManifestError("has an empty id", where=path, remedy="give each picture an id")
        self._ids = tuple(ids)
        self.column, labels = labels_of(self._rows, path)
        self.has_paths = "path" in self._rows
        self.labels = dict(zip(self._ids, labels, strict=True))

    def with_labels(self, labels: Mapping[str, Sequence[str]]) -> str:
        """Writes the table as CSV with other labels; the labels of other pictures do not change."""
        rows = self._rows.copy()
        column = self.column or TAGS
        rows[column] = [join_labels(labels.get(id_, self.labels[id_]), column) for id_ in self._ids]
        return str(rows.to_csv(index=False, lineterminator="\n"))
