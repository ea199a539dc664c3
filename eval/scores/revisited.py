"""Revisited Oxford and Paris: easy, medium and hard (Radenovic et al., CVPR 2018).

The reference is revisitop's evaluate.py.

Each database picture is easy, hard, unclear or negative for a query. Easy counts `easy` as right,
medium `easy` and `hard`, hard `hard`; the rest of the three and `junk` is taken out of the
ranking, where it neither helps nor hurts. Query pictures must be cropped to their `bbx` before
they are described.
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
        boxes: float64 [q, 4], where the landmark is in each query picture: x1, y1, x2, y2 pixels.
        easy, hard, junk: for each query int64 arrays of database rows.

    Raises:
        ValueError: lengths differ, a row outside the database, a row in two lists.
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
        """Database rows that are right, and those taken out of the ranking."""
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
        average_precision: float64 [q], NaN where the query has nothing right in this protocol.
        precision_at: for each kappa float64 [q], NaN likewise.
        mean_average_precision: over the queries that are not NaN.
        mean_precision_at: for each kappa, likewise.
    """

    average_precision: NDArray[np.float64]
    precision_at: dict[int, NDArray[np.float64]]
    mean_average_precision: float
    mean_precision_at: dict[int, float]


def evaluate_ranks(
    ranks: Sequence[NDArray[np.integer]],
    truth: RevisitedTruth,
    kappas: Sequence[int] = KAPPAS,
) -> dict[Protocol, ProtocolScore]:
    """Scores rank lists by all three protocols.

    Args:
        ranks: for each query the database rows found, best first, without repeats; a list may be
            cut short, and what it lacks is not found. (revisitop's `ranks` is the transpose.)
        truth: the ground truth.
        kappas: the k of mP@k.

    Raises:
        ValueError: another number of lists than queries, a row outside the database or twice in a
            list, a kappa below 1, a protocol in which no query has anything right.
    """
    if len(ranks) != len(truth):
        raise ValueError(f"{len(ranks)} rank lists for {len(truth)} queries")
    if any(kappa < 1 for kappa in kappas):
        raise ValueError("a kappa must be 1 or more")
    n = len(truth.database)
    for query, found in enumerate(ranks):
        if found.ndim != 1 or ((found < 0) | (found >= n)).any():
            raise ValueError(f"list {query} names a row outside the {n} database pictures")
        if len(np.unique(found)) != len(found):
            raise ValueError(f"list {query} names a database picture twice")
    return {protocol: _evaluate(ranks, truth, protocol, kappas) for protocol in PROTOCOLS}


def evaluate_features(
    database: NDArray[np.floating],
    queries: NDArray[np.floating],
    truth: RevisitedTruth,
    kappas: Sequence[int] = KAPPAS,
) -> dict[Protocol, ProtocolScore]:
    """Ranks the database by dot product and scores it; equal scores rank by database row.

    Args:
        database: float [n, d], rows in the order of `truth.database`.
        queries: float [q, d], of the cropped query pictures.
        truth, kappas: as evaluate_ranks.

    Raises:
        ValueError: shapes that do not fit the truth, NaN, and as evaluate_ranks.
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
    for query, found in enumerate(ranks):
        right, out = truth.split(query, protocol)
        if not right.size:
            continue
        kept = found[~np.isin(found, out)]
        places = np.flatnonzero(np.isin(kept, right))
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
    """AP as the area under the precision-recall curve by trapezoids (the Oxford/Paris rule).

    Args:
        places: int, the ranks from 0 of the right pictures, rising, after junk was taken out.
        relevant: how many right pictures there are, found or not.

    Raises:
        ValueError: `relevant` is 0 or smaller than the number found; places that do not rise.
    """
    if relevant < 1 or relevant < len(places):
        raise ValueError(f"{len(places)} right pictures found of {relevant}")
    if (np.diff(places) < 1).any() or (places < 0).any():
        raise ValueError("places must rise from 0")
    found = np.arange(len(places))
    before = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    behind = (found + 1) / (places + 1)
    return float(((before + behind) / 2).sum() / relevant)


def precision_at(places: NDArray[np.integer], kappa: int) -> float:
    """The benchmark's P@k: among the first min(k, rank of the last right picture) ranks.

    A query whose right pictures all stand before rank k is so not held to account for the rest;
    0 where none was found.
    """
    if not len(places):
        return 0.0
    ranks = min(int(places[-1]) + 1, kappa)
    return int((places < ranks).sum()) / ranks


def read_ground_truth(path: str | os.PathLike[str]) -> RevisitedTruth:
    """Reads gnd_roxford5k.pkl or gnd_rparis6k.pkl, unpickling lists, numbers and text only.

    Raises:
        UsageError: no such file.
        SubmissionError: a pickle that names any class or function but those of plain numpy
            arrays, or that does not hold the benchmark's ground truth.
    """
    try:
        with Path(path).open("rb") as file:
            loaded = _PlainUnpickler(file, encoding="latin1").load()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError("no such file", where=path) from error
    except _Refused as error:
        raise SubmissionError(
            f"the pickle wants to load {error}, which plain data does not need",
            where=path,
            remedy="take the file from the benchmark's own page",
        ) from error
    except Exception as error:  # a cut or foreign pickle can fail in any way
        raise_system_cause(error)
        raise SubmissionError(f"not a pickle that can be read: {error!r}", where=path) from error
    try:
        return _ground_truth(loaded)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SubmissionError(
            f"not a ground truth of revisited Oxford or Paris: {error!r}",
            where=path,
            remedy="it must hold imlist, qimlist and gnd with bbx, easy, hard, junk",
        ) from error


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


# What numpy writes for arrays and scalars, by its old and its new module names. `_reconstruct` and
# `scalar` build from a type and bytes and call nothing else.
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
    """Loads containers, numbers, text and numpy arrays; every other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return _latin1_bytes
        if (module, name) == ("__builtin__", "bytes"):  # and empty ones
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
