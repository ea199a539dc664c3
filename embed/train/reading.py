"""Reads training pictures in worker processes; the death of a worker ends the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from lmk.embed.data.images import Skipped, one_thread_opencv
from lmk.embed.errors import LmkError
from lmk.embed.network.runtime import available_cores
from lmk.embed.train.config import Augment
from lmk.embed.train.dataset import Reader, TrainingPictures

SHARED_MEMORY = Path("/dev/shm")  # workers pass batches through it on Linux
_MOST_WORKERS = 8
_PREFETCHED = 2  # batches that a worker reads ahead
_END_SECONDS = 2  # time for a killed process to end
_NOT_PASSED_ON = 74  # exit code of a worker whose batch cannot be passed on


@dataclass(frozen=True, eq=False)
class Batch:
    """The slice of a micro-batch for one process.

    Attributes:
        pictures: uint8 [n, size, size, 3].
        numbers: int64 [n], the numbers of the pictures in the training set.
        skipped: files that could not be read. The next readable picture of the training set
            replaces each of them.
    """

    pictures: Tensor
    numbers: NDArray[np.int64]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Shape:
    """Size of the batches of a run.

    Attributes:
        pictures: number of pictures in a batch of one process.
        size: side of the pictures in pixels.
        held: number of batches that a process holds while it computes.
        processes: number of processes of the run on this machine.
    """

    pictures: int
    size: int
    held: int = 1
    processes: int = 1

    @property
    def bytes(self) -> int:
        """The number of bytes of a batch."""
        return self.pictures * self.size * self.size * 3


def usable_workers(wanted: int | None, batch: Shape) -> tuple[int, str | None]:
    """Returns the number of workers that fit the shared memory, and a message if it is reduced.

    Args:
        wanted: the requested number of workers. None: one per core, up to a limit.
        batch: the size of the run's batches.
    """
    if wanted is None:
        wanted = min(available_cores(), _MOST_WORKERS)
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:  # other systems pass batches on in another way
        return wanted, None
    free = status.f_bavail * status.f_frsize // batch.processes
    workers = max(min(wanted, (free // batch.bytes - batch.held) // _PREFETCHED), 0)
    if workers == wanted:
        return workers, None
    need = (_PREFETCHED * wanted + batch.held) * batch.bytes
    return workers, (
        f"{SHARED_MEMORY} has {free / 1e6:,.0f} MB for batches, {wanted} reading processes need "
        f"{need / 1e6:,.0f} MB: training reads with {workers or 'none'}, which is slower; make it "
        "larger, as by docker run --shm-size"
    )


def _collate(items: list[tuple[Tensor, int, list[Skipped]]]) -> Batch:
    skipped = tuple(skip for item in items for skip in item[2])
    if any(number < 0 for _, number, _ in items):
        return Batch(torch.empty(0), np.array([], np.int64), skipped)
    pictures = torch.stack([picture for picture, _, _ in items])
    if get_worker_info() is not None:
        # A lack of shared memory raises an error here. In the thread that passes batches on, it
        # would only be printed, and the run would wait for ever.
        pictures.share_memory_()  # type: ignore[no-untyped-call]
    return Batch(pictures, np.array([number for _, number, _ in items], np.int64), skipped)


class _Flag:
    """An event without a lock, as a process that is killed never releases its locks."""

    def __init__(self) -> None:
        self._set = multiprocessing.RawValue("b", 0)

    def set(self) -> None:
        self._set.value = 1

    def is_set(self) -> bool:
        return bool(self._set.value)


def _context() -> BaseContext:
    context = copy(multiprocessing.get_context(multiprocessing.get_start_method()))
    context.Event = _Flag  # type: ignore[assignment]
    return context


def _start_worker(_: int) -> None:
    from multiprocessing.queues import Queue

    cv2.setNumThreads(1)
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, _: object) -> None:
    """Ends a worker that cannot pass on a batch, so that the run does not wait for it."""
    os._exit(_NOT_PASSED_ON)


def _started(loader: DataLoader[Any]) -> Any:
    """Returns the loader's batches; its workers have neither OpenCV's threads nor a handler."""
    before = signal.getsignal(signal.SIGCHLD)
    # A forked process would wait for ever for threads of OpenCV that it does not have.
    with one_thread_opencv() if loader.num_workers else nullcontext():
        batches = iter(loader)
    # torch's handler of SIGCHLD can run on a signal stack of another library and crash the process.
    # The death of a worker is noticed without it, some seconds later.
    if threading.current_thread() is threading.main_thread():  # only it may set handlers
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return batches


def read_micro_batches(
    pictures: TrainingPictures,
    micro_batches: NDArray[np.int64],
    *,
    size: int,
    augment: Augment,
    seeds: NDArray[np.int64],
    workers: int,
) -> Iterator[Batch]:
    """Reads micro-batches in order; the same picture, size and seed give the same pixels.

    Args:
        pictures: the training set.
        micro_batches: int64 [micro_batches, n], the numbers of the pictures.
        size: side of the result, in pixels.
        augment: the random changes.
        seeds: int64 [micro_batches, n], the seed of each picture's changes.
        workers: number of reading processes; 0 for none.

    Raises:
        LmkError: no picture can be read, or a process that reads died or failed.
    """
    keys: Iterable[list[tuple[int, int]]] = [
        [(int(number), int(seed)) for number, seed in zip(row, own, strict=True)]
        for row, own in zip(micro_batches, seeds, strict=True)
    ]
    loader: DataLoader[Any] = DataLoader(
        Reader(pictures.files, size, augment),
        batch_sampler=keys,
        num_workers=workers,
        multiprocessing_context=_context() if workers else None,
        prefetch_factor=_PREFETCHED if workers else None,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # keeps the loop's random state
    )
    for batch in _watched(loader):
        if not len(batch.numbers):
            raise LmkError(
                f"{len(batch.skipped)} pictures in a row cannot be read, the first: "
                f"{batch.skipped[0].reason}",
                where=batch.skipped[0].path,
                remedy="check where the pictures lie; for a table, name their folder with --root",
            )
        yield batch


def _watched(loader: DataLoader[Any]) -> Iterator[Batch]:
    """Yields the loader's batches; any failure of a worker raises an LmkError."""
    if not loader.num_workers:
        yield from _started(loader)
        return
    try:
        batches = _started(loader)
    except OSError as error:
        raise _not_read(f"cannot be started ({(error.strerror or str(error)).lower()})") from error
    try:
        while (batch := next(batches, None)) is not None:
            yield batch
    except Exception as error:
        raise _not_read(_reason(error, batches)) from error
    finally:
        batches._shutdown_workers()  # now, and not by __del__ in another process


def _reason(error: Exception, batches: Any) -> str:
    """Returns the reason for a missing batch: the end of a worker, or an error inside it."""
    broken = isinstance(error, OSError | EOFError)  # a pipe breaks a moment before a process ends
    sentinels = [worker.sentinel for worker in batches._workers]
    ending = wait(sentinels, timeout=_END_SECONDS if broken else 0)
    for worker in batches._workers:
        worker.join(_END_SECONDS if worker.sentinel in ending else 0)
        code = worker.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            likely = {
                "SIGKILL": ", most likely by the system for lack of memory",
                "SIGBUS": f", most likely as {SHARED_MEMORY} is full",
            }
            return f"was killed by {name}{likely.get(name, '')}"
        if code == _NOT_PASSED_ON:
            return f"could not pass on a batch: {SHARED_MEMORY} is full, or too many files are open"
        if code:
            return f"ended with code {code}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"failed: {lines[-1]}"


def _not_read(reason: str) -> LmkError:
    return LmkError(
        f"a process that reads pictures {reason}",
        where="workers",
        remedy="continue with --resume and fewer of them, as in --set workers=2 (0: none)",
    )
