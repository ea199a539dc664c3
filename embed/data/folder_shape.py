"""Checks whether the sub-folders of a folder of pictures look like landmarks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lmk.embed.data.manifest import Manifest

# Names of folders that contain the folders of landmarks in data sets and photo collections.
_PARTS = frozenset(
    {
        "train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval",
        "index", "gallery", "query", "queries", "distractors", "database",
        "data", "dataset", "datasets", "images", "imgs", "img", "photos", "pictures",
    }
)  # fmt: skip

Folders = tuple[str, ...]


@dataclass(frozen=True)
class FolderShape:
    """Unusual features of the layout of a folder of pictures.

    Attributes:
        loose: paths of pictures beside the folders of landmarks; they have no landmark.
        wrapper: the folder whose sub-folders seem to be the landmarks, or "". The landmarks of the
            manifest then contain only sub-folders.
        landmarks: the landmarks of the manifest.
    """

    loose: tuple[str, ...] = ()
    wrapper: str = ""
    landmarks: tuple[str, ...] = ()


def folder_shape(manifest: Manifest) -> FolderShape:
    """Returns the shape of a folder; nothing is unusual if no picture has a landmark.

    A landmark may have sub-folders (eiffel/day/1.jpg). There seems to be one level too many if no
    landmark contains a picture itself and one of these holds: there is one landmark with several
    sub-folders, the landmarks have names such as train and test, or there are more different names
    of sub-folders than landmarks.
    """
    if not manifest.labelled:
        return FolderShape()
    loose = tuple(row.path for row in manifest.rows if not row.labels)
    folders = {tuple(row.path.split("/")[:-1]) for row in manifest.rows if row.labels}
    wrapper = _wrapper(folders)
    landmarks = sorted({label for row in manifest.rows for label in row.labels}) if wrapper else ()
    return FolderShape(loose, wrapper, tuple(landmarks))


def _wrapper(folders: Collection[Folders]) -> str:
    tops = {parts[0] for parts in folders}
    if any(len(parts) < 2 for parts in folders):
        return ""
    seconds = {parts[1] for parts in folders}
    if len(tops) == 1:
        (top,) = tops
        inner = _wrapper({parts[1:] for parts in folders})
        if inner:
            return f"{top}/{inner}"
        return top if len(seconds) > 1 else ""
    if len(seconds) > len(tops) or all(top.casefold() in _PARTS for top in tops):
        first = min(tops, key=lambda top: (top.casefold() not in ("train", "index"), top))
        inner = _wrapper({parts[1:] for parts in folders if parts[0] == first})
        return f"{first}/{inner}" if inner else first
    return ""
