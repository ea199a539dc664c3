from __future__ import annotations

import errno
import hashlib
import json
import random
import re
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmk.embed.errors import DownloadError, StorageError
from lmk.embed.gldv2.download import RESERVE, Patience, StoppedError, fetch, file_md5, write_note

BODY = random.Random(7).randbytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()
NAME = "/a.bin"


def quick(waits: list[float] | None = None, **more) -> Patience:
    """No waiting: waits are noted instead."""
    return Patience(jitter=lambda: 1.0, wait=([] if waits is None else waits).append, **more)


@pytest.fixture
def target(tmp_path, server) -> Path:
    server.files[NAME] = BODY
    return tmp_path / "new" / "a.bin"


def only_target_left(target: Path) -> bool:
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_good_server(server, target):
    seen = []
    got = fetch(server.url + NAME, target, md5=MD5, on_progress=lambda *at: seen.append(at))
    assert (got.size, got.md5) == (len(BODY), MD5)
    assert target.read_bytes() == BODY
    assert only_target_left(target)
    assert seen == sorted(seen)
    assert seen[-1] == (len(BODY), len(BODY))
    assert re.fullmatch(r"lmk/\d\S*", server.log[0][1]["User-Agent"])


def test_an_empty_file(server, target):
    server.files[NAME] = b""
    assert fetch(server.url + NAME, target).size == 0
    assert target.read_bytes() == b""


@pytest.mark.parametrize("reset", [False, True])
def test_a_dropped_connection_goes_on_where_it_was(server, faults, target, reset):
    server.faults[NAME] = [faults.cut(100_000, reset=reset), faults.cut(50_000, reset=reset)]
    waits: list[float] = []
    fetch(server.url + NAME, target, md5=MD5, patience=quick(waits))
    assert target.read_bytes() == BODY
    if not reset:  # a reset may throw away what was under way
        asked = [headers.get("Range") for headers in server.asked(NAME)]
        assert asked == [None, "bytes=100000-", "bytes=150000-"]
    assert waits == [1.0, 1.0]  # progress was made each time


def test_a_resumed_transfer_names_the_version_it_is_of(server, faults, target):
    server.faults[NAME] = [faults.cut(100_000)]
    fetch(server.url + NAME, target, patience=quick())
    etag = f'"{hashlib.sha1(BODY).hexdigest()}"'
    assert server.asked(NAME)[1]["If-Range"] == etag


def test_a_server_without_ranges_starts_afresh(server, faults, target):
    server.faults[NAME] = [faults.cut(100_000), faults.no_ranges]
    fetch(server.url + NAME, target, md5=MD5, patience=quick())
    assert target.read_bytes() == BODY
    assert len(server.log) == 2


def test_without_a_validator_nothing_is_resumed(server, faults, target):
    server.faults[NAME] = [faults.cut(100_000, ranges=False)]
    fetch(server.url + NAME, target, patience=quick())
    assert [headers.get("Range") for headers in server.asked(NAME)] == [None, None]
    assert target.read_bytes() == BODY


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({"Last_Modified": "Wed, 01 May 2019 00:00:00 GMT"}, "Wed, 01 May 2019 00:00:00 GMT"),
        ({"ETag": 'W/"weak"', "Last_Modified": "Wed"}, "Wed"),
        ({"ETag": 'W/"weak"'}, None),
    ],
)
def test_a_date_stands_in_for_a_strong_etag(server, faults, target, headers, sent):
    short = faults.content(BODY[:9], **headers, Content_Length=len(BODY))
    server.faults[NAME] = [short, faults.no_ranges]
    fetch(server.url + NAME, target, md5=MD5, patience=quick())
    assert server.asked(NAME)[1].get("If-Range") == sent


def test_a_file_that_changed_meanwhile_is_not_glued_together(server, faults, target):
    other = BODY[::-1]

    def cut_then_change(handler, body):
        faults.cut(100_000)(handler, body)
        server.files[NAME] = other

    server.faults[NAME] = [cut_then_change]
    assert fetch(server.url + NAME, target, patience=quick()).size == len(other)
    assert target.read_bytes() == other


