"""The SQLite database of the catalog: its format, connections and error messages.

catalog.py reads the tables, and changes.py writes them.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from lmk.embed.errors import (
    FormatTooNew,
    GalleryDamaged,
    GalleryLocked,
    NotAGallery,
    StorageError,
    UnsafeIndex,
)
from lmk.embed.plain_files import open_plain
from lmk.embed.scratch import ScratchFolder
from lmk.index.catalog.layout import CATALOG, LOCK, refuse_links
from lmk.index.catalog.limits import check_schema, limit_steps, set_limits, size_of
from lmk.index.catalog.lock import writing
from lmk.index.catalog.migrations import FORMAT, MIGRATIONS, OLDEST_READ
from lmk.index.vectors.files import REBUILD, closing_on_error

APPLICATION_ID = 0x6C6D6B67  # "lmkg": marks the SQLite file of a gallery
_BUSY_SECONDS = 30.0
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")  # end of a journal that names a super-journal
_CACHE_KIB = 65_536  # holds the indexes of millions of pictures during a build


def unfinished(folder: Path) -> NotAGallery:
    """Returns the error for a gallery to which nothing was ever committed."""
    builder = writing(folder)
    if builder is not None:
        remedy = "wait until it has ended"
        return NotAGallery(f"{builder} is building it", where=folder, remedy=remedy)
    remedy = "run the same `lmk build-index` command again: it goes on where it stopped"
    return NotAGallery("its build never finished", where=folder, remedy=remedy)


def no_gallery(folder: Path) -> NotAGallery:
    """Returns the error for a path without a catalog; it describes the content of the path."""
    if not folder.exists():
        what = "there is no such folder"
    elif not folder.is_dir():
        what = "this is a file, and a gallery is a folder"
    elif any((folder / name).exists() for name in ("cache", LOCK)):
        return unfinished(folder)
    else:
        what = "this folder is no gallery"
    similar = folder.with_name(f"{folder.name}.lmk") if folder.name else folder
    remedy = "make a gallery with `lmk build-index`"
    if similar != folder and similar.is_dir():  # `lmk build-index album` writes album.lmk
        remedy = f"did you mean {similar}?"
    return NotAGallery(what, where=folder, remedy=remedy)


def has_our_header(folder: Path) -> bool:
    """Returns whether the header of a catalog was written by lmk.

    A catalog of lmk lacks this header if it is damaged, or if all commits are still in its log.

    SQLite reads the header. A program that opens and closes the file itself would free the locks of
    its own connections, and another process could then delete the log that they write to
    (sqlite.org/howtocorrupt.html, 2.2). "immutable" creates no file and takes no lock.
    """
    path = folder / CATALOG
    try:
        if not path.is_file() or not path.stat().st_size:
            return False
        with closing(connect(path, "mode=ro&immutable=1")) as connection:
            return bool(_number(connection, "application_id") == APPLICATION_ID)
    except sqlite3.Error:
        return False


def catalog_format(connection: sqlite3.Connection, folder: Path) -> int:
    """Returns the format of the catalog after a check of its schema; 0 if nothing was committed.

    Raises:
        GalleryDamaged: the tables are not those of the format.
        FormatTooNew: a newer lmk wrote the catalog.
        NotAGallery: another program wrote the catalog.
    """
    with sqlite_errors(folder):
        version = _number(connection, "user_version")
        application = _number(connection, "application_id")
        foreign = application != APPLICATION_ID and (version or application or _tables(connection))
    if foreign or version < 0:
        remedy = "choose another folder for the gallery, or move this file away"
        raise NotAGallery("this file is not lmk's", where=folder / CATALOG, remedy=remedy)
    if version > FORMAT:
        what = f"written in format {version}, and this lmk reads up to format {FORMAT}"
        raise FormatTooNew(what, where=folder, remedy="install a newer lmk")
    with sqlite_errors(folder):
        check_schema(connection, folder, version)
    return version


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def connect_writer(folder: Path) -> sqlite3.Connection:
    """Connects the one writer, which holds the lock, and begins a transaction in today's format."""
    with sqlite_errors(folder):
        connection = connect(folder / CATALOG, "mode=rwc")
        try:
            version = catalog_format(connection, folder)  # before a file of others is changed
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            limit_steps(connection, len(MIGRATIONS) * size_of(connection))
            _migrate(connection, version, folder)
        except BaseException as error:
            connection.close()
            code = getattr(error, "sqlite_errorcode", None) or 0
            if code & 0xFF == sqlite3.SQLITE_READONLY and os.access(folder / CATALOG, os.W_OK):
                # The header asks for a SQLite that does not exist yet.
                what = "its header is damaged"
                raise GalleryDamaged(what, where=folder, remedy=REBUILD) from error
            raise
    return connection


def check_structure(connection: sqlite3.Connection, folder: Path, *, whole: bool) -> None:
    """Checks that every table exists and every page of it can be used (GalleryDamaged).

    Args:
        connection: to the catalog.
        folder: the gallery.
        whole: also check that the indexes agree with the tables.
    """
    version = catalog_format(connection, folder)
    with sqlite_errors(folder), closing(sqlite3.connect(":memory:")) as fresh:
        _migrate(fresh, 0, folder, to=version)
        check = "integrity_check" if whole else "quick_check"
        limit_steps(connection, None)
        result = str(connection.execute(f"PRAGMA {check}(1)").fetchone()[0])
        if result == "ok" and _tables(connection) != _tables(fresh):
            result = "the tables are others than expected"
    if result != "ok":
        raise GalleryDamaged(f"SQLite says: {result}", where=folder / CATALOG, remedy=REBUILD)


