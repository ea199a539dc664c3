"""Rates: how fast this processor compares vectors, measured once and kept."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
from numpy.typing import NDArray

from lmk.embed.plain_files import parse_json
from lmk.index.exact import scan
from lmk.index.exact.codes import QueryCodes
from lmk.index.exact.heap import SPARE, ScanQueries, Stored, TopK
from lmk.index.exact.tiles import INT8_LANES, PANEL, features
from lmk.index.vectors.derived_files import DerivedFiles
from lmk.index.vectors.scores import padded

_DIM, _QUERIES, _PANELS = 512, 48, 32  # all of it fits in the caches of one core
_REPEATS = 7


@dataclass(frozen=True)
class Rates:
    """Products of components that one core computes in a nanosecond.

    Attributes:
        codes: of bytes; 0 where the processor has no multiply-add of bytes.
        floats: of float32.
    """

    codes: float
    floats: float

    def __post_init__(self) -> None:
        if not (0 <= self.codes < math.inf and 0 < self.floats < math.inf):
            raise ValueError(f"rates must be finite, got {self}")


def rates(derived: DerivedFiles) -> Rates:
    """Returns the rates of this processor, kept ones where there are some."""
    facts = [platform.machine(), llvmlite.binding.get_host_cpu_name(), sorted(features())]
    facts += [numba.__version__, scan.EDITION]
    name = f"rates-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"
    content = derived.content(name)
    if content is not None:
        with suppress(ValueError, TypeError):  # not written by this program
            return Rates(**parse_json(content))
    found = Rates(_codes_rate() if INT8_LANES else 0.0, _floats_rate())

    def write(to: Path) -> None:
        to.write_text(json.dumps(asdict(found)), "utf-8")

    derived.save(name, write)
    return found


def _codes_rate() -> float:
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((_QUERIES, _DIM)).astype(np.float32)
    coded = QueryCodes.of(queries)
    asked = _nothing_asked(coded.units, coded.slacks)
    given = scan.Codes(
        rng.integers(0, 2**32, (_PANELS, _DIM // 4, PANEL), np.uint32),
        np.ones((_PANELS, PANEL), np.float32),
        np.ones((_PANELS, PANEL), np.float32),
        np.full(_PANELS, 2**32 - 1, np.uint32),
        coded.codes,
        coded.starts,
        coded.factors,
    )
    packed = scan.Codes.one_panel(_DIM)
    stored = Stored(np.zeros((1, 4), np.int64), _DIM)
    found = TopK.of(_QUERIES, 1, 2)
    return _rate(lambda: scan.scan_codes(stored, asked, found, given, packed, 0, 0, _PANELS))


def _floats_rate() -> float:
    vectors = np.random.default_rng(0).standard_normal((_PANELS * PANEL, _DIM)).astype(np.float32)
    asked = _nothing_asked(np.ones(_QUERIES), np.zeros(_QUERIES))
    parts = np.array([[0, vectors.ctypes.data, 0, 0]], np.int64)
    stored = Stored(parts, _DIM)
    found = TopK.of(_QUERIES, 1, 2)
    inverse = np.ones(len(vectors), np.float32)
    allowed = np.full(_PANELS, 2**32 - 1, np.uint32)
    return _rate(lambda: scan.scan_floats(stored, asked, found, 0, inverse, allowed, 0, _PANELS))


def _nothing_asked(units: NDArray[np.float64], slacks: NDArray[np.float64]) -> ScanQueries:
    """Queries for which no vector is near enough."""
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((_QUERIES, _DIM)).astype(np.float32)
    floors = np.full(_QUERIES, np.inf, np.float32)
    return ScanQueries(padded(queries, _QUERIES + SPARE), units, slacks, floors)


def _rate(work: Callable[[], None]) -> float:
    work()  # compiles, or loads what was compiled
    best = np.inf
    for _ in range(_REPEATS):
        start = time.perf_counter_ns()
        work()
        best = min(best, time.perf_counter_ns() - start)
    return float(_PANELS * PANEL * _DIM * _QUERIES / best)