def test_passing_failures_are_waited_out_with_exponential_backoff(server, faults, target):
    server.faults[NAME] = [
        faults.status(503),
        faults.hang_up,
        faults.status(429),
        faults.status(500),
        faults.status(503, Retry_After="3600"),
    ]
    waits: list[float] = []
    fetch(server.url + NAME, target, md5=MD5, patience=quick(waits))
    assert waits == [1.0, 2.0, 4.0, 8.0, 60.0]
    assert target.read_bytes() == BODY


def test_backoff_has_full_jitter_and_a_limit():
    patience = Patience(jitter=lambda: 0.25)
    assert [patience.delay(n) for n in (1, 2, 3, 10)] == [0.25, 0.5, 1.0, 15.0]
    assert patience.delay(1, retry_after=7.0) == 7.0
    assert patience.delay(1, retry_after=1e9) == 60.0
    assert all(0.0 <= Patience().delay(n) < 60.0 for n in range(1, 40))


@pytest.mark.parametrize("ranges", [True, False])
def test_it_gives_up_when_nothing_grows(server, faults, target, ranges):
    server.faults[NAME] = [faults.cut(5000, ranges=ranges)] + [
        faults.cut(0 if ranges else 5000, ranges=ranges)
    ] * 9
    with pytest.raises(DownloadError, match=r"gave up after 4 tries .*5000 of 300000") as caught:
        fetch(server.url + NAME, target, patience=quick(attempts=4))
    assert server.url + NAME in str(caught.value)
    assert len(server.log) == 4
    assert not target.exists()
    fetch(server.url + NAME, target, md5=MD5, patience=quick(attempts=10))
    assert target.read_bytes() == BODY


def test_nobody_listens(server, target):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(DownloadError, match=r"gave up after 2 tries .*refused"):
        fetch(f"http://127.0.0.1:{port}/x", target, patience=quick(attempts=2))


@pytest.mark.parametrize("code", [403, 404, 410])
def test_what_is_not_there_is_not_asked_for_again(server, faults, target, code):
    server.faults[NAME] = [faults.status(code)]
    with pytest.raises(DownloadError, match=f"answered {code}"):
        fetch(server.url + NAME, target, patience=quick())
    assert len(server.log) == 1


def test_a_wrong_checksum_gets_one_fresh_try(server, faults, target):
    server.faults[NAME] = [faults.content(BODY[::-1])]
    fetch(server.url + NAME, target, md5=MD5, patience=quick())
    assert target.read_bytes() == BODY
    first, second = server.asked(NAME)
    assert "Cache-Control" not in first
    assert second["Cache-Control"] == "no-cache"
    assert "Range" not in second


def test_a_wrong_checksum_twice_is_an_error_that_tells_both(server, target):
    wrong = "0" * 32
    with pytest.raises(DownloadError, match=f"expected md5 {wrong}, found {MD5}"):
        fetch(server.url + NAME, target, md5=wrong, patience=quick())
    assert len(server.log) == 2
    assert not target.exists()


def test_a_damaged_beginning_is_found_and_fetched_afresh(server, faults, target):
    server.faults[NAME] = [faults.cut(100_000), faults.status(404)]
    with pytest.raises(DownloadError):
        fetch(server.url + NAME, target, md5=MD5, patience=quick())
    part = target.with_name("a.bin.part")
    part.write_bytes(b"x" + part.read_bytes()[1:])
    fetch(server.url + NAME, target, md5=MD5, patience=quick())
    assert target.read_bytes() == BODY
    assert [h.get("Range") for h in server.asked(NAME)[2:]] == ["bytes=100000-", None]


@pytest.mark.parametrize(("start", "total"), [(1, 300_000), (99_999, 300_000), (100_000, 300_001)])
def test_another_range_than_asked_for_is_thrown_away(server, faults, target, start, total):
    server.faults[NAME] = [faults.cut(100_000), faults.content_range(start, total)]
    fetch(server.url + NAME, target, patience=quick())
    assert target.read_bytes() == BODY
    assert [h.get("Range") for h in server.asked(NAME)] == [None, "bytes=100000-", None]


