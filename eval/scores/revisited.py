"""Scores of revisited Oxford and Paris: easy, medium and hard (Radenovic et al., CVPR 2018).

The reference is revisitop's evaluate.py.

Each database picture is easy, hard, unclear or negative for a query. The easy protocol counts
`easy` as right, the medium one `easy` and `hard`, and the hard one `hard`. The other list and
`junk` are removed from the ranking. Query pictures must be cropped to their `bbx` before their
features are computed.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from lmk.embed.errors import SubmissionError, UsageError
from lmk.embed.memory_errors import raise_system_cause

Protocol = Literal["easy", "medium", "hard"]
PROTOCOLS: tuple[Protocol, ...] = ("easy", "medium", "hard")
KAPPAS = (1, 5, 10)


@dataclass(frozen=True, eq=False)
class RevisitedTruth:
    """The ground truth of one of the two sets (gnd_roxford5k.pkl, gnd_rparis6k.pkl).

    Attributes:
        database: the n database picture names, without extension.
        queries: the q query picture names.
        boxes: float64 [q, 4], the landmark in each query picture: x1, y1, x2, y2 in pixels.
        easy, hard, junk: int64 arrays of database rows, one for each query.

    Raises:
        ValueError: lengths differ, or a row is outside the database or in two lists.
    """

    database: tuple[str, ...]
    queries: tuple[str, ...]
    boxes: NDArray[np.float64]
    easy: tuple[NDArray[np.int64], ...]
    hard: tuple[NDArray[np.int64], ...]
    junk: tuple[NDArray[np.int64], ...]

    def __post_init__(self) -> None:
        q, n = len(self.queries), len(self.database)
        if self.boxes.shape != (q, 4):
            raise ValueError(f"boxes must be [{q}, 4], got {self.boxes.shape}")
        if not len(self.easy) == len(self.hard) == len(self.junk) == q:
            raise ValueError(f"{q} queries, but other numbers of easy, hard or junk lists")
        for query in range(q):
            rows = np.concatenate([self.easy[query], self.hard[query], self.junk[query]])
            if ((rows < 0) | (rows >= n)).any():
                raise ValueError(f"query {query} names a row outside the {n} database pictures")
            if len(np.unique(rows)) != len(rows):
                raise ValueError(f"query {query} names a database picture twice")

    def __len__(self) -> int:
        return len(self.queries)

    def split(self, query: int, protocol: Protocol) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the database rows that are right, and the rows to remove from the ranking."""
        easy, hard, junk = self.easy[query], self.hard[query], self.junk[query]
        if protocol == "easy":
            return easy, np.concatenate([junk, hard])
        if protocol == "medium":
            return np.concatenate([easy, hard]), junk
        if protocol == "hard":
            return hard, np.concatenate([junk, easy])
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol}")


@dataclass(frozen=True, eq=False)
class ProtocolScore:
    """The scores of one protocol.

    Attributes:
        average_precision: float64 [q], NaN if a query has no right picture.
        precision_at: float64 [q] for each kappa, with NaN for the same queries.
        mean_average_precision: the mean over the queries without NaN.
        mean_precision_at: the mean for each kappa, over the same queries.
    """

    average_precision: NDArray[np.float64]
    precision_at: dict[int, NDArray[np.float64]]
    mean_average_precision: float
    mean_precision_at: dict[int, float]


def evaluate_ranks(
    ranks: Sequence[NDArray[np.integer]], truth: RevisitedTruth, kappas: Sequence[int] = KAPPAS
) -> dict[Protocol, ProtocolScore]:
    """Returns the scores of rank lists by all three protocols.

    Args:
        ranks: the database rows of each query, best first, without repeats. A list may be shorter
            than the database; right pictures that the list lacks count as missed. (revisitop's
            `ranks` is the transpose.)
        truth: the ground truth.
        kappas: the k of mP@k.

    Raises:
        ValueError: the number of lists differs from the number of queries, a row is outside the
            database or twice in a list, a kappa is below 1, or no query has a right picture in one
            of the protocols.
    """
    if len(ranks) != len(truth):
        raise ValueError(f"{len(ranks)} rank lists for {len(truth)} queries")
    if any(kappa < 1 for kappa in kappas):
        raise ValueError("a kappa must be 1 or more")
    n = len(truth.database)
    for query, rows in enumerate(ranks):
        if rows.ndim != 1 or ((rows < 0) | (rows >= n)).any():
            raise ValueError(f"list {query} names a row outside the {n} database pictures")
        if len(np.unique(rows)) != len(rows):
            raise ValueError(f"list {query} names a database picture twice")
    return {protocol: _evaluate(ranks, truth, protocol, kappas) for protocol in PROTOCOLS}


def evaluate_features(
    database: NDArray[np.floating],
    queries: NDArray[np.floating],
    truth: RevisitedTruth,
    kappas: Sequence[int] = KAPPAS,
) -> dict[Protocol, ProtocolScore]:
    """Returns the scores of a ranking by dot product, then by database row.

    Args:
        database: float [n, d], rows in the order of `truth.database`.
        queries: float [q, d], features of the cropped query pictures.
        truth, kappas: as evaluate_ranks.

    Raises:
        ValueError: shapes do not match the truth, a score is NaN, and as evaluate_ranks.
    """
    n, q = len(truth.database), len(truth)
    if database.shape[:1] != (n,) or queries.shape[:1] != (q,) or database.ndim != 2:
        raise ValueError(f"features must be [{n}, d] and [{q}, d]")
    if queries.shape != (q, database.shape[1]):
        raise ValueError(f"features differ in width: {database.shape} and {queries.shape}")
    scores = queries @ database.T
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    return evaluate_ranks(list(np.argsort(-scores, axis=1, kind="stable")), truth, kappas)


