"""The click type of arguments and options that name an index, and the default index."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import click

from lmk.embed.defaults import DEFAULT_TAGGER
from lmk.embed.errors import UsageError


class IndexPath(click.Path):
    """The click type of an index's path; its error suggests NAME.lmk if that index exists.

    `lmk build-index album/` writes album.lmk, so users often type `album` for the index.

    Args:
        others: whether the argument may also name something else, such as a folder of pictures.
            The type then refuses only a path that does not exist.
        names: accepted words that are not paths.
    """

    def __init__(self, *, others: bool = False, names: Collection[str] = ()) -> None:
        super().__init__(path_type=Path)
        self._others = others
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Returns the path of the index.

        Raises:
            NotAGallery: the path is not an index, and NAME.lmk is one.
        """
        path = cast(Path, super().convert(value, param, ctx))
        if str(path) in self._names or not path.name:
            return path
        near = path.with_name(f"{path.name}.lmk")
        with suppress(OSError, ValueError):  # No file can have this name.
            there = path.exists() if self._others else is_index(path)
            if not there and is_index(near):
                from lmk.index.catalog.database import no_gallery

                raise no_gallery(path)
        return path


def is_index(path: Path) -> bool:
    """Returns whether a folder holds the catalog of an index."""
    from lmk.index.catalog.layout import CATALOG

    return (path / CATALOG).is_file()


def find_index(named: Path | None) -> Path:
    """Returns the named index, or else the only *.lmk folder in the working directory.

    Raises:
        UsageError: `named` is None, and there is no such folder or more than one.
    """
    if named is not None:
        return named
    here = Path.cwd()
    indexes = sorted(path.name for path in here.glob("*.lmk") if path.is_dir())
    if len(indexes) == 1:
        return Path(indexes[0])
    if not indexes:
        what = "there is no index (*.lmk folder) in this folder"
        remedy = "build one with: lmk build-index GALLERY, or name one with -i"
        raise UsageError(what, where=here, remedy=remedy)
    what = f"there are {len(indexes)} indexes here: {', '.join(indexes)}"
    remedy = f"name one, as in: -i {indexes[0]}"
    raise UsageError(what, where=here, remedy=remedy)


INDEX = IndexPath()
INDEX_OR_OTHER = IndexPath(others=True)
TAGGER = IndexPath(others=True, names=(DEFAULT_TAGGER,))
