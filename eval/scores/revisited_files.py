"""What `lmk eval revisited` reads: rank lists and features of the database and the queries."""

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
    """Reads the database pictures found for each query, best first.

    Args:
        path: a .npy file of whole numbers [q, k], database rows from 0, -1 where a list is shorter;
            or a CSV `id,images` of query and database names as the ground truth has them.
        truth: the ground truth.
        columns: the .npy is [k, q], a column for each query, as revisitop's own `ranks`.

    Returns:
        For each query int64 rows of the database, and the queries that the CSV does not name.

    Raises:
        UsageError: no such file, or `columns` with a CSV.
        SubmissionError: not such an array, another number of queries, a name the ground truth does
            not have (with its line), a row outside the database or twice in a list.
    """
    if Path(path).suffix.lower() == ".npy":
        return _ranks_of_array(path, truth, columns), ()
    if columns:
        raise UsageError("--columns is for a .npy file", where=path)
    return _ranks_of_csv(RetrievalSubmission.read(path), truth)


def read_features(path: str | os.PathLike[str], rows: int) -> NDArray[np.floating]:
    """Reads float features [rows, d] from a .npy file or a .safetensors file of one tensor.

    Raises:
        UsageError: no such file, or another ending.
        SubmissionError: not such an array, or a NaN or infinity in it.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".npy":
        features = _load_array(path)
    elif suffix == ".safetensors":
        features = _load_tensor(path)
    else:
        raise UsageError("features must be a .npy or .safetensors file", where=path)
    if features.ndim != 2 or features.dtype.kind != "f" or len(features) != rows:
        raise SubmissionError(
            f"{rows} rows of floats are needed, this is {features.dtype} {list(features.shape)}",
            where=path,
            remedy="one row for each picture, in the order of the ground truth",
        )
    if not np.isfinite(features).all():
        raise SubmissionError("a feature is NaN or infinite", where=path)
    return features.astype(np.promote_types(features.dtype, np.float32), copy=False)


def _ranks_of_array(path: str | os.PathLike[str], truth: RevisitedTruth, columns: bool) -> Ranks:
    ranks, q, n = _load_array(path), len(truth), len(truth.database)
    if ranks.ndim != 2 or ranks.dtype.kind not in "iu":
        raise SubmissionError(
            f"whole numbers [q, k] are needed, this is {ranks.dtype} {list(ranks.shape)}",
            where=path,
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
    for query, found in enumerate(lists):
        if ((found < 0) | (found >= n)).any():
            raise SubmissionError(
                f"the list of query {query} names a row outside the {n} database pictures",
                where=path,
            )
        if len(np.unique(found)) != len(found):
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
                raise SubmissionError(
                    f"the ground truth has no database picture {image}",
                    where=where,
                    remedy="names stand there without .jpg",
                )
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
    if not isinstance(loaded, np.ndarray):  # an .npz under the name .npy
        loaded.close()
        raise SubmissionError("several arrays, one is needed", where=path)
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
            f"it holds {len(tensors)} tensors ({', '.join(sorted(tensors)[:5])}), one is needed",
            where=path,
        )
    array: NDArray[np.generic] = next(iter(tensors.values()))
    return array