def test_a_range_that_is_not_there_starts_afresh(server, faults, target):
    server.faults[NAME] = [faults.cut(100_000), faults.status(416)]
    fetch(server.url + NAME, target, patience=quick())
    assert [h.get("Range") for h in server.asked(NAME)] == [None, "bytes=100000-", None]
    assert target.read_bytes() == BODY


def test_chunks_whole_and_cut(server, faults, target):
    server.faults[NAME] = [faults.chunked_cut, faults.chunked]
    fetch(server.url + NAME, target, patience=quick())
    assert target.read_bytes() == BODY


def test_an_unknown_length_is_trusted_only_with_a_checksum(server, faults, target):
    server.faults[NAME] = [faults.content(BODY, Content_Length=None)] * 2
    with pytest.raises(DownloadError, match="does not say how long"):
        fetch(server.url + NAME, target, patience=quick())
    fetch(server.url + NAME, target, md5=MD5, patience=quick())
    assert target.read_bytes() == BODY


def test_a_silent_server_times_out(server, faults, target):
    server.faults[NAME] = [faults.stall(100_000)]
    fetch(server.url + NAME, target, md5=MD5, patience=quick(timeout=0.3))
    assert target.read_bytes() == BODY
    assert server.asked(NAME)[1]["Range"].startswith("bytes=")


def test_a_trickle_counts_as_dead(server, faults, target):
    ticks = iter(range(0, 10**9, 40))  # each look at the clock is 40 s later
    server.files[NAME] = body = BODY[:5000]
    server.faults[NAME] = [faults.stall(50)]
    patience = quick(clock=lambda: float(next(ticks)), slowest=100.0)
    with pytest.raises(DownloadError, match="only 50 bytes came in 40 s"):
        fetch(server.url + NAME, target, patience=Patience(**{**vars(patience), "attempts": 1}))
    fetch(server.url + NAME, target, patience=patience)
    assert target.read_bytes() == body


def test_stop_leaves_what_can_be_resumed(server, faults, target):
    stop = threading.Event()
    server.faults[NAME] = [faults.stall(100_000)]
    with pytest.raises(StoppedError):
        fetch(server.url + NAME, target, stop=stop, on_progress=lambda done, total: stop.set())
    with pytest.raises(StoppedError):
        fetch(server.url + NAME, target, stop=stop)
    assert len(server.log) == 1
    have = target.with_name("a.bin.part").stat().st_size
    assert 0 < have <= 100_000
    fetch(server.url + NAME, target, md5=MD5)
    assert server.asked(NAME)[1]["Range"] == f"bytes={have}-"
    assert target.read_bytes() == BODY


def test_waiting_ends_when_asked_to_stop(server, faults, target):
    stop = threading.Event()

    def stop_during_answer(handler, body):
        stop.set()
        handler.answer(503, b"")

    server.faults[NAME] = [stop_during_answer]
    with pytest.raises(StoppedError):
        fetch(server.url + NAME, target, stop=stop, patience=Patience(first_wait=1e6))


def test_a_part_that_lacks_only_its_name_needs_no_server(server, target):
    target.parent.mkdir()
    target.with_name("a.bin.part").write_bytes(BODY)
    note = {"url": server.url + NAME, "validator": '"x"', "total": len(BODY)}
    target.with_name("a.bin.part.json").write_text(json.dumps(note))
    fetch(server.url + NAME, target, md5=MD5)
    assert server.log == []
    assert only_target_left(target)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "{",
        "[]",
        '{"url": "URL", "validator": "v"}',
        '{"url": "URL", "validator": 3, "total": 300000}',
        '{"url": "URL", "validator": "v", "total": "9"}',
        '{"url": "URL", "validator": "v", "total": 9}',
        '{"url": "http://elsewhere/", "validator": "v", "total": 300000}',
    ],
)
def test_a_part_of_unknown_origin_is_not_used(server, target, note):
    target.parent.mkdir()
    target.with_name("a.bin.part").write_bytes(b"rubbish" * 10)
    target.with_name("a.bin.part.json").write_text(note.replace("URL", server.url + NAME))
    fetch(server.url + NAME, target)
    assert target.read_bytes() == BODY
    assert "Range" not in server.log[0][1]


