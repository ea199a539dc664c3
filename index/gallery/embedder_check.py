"""Compares the embedder of a gallery with its own checksums.

The catalog has the checksums of the files when they were installed. SHA256SUMS has those of the
files when the embedder was written. A file that agrees with the catalog alone was damaged before it
was installed.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmk.embed.checksums import CHECKSUMS_FILE, parse_checksums, read_checksums, require_unchanged
from lmk.embed.errors import GalleryDamaged, ModelDamaged
from lmk.index.gallery.gallery import Gallery
from lmk.index.vectors.files import REPAIR, StoredFile


def embedder_damage(files: Sequence[StoredFile]) -> list[GalleryDamaged]:
    """Returns an error for each file that differs from the SHA256SUMS beside it.

    Args:
        files: open files of a gallery that agree with the catalog.
    """
    errors = []
    for sums in files:
        if sums.path.name != CHECKSUMS_FILE:
            continue
        try:
            expected = parse_checksums(sums.read(0, sums.record.size), sums.path)
        except ModelDamaged as error:
            errors.append(GalleryDamaged(error.what, where=sums.path, remedy=REPAIR))
            continue
        what = "the file was damaged before it came into the index"
        errors += [
            GalleryDamaged(what, where=file.path, remedy=REPAIR)
            for file in files
            if file.path.parent == sums.path.parent
            and file is not sums
            and file.record.sha256 not in expected.get(file.path.name, ())
        ]
    return errors


def check_embedder(gallery: Gallery) -> None:
    """Compares the embedder of an open gallery with its own checksums, if it has any.

    Raises:
        GalleryDamaged: a file differs.
    """
    folder = gallery.embedder_dir
    try:
        checksums = read_checksums(folder)
        if checksums is not None:
            require_unchanged(folder, checksums, checksums)
    except ModelDamaged as error:
        raise GalleryDamaged(error.what, where=error.where, remedy=REPAIR) from error
