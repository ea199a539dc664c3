from __future__ import annotations

import errno
import hashlib
import io
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.errors import DownloadError, StorageError, UsageError
from lmk.embed.gldv2 import dataset
from lmk.embed.gldv2.dataset import METADATA, SHARDS, download, parse_shards
from lmk.embed.gldv2.download import Patience

QUICK = Patience(wait=lambda seconds: None)
PER_SHARD = 5


def picture_names(split: str, shard: int) -> list[str]:
    ids = [hashlib.sha1(f"{split} {shard} {n}".encode()).hexdigest()[:16] for n in range(PER_SHARD)]
    return [f"{i[0]}/{i[1]}/{i[2]}/{i}.jpg" for i in ids]


def picture(name: str) -> bytes:
    return random.Random(name).randbytes(3000)


def archive(split: str, shard: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in picture_names(split, shard):
            member = tarfile.TarInfo(name)
            member.size = len(picture(name))
            tar.addfile(member, io.BytesIO(picture(name)))
    return out.getvalue()


@pytest.fixture
def mirror(server):
    """The data set's paths below /gl, each split with its first four shards."""
    for split in SHARDS:
        for path in METADATA[split]:
            server.files[f"/gl/{path}"] = f"id of {path}\n0123456789abcdef\n".encode()
        for shard in range(4):
            put(server, split, shard, archive(split, shard))
    return server


def put(server, split: str, shard: int, body: bytes) -> None:
    name = f"images_{shard:03d}"
    md5 = hashlib.md5(body).hexdigest()
    server.files[f"/gl/{split}/{name}.tar"] = body
    server.files[f"/gl/md5sum/{split}/md5.{name}.txt"] = f"{md5}  {name}.tar\n".encode()


def get(mirror, out: Path, split: str = "train", shards: str = "0-3", **more) -> dataset.Report:
    more = {"patience": QUICK} | more
    return download(split, parse_shards(shards, split), out, mirror=mirror.url + "/gl/", **more)


def expect_pictures(out: Path, split: str, shards) -> None:
    found = {p.relative_to(out / split).as_posix(): p for p in (out / split).rglob("*.*")}
    expected = [name for shard in shards for name in picture_names(split, shard)]
    assert sorted(found) == sorted(expected)
    assert all(path.read_bytes() == picture(name) for name, path in found.items())


@pytest.mark.parametrize("split", list(SHARDS))
def test_a_split_lands_in_the_papers_layout(mirror, tmp_path, split):
    report = get(mirror, tmp_path, split)
    assert report.missing == ()
    assert [item.status for item in report.items] == ["downloaded"] * len(report.items)
    names = [f"{split}/images_{n:03d}.tar" for n in range(4)]
    assert [item.name for item in report.items] == [*METADATA[split], *names]
    assert sum(item.images for item in report.items) == 4 * PER_SHARD
    expect_pictures(tmp_path, split, range(4))
    for path in METADATA[split]:
        here = tmp_path / "metadata" / Path(path).name
        assert here.read_bytes() == mirror.files[f"/gl/{path}"]
    assert "train_attribution.csv" in (tmp_path / "LICENSES.txt").read_text()
    top = sorted(path.name for path in tmp_path.iterdir())
    assert top == sorted([".gldv2", "LICENSES.txt", "metadata", split])


def test_attribution_comes_with_every_train_shard(mirror, tmp_path):
    get(mirror, tmp_path, "train", "2")
    assert (tmp_path / "metadata/train_attribution.csv").is_file()
    expect_pictures(tmp_path, "train", [2])


def test_checksum_and_size_are_reported(mirror, tmp_path):
    item = get(mirror, tmp_path, "test", "1").items[-1]
    body = archive("test", 1)
    assert (item.md5, item.size) == (hashlib.md5(body).hexdigest(), len(body))


def test_a_second_run_asks_the_server_nothing(mirror, tmp_path):
    first = get(mirror, tmp_path)
    mirror.log.clear()
    second = get(mirror, tmp_path)
    assert mirror.log == []
    assert {item.status for item in second.items} == {"present"}
    assert [(i.name, i.images, i.size, i.md5) for i in second.items] == [
        (i.name, i.images, i.size, i.md5) for i in first.items
    ]


def test_more_shards_later_fetch_only_those(mirror, tmp_path):
    get(mirror, tmp_path, shards="0,2")
    mirror.log.clear()
    get(mirror, tmp_path)
    asked = {path for path, _ in mirror.log}
    assert asked == {
        f"/gl/{path}"
        for n in (1, 3)
        for path in (f"train/images_00{n}.tar", f"md5sum/train/md5.images_00{n}.txt")
    }
    expect_pictures(tmp_path, "train", range(4))


@pytest.mark.parametrize("damage", ["gone", "cut", "record gone", "record damaged"])
def test_a_shard_whose_pictures_are_gone_is_fetched_again(mirror, tmp_path, damage):
    get(mirror, tmp_path)
    lost = tmp_path / "train" / picture_names("train", 1)[0]
    record = tmp_path / ".gldv2/train/images_001.tar.json"
    if damage == "gone":
        lost.unlink()
    elif damage == "cut":
        lost.write_bytes(b"")
    elif damage == "record gone":
        record.unlink()
    else:
        record.write_text('{"files": []}')
    statuses = [item.status for item in get(mirror, tmp_path).items[-4:]]
    assert statuses == ["present", "downloaded", "present", "present"]
    expect_pictures(tmp_path, "train", range(4))


def test_kept_archives_stay_and_are_used_again(mirror, tmp_path):
    get(mirror, tmp_path, keep_archives=True)
    kept = tmp_path / "archives/train/images_001.tar"
    assert kept.read_bytes() == archive("train", 1)
    assert len(list(kept.parent.iterdir())) == 4
    (tmp_path / "train" / picture_names("train", 1)[0]).unlink()
    mirror.log.clear()
    get(mirror, tmp_path, keep_archives=True)
    assert [path for path, _ in mirror.log] == ["/gl/md5sum/train/md5.images_001.txt"]
    expect_pictures(tmp_path, "train", range(4))


def test_asking_for_archives_later_brings_them(mirror, tmp_path):
    get(mirror, tmp_path)
    report = get(mirror, tmp_path, keep_archives=True)
    assert [item.status for item in report.items] == ["present"] * 5 + ["downloaded"] * 4
    assert len(list((tmp_path / "archives/train").iterdir())) == 4


@pytest.mark.parametrize("shards_before", ["", "1"])
def test_a_damaged_kept_archive_is_fetched_again(mirror, tmp_path, shards_before):
    if shards_before:
        get(mirror, tmp_path, shards=shards_before, keep_archives=True)
    kept = tmp_path / "archives/train/images_001.tar"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(b"damaged")
    assert get(mirror, tmp_path, shards="1", keep_archives=True).missing == ()
    assert kept.read_bytes() == archive("train", 1)
    expect_pictures(tmp_path, "train", [1])


@pytest.mark.parametrize("jobs", [1, 3, 16])
def test_every_shard_survives_its_own_trouble(mirror, faults, tmp_path, jobs):
    def path(n):
        return f"/gl/train/images_00{n}.tar"

    mirror.faults[path(0)] = [faults.cut(7000), faults.cut(2000, reset=True)]
    mirror.faults[path(1)] = [faults.cut(7000), faults.no_ranges]
    mirror.faults[path(2)] = [faults.status(503), faults.content(b"not this")]
    mirror.faults[path(3)] = [faults.hang_up, faults.stall(4000)]
    mirror.faults["/gl/md5sum/train/md5.images_003.txt"] = [faults.cut(10), faults.status(500)]
    mirror.faults["/gl/metadata/train.csv"] = [faults.cut(3), faults.status(503)]
    patience = Patience(timeout=0.3, wait=lambda seconds: None)
    assert get(mirror, tmp_path, jobs=jobs, patience=patience).missing == ()
    expect_pictures(tmp_path, "train", range(4))


def test_what_fails_is_named_and_the_others_go_on(mirror, tmp_path):
    del mirror.files["/gl/train/images_000.tar"]
    wrong = "f" * 32
    mirror.files["/gl/md5sum/train/md5.images_002.txt"] = wrong.encode()
    del mirror.files["/gl/metadata/train_clean.csv"]
    report = get(mirror, tmp_path)
    errors = {item.name: item.error for item in report.missing}
    assert list(errors) == [
        "metadata/train_clean.csv",
        "train/images_000.tar",
        "train/images_002.tar",
    ]
    assert all(isinstance(error, DownloadError) for error in errors.values())
    assert all(name in str(error) for name, error in errors.items())
    found = hashlib.md5(archive("train", 2)).hexdigest()
    assert f"expected md5 {wrong}, found {found}" in str(errors["train/images_002.tar"])
    expect_pictures(tmp_path, "train", [1, 3])

    put(mirror, "train", 0, archive("train", 0))
    put(mirror, "train", 2, archive("train", 2))
    assert [item.name for item in get(mirror, tmp_path).missing] == ["metadata/train_clean.csv"]
    expect_pictures(tmp_path, "train", range(4))


@pytest.mark.parametrize(
    "text", ["MD5 (images_001.tar) = {}", "{}", "{} *images_001.tar\r\n", "{}  ./images_001.tar"]
)
def test_md5_files_as_various_tools_write_them(mirror, tmp_path, text):
    md5 = hashlib.md5(archive("train", 1)).hexdigest()
    mirror.files["/gl/md5sum/train/md5.images_001.txt"] = text.format(md5.upper()).encode()
    assert get(mirror, tmp_path, shards="1").missing == ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>sign in</html>",
        b"\xff\xfe",
        b"a" * 31,
        b"a" * 32 + b" " + b"b" * 32,
        b"a" * 32 + b"  images_002.tar",
    ],
)
def test_what_is_no_checksum_of_this_shard_is_refused(mirror, tmp_path, body):
    mirror.files["/gl/md5sum/train/md5.images_001.txt"] = body
    (item,) = get(mirror, tmp_path, shards="1").missing
    assert "not the checksum of images_001.tar" in str(item.error)
    assert not (tmp_path / "train").exists()
    assert "/gl/train/images_001.tar" not in [path for path, _ in mirror.log]


