"""Notes about the landmarks of an index, and hints for folders with an unexpected layout."""

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

    from lmk.index.gallery.gallery import Gallery, class_sizes

    with Gallery.open(index) as gallery:
        rows, sizes = gallery.role_rows("gallery"), class_sizes(gallery)
        unlabelled = int((np.diff(gallery.label_offsets)[rows] == 0).sum())
        landmarks = sorted((-count, label) for label, count in sizes.items() if count)
        details = gallery.details_of(label for _, label in landmarks[:_LARGEST])
    largest = [
        f"{shown_name(label, details.get(label))} ({-count:,})"
        for count, label in landmarks[:_LARGEST]
    ]
    text = f"{counted(len(rows), 'picture')} of {counted(len(landmarks), 'landmark')}"
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
        command: a function from another folder to the words of the same command.
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
