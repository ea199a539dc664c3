"""DetailsTable: reads the details of landmarks in a catalog."""

from __future__ import annotations

import json
from collections.abc import Iterable

from lmk.embed.plain_files import parse_json
from lmk.embed.tables.label_text import name_forms
from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.index.catalog.catalog import Catalog, reads
from lmk.index.catalog.records import text_bytes

FIRST_FORMAT = 4  # catalogs of older formats have no details


class DetailsTable:
    """The details of landmarks in an open catalog; none in a catalog of an older format.

    Every entry is compared with its checksum when it is read (GalleryDamaged).
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._exists = catalog.format >= FIRST_FORMAT
        self.damaged = catalog.damaged

    @reads
    def of(self, labels: Iterable[str]) -> dict[str, LandmarkDetails]:
        """Returns the details of those labels that have some, in the order of `labels`."""
        found: dict[str, LandmarkDetails] = {}
        query = "SELECT id, details, crc FROM landmark WHERE id = CAST(? AS TEXT)"
        for label in labels if self._exists else ():
            for form in name_forms(label) if "\0" not in label else ():
                if rows := self._catalog.all(query, (text_bytes(form),)):
                    found[label] = self._unpacked(*rows[0])
                    break
        return found

    @reads
    def all(self) -> list[LandmarkDetails]:
        """Returns all details, in the order of their labels."""
        rows = self._catalog.table("landmark", "id") if self._exists else []
        return [self._unpacked(*row) for row in rows]

    def _unpacked(self, id_: str, text: str, crc: int) -> LandmarkDetails:
        self._catalog.compare(crc, id_, text)
        return LandmarkDetails.from_dict(id_, parse_json(text))


def packed_details(details: LandmarkDetails) -> str:
    """Returns details as the catalog keeps them: JSON in ASCII, without what is not known."""
    values = {name: value for name, value in details.as_dict().items() if value not in (None, {})}
    del values["landmark_id"]
    return json.dumps(values)
