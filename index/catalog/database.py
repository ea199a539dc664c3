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

APPLICATION_ID = 0x6C6D6B67  # "lmkg": tells a gallery from another program's SQLite file
_BUSY_SECONDS = 30.0
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")  # what ends a journal with such a name
_CACHE_KIB = 65_536  # a build of millions finds its way through indexes this large


def unfinished(folder: Path) -> NotAGallery:
    """Returns the error for a gallery to which nothing was ever committed."""
    builder = writing(folder)
    if builder is not None:
        remedy = "wait until it has ended"
        return NotAGallery(f"{builder} is building it", where=folder, remedy=remedy)
    remedy = "run the same `lmk build-index` command again: it goes on where it stopped"
    return NotAGallery("its build never finished", where=folder, remedy=remedy)


def no_gallery(folder: Path) -> NotAGallery:
    """Returns the error for a path without a catalog, by what is there instead."""
    if not folder.exists():
        what = "there is no such folder"
    elif not folder.is_dir():
        what = "this is a file, and a gallery is a folder"
    elif any((folder / name).exists() for name in ("cache", LOCK)):
        return unfinished(folder)
    else:
        what = "this folder is no gallery"
    whole = folder.with_name(f"{folder.name}.lmk") if folder.name else folder
    remedy = "make a gallery with `lmk build-index`"
    if whole != folder and whole.is_dir():  # `lmk build-index album` writes album.lmk
        remedy = f"did you mean {whole}?"
    return NotAGallery(what, where=folder, remedy=remedy)


def has_our_header(folder: Path) -> bool:
    """Returns whether the header of a catalog is ours.

    A catalog may be ours without: as long as all that was committed is in its log, or damaged.

    SQLite is asked, because a program that opens and closes the file itself frees the locks of its
    own connections to it, and another process may then delete the log they write to
    (sqlite.org/howtocorrupt.html, 2.2). "immutable" leaves no file and waits for nobody.
    """
    path = folder / CATALOG
    try:
        if not path.is_file() or not path.stat().st_size:
            return False
        with closing(connect(path, "mode=ro&immutable=1")) as connection:
            found = connection.execute("PRAGMA application_id").fetchone()[0]
            return bool(found == APPLICATION_ID)
    except sqlite3.Error:
        return False


def catalog_format(connection: sqlite3.Connection, folder: Path) -> int:
    """Returns the format of the catalog, after its schema was checked; 0: nothing was committed.

    Raises:
        GalleryDamaged: it has other tables than its format.
        FormatTooNew: a newer lmk wrote it.
        NotAGallery: another program wrote it.
    """
    with sqlite_errors(folder):
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        application = connection.execute("PRAGMA application_id").fetchone()[0]
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


def connect_writer(folder: Path) -> sqlite3.Connection:
    """Connects the one writer (who holds the lock) and begins a transaction, in today's format."""
    with sqlite_errors(folder):
        connection = connect(folder / CATALOG, "mode=rwc")
        try:
            version = catalog_format(connection, folder)  # first: nothing of others is changed
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            limit_steps(connection, len(MIGRATIONS) * size_of(connection))
            _migrate(connection, version, folder)
        except BaseException as error:
            connection.close()
            if _is_read_only(error) and os.access(folder / CATALOG, os.W_OK):
                # The header asks for a SQLite that does not exist yet.
                what = "its header is damaged"
                raise GalleryDamaged(what, where=folder, remedy=REBUILD) from error
            raise
    return connection


