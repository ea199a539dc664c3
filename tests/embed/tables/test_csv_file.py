"""CSV files as people have them: read where they are unambiguous, else refused in one line."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.embed.errors import LmkError, ManifestError, StorageError, SubmissionError, UsageError
from lmk.embed.tables import compressed_file
from lmk.embed.tables.csv_file import MAX_CELL, CsvFile

KNOWN = ("id", "landmark_id", "Usage", "path")
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(data: str | bytes, name: str = "list.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def zipped(**members: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return packed.getvalue()


def read(path: Path, **options: bool) -> tuple[list[str], list[list[str]]]:
    with CsvFile(path, KNOWN, **options) as rows:
        return rows.columns, [row.cells for row in rows]


PLAIN = (["id", "landmark_id"], [["a", "1 2"], ["b", ""]])
TEXT = "id,landmark_id\na,1 2\nb,\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        TEXT.replace(",", ";"),
        TEXT.replace(",", "\t"),
        TEXT.replace(",", "|"),
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("\n", "\r"),
        TEXT.replace("id,", "ID,", 1),
        TEXT.replace("id,landmark_id", " Id , Landmark ID "),
        TEXT.replace("landmark_id", "LANDMARK-ID"),
        "# exported on Monday\n\n" + TEXT,
        "#" + TEXT,
        'sep=;\r\n"id";"landmark_id"\r\n"a";"1 2"\r\n"b";""\r\n',
        TEXT + ",\n , \n\n",
        TEXT + "\x1a",
        "id,landmark_id\na,1 2,,\nb,,\n",
        TEXT.replace("b,", "# three more to come\nb,"),
        "\ufeff" + TEXT,
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        gzip.compress(TEXT.encode(), mtime=0),
        gzip.compress(TEXT.encode("utf-16"), mtime=0),
        zipped(**{"train.csv": TEXT, "__MACOSX/._train.csv": "x"}),
        zipped(**{"folder/train.csv": TEXT, "README.md": "# about"}),
    ],
)
def test_the_same_table_in_many_forms(save: Save, data: str | bytes) -> None:
    assert read(save(data)) == PLAIN


def test_blanks_behind_commas_stand_before_quotes(save: Save) -> None:
    path = save('id, landmark_id\na, "Paris, Eiffel"\n')
    assert read(path) == (["id", "landmark_id"], [["a", "Paris, Eiffel"]])


def test_a_line_break_in_quotes_and_line_numbers(save: Save) -> None:
    path = save('# one\nid,landmark_id\na,"two\nlines"\n\nb,2\n')
    with CsvFile(path, KNOWN) as rows:
        found = list(rows)
    assert rows.line == 2
    assert [(row.line, row.cells) for row in found] == [(3, ["a", "two\nlines"]), (6, ["b", "2"])]


def test_the_wanted_column_is_the_one_spelt_so(save: Save) -> None:
    assert read(save("ID,id,note,note,\nx,a,1,2,\n"))[0] == ["ID", "id", "note", "note", ""]
    assert read(save("id,usage\na,Public\n"))[0] == ["id", "Usage"]


def test_an_id_may_begin_with_a_number_sign(save: Save) -> None:
    assert read(save("id,landmark_id\n#1,x\n"))[1] == [["#1", "x"]]


def test_short_rows(save: Save) -> None:
    path = save("id,landmark_id,path\na\n")
    assert read(path, pad=True)[1] == [["a", "", ""]]
    with pytest.raises(SubmissionError, match="line 2: 1 cells where the header has 3"):
        read(path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", "line 1: an empty file; it needs a header"),
        (",,\n\n", "line 1: an empty file"),
        ("id,id\na,b\n", "line 1: a column name stands twice: id, id; rename"),
        ("ID,Id\na,b\n", "line 1: a column name stands twice: ID, Id; rename"),
        ("id;path\na;b;c\n", "line 2: 3 cells where the header has 2; the cells are separ"),
        ('id,path\na,"b\n', "line 2: not a CSV row"),
        ("id,path\na,b\0\n", "line 2: a NUL byte"),
        ("id,path\ncaf\xe9,b\n".encode("latin-1"), "iconv -f WINDOWS-1252 -t UTF-8 list.csv"),
        ("id,path\na,b\n".encode("utf-16")[:-1], "not UTF-16"),
        ("id,path\na," + "b" * (MAX_CELL + 1), "line 2: not a CSV row: field larger"),
        (gzip.compress(b"id\na\n" * 99, mtime=0)[:-9], "the compressed file is cut or damaged"),
        (b"PK\3\4 and more", "the compressed file is cut or damaged"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("<!DOCTYPE html>\n<html>", "is a web page, not a CSV file"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not a text file"),
        (b"BZh91AY", "is compressed by bzip2; unpack it first"),
        (zipped(**{"a.csv": "x\n"}), "no column 'id'"),
        (zipped(**{"a.csv": "id\n", "b.csv": "id\n"}), "holds 2 CSV files (a.csv, b.csv); unpack"),
        (zipped(**{"a.jpg": "x", "b.jpg": "x"}), "holds no CSV file (a.jpg, b.jpg)"),
        (zipped(), "holds no CSV file"),
    ],
)  # fmt: skip
def test_refused_in_one_line(save: Save, data: str | bytes, says: str) -> None:
    path = save(data)
    with pytest.raises(ManifestError) as caught, CsvFile(path, KNOWN, error=ManifestError) as rows:
        list(rows)
        rows.require("id")
    text = str(caught.value)
    assert says in text and str(path) in text and "; " in text and "\n" not in text


def test_a_missing_column_is_named_with_those_there(save: Save) -> None:
    says = pytest.raises(SubmissionError, match=r"no column 'id'.*columns are: name, place")
    with says, CsvFile(save("name;place\na;b\n"), KNOWN) as rows:
        rows.require("id")


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: zipped(**{"a.csv": data.decode()})])
def test_a_bomb_ends_early(
    save: Save, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed_file, "FREE_BYTES", 2**16)
    path = save(pack(b"id\n" + b"aaaaaaa\n" * 2**20))
    with pytest.raises(SubmissionError, match="holds 300 times its size and more; unpack it first"):
        read(path)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for error, kind in ((SubmissionError, UsageError), (ManifestError, ManifestError)):
        with pytest.raises(kind, match="no such file"):
            CsvFile(tmp_path / "none.csv", KNOWN, error=error)
        with pytest.raises(kind, match="a folder, not a CSV file"):
            CsvFile(tmp_path, KNOWN, error=error)
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    with pytest.raises(StorageError, match="cannot read") as caught:
        CsvFile(tmp_path / "loop.csv", KNOWN)
    assert isinstance(caught.value, LmkError)
