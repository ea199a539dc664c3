"""FAISS indexes as derived files: built in blocks, kept with what they were built from.

An index goes on serving while pictures are added and removed, as long as most of its rows are still
what they were: the rows it stands for are those whose part of the vectors has the same key.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import UsageError
from lmk.index.faiss_recipes import factory_of, in_brackets, new_index, train, training_rows
from lmk.index.faiss_search import blas
from lmk.index.view import View

faiss: Any = typed_faiss  # its stubs do not know all classes

_FORMAT = 1
_FAISS = "faiss-"  # what the names of all these files begin with
_BLOCK_ROWS = 65_536
_MOST_BESIDE = 0.1  # of the indexed rows may be searched beside the index before it is built anew
_SOME_BESIDE = 4096  # rows that may always
_KEPT = 4  # indexes of the same rows, by different factory strings
_MOST_GONE = 0.3  # of the indexed rows may be gone before it is built anew

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Built:
    """An index and the rows it stands for.

    Attributes:
        index: the FAISS index.
        rows: int64 [ntotal], the row number of each of its positions, ascending.
        covered: bool [rows of the view's gallery], those it stands for still.
        stem: what the names of its files begin with.
        factory: its factory string.
    """

    index: Any
    rows: NDArray[np.int64]
    covered: NDArray[np.bool_]
    stem: str
    factory: str


def load_or_build(view: View, kind: str, tell: Tell) -> Built:
    """Returns the index of a view by its kind, from its file where there is a good one.

    A good one may have been built of fewer or more rows, with a factory string for those.

    Args:
        view: what it indexes.
        kind: see factory_of.
        tell: is told what is going on before and while it is built.

    Raises:
        UsageError: see new_index; or where FAISS cannot build it of so few vectors.
    """
    return _load(view, kind) or _build(view, kind, tell)


def _load(view: View, kind: str) -> Built | None:
    prefix = _prefix(kind, view.dim)
    for name in view.derived.names():
        if not (name.startswith(prefix) and name.endswith(".rows.json")):
            continue
        stem = name.removesuffix(".rows.json")
        described, path = view.derived.load(name), view.derived.load(f"{stem}.index")
        if described is None or path is None:
            continue
        try:
            said = json.loads(described.read_bytes())
            rows, covered = _covered(view, said)
            if _good_enough(view, rows, covered):
                with path.open("rb") as file:
                    index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
                if index.d == view.dim and index.ntotal == len(rows):
                    return Built(index, rows, covered, stem, str(said["factory"]))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            continue  # removed meanwhile, or not written by this program
    return None


def _covered(view: View, described: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns the rows an index was built of, and which of the view's rows it stands for."""
    packed = np.frombuffer(base64.b64decode(described["mask"], validate=True), np.uint8)
    built = np.unpackbits(packed, count=described["rows"]).astype(np.bool_)
    covered = np.zeros(len(view.mask), np.bool_)
    known = {tuple(part) for part in described["parts"]}
    for part in view.stored.parts:
        if part.key and (part.first_row, part.rows, part.key) in known:
            piece = slice(part.first_row, part.first_row + part.rows)
            covered[piece] = built[piece]
    return np.flatnonzero(built), covered


def _good_enough(view: View, rows: NDArray[np.int64], covered: NDArray[np.bool_]) -> bool:
    serving = int((covered & view.mask).sum())
    beside = int(view.mask.sum()) - serving
    return (
        len(rows) - serving <= _MOST_GONE * len(rows)
        and beside <= max(_SOME_BESIDE, _MOST_BESIDE * len(rows))
        and serving > 0
    )


def _build(view: View, kind: str, tell: Tell) -> Built:
    rows = np.flatnonzero(view.mask)
    factory = factory_of(kind, len(rows), view.dim)
    index = new_index(factory, view.dim, len(rows))
    read = view.stored.read
    try:
        if index.is_trained:
            tell(f"building {factory} of {len(rows)} vectors")
        else:
            count = training_rows(index, len(rows))
            tell(f"training {factory} with {count} of {len(rows)} vectors")
            sample = np.random.default_rng(0).choice(rows, count, replace=False)
            with blas(count):
                train(index, read(np.sort(sample)))
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            with blas(len(block)):
                index.add(read(block))
            tell(f"added {start + len(block)} of {len(rows)} vectors to {factory}")
    except (RuntimeError, MemoryError) as error:
        raise UsageError(
            f"FAISS cannot build {factory!r} of {len(rows)} vectors{in_brackets(error)}",
            remedy="choose another kind of search; the kind auto finds one that fits",
        ) from error
    described = {
        "factory": factory,
        "rows": len(view.mask),
        "parts": [[part.first_row, part.rows, part.key] for part in view.stored.parts],
        "mask": base64.b64encode(np.packbits(view.mask).tobytes()).decode(),
    }
    text = json.dumps(described).encode()
    stem = _prefix(kind, view.dim) + hashlib.sha256(text).hexdigest()[:16]
    built = Built(index, rows, view.mask, stem, factory)
    _keep(view, built, text)
    return built


def _keep(view: View, built: Built, described: bytes) -> None:
    """Saves an index and removes those it replaces, and those of other kinds that are too many."""
    derived, parts = view.derived, [part.key for part in view.stored.parts]
    if derived.save(f"{built.stem}.index", lambda p: _write(built.index, p), parts) is None:
        return
    derived.save(f"{built.stem}.rows.json", lambda p: _write_bytes(p, described), parts)
    prefix = built.stem.rsplit("-", 1)[0]
    kinds: list[tuple[int, str]] = []
    gone: set[str] = set()
    for name in derived.names():
        stem, ending = name.split(".", 1) if "." in name else (name, "")
        if not stem.startswith(_FAISS):
            continue
        if stem == built.stem:
            if ending not in ("index", "rows.json"):  # measured with another one
                derived.remove(name)
        elif ending == "index" and not _of_other_rows(view, stem):
            path = derived.load(name)
            if path is None or name.startswith(prefix):
                gone.add(stem)
            else:
                kinds.append((path.stat().st_mtime_ns, stem))
    gone |= {stem for _, stem in sorted(kinds, reverse=True)[_KEPT - 1 :]}
    for name in derived.names():
        if name.split(".", 1)[0] in gone:
            derived.remove(name)


def _of_other_rows(view: View, stem: str) -> bool:
    """Whether an index serves rows of this gallery, none of which are the view's."""
    described = view.derived.load(f"{stem}.rows.json")
    if described is None:
        return False
    try:
        covered = _covered(view, json.loads(described.read_bytes()))[1]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(covered.any()) and not (covered & view.mask).any()


def _prefix(kind: str, dim: int) -> str:
    made_by = f"{_FORMAT} {kind} {dim}".encode()
    return f"{_FAISS}{hashlib.sha256(made_by).hexdigest()[:16]}-"


def _write(index: Any, path: Path) -> None:
    with path.open("wb") as file:
        try:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        except RuntimeError as error:  # what FAISS makes of an OSError
            raise OSError(errno.EIO, "FAISS could not write", str(path)) from error


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
