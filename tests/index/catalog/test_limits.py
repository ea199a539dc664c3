"""Limits on SQLite for a catalog of somebody else."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from lmk.embed.errors import GalleryDamaged
from lmk.index.catalog.catalog import Catalog
from lmk.index.catalog.limits import LONGEST_CELL, objects_of
from lmk.index.catalog.migrations import FORMAT
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.writer import GalleryWriter

ENDLESS = (
    "SELECT count(a) FROM (WITH RECURSIVE t(a) AS"
    " (SELECT 1 UNION ALL SELECT a + 1 FROM t) SELECT a FROM t)"
)
MANY = (
    "SELECT 'a long text', a FROM (WITH RECURSIVE t(a) AS"
    " (SELECT 1 UNION ALL SELECT a + 1 FROM t) SELECT a FROM t)"
)


@pytest.fixture
def catalog(path: Path):
    found = Catalog.read(path)
    yield found
    found.close()


def test_a_statement_takes_no_more_steps_than_the_file_can_need(catalog: Catalog) -> None:
    start = time.monotonic()
    with pytest.raises(GalleryDamaged, match="takes longer than a file of this size can need"):
        catalog.all(ENDLESS)
    assert time.monotonic() - start < 10
    assert catalog.all("SELECT count(1) FROM picture")[0][0] > 0  # the limit is each statement's


def test_a_statement_gives_no_more_bytes_than_the_file_has(catalog: Catalog) -> None:
    with pytest.raises(GalleryDamaged, match="more bytes than its file"):
        catalog.all(MANY)


def test_a_cell_has_a_limit(catalog: Catalog) -> None:
    with pytest.raises(GalleryDamaged, match="too big"):
        catalog.all(f"SELECT zeroblob({LONGEST_CELL + 1})")


INTERRUPTED = """
import os, signal, sys, threading
from pathlib import Path
from lmk.embed.errors import GalleryDamaged
from lmk.index.catalog.catalog import Catalog

signal.signal(signal.SIGINT, signal.default_int_handler)
catalog = Catalog.read(Path(sys.argv[1]))
timer = threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGINT))
try:
    timer.start()
    for _ in range(1000):
        try:
            catalog.all(sys.argv[2])
        except GalleryDamaged:
            pass
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_a_limit_does_not_swallow_ctrl_c(path: Path) -> None:
    """The signal comes while SQLite runs; a handler in Python would take it, and go on.

    A process of its own gets the signal: pytest's faulthandler and OpenVINO leave a stack for
    signals behind, on which this one was seen to crash.
    """
    command = [sys.executable, "-P", "-c", INTERRUPTED, str(path), ENDLESS]
    assert subprocess.run(command, timeout=60).returncode == 7


def test_a_reader_cannot_write(catalog: Catalog) -> None:
    with pytest.raises(Exception, match="readonly"):
        catalog.all("DELETE FROM picture")


def test_statements_that_rewrite_the_file_have_no_limit(path: Path, scenario: ModuleType) -> None:
    with scenario.committing(path) as writer:
        writer.remove(["00000.jpg"])
        writer.compact()
    with Gallery.open(path) as gallery:
        assert "00000.jpg" not in gallery.ids(range(gallery.rows))


def test_the_objects_of_each_format_are_told_apart(path: Path) -> None:
    found = [{name for _, name, _, _ in objects_of(version)} for version in range(FORMAT + 1)]
    assert not found[0]
    assert "picture_content" in found[2] - found[1]
    connection = sqlite3.connect(path / "catalog.db")
    connection.execute("PRAGMA user_version = 1")  # the tables are those of format 2
    connection.commit()
    connection.close()
    with pytest.raises(GalleryDamaged, match="the tables are others than expected"):
        Gallery.open(path)


def test_a_trigger_is_found_before_it_runs(path: Path) -> None:
    connection = sqlite3.connect(path / "catalog.db")
    connection.execute("CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM picture; END")
    connection.commit()
    for opening in (Gallery.open, GalleryWriter):
        with pytest.raises(GalleryDamaged, match="trigger t does not belong in it"):
            opening(path)
    assert connection.execute("SELECT count(*) FROM picture").fetchone()[0] > 0
    connection.close()
