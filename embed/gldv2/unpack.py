"""Unpacks pictures from a tar file that is not trusted."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from lmk.embed.errors import DownloadError, StorageError

_REFUSED = "nothing of it was unpacked; delete it, or name another mirror"
MOST_MEMBERS = 1_000_000  # a shard has some ten thousand


def unpack(archive: Path, stage: Path, into: Path) -> dict[str, int]:
    """Unpacks the pictures of a tar file below `into`; returns their relative paths and sizes.

    All files are unpacked into `stage` first. A refused archive therefore leaves nothing below
    `into`, and `into` never has a part of a picture. `stage` must be on the same file system.

    Raises:
        DownloadError: the file is not a tar file, or has a link, a device or a path outside.
        OSError: the disk cannot be written.
    """
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    sizes: dict[str, int] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            # Python 3.11.2, which Debian 12 has, knows no filters and ignores the attribute.
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            for member in tar:
                if member.isdir():
                    continue
                name = _safe_name(member, archive)
                _check(name not in sizes, f"two members are called {name!r}", archive)
                _check(len(sizes) < MOST_MEMBERS, f"more than {MOST_MEMBERS:,} members", archive)
                tar.extract(member, stage, set_attrs=False)
                sizes[name] = (stage / name).stat().st_size
        for name in sizes:
            place = into / name
            place.parent.mkdir(parents=True, exist_ok=True)
            (stage / name).replace(place)
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        where = Path(os.fsdecode(error.filename2 or error.filename or archive))
        if where.is_relative_to(stage):
            what = f"one name is that of a file and of a folder: {where.relative_to(stage)}"
            raise DownloadError(what, where=archive, remedy=_REFUSED) from error
        reason = (error.strerror or str(error)).lower()
        raise StorageError(
            f"cannot write: {reason}", where=where, remedy="remove what is in the way"
        ) from error
    except tarfile.TarError as error:
        raise DownloadError(
            f"not a tar file that can be unpacked: {error}",
            where=archive,
            remedy="delete it, or name another mirror",
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return sizes


def _check(fine: bool, what: str, archive: Path) -> None:
    if not fine:
        raise DownloadError(what, where=archive, remedy=_REFUSED)


def _safe_name(member: tarfile.TarInfo, archive: Path) -> str:
    """Returns the relative path of a regular file; refuses paths that lead outside."""
    path = PurePosixPath(member.name)
    unsafe = not member.isreg() or member.issparse() or path.is_absolute() or "\0" in member.name
    if unsafe or not path.parts or ".." in path.parts:
        what = f"unsafe member {member.name!r}: only regular files below the folder are unpacked"
        remedy = "nothing of it was unpacked; name another mirror"
        raise DownloadError(what, where=archive, remedy=remedy)
    return str(path)
