"""Restores the embedder of a gallery, some of whose files are damaged.

The embedder comes from the intact files of its folder, from the embedder that the user names, or
from an installed package. Its fingerprint verifies that it is the same.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from lmk.embed.checksums import CHECKSUMS_FILE, read_checksums, write_checksums
from lmk.embed.errors import GalleryDamaged, LmkError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.network.config import preset_names
from lmk.embed.network.whitening import load_whitening
from lmk.index.gallery.writer import GalleryWriter

_WHITENING, _GRAPH = "whitening.safetensors", "graph"
_REMADE = {
    *("config.json", "weights.safetensors", _WHITENING, "graph.xml", "graph.bin"),
    CHECKSUMS_FILE,
}


def restored(
    writer: GalleryWriter,
    broken: set[Path],
    scratch: Path,
    given: Embedder | None,
    *,
    drop_lost: bool,
) -> Embedder:
    """Returns the embedder of a gallery, without a change of the gallery.

    Args:
        writer: the writer of the gallery.
        broken: the damaged or missing files of its embedder.
        scratch: an empty folder, which must exist until the embedder is saved.
        given: another embedder to try.
        drop_lost: drop damaged files that do not belong to the network (tags).

    Raises:
        GalleryDamaged: no embedder has the same fingerprint, or other files would be lost.
    """
    folder = writer.uncommitted.embedder_dir
    for file in folder.rglob("*") if folder.is_dir() else ():
        if file.is_file() and file not in broken:
            copy = scratch / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    if any(file.stem == _GRAPH for file in broken):  # one of the two graph files is useless
        for half in scratch.glob(f"{_GRAPH}.*"):
            half.unlink()
    embedder = _same(writer, broken, scratch, given)
    lost = [file for file in sorted(broken) if file.name not in _REMADE]
    _take_over(writer, lost, scratch, [embedder.folder, None if given is None else given.folder])
    lost = [file for file in lost if not (scratch / file.relative_to(folder)).exists()]
    if lost and not drop_lost:
        raise GalleryDamaged(
            "the tags of the embedder are damaged, and no other copy is known",
            where=lost[0],
            remedy="name the embedder that the index was built with by --model, or drop the tags"
            " with --drop-lost",
        )
    return embedder


def save_restored(embedder: Embedder, scratch: Path, folder: Path) -> None:
    """Writes a restored embedder into a folder, with the other files of its old folder.

    Args:
        embedder: the result of `restored`.
        scratch: the folder that was passed to `restored`.
        folder: the new, empty folder.
    """
    embedder.save(folder)
    for file in scratch.rglob("*"):
        copy = folder / file.relative_to(scratch)
        if file.is_file() and not file.name.startswith(".") and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    write_checksums(folder, read_checksums(folder))


def _same(
    writer: GalleryWriter, broken: set[Path], intact: Path, given: Embedder | None
) -> Embedder:
    """Returns the first candidate with the gallery's fingerprint, or raises GalleryDamaged."""
    for candidate in _candidates(intact, given):
        if candidate.fingerprint == writer.uncommitted.fingerprint:
            return candidate
    remedy = "build the index again with lmk build-index"
    if given is None and not any(file.name == _WHITENING for file in broken):
        remedy = f"name the embedder it was built with by --model, or {remedy}"
    raise GalleryDamaged(
        "the embedder is damaged, and no installed one is the same",
        where=sorted(broken)[0],
        remedy=remedy,
    )


def _candidates(intact: Path, given: Embedder | None) -> Iterator[Embedder]:
    """Yields candidates: the intact files of its folder, the one given, the installed ones."""
    with suppress(LmkError):
        embedder = Embedder.load(intact)
        embedder.network()  # fails if the weights are the damaged file
        yield embedder
    if given is not None:
        with suppress(ValueError):  # the whitening is for another embedder
            yield given.with_whitening(load_whitening(intact / _WHITENING, given.feature_dim))
    for name in preset_names():
        with suppress(LmkError, ValueError):  # its weights may not be installed
            other = Embedder.named(name)
            yield other.with_whitening(load_whitening(intact / _WHITENING, other.feature_dim))


def _take_over(
    writer: GalleryWriter, files: Iterable[Path], scratch: Path, folders: Iterable[Path | None]
) -> None:
    """Copies files from other embedders' folders if their checksums are those of the catalog."""
    sha256 = writer.uncommitted.embedder_checksums()
    for file in files:
        for other in folders:
            copy = None if other is None else other / file.name
            if copy is not None and copy.is_file():
                content = copy.read_bytes()
                if hashlib.sha256(content).hexdigest() == sha256.get(file):
                    (scratch / file.name).write_bytes(content)
