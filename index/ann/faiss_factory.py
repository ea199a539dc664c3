"""Factory strings of FAISS indexes, their training and the effort of their searches."""

from __future__ import annotations

import math
import re
from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import UsageError

faiss: Any = typed_faiss  # its stubs know neither keyword arguments nor all classes

CELLS = "ivf"  # the kind that is no FAISS index, see cells.py
PER_CELL = 39  # vectors that FAISS wants to train a cell or a code word with
LEAST_ROWS = 1000  # for fewer rows, an index saves no time
_MOST_CELLS = 16_384  # time and memory of the training grow with the square
_LARGEST = 2**20  # largest number in a factory string, as FAISS allocates memory for it
_KINDS = "auto, exact, flat, ivf, ivfpq, hnsw, or a FAISS factory string such as IVF1024,PQ128x4fs"


def factory_of(kind: str, rows: int, dim: int) -> str:
    """Returns the FAISS factory string of a kind for a gallery of some size.

    ivfpq: 2 to 4 sqrt(rows) cells, never more than the rows can train, and one code word of 4 bits
    for every two components (dim / 4 bytes a vector). hnsw: 32 links a vector, a byte a component.
    Neither stores the vectors; candidates are scored again from the vectors of the gallery.
    """
    if kind == "hnsw":
        return "HNSW32,SQ8"
    if kind != "ivfpq":
        return kind
    cells = 2 ** math.floor(math.log2(number_of_cells(rows)))
    pad = f"Pad{dim + 1}," if dim % 2 else ""
    return f"{pad}IVF{cells},PQ{(dim + 1) // 2}x4fs"


def number_of_cells(rows: int) -> int:
    """Returns 4 sqrt(rows) cells, but not more than the rows can train."""
    return max(1, int(min(_MOST_CELLS, 4 * math.sqrt(rows), rows / PER_CELL)))


def new_index(factory: str, dim: int, rows: int) -> Any:
    """Returns an empty FAISS index for unit vectors compared by their dot product.

    Args:
        factory: see https://github.com/facebookresearch/faiss/wiki/The-index-factory.
        dim: number of components of a vector.
        rows: number of vectors that the index will have.

    Raises:
        UsageError: FAISS does not know the factory string or cannot use it with dot products, or
            the vectors cannot train so many cells.
    """
    _check_sizes(factory)
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError) as error:
        raise UsageError(
            f"FAISS makes no index for dot products from {factory!r}{in_brackets(error)}",
            remedy=f"choose {_KINDS}",
        ) from error
    cells = cells_of(index)
    if cells * PER_CELL > rows:
        most = rows // PER_CELL
        raise UsageError(
            f"{factory!r} has {cells} cells, and {rows} vectors can train {most}",
            remedy=f"take at most {most} cells, or the kind ivfpq, which chooses them",
        )
    return index


def _check_sizes(factory: str) -> None:
    """Raises UsageError for numbers at which FAISS ends the process."""
    sizes = [int(number) for number in re.findall("[0-9]{1,9}", factory)]
    wrong = [f"a size of {size}" for size in sizes if not 1 <= size <= _LARGEST]
    if re.search("(HNSW|NSG)0*1(?![0-9])", factory):
        wrong = ["a graph of less than 2 links a vector"]
    if wrong:
        raise UsageError(f"{factory!r} names {wrong[0]}", remedy=f"choose {_KINDS}")


def in_brackets(error: Exception) -> str:
    """Returns FAISS's message as " (message)", without the place in its source files."""
    text = " ".join(str(error).split())
    message = re.sub("^Error in .*[.](cpp|h):[0-9]+: ", "", text).removeprefix("Error: ")
    return "" if not message or message.startswith("Error in ") else f" ({message[:120]})"


def cells_of(index: Any) -> int:
    """Returns the number of cells of an index with inverted lists; 0 for others."""
    inner = _innermost(index)
    return int(inner.nlist) if isinstance(inner, faiss.IndexIVF) else 0


def rows_to_train(cells: int, rows: int) -> int:
    """Returns the number of rows to train a number of cells with."""
    return min(rows, max(65_536, (PER_CELL + 1) * cells))


def train(index: Any, vectors: NDArray[np.float32]) -> None:
    """Trains an index with float32 [n, dim].

    All threads train the cells, then one thread trains the rest. Code words are trained in many
    small steps, in which threads would wait for each other 25 times as long as one thread works.

    Raises:
        RuntimeError: FAISS cannot train the index with so few vectors.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIVF) and isinstance(
        faiss.downcast_index(index.quantizer), faiss.IndexFlat
    ):
        faiss.Clustering(index.d, index.nlist, index.cp).train(vectors, index.quantizer)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.train(vectors)
    finally:
        faiss.omp_set_num_threads(threads)


def efforts(index: Any, rows: int) -> tuple[int, ...]:
    """Returns the ascending efforts of an index: numbers of cells or nodes; (1,) for others."""
    inner = _innermost(index)
    if isinstance(inner, faiss.IndexIVF):
        first, last = 1, int(inner.nlist)
    elif isinstance(inner, faiss.IndexHNSW):
        first, last = 16, min(4096, max(16, rows))
    else:
        return (1,)
    return steps_of(first, last)


def steps_of(first: int, last: int) -> tuple[int, ...]:
    """Returns efforts from the first to the last, each 1.4 times the previous one."""
    steps = [first]
    while steps[-1] < last:
        steps.append(min(last, max(steps[-1] + 1, round(steps[-1] * 1.4))))
    return tuple(steps)


def search_parameters(index: Any, effort: int, allowed: NDArray[np.bool_] | None) -> Any:
    """Returns the parameters of one search.

    Args:
        index: the index.
        effort: see `efforts`.
        allowed: bool [ntotal], the positions that may be returned; None for all.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = search_parameters(index.index, effort, allowed)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = search_parameters(index.base_index, effort, allowed)
        return faiss.IndexRefineSearchParameters(k_factor=4.0, base_index_params=inner)
    chosen: dict[str, Any] = {}
    if allowed is not None:
        # The selector refers to the array, which SWIG keeps alive.
        chosen["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=effort, **chosen)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=effort, **chosen)
    return faiss.SearchParameters(**chosen) if chosen else None


def describe_effort(index: Any, effort: int) -> str:
    """Returns a description of an effort."""
    inner = _innermost(index)
    if isinstance(inner, faiss.IndexIVF):
        return f"{effort} of {inner.nlist} cells are looked at"
    if isinstance(inner, faiss.IndexHNSW):
        return f"{effort} nodes of the graph are kept in view"
    return "every code is looked at"


def _innermost(index: Any) -> Any:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _innermost(index.index)
    if isinstance(index, faiss.IndexRefine):
        return _innermost(index.base_index)
    return index