def test_a_malicious_archive_places_nothing(mirror, tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ["a/b/c/abc.jpg", "../../../evil.jpg"]:
            tar.addfile(tarfile.TarInfo(name))
    put(mirror, "train", 1, out.getvalue())
    (item,) = get(mirror, tmp_path / "in", shards="0,1").missing
    assert item.name == "train/images_001.tar"
    assert "unsafe member" in str(item.error)
    expect_pictures(tmp_path / "in", "train", [0])
    assert not list(tmp_path.rglob("evil.jpg"))


def test_an_archive_without_pictures_is_no_shard(mirror, tmp_path):
    out = io.BytesIO()
    tarfile.open(fileobj=out, mode="w").close()
    put(mirror, "train", 1, out.getvalue())
    (item,) = get(mirror, tmp_path, shards="1").missing
    assert "holds no pictures" in str(item.error)


def test_a_full_disk_stops_the_run_and_a_rerun_completes_it(mirror, tmp_path, monkeypatch):
    real, calls = dataset.unpack, []

    def full_at_the_second(archive, stage, into):
        calls.append(archive)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(stage))
        return real(archive, stage, into)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "unpack", full_at_the_second)
        report = get(mirror, tmp_path, jobs=1)
    assert [item.name for item in report.missing] == [f"train/images_00{n}.tar" for n in (1, 2, 3)]
    first, *untried = [item.error for item in report.missing]
    assert isinstance(first, StorageError)
    assert "free some space" in str(first)
    assert untried == [None, None]
    assert len(calls) == 2

    mirror.log.clear()
    assert get(mirror, tmp_path).missing == ()
    expect_pictures(tmp_path, "train", range(4))
    assert "/gl/train/images_001.tar" not in [path for path, _ in mirror.log]  # was verified