def _migrate(
    connection: sqlite3.Connection, version: int, folder: Path, *, to: int = FORMAT
) -> None:
    for step in MIGRATIONS[version:to]:
        step(connection, folder)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {to}")


def _tables(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    return connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Connects in autocommit; `mode` is the query of SQLite's file URI, such as "mode=rw".

    SQLite opens files by their names and follows links. The files are therefore checked before and
    after.

    Raises:
        UnsafeIndex: one of the files is a link or no plain file, or the journal names another file.
    """
    refuse_links(path.parent, lambda name: name.startswith(path.name))
    _refuse_journal(path)
    before = _identity(path)
    uri = f"file:{quote(os.fsencode(os.path.abspath(path)))}?{mode}"  # noqa: PTH100
    connection = _connect(uri)
    if before is not None and _identity(path) != before:
        connection.close()
        remedy = "run the same command again"
        raise UnsafeIndex("was replaced while it was opened", where=path, remedy=remedy)
    return connection


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _refuse_journal(catalog: Path) -> None:
    """Refuses a rollback journal that names a super-journal, a file that SQLite would delete."""
    journal = catalog.with_name(f"{catalog.name}-journal")
    try:
        with os.fdopen(open_plain(journal, below=catalog.parent), "rb") as file:
            file.seek(-len(_SUPER_JOURNAL), os.SEEK_END)
            end = file.read()
    except OSError:  # there is none, or it is shorter
        return
    if end == _SUPER_JOURNAL:
        what = "this journal names another file, which SQLite would delete"
        remedy = "delete it, then see `lmk index verify`"
        raise UnsafeIndex(what, where=journal, remedy=remedy)


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    with closing_on_error([connection]):
        set_limits(connection)
    return connection


def in_todays_format(connection: sqlite3.Connection, folder: Path) -> sqlite3.Connection:
    """Returns the snapshot of a reader; one in an old format is replaced by a migrated copy.

    The copy is a temporary file of SQLite; the gallery does not change until a writer opens it.

    Raises:
        NotAGallery, FormatTooNew: see catalog_format; also if nothing was ever committed.
        GalleryDamaged: the snapshot cannot be migrated.
    """
    version = catalog_format(connection, folder)
    if version == 0:
        raise unfinished(folder)
    if version >= OLDEST_READ:
        return connection
    with sqlite_errors(folder):
        copy = _connect("")
        with closing_on_error([copy]):
            connection.backup(copy)
            connection.close()
            copy.execute("BEGIN")
            limit_steps(copy, len(MIGRATIONS) * size_of(copy))
            _migrate(copy, version, folder)
    return copy


def connect_reader(folder: Path) -> sqlite3.Connection:
    """Connects and begins a snapshot, even if the folder cannot be written.

    SQLite reads a write-ahead log only if it can create the index of the log beside it. In a
    read-only folder, or on a full disk, a catalog without a log is opened as "immutable". A catalog
    with a log (copied while it was being written, or left by a crash) is read from a private copy.
    """
    path, log = folder / CATALOG, folder / f"{CATALOG}-wal"
    connection = connect(path, "mode=rw")
    try:
        return _snapshot(connection)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in _NO_PLACE:
            raise
    if not log.exists() or not log.stat().st_size:
        return _snapshot(connect(path, "mode=ro&immutable=1"))
    with ScratchFolder("catalog") as scratch:
        for file in (path, log):
            with (
                os.fdopen(open_plain(file, below=folder), "rb") as source,
                (scratch / file.name).open("xb") as target,
            ):
                shutil.copyfileobj(source, target)
        # The descriptors stay open after the files are removed, and no writer needs the names.
        return _snapshot(connect(scratch / CATALOG, "mode=rw"))


def _snapshot(connection: sqlite3.Connection) -> sqlite3.Connection:
    with closing_on_error([connection]):
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")
        connection.execute("SELECT name FROM sqlite_schema LIMIT 1").fetchone()
    return connection


# Errors of SQLite if it cannot create the index of a log.
_NO_PLACE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)


@contextmanager
def sqlite_errors(folder: Path) -> Iterator[None]:
    """Turns SQLite's errors into errors of lmk, each with a remedy for the user."""
    where = folder / CATALOG
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite quotes a damaged name in its message
        raise GalleryDamaged("the tables are damaged", where=where, remedy=REBUILD) from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:  # the call was wrong, as on a closed connection
            raise
        kind = code & 0xFF  # the low byte of an extended code
        if kind == sqlite3.SQLITE_INTERRUPT:
            what = "reading a table takes longer than a file of this size can need"
            raise GalleryDamaged(what, where=where, remedy=REBUILD) from error
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
            raise GalleryLocked("another process is writing", where=where) from error
        if (remedy := _STORAGE_REMEDIES.get(kind)) is not None:
            what = f"cannot use the catalog: {error}"
            raise StorageError(what, where=where, remedy=remedy) from error
        raise GalleryDamaged(f"SQLite says: {error}", where=where, remedy=REBUILD) from error


_STORAGE_REMEDIES = {
    sqlite3.SQLITE_FULL: "free some space and run the same command again",
    sqlite3.SQLITE_IOERR: "check the disk and the free space, then run the same command again",
} | dict.fromkeys(
    (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
    "check the permissions, or choose another folder",
)
