"""Settings of a gallery, read as the types that lmk writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeVar

from lmk.embed.errors import GalleryDamaged
from lmk.index.catalog.layout import CATALOG
from lmk.index.vectors.files import REBUILD

Value = TypeVar("Value")


class HasSettings(Protocol):
    """A gallery, or its writer."""

    path: Path

    def setting(self, name: str) -> Any:
        """Returns the JSON value saved under `name`, or None."""
        ...


def read_setting(gallery: HasSettings, name: str, kind: type[Value]) -> Value | None:
    """Returns the setting with a name, or None if it was never saved.

    Args:
        gallery: the gallery or its writer.
        name: the name of the setting.
        kind: a pydantic model, or any type that pydantic checks.

    Raises:
        GalleryDamaged: the value has another type, as in an index of somebody else.
    """
    value = gallery.setting(name)
    if value is None:
        return None
    from pydantic import TypeAdapter  # takes a while to import

    try:
        return TypeAdapter(kind).validate_python(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise strange_setting(gallery.path, name) from error


def strange_setting(path: Path, name: str) -> GalleryDamaged:
    """Returns the error for a setting that lmk does not write."""
    what = f"its setting {name!r} has a value that this lmk does not write"
    return GalleryDamaged(what, where=path / CATALOG, remedy=REBUILD)
