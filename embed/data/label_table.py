"""Tables of pictures and their labels: the labels changed, all other columns as they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmk.embed.data.manifest_table import labels_of, plain_ids, read_table
from lmk.embed.errors import ManifestError
from lmk.embed.tables.label_text import join_labels

TAGS = "tags"


class LabelTable:
    """A CSV or Parquet file with a column id and maybe one of labels.

    Args:
        path: of the file.

    Attributes:
        path: as given.
        labels: of each picture by id, each once, in their order.
        column: that they stand in, of LABEL_COLUMNS the first there is; None for none.
        has_paths: whether a column says where the pictures are.

    Raises:
        ManifestError: the table cannot be read, has no rows, no column id, an id twice or an empty
            one.
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
        """The table as CSV with other labels; pictures that are not named keep theirs."""
        rows = self._rows.copy()
        column = self.column or TAGS
        rows[column] = [join_labels(labels.get(id_, self.labels[id_]), column) for id_ in self._ids]
        return str(rows.to_csv(index=False, lineterminator="\n"))
