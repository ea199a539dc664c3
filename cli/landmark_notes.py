"""Lines about the landmarks of an index, and hints for folders with an unexpected layout."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmk.cli.landmark_names import shown_name
from lmk.cli.printing import echo
from lmk.cli.render import counted, first_of

if TYPE_CHECKING:
    from lmk.embed.data.manifest import Manifest

_LARGEST = 3
_SHOWN = 3


def echo_landmarks(index: Path) -> None:
    """Prints the numbers of pictures and landmarks of an index, and its largest landmarks."""
    import numpy as np

    from lmk.index.gallery.gallery import Gallery

    with Gallery.open(index) as gallery:
        members = gallery.membership
        pictures = members.role("gallery")
        own = np.diff(members.offsets)
        codes = members.codes[np.repeat(pictures, own)]
        names, unlabelled = members.names, int(np.count_nonzero(pictures & (own == 0)))
        counts = np.bincount(codes, minlength=len(names))
        order = sorted(range(len(names)), key=lambda code: (-int(counts[code]), names[code]))
        details = gallery.details_of(names[code] for code in order[:_LARGEST])
    shown = {code: shown_name(names[code], details.get(names[code])) for code in order[:_LARGEST]}
    largest = [f"{name} ({counts[code]:,})" for code, name in shown.items() if counts[code]]
    text = counted(int(np.count_nonzero(pictures)), "picture")
    text += f" of {counted(int(np.count_nonzero(counts)), 'landmark')}"
    if len(largest) > 1:
        text += f", the largest {', '.join(largest)}"
    elif largest:
        text += f", {largest[0]}"
    if unlabelled:
        text += f"; {unlabelled:,} without a landmark"
    echo(f"{index}: holds {text}")


def echo_shape(manifest: Manifest, source: Path, command: Callable[[Path], Sequence[str]]) -> None:
    """Prints a hint on stderr if the landmarks of a folder seem to be at another level.

    Args:
        manifest: the pictures of the folder.
        source: the folder; nothing is printed for a table.
        command: returns the words of the same command for another folder.
    """
    from lmk.embed.data.folder_shape import folder_shape

    if not source.is_dir():
        return
    shape = folder_shape(manifest)
    if shape.wrapper:
        names = first_of(shape.landmarks, _SHOWN)
        one = len(shape.landmarks) == 1
        hold = f"landmark {names} holds" if one else f"landmarks {names} hold"
        echo(
            f"lmk: {source}: its {hold} only folders; if each folder in "
            f"{source / shape.wrapper} is a landmark: {_words(command, source / shape.wrapper)}",
            err=True,
        )
    if shape.loose:
        first = shape.loose[0]
        lie = "lies" if len(shape.loose) == 1 else "lie"
        echo(
            f"lmk: {source}: {counted(len(shape.loose), 'picture')} ({first}"
            f"{', ...' if len(shape.loose) > 1 else ''}) {lie} beside the folders of landmarks and "
            "without a landmark; move each into the folder of its landmark, then: "
            f"{_words(command, source)}",
            err=True,
        )


def _words(command: Callable[[Path], Sequence[str]], folder: Path) -> str:
    return shlex.join(["lmk", *command(folder)])
