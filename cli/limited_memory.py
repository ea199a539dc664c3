"""One-line errors for crashes of native libraries under a memory limit.

OpenBLAS (in FAISS and OpenCV) and other libraries do not check every allocation. Under `ulimit -v`
these libraries may end the process with SIGSEGV, even at import. If such a limit is set, a child
process does the work, and the parent process reports how the child ended.

OpenBLAS also retries the allocation for its threads without end. OpenBLAS with one thread allocates
nothing at import, so the child uses one thread unless OPENBLAS_NUM_THREADS is set.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT) if os.name == "posix" else ()
_THREADS = "OPENBLAS_NUM_THREADS"
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in linux/prctl.h


def supervise() -> None:
    """Forks if a memory limit is set, and returns in the process that does the work.

    The parent forwards signals and ends with the exit code or the signal of the child. After a
    crash, the parent prints one line and exits with 1. The function acts on Linux only.
    """
    if sys.platform != "linux" or not _limited():
        return
    passed_on = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # An ignored SIGCHLD loses the exit code.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, passed_on | {signal.SIGCHLD})
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _end_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.environ.setdefault(_THREADS, "1")
        return
    while True:
        received = signal.sigwaitinfo(passed_on | {signal.SIGCHLD})
        if received.si_signo != signal.SIGCHLD:
            if received.si_code <= 0:  # A process sent the signal. A terminal signals both.
                os.kill(child, received.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            _leave(os.waitstatus_to_exitcode(status))


def _limited() -> bool:
    """Returns whether the memory of this process is limited."""
    import resource

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    return any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits)


def _end_with(parent: int) -> None:
    """Makes the system kill this process when its parent ends."""
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _leave(code: int) -> NoReturn:
    """Ends the parent with the exit code or the signal of the child."""
    if code >= 0:
        os._exit(code)
    number = signal.Signals(-code)
    if number in _CRASHES:
        from lmk.cli.printing import echo

        text = f"lmk: a library crashed ({number.name}), most likely for lack of memory"
        with suppress(OSError):
            echo(f"{text}; close other programs or raise the limit (ulimit -v)", err=True)
        os._exit(1)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(1)
