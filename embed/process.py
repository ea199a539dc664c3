"""Detects the use of threads and database connections after a fork, which would never end.

The child of a fork has the objects of its parent but none of its threads. OpenVINO, OpenMP (FAISS,
torch) and Milvus's client then wait for threads that do not exist, and SQLite forbids the use of a
connection across a fork (sqlite.org/howtocorrupt.html, 2.6). The process id reveals both.
"""

from __future__ import annotations

import os

from lmk.embed.errors import ForkedProcess

_started: int | None = None  # the process in which threads were started first

_REMEDY = (
    "open the index in each worker and use none in the process that forks, or start the workers "
    "with multiprocessing's spawn"
)


def start_threads() -> None:
    """Records that this process starts threads, before a network runs or a search begins.

    Raises:
        ForkedProcess: threads were started in a process of which this one is a fork.
    """
    global _started
    here = os.getpid()
    if _started is None:
        _started = here
    elif _started != here:
        raise ForkedProcess(
            f"this process was forked from process {_started}, where a network or a search was "
            "running: their threads are gone",
            remedy=_REMEDY,
        )


def check_process(opened_in: int, where: object) -> None:
    """Checks that an object is used in the process that opened it.

    Args:
        opened_in: the id of the process that opened the object.
        where: the object, for the error.

    Raises:
        ForkedProcess: this process is a fork of the process that opened the object.
    """
    if os.getpid() != opened_in:
        what = f"was opened in process {opened_in}, of which this one is a fork"
        raise ForkedProcess(what, where=where, remedy=_REMEDY)
