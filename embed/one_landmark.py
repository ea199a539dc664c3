"""Pictures of one landmark whose folder or table does not say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lmk.embed.errors import UsageError
from lmk.embed.manifest import Manifest, Row
from lmk.embed.manifest_table import plain_id


def with_landmark(manifest: Manifest, label: str, *, source: Path) -> Manifest:
    """The same pictures, all of them of one landmark.

    The pictures of a folder get the ids that they have where the folder is one landmark of a
    larger one: "tajmahal/1.jpg" for 1.jpg. Ids of a table, and of GLDv2's layout, stay.

    Args:
        manifest: of the pictures.
        label: the landmark; blanks become "_", as in a folder's name.
        source: the folder or table that it was read from.

    Raises:
        UsageError: for an empty label.
        ManifestError: when two pictures get one id.
    """
    name = plain_id(label)
    if not name:
        raise UsageError("the label is empty", where="--label", remedy="name the landmark")

    def row_of(row: Row) -> Row:
        nested = not row.labels and "/" in row.path
        own_id = row.id if nested or not source.is_dir() else f"{name}/{plain_id(row.path)}"
        return replace(row, id=own_id, labels=(name,))

    return replace(manifest, rows=tuple(map(row_of, manifest.rows)))
