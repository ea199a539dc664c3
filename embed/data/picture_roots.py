"""Suggests the folder for --root, which the paths of a table of pictures start from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from lmk.embed.shell_words import shell_word

_TRIED = 20  # number of paths that are tried below each folder
_FOLDERS = 100  # number of sub-folders that are examined


def root_remedy(exists: Callable[[Path], bool], root: Path) -> str:
    """Returns the remedy for a table without any picture below its root folder.

    Args:
        exists: returns whether pictures of the table exist below a folder.
        root: the folder without pictures.
    """
    suggested = next((folder for folder in _near(root) if exists(folder)), None)
    start = f"its paths start at {shell_word(root.resolve())}"
    if suggested is None:
        return f"{start}: name the folder in which they start with --root"
    return f"{start}, and pictures are found with: --root {shell_word(suggested)}"


def any_below(paths: Sequence[str]) -> Callable[[Path], bool]:
    """Returns a function that tells whether one of the first paths exists below a folder."""
    return lambda folder: any((folder / path).is_file() for path in paths[:_TRIED])


def common_folder(paths: Sequence[str]) -> str:
    """Returns the lowest common folder of absolute paths, quoted for a shell."""
    return shell_word(os.path.commonpath([os.path.dirname(path) for path in paths]))  # noqa: PTH120


def _near(root: Path) -> Iterator[Path]:
    """Yields candidates for the root: the folder, those above it, and their sub-folders."""
    here, start = Path(), root.resolve()
    yield here
    yield from start.parents
    for folder in (root, here):
        try:
            with os.scandir(folder) as entries:
                below = (entry.name for entry in entries if entry.is_dir())
                yield from (folder / name for name in sorted(islice(below, _FOLDERS)))
        except OSError:
            continue
