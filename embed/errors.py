"""Error classes with their exit codes; each error has what, where and a remedy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from lmk.embed.printable import printable


class LmkError(Exception):
    """An error for the user, as one line: what, where, and a remedy.

    Args:
        what: a description of the error, without a full stop.
        where: the file, line, option or id of the error.
        remedy: what the user can do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        text = " ".join(self.what.split())
        text = text if self.where is None else f"{self.where}: {text}"
        text = text if self.remedy is None else f"{text}; {' '.join(self.remedy.split())}"
        return printable(text)


class UsageError(LmkError):
    """The call was wrong, such as a missing folder or a bad option."""

    exit_code = 2


class ManifestError(UsageError):
    """A list of pictures cannot be read."""


class ModelError(UsageError):
    """An embedder cannot be loaded, as its name is unknown or its weights are missing."""


class ModelDamaged(ModelError):
    """A file of an embedder is missing or has changed since it was written."""

    exit_code = 1


class CheckpointDamaged(LmkError):
    """A file of a training is cut or has changed since it was written."""


class GalleryError(LmkError):
    """A gallery folder that cannot be used."""


class NotAGallery(GalleryError):
    """The folder is no gallery, or its build never finished."""

    exit_code = 2


class GalleryDamaged(GalleryError):
    """A file of the gallery is missing, cut or changed."""


class GalleryLocked(GalleryError):
    """Another process is writing to the gallery."""


class FormatTooNew(GalleryError):
    """The gallery was written by a newer lmk."""


class UnsafeIndex(GalleryError):
    """The gallery holds a link, a pipe, a socket or a device, and none of it is used."""


class EmbedderMismatch(GalleryError):
    """The gallery was built by another embedder than the one asked for."""


class SubmissionError(LmkError):
    """A submission or solution file with a wrong line."""


class StorageError(LmkError):
    """The disk is full, or the folder cannot be written."""


class NotEnoughMemory(LmkError):
    """Memory, or the limit on it, is used up."""


class DownloadError(LmkError):
    """A file could not be fetched whole: not there, cut, or of the wrong checksum."""


class ServerError(LmkError):
    """A search server cannot be reached, does not answer in time, or fails."""


class ForkedProcess(LmkError):
    """An open index, or a network that runs, is used in a fork of the process it belongs to."""


_STORAGE_REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again: it goes on where it stopped",
    errno.EDQUOT: "free some space and run the same command again: it goes on where it stopped",
    errno.EMFILE: "raise the limit on open files (ulimit -n) and run the same command again",
    errno.ENFILE: "too many files are open on this machine: close programs and run it again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) and run the same command again",
    errno.EIO: "check the disk, then run the same command again",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "check the permissions, or choose another folder",
    errno.EPERM: "check the permissions, or choose another folder",
    errno.ELOOP: "put a folder or a plain file in its place",
}


_SYSTEM_REMEDIES = _STORAGE_REMEDIES | {
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.ESTALE: "check the connection of the network drive, then run the same command again",
    errno.ENAMETOOLONG: "give the file a shorter name",
}


def system_error_text(error: OSError) -> str | None:
    """Returns one line for a system error: file, reason and remedy; None for other errors."""
    where = error.filename2 or error.filename
    if not isinstance(where, str | bytes) or error.errno not in _SYSTEM_REMEDIES:
        return None
    reason = (error.strerror or str(error)).lower()
    return f"{os.fsdecode(where)}: cannot be used: {reason}; {_SYSTEM_REMEDIES[error.errno]}"


@contextmanager
def storage_errors(where: str | os.PathLike[str]) -> Iterator[None]:
    """Converts an OSError while writing below `where` into a StorageError with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE_REMEDIES:
            raise
        reason = (error.strerror or str(error)).lower()
        remedy = _STORAGE_REMEDIES[error.errno]
        if error.errno == errno.ENOSPC and _no_inodes(error.filename2 or error.filename or where):
            reason = "no inodes left: the disk has room, but holds as many files as it can"
            remedy = "remove some files and run the same command again: it goes on where it stopped"
        raise StorageError(
            f"cannot write: {reason}",
            # filename is the source of a copy or rename that failed
            where=error.filename2 or error.filename or os.fspath(where),
            remedy=remedy,
        ) from error


def _no_inodes(where: str | os.PathLike[str]) -> bool:
    """True if the file system of a path has no free inodes."""
    path = os.path.abspath(os.fspath(where))  # noqa: PTH100
    while not os.path.exists(path) and path != os.path.dirname(path):  # noqa: PTH110, PTH120
        path = os.path.dirname(path)  # noqa: PTH120
    try:
        status = os.statvfs(path)
    except OSError:
        return False
    return status.f_files > 0 and status.f_ffree == 0
