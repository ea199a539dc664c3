"""Pictures of one landmark, in a folder or table that does not name the landmark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lmk.embed.data.manifest import Manifest
from lmk.embed.data.picture_ids import exact_id, unique_ids
from lmk.embed.errors import UsageError
from lmk.embed.tables.label_text import plain_name


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
    """
    name = plain_name(label)
    if not name:
        raise UsageError("the label is empty", where="--label", remedy="name the landmark")

    rows = manifest.rows
    if source.is_dir() and not any("/" in row.path and not row.labels for row in rows):
        plain = [f"{name}/{plain_name(row.path)}" for row in rows]
        ids = unique_ids([f"{label}/{row.path}" for row in rows], plain, exact_id)
        rows = tuple(replace(row, id=id_) for row, id_ in zip(rows, ids, strict=True))
    return replace(manifest, rows=tuple(replace(row, labels=(name,)) for row in rows))