def test_a_disk_too_small_is_told_before_a_byte_is_written(server, target, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=500_000))
    with pytest.raises(StorageError, match="free some space"):
        fetch(server.url + NAME, target, space_factor=2.0)
    assert list(target.parent.iterdir()) == []
    fetch(server.url + NAME, target, space_factor=1.5)


def test_what_is_here_already_needs_no_more_space(server, faults, target, monkeypatch):
    server.faults[NAME] = [faults.cut(100_000)]
    free = iter([300_000, 200_000])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free)))
    fetch(server.url + NAME, target, patience=quick())
    assert target.read_bytes() == BODY


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_a_disk_that_fills_up(server, target):
    target.parent.mkdir()
    target.with_name("a.bin.part").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="no space left on device; free some space"):
        fetch(server.url + NAME, target, patience=quick())
    assert len(server.log) == 1


def test_a_folder_that_cannot_be(server, target):
    target.parent.write_text("a file")
    with pytest.raises(StorageError, match="cannot write"):
        fetch(server.url + NAME, target)


def test_write_note_replaces_or_leaves_the_old(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_note(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr("os.fsync", full)
        write_note(path, "new")
    assert path.read_text() == "old"
    write_note(path, "new")
    assert path.read_text() == "new"
    assert file_md5(path) == hashlib.md5(b"new").hexdigest()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.integers(0, 60_000),
    cuts=st.lists(st.tuples(st.integers(0, 60_000), st.booleans()), max_size=5),
)
def test_any_run_of_cuts_ends_in_the_same_file(server, faults, size, cuts):
    server.files["/p"] = body = BODY[:size]
    server.faults["/p"] = [faults.cut(count, ranges=ranges) for count, ranges in cuts]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "p")
        got = fetch(
            server.url + "/p", target, md5=hashlib.md5(body).hexdigest(), patience=quick(attempts=7)
        )
        assert target.read_bytes() == body
        assert got.size == size
        assert only_target_left(target)


def test_a_file_that_is_larger_than_it_may_be(server, target):
    with pytest.raises(DownloadError, match="sends more than 100 bytes"):
        fetch(server.url + NAME, target, patience=quick(), most=100)
    assert not target.exists()
    assert fetch(server.url + NAME, target, patience=quick(), most=len(BODY)).size == len(BODY)


def test_an_endless_file_ends(server, faults, target):
    """Without a length nothing but the bytes that come tells how many there are."""

    def endless(handler, body):
        handler.answer(200, b"x" * 5000, Content_Length=None)

    server.faults[NAME] = [endless]
    with pytest.raises(DownloadError, match="sends more than 1,000 bytes"):
        fetch(server.url + NAME, target, md5=MD5, patience=quick(), most=1000)
    part = target.with_name(target.name + ".part")
    assert not target.exists() and part.stat().st_size == 0


def test_a_file_of_unknown_length_leaves_some_of_the_disk_free(server, faults, target, monkeypatch):
    """Neither a length nor the largest size ends it before the disk is full."""

    def endless(handler, body):
        handler.answer(200, b"x" * 5000, Content_Length=None)

    monkeypatch.setattr("lmk.embed.gldv2.download.CHUNK", 1000)
    monkeypatch.setattr("lmk.embed.gldv2.download._LOOK", 1000)
    free = iter([RESERVE + 9000, RESERVE + 1500, RESERVE + 500])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free)))
    server.faults[NAME] = [endless]
    with pytest.raises(StorageError, match="are kept free, as the server does not say") as caught:
        fetch(server.url + NAME, target, md5=MD5, patience=quick(), space_factor=1.5)
    assert "free some space" in str(caught.value)
    part = target.with_name(target.name + ".part")
    assert not target.exists() and 1000 <= part.stat().st_size < 5000
    assert next(free, None) is None
