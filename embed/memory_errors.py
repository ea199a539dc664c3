"""Errors that mean that memory ran out, whatever library raises them and in whatever words."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from lmk.embed.errors import LmkError, NotEnoughMemory
from lmk.embed.interrupts import raise_interrupt

# The words of torch, OpenVINO, FAISS, OpenCV, CUDA and the dynamic linker. The linker also says
# "cannot allocate memory in static TLS block", which no memory cures, and "failed to map segment"
# of a library on a drive from which nothing may be run.
_NO_MEMORY = re.compile(
    r"bad_alloc|out of memory|insufficient memory|alloc_failed"
    r"|failed to map segment(?! from shared object: (operation not permitted|permission denied))"
    r"|(can't|cannot|could not|failed to|unable to) alloc(?!ate memory in static tls)",
    re.IGNORECASE,
)
# A thread needs memory for its stack.
_NO_THREAD = re.compile(r"can't start new thread|resource temporarily unavailable", re.IGNORECASE)
# Their texts are about values, and may hold anything.
_ABOUT_VALUES = (LmkError, LookupError, ValueError, TypeError, AttributeError)
_REMEDY = "close other programs or raise the limit (ulimit -v)"


def not_enough_memory() -> NotEnoughMemory:
    """Returns the error of a process that ran out of memory."""
    return NotEnoughMemory("not enough memory", remedy=_REMEDY)


def memory_error(error: BaseException) -> NotEnoughMemory | None:
    """Returns the error to report if memory or threads ran out; None for other errors.

    Args:
        error: any; the errors that caused it are looked at too.
    """
    for one in _chain(error):
        if isinstance(one, NotEnoughMemory):
            return one
        if isinstance(one, MemoryError):
            return not_enough_memory()
        if isinstance(one, OSError) and one.errno is not None:
            if one.errno == errno.ENOMEM:
                return not_enough_memory()
        elif not isinstance(one, _ABOUT_VALUES):
            if _NO_MEMORY.search(str(one)):
                return not_enough_memory()
            if _NO_THREAD.search(str(one)):
                return NotEnoughMemory(
                    "not enough memory, or too many threads",
                    remedy="close other programs or raise the limits (ulimit -v, ulimit -u)",
                )
    return None


def raise_system_cause(error: BaseException) -> None:
    """Raises what no library is to blame for, before an error is taken for one of a file.

    Raises:
        KeyboardInterrupt: Ctrl-C has caused the error.
        NotEnoughMemory: a lack of memory has caused it.
    """
    raise_interrupt(error)
    found = memory_error(error)
    if found is not None:
        raise found from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, what caused that, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