def _is_read_only(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_READONLY


def check_structure(connection: sqlite3.Connection, folder: Path, *, whole: bool) -> None:
    """Checks that every table is there and every page of it can be used (GalleryDamaged).

    Args:
        connection: to the catalog.
        folder: the gallery.
        whole: also that the indexes say what the tables say.
    """
    version = catalog_format(connection, folder)
    with sqlite_errors(folder), closing(sqlite3.connect(":memory:")) as fresh:
        _migrate(fresh, 0, folder, to=version)
        check = "integrity_check" if whole else "quick_check"
        limit_steps(connection, None)
        found = str(connection.execute(f"PRAGMA {check}(1)").fetchone()[0])
        if found == "ok" and _tables(connection) != _tables(fresh):
            found = "the tables are others than expected"
    if found != "ok":
        raise GalleryDamaged(f"SQLite says: {found}", where=folder / CATALOG, remedy=REBUILD)


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
    """Connects in autocommit; `mode` is the query of SQLite's file URI, as "mode=rw".

    SQLite opens files by their names, and follows links. They are looked at before and after.

    Raises:
        UnsafeIndex: one of its files is a link or no plain file, or the journal names others.
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
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _refuse_journal(catalog: Path) -> None:
    """Refuses a rollback journal that names a super-journal, a file that SQLite would delete."""
    journal = catalog.with_name(f"{catalog.name}-journal")
    try:
        with os.fdopen(open_plain(journal, below=catalog.parent), "rb") as file:
            file.seek(-len(_SUPER_JOURNAL), os.SEEK_END)
            found = file.read()
    except OSError:  # there is none, or it is shorter
        return
    if found == _SUPER_JOURNAL:
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
    """Returns the snapshot of a reader in a format that it can read: a migrated copy of an old one.

    The copy is SQLite's own temporary file; the gallery stays as it is until somebody writes.

    Raises:
        NotAGallery, FormatTooNew: see catalog_format; also where nothing was ever committed.
        GalleryDamaged: where the older one cannot be migrated.
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
    """Connects and begins a snapshot, also where the folder cannot be written.

    SQLite reads a write-ahead log only where it can make its index beside it. In a read-only
    folder, or on a full disk, a catalog without a log needs none ("immutable"), and one with a log
    (copied while it was being written, or after a crash) is read from a private copy.
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
        # The descriptors stay open after the names are gone; there is no writer to need them.
        return _snapshot(connect(scratch / CATALOG, "mode=rw"))


def _snapshot(connection: sqlite3.Connection) -> sqlite3.Connection:
    with closing_on_error([connection]):
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")
        connection.execute("SELECT name FROM sqlite_schema LIMIT 1").fetchone()
    return connection


# Errors of SQLite if it cannot make that index, in a read-only folder or on a full disk.
_NO_PLACE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)


@contextmanager
def sqlite_errors(folder: Path) -> Iterator[None]:
    """Turns SQLite's errors into ours, by what the user can do about them."""
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite quotes a damaged name in its message
        raise GalleryDamaged(
            "the tables are damaged", where=folder / CATALOG, remedy=REBUILD
        ) from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:  # the call was wrong, as on a closed connection
            raise
        where = folder / CATALOG
        kind = code & 0xFF  # the low byte of an extended code
        if kind == sqlite3.SQLITE_INTERRUPT:
            what = "reading a table takes longer than a file of this size can need"
            raise GalleryDamaged(what, where=where, remedy=REBUILD) from error
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
            raise GalleryLocked("another process is writing", where=where) from error
        remedy = _STORAGE_REMEDIES.get(kind)
        if remedy is not None:
            raise StorageError(
                f"cannot use the catalog: {error}", where=where, remedy=remedy
            ) from error
        raise GalleryDamaged(f"SQLite says: {error}", where=where, remedy=REBUILD) from error


_STORAGE_REMEDIES = {
    sqlite3.SQLITE_FULL: "free some space and run the same command again",
    sqlite3.SQLITE_IOERR: "check the disk and the free space, then run the same command again",
    sqlite3.SQLITE_READONLY: "check the permissions, or choose another folder",
    sqlite3.SQLITE_CANTOPEN: "check the permissions, or choose another folder",
    sqlite3.SQLITE_PERM: "check the permissions, or choose another folder",
}
