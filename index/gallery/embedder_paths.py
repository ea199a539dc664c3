"""Files of a gallery that belong to its embedder, and their folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lmk.index.vectors.files import FileRecord

EMBEDDER = "embedder"  # the folder of a gallery that holds its embedder


def embedder_folder(folder: Path, fingerprint: str, files: Iterable[FileRecord]) -> Path:
    """Returns the folder of the embedder of that fingerprint.

    Args:
        folder: the gallery.
        fingerprint: fingerprint of the embedder.
        files: the files that the catalog names. If none belongs to the embedder, the result is a
            folder that does not exist.

    Raises:
        ValueError: the files are in several folders.
    """
    names = {Path(record.path).parts[1] for record in embedder_files(fingerprint, files)}
    if len(names) > 1:
        raise ValueError(f"one embedder in several folders: {', '.join(sorted(names))}")
    return folder / EMBEDDER / (names.pop() if names else fingerprint[:16])


def embedder_files(fingerprint: str, files: Iterable[FileRecord]) -> list[FileRecord]:
    """Returns the files that belong to the embedder with a fingerprint."""
    below = re.compile(rf"{EMBEDDER}/{re.escape(fingerprint[:16])}(-[0-9]+)?/.+", re.DOTALL)
    return [record for record in files if below.fullmatch(record.path)]