def test_a_shard_needs_room_for_its_archive_and_its_pictures(mirror, tmp_path, monkeypatch):
    size = len(archive("train", 0))
    free = {"now": int(1.9 * size)}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free["now"]))
    # One job: the error stops the run, and with more it may catch the metadata in mid-download.
    (item,) = get(mirror, tmp_path, shards="0", jobs=1).missing
    assert isinstance(item.error, StorageError)
    assert item.name == "train/images_000.tar"
    free["now"] = 2 * size
    assert get(mirror, tmp_path, shards="0").missing == ()


def test_a_file_in_the_way_is_told(mirror, tmp_path):
    name = picture_names("train", 0)[0]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / name[0]).write_text("in the way")
    (item,) = get(mirror, tmp_path, shards="0", jobs=1).missing
    assert isinstance(item.error, StorageError)
    assert "cannot write" in str(item.error)


def test_two_runs_do_not_share_a_folder(mirror, tmp_path):
    refused = []

    def second_run(item):
        try:
            get(mirror, tmp_path)
        except StorageError as error:
            refused.append(str(error))

    get(mirror, tmp_path, shards="0", on_item=second_run)
    assert len(refused) == 6
    assert all("another download" in text for text in refused)
    assert get(mirror, tmp_path).missing == ()


def test_progress_names_items_and_ends_at_their_size(mirror, tmp_path):
    last: dict[str, tuple[int, int | None]] = {}
    report = get(
        mirror, tmp_path, on_bytes=lambda name, done, total: last.update({name: (done, total)})
    )
    assert last == {item.name: (item.size, item.size) for item in report.items}


