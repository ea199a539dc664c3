"""Details of a landmark for people: its name, coordinates, link and description."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lmk.embed.printable import printable

LONGEST = {"name": 500, "url": 2048, "description": 10_000}  # characters
MOST_EXTRA = 64  # further columns
LONGEST_EXTRA_NAME = 100
LONGEST_EXTRA = 10_000  # characters of the texts of all further columns of a landmark
_NOT_IN_URL = re.compile(r'[\x00-\x20\x7f-\xa0"<>\\`\u2028\u2029]')
_FIELDS = frozenset({"name", "latitude", "longitude", "url", "description", "extra"})


@dataclass(frozen=True)
class LandmarkDetails:
    """The details of one landmark.

    Attributes:
        landmark_id: the label of the landmark in the index.
        name: the name for people.
        latitude: in degrees, -90 to 90, north is positive; None where it is not known.
        longitude: in degrees, -180 to 180, east is positive; None where it is not known.
        url: an http or https address of a page about the landmark, or None.
        description: a text, or None.
        extra: (column, text) of each further column of the table with a text for the landmark.

    Raises:
        ValueError: a value is empty, too long, out of range, or an address of another kind.
        TypeError: a value has another type.
    """

    landmark_id: str
    name: str
    latitude: float | None = None
    longitude: float | None = None
    url: str | None = None
    description: str | None = None
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _check_text("landmark_id", self.landmark_id, None)
        for field in ("name", "url", "description"):
            value = getattr(self, field)
            if value is not None or field == "name":
                _check_text(field, value, LONGEST[field])
        if self.url is not None:
            check_url(self.url)
        _check_coordinate("latitude", self.latitude, 90)
        _check_coordinate("longitude", self.longitude, 180)
        if (self.latitude is None) != (self.longitude is None):
            given = "longitude" if self.latitude is None else "latitude"
            other = "latitude" if self.latitude is None else "longitude"
            raise ValueError(f"a {given} without a {other}")
        if len(self.extra) > MOST_EXTRA:
            raise ValueError(f"{len(self.extra)} further columns; {MOST_EXTRA} are allowed")
        for column, text in self.extra:
            _check_text("column name", column, LONGEST_EXTRA_NAME)
            _check_text(column[:40], text, LONGEST_EXTRA)
        if sum(len(text) for _, text in self.extra) > LONGEST_EXTRA:
            raise ValueError(f"more than {LONGEST_EXTRA:,} characters in the further columns")
        if len(dict(self.extra)) < len(self.extra):
            raise ValueError("a further column stands twice")

    def as_dict(self) -> dict[str, Any]:
        """Returns the details as JSON values, with null for what is not known."""
        return vars(self) | {"extra": dict(self.extra)}

    @classmethod
    def from_dict(cls, landmark_id: str, values: Mapping[str, Any]) -> LandmarkDetails:
        """Returns the details of a landmark with values as `as_dict` makes them.

        Args:
            landmark_id: the label.
            values: JSON values without the key landmark_id; missing keys mean null.

        Raises:
            ValueError, TypeError, AttributeError: the values are others than `as_dict` makes.
        """
        if values.keys() - _FIELDS:
            raise ValueError(f"unknown fields {sorted(values.keys() - _FIELDS)[:3]}")
        extra = tuple(values.get("extra", {}).items())
        return cls(landmark_id, **(dict(values) | {"extra": extra}))


def check_url(url: str) -> None:
    """Checks that a text is an http or https address with a host and without a user name.

    Raises:
        ValueError: the text is something else.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{url[:60]!r} is no http or https address")
    if _NOT_IN_URL.search(url) or printable(url) != url:  # nor one that hides or reorders others
        raise ValueError(f"the address {url[:60]!r} holds a character that no address has")
    try:
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"the address {url[:60]!r} has a wrong port") from error
    if not parts.hostname or "@" in parts.netloc:
        raise ValueError(f"the address {url[:60]!r} has no host, or a user name before it")


def _check_text(field: str, value: object, most: int | None) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{field} is no text")
    if not value.strip():
        raise ValueError(f"{field} is empty")
    if "\0" in value:
        raise ValueError(f"{field} holds a NUL character")
    value.encode()  # UnicodeEncodeError, a ValueError, for a lone surrogate
    if most is not None and len(value) > most:
        raise ValueError(f"{field} of {len(value):,} characters; {most:,} are allowed")


def _check_coordinate(field: str, value: object, most: int) -> None:
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{field} is no number")
    if not math.isfinite(value) or abs(value) > most:
        raise ValueError(f"{field} {value} is not between -{most} and {most}")
