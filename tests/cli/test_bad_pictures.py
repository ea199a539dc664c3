"""Odd and damaged pictures through the commands: named with a reason, the others answered."""

from __future__ import annotations

import csv
import json
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., object]


def png_bomb(side: int) -> bytes:
    """A PNG of side x side grey pixels, all 0: a few hundred kB for 2,500 million pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    squeeze = zlib.compressobj(9)
    line = bytes(1 + (side + 7) // 8)
    body = b"".join(squeeze.compress(line * 1000) for _ in range(side // 1000)) + squeeze.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.fixture
def unreadable(here: Path) -> dict[str, str]:
    """Files below gallery/ that give no picture, and a part of the reason that is given."""
    folder = here / "gallery" / "tower"
    whole = (folder / "0.jpg").read_bytes()
    contents = {
        "cut.jpg": (whole[: len(whole) // 2], "damaged: image file is truncated"),
        "zero.jpg": (b"", "empty file (0 bytes)"),
        "bomb.png": (png_bomb(50_000), "pixels, over the limit of 178 million"),
        "text.jpg": (b"I am a text", "not a picture that can be decoded"),
    }
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    (folder / "notes.txt").write_text("notes")
    (folder / "loop").symlink_to("..", target_is_directory=True)
    (folder / "dangling.jpg").symlink_to("nothing.jpg")
    (folder / "self.jpg").symlink_to("self.jpg")
    return {f"tower/{name}": reason for name, (_, reason) in contents.items()} | {
        "tower/notes.txt": "not a picture (.txt)",
        "tower/loop": "a link to a folder that was already read",
        "tower/dangling.jpg": "no such file",
        "tower/self.jpg": "cannot be read: too many levels of symbolic links",
    }


@pytest.fixture
def unusual(here: Path) -> list[str]:
    """Pictures of odd kinds and names that must be read like any other."""
    folder = here / "gallery" / "Собор Василия"
    folder.mkdir()
    pixels = np.asarray(Image.open(here / "gallery" / "castle" / "0.jpg"))
    rgb = Image.fromarray(pixels)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    grey = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "deep.png")
    frames = [rgb.rotate(90 * n) for n in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    rgb.save(folder / "東京 タワー 1.jpg")
    rgb.save(folder / "naïve -k 'x'; rm.png")
    rgb.convert("RGBA").save(folder / "alpha.webp")
    return sorted(path.name for path in folder.iterdir())


def test_build_index_skips_what_is_no_picture_and_says_why(
    lmk: Run, here: Path, tiny: Path, unreadable: dict[str, str], unusual: list[str]
) -> None:
    done = lmk("build-index", "gallery", "--model", tiny, "--json")
    assert done.code == 0
    summary = json.loads(done.out)
    assert summary["pictures"] == 12 + len(unusual)
    skipped = {skip["path"]: skip["reason"] for skip in summary["skipped"]}
    assert skipped.keys() == unreadable.keys()
    for path, reason in unreadable.items():
        assert reason in skipped[path]
    facts = json.loads(lmk("info", "gallery.lmk", "--json").out)
    assert {file["path"] for file in facts["skipped_files"]} == unreadable.keys()
    assert facts["landmarks"] == 4


def test_build_index_lists_the_skipped_files_on_stderr(
    lmk: Run, here: Path, tiny: Path, unreadable: dict[str, str]
) -> None:
    for n in range(4):
        (here / "gallery" / f"note{n}.txt").write_text("x")
    done = lmk("build-index", "gallery", "--model", tiny)
    assert done.code == 0
    assert done.out.startswith("gallery.lmk: 12 pictures in ")
    *skipped, hint = done.complaints
    assert "on 12 pictures only" in hint
    assert len(skipped) == 11  # ten of the twelve, and how many more
    assert all(line.startswith("lmk: skipped ") for line in skipped)
    assert skipped[-1] == "lmk: skipped 2 more (lmk index info gallery.lmk lists them)"
    listed = lmk("info", "gallery.lmk").out
    assert listed.count("\nskipped        ") == 12
    assert "skipped        tower/zero.jpg: empty file (0 bytes)\n" in listed


def test_query_answers_the_others(
    lmk: Run, here: Path, unreadable: dict[str, str], unusual: list[str]
) -> None:
    del unreadable["tower/notes.txt"], unreadable["tower/loop"]
    bad = [f"gallery/{path}" for path in unreadable]
    good = [f"gallery/Собор Василия/{name}" for name in unusual]
    mixed = [name for pair in zip(bad, good, strict=True) for name in pair]
    done = lmk("query", *mixed, "-i", "sample.lmk", "--json", "--html", "a.html")
    assert done.code == 1
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["query"] for row in rows] == mixed
    assert {row["query"] for row in rows if "error" in row} == set(bad)
    for row in rows:
        if "error" in row:
            assert unreadable[row["query"].removeprefix("gallery/")] in row["error"]
            line = f"lmk: {row['query']}: {row['error']}; it has no answer"
            assert line in done.complaints
        elif "deep" not in row["query"]:  # that one is grey
            assert row["best"] == "castle"
    assert len(done.complaints) == len(bad)
    page = (here / "a.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert "東京 タワー 1.jpg" in page
    assert "naïve -k &#39;x&#39;; rm.png" in page
    for path in bad:
        assert f"<b>{path}</b>" in page


def test_submit_leaves_unreadable_pictures_blank_but_names_each(
    lmk: Run, here: Path, unreadable: dict[str, str]
) -> None:
    for task in ("recognition", "retrieval"):
        done = lmk("submit", "gallery", "-i", "sample.lmk", "-o", "s.csv", "--task", task)
        assert done.code == 0
        assert done.out == "s.csv: 18 queries, 6 left blank\n"
        # What is no picture by its name is no query, but it is named.
        assert len(done.complaints) == 8
        with (here / "s.csv").open(newline="", encoding="utf-8") as file:
            rows = {row["id"]: row for row in csv.DictReader(file)}
        column = "landmarks" if task == "recognition" else "images"
        blank = {id_ for id_, row in rows.items() if not row[column]}
        assert blank == unreadable.keys() - {"tower/notes.txt", "tower/loop"}
        assert len(rows) == 18


def test_blanks_in_names_become_underscores_in_ids_and_labels(
    lmk: Run, here: Path, tiny: Path, unusual: list[str]
) -> None:
    assert lmk("build-index", "gallery", "--model", tiny).code == 0
    answer = json.loads(
        lmk("query", "gallery/Собор Василия/東京 タワー 1.jpg", "-i", "gallery.lmk", "--json").out
    )
    found = {near["id"]: near for near in answer["neighbours"]}
    near = found["Собор_Василия/東京_タワー_1.jpg"]
    assert near["labels"] == ["Собор_Василия"]
    assert near["path"] == "gallery/Собор Василия/東京 タワー 1.jpg"
    assert near["score"] == pytest.approx(1, abs=1e-3)


def test_a_name_that_is_no_utf8_stops_nothing(
    lmk_process: Run, here: Path, tiny: Path, paint: Callable[..., Path]
) -> None:
    """A name is bytes to the system; JSON, CSV and HTML cannot hold these as they are."""
    odd = os.fsdecode(b"gallery/tower/caf\xe9.jpg")
    try:
        paint(here / "gallery" / "tower" / "x.jpg", 2).rename(odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    strict = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"}
    built = lmk_process("build-index", "gallery", "--model", tiny, "--json", env=strict)
    assert built.code == 0, built.err
    skipped = [skip["path"] for skip in json.loads(built.out)["skipped"]]
    assert skipped == ["tower/caf\\udce9.jpg"]
    asked = lmk_process("query", odd, "-i", "gallery.lmk", "--json", "--html", "a.html", env=strict)
    assert (asked.code, asked.err) == (0, "")
    answer = json.loads(asked.out)
    assert os.fsencode(answer["query"]) == os.fsencode(odd)  # JSON escapes bring the bytes back
    assert answer["best"] == "tower"
    page = (here / "a.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert "gallery/tower/caf\\udce9.jpg" in page


def test_the_same_picture_named_twice_is_answered_once(lmk: Run, here: Path) -> None:
    done = lmk("query", "queries/q_tower.jpg", "queries/q_tower.jpg", "-i", "sample.lmk", "--json")
    assert done.code == 0, done.err
    assert [json.loads(line)["query"] for line in done.out.splitlines()] == ["queries/q_tower.jpg"]


@pytest.fixture
def half_lost(here: Path) -> dict[str, str]:
    """Pictures below gallery/tower of which a half is missing, closed as if they were whole."""
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    folder = here / "gallery" / "tower"
    rgb.save(folder / "closed.jpg", quality=90)
    data = (folder / "closed.jpg").read_bytes()
    half = len(data) // 2
    (folder / "closed.jpg").write_bytes(data[:half] + b"\xff\xd9")
    (folder / "zeros.jfif").write_bytes(data[:half] + bytes(len(data) - half))
    return {f"tower/{name}": "damaged: image file is truncated (" for name in
            ("closed.jpg", "zeros.jfif")}  # fmt: skip


def test_half_lost_pictures_are_named_and_left_out(
    lmk_process: Run, here: Path, tiny: Path, half_lost: dict[str, str]
) -> None:
    """In a process: libjpeg would print its own line there, without a name."""
    built = lmk_process("build-index", "gallery", "--model", tiny, "--json")
    assert built.code == 0
    summary = json.loads(built.out)
    assert summary["pictures"] == 12
    skipped = {skip["path"]: skip["reason"] for skip in summary["skipped"]}
    assert skipped.keys() == half_lost.keys()
    assert all(skipped[path].startswith(reason) for path, reason in half_lost.items())
    assert all(line.startswith("lmk: ") for line in built.complaints)


def test_data_check_lists_half_lost_pictures(
    lmk: Run, here: Path, tiny: Path, half_lost: dict[str, str]
) -> None:
    done = lmk("data", "check", "gallery", "--model", tiny, "--json")
    assert done.code == 1
    found = [finding for finding in json.loads(done.out)["findings"]
             if finding["kind"] == "unreadable"]  # fmt: skip
    assert {finding["pictures"][0]["path"] for finding in found} == half_lost.keys()
    assert all("% of the picture is missing" in finding["note"] for finding in found)


def test_submit_writes_a_blank_row_for_what_is_a_picture_by_its_ending(
    lmk: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif")
    folder = here / "photos"
    folder.mkdir()
    photo = Image.open(here / "gallery" / "tower" / "0.jpg").convert("RGB")
    heif.from_pillow(photo).save(folder / "b.heic", quality=95)
    (folder / "a.jfif").write_bytes((here / "gallery" / "tower" / "0.jpg").read_bytes())
    (folder / "c.jxl").write_bytes(b"\xff\x0a" + bytes(50))
    (folder / "d.jpg").write_bytes((folder / "b.heic").read_bytes())

    def rows() -> dict[str, str]:
        done = lmk("submit", "photos", "-i", "sample.lmk", "-o", "s.csv")
        assert done.code == 0
        with (here / "s.csv").open(newline="", encoding="utf-8") as file:
            return {row["id"]: row["landmarks"].partition(" ")[0] for row in csv.DictReader(file)}

    assert rows() == {"a": "tower", "b": "tower", "c": "", "d": "tower"}
    (here / "s.csv").unlink()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert rows() == {"a": "tower", "b": "", "c": "", "d": ""}
