"""SearchSettings: the kind, recall and server with which a gallery is searched."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from lmk.index.catalog.settings import HasSettings, strange_setting

SEARCH = "search"  # the name of the setting


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the search of a gallery; None means the default.

    Attributes:
        kind: kind of search on this machine, see `lmk.index.search.choose.searcher_of`.
        recall: recall@10 that an index must reach, from 0 to 1.
        backend: "local" or "milvus".
        uri: address of the Milvus server.
        collection: name of the collection on that server, see MilvusSearcher.
    """

    kind: str | None = None
    recall: float | None = None
    backend: str | None = None
    uri: str | None = None
    collection: str | None = None

    @classmethod
    def saved(cls, gallery: HasSettings) -> SearchSettings:
        """Returns the settings saved with a gallery (GalleryDamaged)."""
        values = gallery.setting(SEARCH)
        if values is None:
            return cls()
        if not isinstance(values, dict) or not all(map(_is_valid, values.items())):
            raise strange_setting(gallery.path, SEARCH)
        return cls(**{f.name: values.get(f.name) for f in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON value to save: the settings that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, other: SearchSettings) -> SearchSettings:
        """Returns these settings, with those of `other` where these are None."""
        return SearchSettings(**{**other.to_json(), **self.to_json()})

    def without_server(self) -> SearchSettings:
        """Returns the settings that suit another gallery too."""
        return SearchSettings(self.kind, self.recall)


def _is_valid(item: tuple[str, Any]) -> bool:
    name, value = item
    kind = float | int if name == "recall" else str
    return value is None or (isinstance(value, kind) and not isinstance(value, bool))
