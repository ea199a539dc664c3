from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from lmk.cli.data.check_page import check_lines
from lmk.embed.data.manifest import Row
from lmk.eval.check.gallery_check import KINDS, DataFinding, GalleryCheck

REAL_KEYS = {"pictures", "photos", "other_files", "k", "skewness", "counts", "findings"}


@pytest.fixture
def clean(tmp_path, render) -> Path:
    """Two landmarks of two quite different pictures each: nothing to find."""
    folder = tmp_path / "gallery"
    for seed in range(4):
        path = folder / f"place_{seed // 2}" / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(seed, width=200, height=150)).save(path, quality=95)
    return folder


@pytest.fixture
def faulty(clean) -> Path:
    """The clean folder and one fault of each kind that needs no larger gallery."""
    original = clean / "place_0" / "0.jpg"
    photo = Image.open(original)
    (clean / "place_0" / "equal.jpg").write_bytes(original.read_bytes())
    ImageOps.mirror(photo).save(clean / "place_1" / "mirrored.jpg", quality=70)
    (clean / "place_1" / "cut.jpg").write_bytes(original.read_bytes()[:900])
    (clean / "place_1" / "empty.jpg").write_bytes(b"")
    (clean / "place_1" / "notes.txt").write_text("not a picture")
    (clean / "alone").mkdir()
    Image.new("RGB", (30, 20), "green").save(clean / "alone" / "tiny.png")
    return clean


@pytest.fixture
def check(lmk, tiny) -> Callable:
    def run(manifest: object, *more: object):
        return lmk("data", "check", manifest, "--model", tiny, *more)

    return run


def test_a_clean_folder_exits_with_0(check, clean):
    done = check(clean)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("4 pictures: nothing found; skewness of the 3-occurrence")


def test_each_fault_is_told_and_the_exit_code_is_1(check, faulty):
    done = check(faulty)
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("7 pictures (1 of them equal to others): 6 findings")
    heads = [line.split("  (")[0] for line in lines if line and line[0].isalpha()]
    assert heads == [
        "unreadable  2",
        "near_duplicate_conflict  1",
        "duplicate  1",
        "single_picture  1",
        "small  1",
    ]
    assert "   1.000  place_1/empty.jpg: empty file (0 bytes)" in lines
    assert "   1.000  place_0/0.jpg  place_0/equal.jpg: 2 equal files" in lines
    assert "place_0/0.jpg  place_1/mirrored.jpg: 2 pictures of one photo" in done.out
    assert "under place_0, place_1" in done.out


def test_places_that_cannot_be_looked_at_are_findings(check, clean):
    (clean / "away").symlink_to("/mnt/nowhere/away")
    (clean / "empty").mkdir()
    done = check(clean)
    assert (done.code, done.err) == (1, "")
    assert "   1.000  away: a link that leads nowhere" in done.out.splitlines()
    assert "empty" not in done.out
    told = json.loads(check(clean, "--json").out)
    assert (told["other_files"], told["counts"]["unreadable"]) == (0, 1)


def test_json_is_one_object_with_everything(check, faulty):
    done = check(faulty, "--json", "--limit", 1)
    assert done.code == 1
    told = json.loads(done.out)
    assert set(told) == REAL_KEYS
    assert (told["pictures"], told["photos"], told["other_files"]) == (7, 6, 1)
    assert list(told["counts"]) == list(KINDS)
    assert sum(told["counts"].values()) == len(told["findings"]) == 6
    assert told["counts"]["unreadable"] == 2
    for finding in told["findings"]:
        assert set(finding) == {"kind", "score", "note", "suggestion", "pictures"}
        assert all(set(picture) == {"id", "path", "labels"} for picture in finding["pictures"])
    assert told["findings"][0]["pictures"][0]["labels"] == ["place_1"]


def test_the_sheet_shows_the_pictures_without_scripts_or_other_files(check, faulty, tmp_path):
    sheet = tmp_path / "sheet.html"
    done = check(faulty, "--html", sheet)
    assert done.code == 1
    html = sheet.read_text(encoding="utf-8")
    shown = re.findall(r'<img src="([^"]{30})', html)
    assert len(shown) == 2 + 2 + 1 + 1  # conflict, equal files, the only photo, the small one
    assert set(shown) == {"data:image/jpeg;base64,/9j/4AA"}
    assert html.count("no picture</div>") == 2
    assert "<script" not in html
    assert "http" not in html
    assert 'name="viewport"' in html
    for words in ("place_1/mirrored.jpg", "near duplicate conflict", "30 x 20 pixels"):
        assert words in html


def test_names_are_escaped_on_the_sheet(check, clean, tmp_path):
    (clean / "a<b>&").mkdir()
    (clean / "a<b>&" / "1.jpg").write_bytes(b"")
    check(clean, "--html", tmp_path / "sheet.html")
    html = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "a&lt;b&gt;&amp;/1.jpg" in html
    assert "a<b>" not in html


def test_limit_cuts_table_and_sheet_and_says_so(check, faulty, tmp_path):
    done = check(faulty, "--limit", 1, "--html", tmp_path / "sheet.html")
    assert "and 1 more: see --limit" in done.out
    html = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "the worst 1 are shown" in html
    assert html.count("no picture</div>") == 1


def test_a_table_with_another_root(check, clean, tmp_path):
    table = tmp_path / "elsewhere" / "list.csv"
    table.parent.mkdir()
    table.write_text("id,path,landmark_id\na,place_0/0.jpg,x\nb,place_0/1.jpg,x\n")
    done = check(table, "--root", clean)
    assert (done.code, done.out.splitlines()[0][:10]) == (0, "2 pictures")


def test_kept_features_are_used_again(check, clean, tmp_path, monkeypatch):
    kept = tmp_path / "features"
    first = check(clean, "--save-features", kept)
    assert first.code == 0
    assert list(kept.rglob("*.safetensors"))
    from lmk.embed.extract.embedder import Embedder

    monkeypatch.setattr(Embedder, "start", None)  # computing anything would fail
    assert check(clean, "--save-features", kept) == first
    assert check(clean).code == 1  # without them it would be computed


def test_an_empty_folder_is_a_wrong_call(check, tmp_path):
    check(tmp_path).refused(2, "no pictures in this folder")


def test_wrong_calls(check, lmk, clean, tmp_path):
    check(tmp_path / "none").refused(2, "no such folder")
    check(clean, "--limit", 0).refused(2, "--limit")
    check(clean, "--html", tmp_path / "no" / "sheet.html").refused(2, "no such folder")
    check(clean, "--root", tmp_path / "no").refused(2, "--root")
    lmk("data", "check", clean, "--model", "nonesuch").refused(2, "nonesuch")


def test_all_files_unreadable(check, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.jpg").write_text("no picture")
    done = check(folder, "--json")
    told = json.loads(done.out)
    assert done.code == 1
    assert (told["pictures"], told["counts"]["unreadable"], told["k"]) == (0, 3, 0)


def test_long_findings_are_shortened_on_a_line():
    rows = tuple(Row(f"{n}", f"{n}.jpg") for n in range(6))
    findings = (
        DataFinding("duplicate", 1.0, rows, "6 equal files"),
        DataFinding("hub", 5.0, rows, "among many"),
    )
    lines = check_lines(GalleryCheck(60, 55, findings, 10, 2.5), 5)
    assert lines[0] == (
        "60 pictures (5 of them equal to others): 2 findings; skewness of the 10-occurrence 2.50"
    )
    assert "   1.000  0.jpg  1.jpg  2.jpg  and 3 more: 6 equal files" in lines
    assert "   5.000  0.jpg: among many" in lines
