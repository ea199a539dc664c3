"""Gives all pictures of a folder or table the same landmark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lmk.embed.data.manifest import Manifest
from lmk.embed.data.picture_ids import exact_id, unique_ids
from lmk.embed.errors import UsageError
from lmk.embed.tables.label_text import plain_name


def with_landmark(manifest: Manifest, label: str, *, source: Path) -> Manifest:
    """Returns a manifest with the same pictures, all with one landmark.

    Pictures of a folder get the ids they would have in a folder of several landmarks:
    "tajmahal/1.jpg" for 1.jpg. The ids of a table and of GLDv2's layout do not change.

    Args:
        manifest: the pictures.
        label: the landmark. Blanks become "_", as in the name of a folder.
        source: the folder or table that the manifest was read from.

    Raises:
        UsageError: the label is empty.
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
