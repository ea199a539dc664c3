"""Tables of pictures and their labels: the labels changed, all other columns as they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmk.embed.errors import ManifestError
from lmk.embed.manifest_table import LABEL_COLUMNS, plain_id, read_table

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
        ids = self._rows["id"].map(plain_id)
        if not len(ids):
            raise ManifestError("holds no rows", where=path, remedy="list at least one picture")
        if not ids.is_unique:
            twice = ids[ids.duplicated()].iloc[0]
            remedy = "give each picture a row of its own"
            raise ManifestError(f"has the id {twice!r} twice", where=path, remedy=remedy)
        if not ids.all():
            raise ManifestError("has an empty id", where=path, remedy="give each picture an id")
        self._ids = tuple(ids)
        self.column = next((name for name in LABEL_COLUMNS if name in self._rows), None)
        self.has_paths = "path" in self._rows
        cells = self._rows[self.column] if self.column else [""] * len(self._ids)
        self.labels = {
            id_: tuple(dict.fromkeys(cell.split()))
            for id_, cell in zip(self._ids, cells, strict=True)
        }

    def with_labels(self, labels: Mapping[str, Sequence[str]]) -> str:
        """The table as CSV with other labels; pictures that are not named keep theirs."""
        rows = self._rows.copy()
        column = self.column or TAGS
        own = rows[column] if self.column else [""] * len(rows)
        rows[column] = [
            " ".join(labels[id_]) if id_ in labels else cell
            for id_, cell in zip(self._ids, own, strict=True)
        ]
        return str(rows.to_csv(index=False, lineterminator="\n"))
