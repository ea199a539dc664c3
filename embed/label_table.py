"""Tables of pictures and their labels: the labels changed, all other columns as they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmk.embed.errors import ManifestError
from lmk.embed.manifest import LABEL_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

TAGS = "tags"


class LabelTable:
    """A CSV with a column id and maybe one of labels.

    Args:
        path: of the CSV.

    Attributes:
        path: as given.
        labels: of each picture by id, each once, in their order.
        has_labels: whether there is a column of them.

    Raises:
        ManifestError: the table cannot be read, has no column id, or an id twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = _read(path)
        ids = self._rows["id"].str.strip()
        if not ids.is_unique:
            twice = ids[ids.duplicated()].iloc[0]
            raise ManifestError(f"has the id {twice} twice", where=path)
        self._ids = tuple(ids)
        self._column = next((name for name in LABEL_COLUMNS if name in self._rows), None)
        self.has_labels = self._column is not None
        cells = self._rows[self._column] if self._column else [""] * len(self._ids)
        self.labels = {
            id_: tuple(dict.fromkeys(cell.split()))
            for id_, cell in zip(self._ids, cells, strict=True)
        }

    def with_labels(self, labels: Mapping[str, Sequence[str]]) -> str:
        """The table as CSV with other labels; pictures that are not named keep theirs."""
        rows = self._rows.copy()
        column = self._column or TAGS
        own = rows[column] if self._column else [""] * len(rows)
        rows[column] = [
            " ".join(labels[id_]) if id_ in labels else cell
            for id_, cell in zip(self._ids, own, strict=True)
        ]
        return str(rows.to_csv(index=False, lineterminator="\n"))


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ManifestError(f"cannot be read as a table: {reason}", where=path) from None
    if "id" not in rows:
        raise ManifestError(
            "has no column id", where=path, remedy="name a CSV with the columns id and tags"
        )
    return rows