def _evaluate(
    ranks: Sequence[NDArray[np.integer]],
    truth: RevisitedTruth,
    protocol: Protocol,
    kappas: Sequence[int],
) -> ProtocolScore:
    average = np.full(len(truth), np.nan)
    precision = {kappa: np.full(len(truth), np.nan) for kappa in kappas}
    for query, rows in enumerate(ranks):
        right, removed = truth.split(query, protocol)
        if not right.size:
            continue
        places = np.flatnonzero(np.isin(rows[~np.isin(rows, removed)], right))
        average[query] = trapezoid_average_precision(places, right.size)
        for kappa in kappas:
            precision[kappa][query] = precision_at(places, kappa)
    if np.isnan(average).all():
        raise ValueError(f"no query has a right picture in protocol {protocol}")
    return ProtocolScore(
        average,
        precision,
        float(np.nanmean(average)),
        {kappa: float(np.nanmean(values)) for kappa, values in precision.items()},
    )


def trapezoid_average_precision(places: NDArray[np.integer], relevant: int) -> float:
    """Returns AP as the area under the precision-recall curve by trapezoids (Oxford/Paris rule).

    Args:
        places: int, the ranks (from 0) of the right pictures, ascending, after junk is removed.
        relevant: the number of right pictures in the database.

    Raises:
        ValueError: `relevant` is 0 or smaller than the number of places, or places do not ascend.
    """
    if relevant < 1 or relevant < len(places):
        raise ValueError(f"{len(places)} right pictures in a list, of {relevant}")
    if (np.diff(places) < 1).any() or (places < 0).any():
        raise ValueError("places must rise from 0")
    above = np.arange(len(places))  # right pictures above each place
    before = np.where(places == 0, 1.0, above / np.maximum(places, 1))
    after = (above + 1) / (places + 1)
    return float(((before + after) / 2).sum() / relevant)


def precision_at(places: NDArray[np.integer], kappa: int) -> float:
    """Returns the benchmark's P@k, among the first min(k, rank of the last right picture) ranks.

    Ranks after the last right picture do not count as misses. P@k is 0 without a right picture.
    """
    if not len(places):
        return 0.0
    ranks = min(int(places[-1]) + 1, kappa)
    return int((places < ranks).sum()) / ranks


def read_ground_truth(path: str | os.PathLike[str]) -> RevisitedTruth:
    """Returns the ground truth in gnd_roxford5k.pkl or gnd_rparis6k.pkl.

    Only lists, numbers, text and arrays are unpickled.

    Raises:
        UsageError: there is no such file.
        SubmissionError: the pickle needs a class or function other than those of plain numpy
            arrays, or is not the benchmark's ground truth.
    """
    try:
        with Path(path).open("rb") as file:
            loaded = _PlainUnpickler(file, encoding="latin1").load()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError("no such file", where=path) from error
    except _Refused as error:
        what = f"the pickle would load {error}, which plain data does not need"
        remedy = "download the file from the page of the benchmark"
        raise SubmissionError(what, where=path, remedy=remedy) from error
    except Exception as error:  # a truncated or foreign pickle may raise any error
        raise_system_cause(error)
        raise SubmissionError(f"not a pickle that can be read: {error!r}", where=path) from error
    try:
        return _ground_truth(loaded)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        what = f"not a ground truth of revisited Oxford or Paris: {error!r}"
        remedy = "it must hold imlist, qimlist and gnd with bbx, easy, hard, junk"
        raise SubmissionError(what, where=path, remedy=remedy) from error


def _ground_truth(loaded: Any) -> RevisitedTruth:
    entries = list(loaded["gnd"])

    def rows(name: str) -> tuple[NDArray[np.int64], ...]:
        return tuple(_whole_numbers(entry[name]) for entry in entries)

    boxes = np.array([np.asarray(entry["bbx"], dtype=np.float64) for entry in entries])
    return RevisitedTruth(
        tuple(str(name) for name in loaded["imlist"]),
        tuple(str(name) for name in loaded["qimlist"]),
        boxes.reshape(len(entries), -1),
        rows("easy"),
        rows("hard"),
        rows("junk"),
    )


def _whole_numbers(values: Any) -> NDArray[np.int64]:
    given = np.asarray(values)
    if given.size and given.dtype.kind not in "iu":
        raise ValueError(f"database rows must be whole numbers, got {given.dtype}")
    return given.astype(np.int64).reshape(-1)


class _Refused(Exception):
    """A name that the restricted unpickler does not load."""


# The names in numpy's pickles of arrays and scalars, with old and new modules. `_reconstruct`
# and `scalar` build a value from a type and bytes and call no other function.
_NUMPY_NAMES = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
    }
)


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler of containers, numbers, text and numpy arrays that rejects every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # bytes in protocol 2
            return _latin1_bytes
        if (module, name) == ("__builtin__", "bytes"):  # empty bytes in protocol 2
            return _empty_bytes
        if (module, name) not in _NUMPY_NAMES:
            raise _Refused(f"{module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _Refused("an object outside the file")


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Refused(f"the encoding {encoding}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""
