"""Files of `lmk eval revisited`: rank lists, and features of the database and the queries."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import StorageError, SubmissionError, UsageError
from lmk.eval.files.submission import RetrievalSubmission
from lmk.eval.scores.revisited import RevisitedTruth
from lmk.index.vectors.neighbours import NO_ROW

Ranks = list[NDArray[np.int64]]


def read_ranks(
    path: str | os.PathLike[str], truth: RevisitedTruth, *, columns: bool = False
) -> tuple[Ranks, tuple[str, ...]]:
    """Returns the ranked database pictures of each query, best first.

    Args:
        path: a .npy file of whole numbers [q, k], database rows from 0, -1 after the end of a list;
            or a CSV `id,images` with the query and database names of the ground truth.
        truth: the ground truth.
        columns: whether the .npy is [k, q], a column for each query, as revisitop's `ranks`.

    Returns:
        The database rows of each query, int64, and the queries without a row in the CSV.

    Raises:
        UsageError: there is no such file, or `columns` is used with a CSV.
        SubmissionError: the array has another type, shape or number of queries, the ground truth
            lacks a name (with its line), or a row is outside the database or twice in a list.
    """
    if Path(path).suffix.lower() == ".npy":
        return _ranks_of_array(path, truth, columns), ()
    if columns:
        raise UsageError("--columns is for a .npy file", where=path)
    return _ranks_of_csv(RetrievalSubmission.read(path), truth)


def read_features(path: str | os.PathLike[str], rows: int) -> NDArray[np.floating]:
    """Returns float features [rows, d] of a .npy file or a .safetensors file with one tensor.

    Raises:
        UsageError: there is no such file, or it has another extension.
        SubmissionError: the array has another type or shape, or a value is NaN or infinite.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".npy":
        features = _load_array(path)
    elif suffix == ".safetensors":
        features = _load_tensor(path)
    else:
        raise UsageError("features must be a .npy or .safetensors file", where=path)
    if features.ndim != 2 or features.dtype.kind != "f" or len(features) != rows:
        what = f"needs {rows} rows of floats, has {features.dtype} {list(features.shape)}"
        remedy = "one row for each picture, in the order of the ground truth"
        raise SubmissionError(what, where=path, remedy=remedy)
    if not np.isfinite(features).all():
        raise SubmissionError("a feature is NaN or infinite", where=path)
    return features.astype(np.promote_types(features.dtype, np.float32), copy=False)


def _ranks_of_array(path: str | os.PathLike[str], truth: RevisitedTruth, columns: bool) -> Ranks:
    ranks, q, n = _load_array(path), len(truth), len(truth.database)
    if ranks.ndim != 2 or ranks.dtype.kind not in "iu":
        raise SubmissionError(
            f"needs whole numbers [q, k], has {ranks.dtype} {list(ranks.shape)}", where=path
        )
    by_query = ranks.T if columns else ranks
    if len(by_query) != q:
        other = "leave --columns out" if columns else "add --columns"
        raise SubmissionError(
            f"{len(by_query)} {'columns' if columns else 'rows'} for {q} queries",
            where=path,
            remedy=other if by_query.shape[1] == q else None,
        )
    lists = [row[row != NO_ROW].astype(np.int64) for row in by_query]
    for query, rows in enumerate(lists):
        if ((rows < 0) | (rows >= n)).any():
            raise SubmissionError(
                f"the list of query {query} names a row outside the {n} database pictures",
                where=path,
            )
        if len(np.unique(rows)) != len(rows):
            raise SubmissionError(
                f"the list of query {query} names a database picture twice", where=path
            )
    return lists


def _ranks_of_csv(
    submission: RetrievalSubmission, truth: RevisitedTruth
) -> tuple[Ranks, tuple[str, ...]]:
    database = {name: row for row, name in enumerate(truth.database)}
    queries = {name: row for row, name in enumerate(truth.queries)}
    lists: Ranks = [np.zeros(0, dtype=np.int64) for _ in truth.queries]
    for place, (query, images) in enumerate(
        zip(submission.query_ids, submission.images, strict=True)
    ):
        where = submission.where(place)
        if query not in queries:
            raise SubmissionError(f"the ground truth has no query {query}", where=where)
        for image in images:
            if image not in database:
                what = f"the ground truth has no database picture {image}"
                remedy = "write the names without .jpg"
                raise SubmissionError(what, where=where, remedy=remedy)
        if len(set(images)) != len(images):
            raise SubmissionError("a database picture stands twice", where=where)
        lists[queries[query]] = np.array([database[image] for image in images], dtype=np.int64)
    named = set(submission.query_ids)
    return lists, tuple(name for name in truth.queries if name not in named)


def _load_array(path: str | os.PathLike[str]) -> NDArray[np.generic]:
    try:
        loaded = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UsageError("no such file", where=path) from error
    except (OSError, ValueError, EOFError) as error:
        raise SubmissionError(f"not an array that can be read: {error}", where=path) from error
    if not isinstance(loaded, np.ndarray):  # an .npz file with the extension .npy
        loaded.close()
        raise SubmissionError("holds several arrays instead of one", where=path)
    return loaded


def _load_tensor(path: str | os.PathLike[str]) -> NDArray[np.generic]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise UsageError("no such file", where=path) from error
    except OSError as error:
        raise StorageError(f"cannot read: {error}", where=path) from error
    except (SafetensorError, KeyError, TypeError) as error:
        raise SubmissionError(f"not tensors that can be read: {error!r}", where=path) from error
    if len(tensors) != 1:
        raise SubmissionError(
            f"holds {len(tensors)} tensors ({', '.join(sorted(tensors)[:5])}) instead of one",
            where=path,
        )
    array: NDArray[np.generic] = next(iter(tensors.values()))
    return array
