"""Names, coordinates and links of landmarks as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lmk.cli.printing import echo
from lmk.cli.render import counted, first_of

if TYPE_CHECKING:
    from lmk.embed.tables.landmark_details import LandmarkDetails

_MAP = "https://www.openstreetmap.org/?mlat={0}&mlon={1}#map=16/{0}/{1}"
_UNKNOWN_SHOWN = 10  # maximum number of landmarks that a note names


def shown_name(label: str, details: LandmarkDetails | None) -> str:
    """Returns a landmark as "Eiffel Tower (6347)", or the name alone if the label is that name.

    Args:
        label: the label of the landmark.
        details: the details of the landmark; None returns the label.
    """
    from lmk.embed.tables.label_forms import form_key

    if details is None:
        return label
    if form_key(details.name) == form_key(label):
        return details.name
    return f"{details.name} ({label})"


def shown_names(labels: Iterable[str], details: dict[str, LandmarkDetails]) -> list[str]:
    """Returns `shown_name` of each label."""
    return [shown_name(label, details.get(label)) for label in labels]


def coordinates_text(details: LandmarkDetails) -> str | None:
    """Returns "48.8584, 2.2945" (latitude, longitude in degrees), or None without coordinates."""
    if details.latitude is None or details.longitude is None:
        return None
    return f"{_degrees(details.latitude)}, {_degrees(details.longitude)}"


def map_url(details: LandmarkDetails) -> str | None:
    """Returns the address of a map with a mark at the landmark, or None without coordinates."""
    if details.latitude is None or details.longitude is None:
        return None
    return _MAP.format(_degrees(details.latitude), _degrees(details.longitude))


def echo_unknown(files: str, unknown: Sequence[str], total: int, holder: str) -> None:
    """Prints the landmarks of a table that an index or a set of pictures does not have.

    Args:
        files: the name of the table.
        unknown: landmarks of the table that `holder` lacks.
        total: the number of landmarks in the table.
        holder: the name of the index or of the pictures.
    """
    if not unknown:
        return
    is_, was = ("is", "was") if len(unknown) == 1 else ("are", "were")
    echo(
        f"lmk: {files}: {len(unknown):,} of its {counted(total, 'landmark')} {is_} not in "
        f"{holder} and {was} left out: {first_of(unknown, _UNKNOWN_SHOWN)}",
        err=True,
    )


def _degrees(value: float) -> str:
    """Returns degrees with up to 6 decimals; the sixth decimal is a tenth of a metre."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
