"""Restoration of a gallery's embedder from intact copies of its damaged files.

The embedder comes from the intact files of its folder, from the embedder that the user names, or
from an installed package. The fingerprint proves that the embedder is the same.
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
    """Returns the restored embedder of a gallery; the gallery does not change.

    Args:
        writer: the writer of the gallery.
        broken: the damaged or missing files of the embedder.
        scratch: an empty folder, which must exist until the embedder is saved.
        given: the embedder that the user names, as a candidate.
        drop_lost: whether to drop damaged files outside the network, such as tags.

    Raises:
        GalleryDamaged: no candidate has the same fingerprint, or other files would be lost.
    """
    folder = writer.uncommitted.embedder_dir
    for file in folder.rglob("*") if folder.is_dir() else ():
        if file.is_file() and file not in broken:
            copy = scratch / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    if any(file.stem == _GRAPH for file in broken):  # One of two graph files alone is useless.
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
    """Writes a restored embedder into a folder, with the other files of the old folder.

    Args:
        embedder: the result of `restored`.
        scratch: the argument `scratch` of `restored`.
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
    """Yields candidates: the intact files of the folder, `given`, the installed embedders."""
    with suppress(LmkError):
        embedder = Embedder.load(intact)
        embedder.network()  # The call fails if the file of the weights is damaged.
        yield embedder
    if given is not None:
        with suppress(ValueError):  # The whitening belongs to another embedder.
            yield given.with_whitening(load_whitening(intact / _WHITENING, given.feature_dim))
    for name in preset_names():
        with suppress(LmkError, ValueError):  # The weights may not be installed.
            other = Embedder.named(name)
            yield other.with_whitening(load_whitening(intact / _WHITENING, other.feature_dim))


def _take_over(
    writer: GalleryWriter, files: Iterable[Path], scratch: Path, folders: Iterable[Path | None]
) -> None:
    """Copies files from folders of other embedders if their checksums equal the catalog's."""
    sha256 = writer.uncommitted.embedder_checksums()
    for file in files:
        for other in folders:
            copy = None if other is None else other / file.name
            if copy is not None and copy.is_file():
                content = copy.read_bytes()
                if hashlib.sha256(content).hexdigest() == sha256.get(file):
                    (scratch / file.name).write_bytes(content)