def test_an_interrupt_ends_the_run_and_a_rerun_goes_on(mirror, faults, tmp_path):
    mirror.faults["/gl/train/images_001.tar"] = [faults.stall(9000)]
    mirror.faults["/gl/train/images_002.tar"] = [faults.stall(9000)]

    def interrupt(item):
        if item.name == "train/images_000.tar":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(mirror, tmp_path, jobs=2, on_item=interrupt)
    mirror.closing.set()
    for thread in threading.enumerate():
        if thread.daemon and "worker" in thread.name:
            thread.join(10)
    mirror.log.clear()
    assert get(mirror, tmp_path).missing == ()
    expect_pictures(tmp_path, "train", range(4))
    assert "/gl/train/images_000.tar" not in [path for path, _ in mirror.log]


def test_a_bug_is_not_swallowed(mirror, tmp_path, monkeypatch):
    def broken(archive, stage, into):
        raise ZeroDivisionError

    monkeypatch.setattr(dataset, "unpack", broken)
    with pytest.raises(ZeroDivisionError):
        get(mirror, tmp_path)


@pytest.mark.parametrize("url", ["", "ftp://x/y", "file:///etc", "http://", "x", "http://a b/"])
def test_a_mirror_is_an_http_address(tmp_path, url):
    with pytest.raises(UsageError, match="--mirror"):
        download("train", [0], tmp_path / "new", mirror=url)
    assert not (tmp_path / "new").exists()


def test_an_unknown_split(tmp_path):
    with pytest.raises(UsageError, match="train, index or test"):
        download("val", [0], tmp_path)


@pytest.mark.parametrize(
    ("spec", "split", "expected"),
    [
        ("0-3", "train", (0, 1, 2, 3)),
        ("0,5,7-9", "train", (0, 5, 7, 8, 9)),
        (" 7-9 , 3", "train", (3, 7, 8, 9)),
        ("2,2,1-2", "test", (1, 2)),
        ("019", "test", (19,)),
        ("499", "train", (499,)),
        ("all", "test", tuple(range(20))),
        ("all", "index", tuple(range(100))),
    ],
)
def test_shards(spec, split, expected):
    assert parse_shards(spec, split) == expected


@pytest.mark.parametrize(
    "spec",
    [
        *["", " ", ",", "1,", "a", "-1", "1-", "-", "3-1", "1-2-3", "1.5", "20", "0-20", "all,1"],
        *["²", "٣", "0x1", "1 2", "9" * 5000],
    ],
)
def test_wrong_shards(spec):
    with pytest.raises(UsageError, match="--shards"):
        parse_shards(spec, "test")


