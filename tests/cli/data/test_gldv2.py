from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from lmk.cli.data import group as data_group
from lmk.cli.progress import DownloadProgress
from lmk.embed.errors import DownloadError, StorageError, UsageError
from lmk.embed.gldv2 import dataset
from lmk.embed.gldv2.dataset import Item

PICTURE = "0/1/2/0123456789abcde{}.jpg"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Iterator[str]:
    """The test split with shards 0 and 1, from the standard library's own file server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    root = tmp_path / "mirror"
    for path in dataset.METADATA["test"]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("id\n")
    (root / "test").mkdir()
    (root / "md5sum/test").mkdir(parents=True)
    for shard in range(2):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            tar.addfile(tarfile.TarInfo(PICTURE.format(shard)))
        (root / f"test/images_00{shard}.tar").write_bytes(out.getvalue())
        md5 = hashlib.md5(out.getvalue()).hexdigest()
        (root / f"md5sum/test/md5.images_00{shard}.txt").write_text(f"{md5}  x.tar\n")
    handler = functools.partial(Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def run(out: Path, mirror: str, *more: str, shards: str = "0-1") -> Result:
    arguments = ["gldv2", "--split", "test", "--shards", shards, "-o", str(out)]
    return CliRunner().invoke(data_group.data, [*arguments, "--mirror", mirror, *more])


def test_pictures_and_metadata_arrive(mirror, tmp_path):
    out = tmp_path / "out"
    result = run(out, mirror, "--jobs", "2")
    assert result.exit_code == 0
    assert result.stdout == (f"{out}: 5 files downloaded, 0 present, 0 missing; 2 pictures\n")
    lines = sorted(result.stderr.splitlines())
    assert "test/images_000.tar: 0.0 MB, 1 pictures" in lines
    assert f"licences of the pictures: {out / 'LICENSES.txt'}" in lines
    assert len(lines) == 6
    assert "\x1b" not in result.stderr
    assert (out / "test" / PICTURE.format(1)).is_file()
    assert (out / "metadata/recognition_solution_v2.1.csv").is_file()
    assert not (out / "archives").exists()


def test_a_rerun_says_that_all_is_here(mirror, tmp_path):
    run(tmp_path / "out", mirror)
    result = run(tmp_path / "out", mirror)
    assert result.exit_code == 0
    assert "0 files downloaded, 5 present, 0 missing; 2 pictures" in result.stdout
    assert result.stderr.count("already here") == 5


def test_json_is_one_object_on_stdout(mirror, tmp_path):
    result = run(tmp_path / "out", mirror, "--json", "--keep-archives", shards="1")
    summary = json.loads(result.stdout)
    archive = tmp_path / "out/archives/test/images_001.tar"
    assert summary["items"][-1] == {
        "name": "test/images_001.tar",
        "status": "downloaded",
        "images": 1,
        "bytes": archive.stat().st_size,
        "md5": hashlib.md5(archive.read_bytes()).hexdigest(),
        "error": None,
    }
    assert summary["complete"] is True
    assert summary["missing"] == []
    assert summary["images"] == 1
    assert (summary["split"], summary["out"]) == ("test", str(tmp_path / "out"))


def test_missing_files_are_listed_and_the_exit_code_is_1(mirror, tmp_path):
    (tmp_path / "mirror/test/images_000.tar").unlink()
    (tmp_path / "mirror/metadata/test.csv").unlink()
    result = run(tmp_path / "out", mirror, "--json")
    summary = json.loads(result.stdout)
    assert summary["complete"] is False
    assert summary["missing"] == ["metadata/test.csv", "test/images_000.tar"]
    assert [item["error"] is None for item in summary["items"]] == [False, True, True, False, True]
    assert isinstance(result.exception, DownloadError)
    assert result.exception.exit_code == 1
    assert re.match(
        r"2 of 5 files are missing: metadata/test\.csv, test/images_000\.tar; run the same",
        str(result.exception),
    )
    assert "test/images_000.tar: http://127.0.0.1" in result.stderr
    assert "404" in result.stderr


def test_a_full_disk_is_the_error_shown(mirror, tmp_path, monkeypatch):
    report = dataset.Report(
        (
            Item("metadata/test.csv", "missing", error=DownloadError("gone")),
            Item("test/images_000.tar", "missing", error=StorageError("full")),
            Item("test/images_001.tar", "missing"),
        )
    )

    def download(*args, on_item, **more) -> dataset.Report:
        for item in report.items:
            on_item(item)
        return report

    monkeypatch.setattr(dataset, "download", download)
    result = run(tmp_path / "out", mirror)
    assert isinstance(result.exception, StorageError)
    assert str(result.exception) == "full"
    assert "test/images_001.tar: not tried" in result.stderr


def test_ctrl_c_says_how_to_go_on(mirror, tmp_path, monkeypatch):
    def interrupted(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "download", interrupted)
    result = run(tmp_path / "out", mirror)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr == "stopped; run the same command again to continue\n"


@pytest.mark.parametrize("shards", ["20", "3-1", "x", ""])
def test_wrong_shards_are_a_usage_error(mirror, tmp_path, shards):
    result = run(tmp_path / "out", mirror, shards=shards)
    assert isinstance(result.exception, UsageError)
    assert not (tmp_path / "out").exists()


def test_a_wrong_mirror_is_a_usage_error(tmp_path):
    assert isinstance(run(tmp_path / "out", "ftp://x").exception, UsageError)


@pytest.mark.parametrize("more", [("--jobs", "0"), ("--jobs", "33"), ("--split", "val")])
def test_wrong_options(mirror, tmp_path, more):
    assert run(tmp_path / "out", mirror, *more).exit_code == 2


def test_defaults_are_the_library_s():
    options = {option.name: option for option in data_group.gldv2.params}
    assert options["mirror"].default == dataset.BASE_URL
    assert list(options["split"].type.choices) == list(dataset.SHARDS)


def test_help_states_sizes_and_an_example():
    result = CliRunner().invoke(data_group.data, ["gldv2", "--help"])
    assert "about 1 GB" in result.output
    assert "Example: lmk data gldv2" in result.output


def test_a_terminal_sees_bars_that_go_away():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with DownloadProgress(console) as progress:
        progress.bytes_came("test/images_000.tar", 1_000_000, 4_000_000)
        progress.bytes_came("test/images_000.tar", 2_000_000, 4_000_000)
        progress.refresh()
        assert "2.0/4.0 MB" in screen.getvalue()
        progress.item_ended(Item("test/images_000.tar", "downloaded", 7, 4_000_000))
        assert progress.tasks == []
    assert "test/images_000.tar: 4.0 MB, 7 pictures" in screen.getvalue()
