"""Ctrl-C: the first raises KeyboardInterrupt and is recorded, the second ends the process.

Native libraries and callbacks can lose a KeyboardInterrupt: an interrupted import of an extension
module ends in ImportError, and an exception in a callback or a finalizer is dropped. Code therefore
calls `check` before a lasting change.

A second Ctrl-C ends the process at once, as clean-up may hang in native code. Nothing is lost, as
all writing to disk survives a kill at any moment.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import NoReturn

EXIT_CODE = 130
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


_count = 0  # interrupts of this process
_process = 0  # the process that called `install`
_ending = False


def _handle(_signal: int, _frame: FrameType | None) -> None:
    """Handles SIGINT."""
    global _count
    _count += 1
    if _count > 1 or _ending:
        leave()
    raise KeyboardInterrupt


def _at_exit() -> None:
    """Ends an interrupted process with its exit code; it is the last function that runs.

    Without it, Python ends the process by the signal if the interrupt came through exec() of a
    string, as in the definition of a dataclass (run_eval_code_obj in pythonrun.c).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rest of Python's exit would report a kill
    if _count and os.getpid() == _process:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it
                stream.flush()
        os._exit(EXIT_CODE)


def install() -> None:
    """Installs this handling of Ctrl-C; for the start of a program, not for a library.

    A process that ignores SIGINT (`nohup`, a background job of a shell) continues to ignore it.
    """
    global _process
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _process = os.getpid()
        signal.signal(signal.SIGINT, _handle)
        atexit.register(_at_exit)  # registered first, so called last


def leave() -> NoReturn:
    """Ends the process without any clean-up, as a second Ctrl-C does."""
    if os.getpid() == _process and not _ending:
        with suppress(OSError):
            os.write(2, (_SHOW_CURSOR if os.isatty(2) else b"") + b"lmk: stopped\n")
    os._exit(EXIT_CODE)


def ending() -> None:
    """Makes Ctrl-C end the process silently, after the program has printed its last line."""
    global _ending
    _ending = True


def received() -> bool:
    """True if Ctrl-C was pressed since `install`."""
    return _count > 0


def check() -> None:
    """Raises KeyboardInterrupt if one was received before and lost."""
    if received():
        raise KeyboardInterrupt


def raise_interrupt(error: BaseException) -> None:
    """Raises KeyboardInterrupt if one has caused an error, such as an interrupted import."""
    check()
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        cause = cause.__cause__ or cause.__context__