@given(st.sets(st.integers(0, 499), min_size=1), st.randoms())
def test_any_set_of_shards_can_be_written(numbers, rng):
    pieces = [f"{n}" for n in numbers] + [f"{n}-{n + 1}" for n in numbers if n + 1 in numbers]
    rng.shuffle(pieces)
    assert parse_shards(",".join(pieces), "train") == tuple(sorted(numbers))


KILL_AT_RENAME = """
import os, signal, sys
from pathlib import Path
from lmk.embed.gldv2 import dataset
left, real = int(sys.argv[3]), os.replace
def replace(*names, **folders):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*names, **folders)
os.replace = replace
dataset.download("train", [0, 1], Path(sys.argv[2]), mirror=sys.argv[1], jobs=1)
"""

REPORT_BYTES = """
import sys
from pathlib import Path
from lmk.embed.gldv2 import dataset
def told(name, done, total):
    print(name, done, flush=True)
dataset.download("train", [0], Path(sys.argv[2]), mirror=sys.argv[1], jobs=1, on_bytes=told)
"""


@pytest.mark.slow
def test_killed_at_every_rename_nothing_is_half_there(mirror, tmp_path):
    """SIGKILL before the k-th rename, for every k until a run gets through."""
    whole = {name for shard in (0, 1) for name in picture_names("train", shard)}
    kills, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        kills += 1
        out = tmp_path / str(kills)
        command = [sys.executable, "-c", KILL_AT_RENAME, mirror.url + "/gl", str(out), str(kills)]
        code = subprocess.run(command, check=False, timeout=60, capture_output=True).returncode
        placed = {p.relative_to(out / "train").as_posix(): p for p in out.glob("train/**/*.jpg")}
        assert placed.keys() <= whole
        assert all(path.read_bytes() == picture(name) for name, path in placed.items())
        for record in (out / ".gldv2/train").glob("*.json"):
            for path, size in json.loads(record.read_text())["files"].items():
                assert (out / path).stat().st_size == size
        assert get(mirror, out, shards="0,1").missing == ()
        expect_pictures(out, "train", [0, 1])
        assert not list(out.rglob("*.part*"))
        assert not list(out.rglob("*.tar"))
    assert code == 0
    assert kills > 30  # licences, 5 csv, 2 checksums, 2 archives, 10 pictures: notes and records


@pytest.mark.slow
def test_killed_in_the_middle_of_an_archive_the_rest_is_fetched(mirror, faults, tmp_path):
    body = random.Random(1).randbytes(3_000_000)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("a/b/c/abc.jpg")
        member.size = len(body)
        tar.addfile(member, io.BytesIO(body))
    put(mirror, "train", 0, out.getvalue())
    path = "/gl/train/images_000.tar"
    mirror.faults[path] = [faults.stall(2_000_000)]
    command = [sys.executable, "-c", REPORT_BYTES, mirror.url + "/gl", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if re.match(r"train/images_000.tar 1[5-9]\d{5}|train/images_000.tar 2000000", line):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert get(mirror, tmp_path, shards="0").missing == ()
    resumed = mirror.asked(path)[1]["Range"]
    assert int(re.findall(r"\d+", resumed)[0]) > 1_400_000
    assert (tmp_path / "train/a/b/c/abc.jpg").read_bytes() == body


def test_ctrl_c_ends_the_command_at_once_though_the_server_hangs(mirror, faults, tmp_path):
    mirror.faults["/gl/test/images_000.tar"] = [faults.stall(5000)]
    script = "from lmk.cli.data.group import data; data()"
    arguments = ["gldv2", "--split=test", "--shards=0,1", f"--output={tmp_path}", "--jobs=2"]
    command = [sys.executable, "-c", script, *arguments, f"--mirror={mirror.url}/gl"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("test/images_001.tar"):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.endswith("stopped; run the same command again to continue\n")
    assert "Traceback" not in rest
    assert get(mirror, tmp_path, "test", "0,1").missing == ()
    expect_pictures(tmp_path, "test", [0, 1])
