"""Recognises errors of any library that mean a lack of memory."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from lmk.embed.errors import LmkError, NotEnoughMemory
from lmk.embed.interrupts import raise_interrupt

# Messages of torch, OpenVINO, FAISS, OpenCV, CUDA and the dynamic linker. Two of the linker are
# excluded, as they have other causes: "cannot allocate memory in static TLS block", and "failed to
# map segment" for a library on a drive that is mounted noexec.
_NO_MEMORY = re.compile(
    r"bad_alloc|out of memory|insufficient memory|alloc_failed"
    r"|failed to map segment(?! from shared object: (operation not permitted|permission denied))"
    r"|(can't|cannot|could not|failed to|unable to) alloc(?!ate memory in static tls)",
    re.IGNORECASE,
)
# A thread needs memory for its stack.
_NO_THREAD = re.compile(r"can't start new thread|resource temporarily unavailable", re.IGNORECASE)
# The texts of these errors contain values, which may be any text.
_ABOUT_VALUES = (LmkError, LookupError, ValueError, TypeError, AttributeError)
_REMEDY = "close other programs or raise the limit (ulimit -v)"


def not_enough_memory() -> NotEnoughMemory:
    """Returns the error for a process without enough memory."""
    return NotEnoughMemory("not enough memory", remedy=_REMEDY)


def memory_error(error: BaseException) -> NotEnoughMemory | None:
    """Returns the error to report for a lack of memory or threads, or None for other errors.

    Args:
        error: any error. Its causes are examined too.
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
    """Raises the cause of an error if it is the system, so that no file is blamed for it.

    Raises:
        KeyboardInterrupt: Ctrl-C has caused the error.
        NotEnoughMemory: a lack of memory has caused the error.
    """
    raise_interrupt(error)
    shortage = memory_error(error)
    if shortage is not None:
        raise shortage from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and the chain of its causes."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
