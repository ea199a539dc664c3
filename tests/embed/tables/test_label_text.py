"""Labels as text: one form everywhere, and cells of one or several."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.embed.data.label_table import LabelTable
from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.tables.label_forms import (
    difference,
    form_key,
    similar_groups,
    similar_pairs,
    similar_text,
)
from lmk.embed.tables.label_text import join_labels, plain_name, read_labels, split_labels
from lmk.eval.files.tag_files import read_tag_table
from lmk.eval.files.truth import Truth

CAFE = unicodedata.normalize("NFC", "Café")
CAFE_NFD = unicodedata.normalize("NFD", CAFE)


def test_plain_names() -> None:
    assert plain_name(" Golden \t Temple\n") == "Golden_Temple"
    assert plain_name("Place\u00a0de\u3000l'Étoile") == "Place_de_l'Étoile"
    assert plain_name(CAFE_NFD) == CAFE and CAFE != CAFE_NFD


@pytest.mark.parametrize(
    ("cell", "single", "several"),
    [
        ("Golden Temple", ("Golden_Temple",), ("Golden", "Temple")),
        ("Golden Temple|Big Ben", ("Golden_Temple", "Big_Ben"), ("Golden_Temple", "Big_Ben")),
        ("Golden Temple|", ("Golden_Temple",), ("Golden_Temple",)),
        (" 17 ", ("17",), ("17",)),
        ("", (), ()),
        (" | ", (), ()),
        (f"{CAFE_NFD} b", (f"{CAFE}_b",), (CAFE, "b")),
    ],
)
def test_cells(cell: str, single: tuple[str, ...], several: tuple[str, ...]) -> None:
    assert split_labels(cell, several=False) == single
    assert split_labels(cell, several=True) == several
    for column, labels in (("label", single), ("tags", several)):
        again = split_labels(join_labels(labels, column), several=column == "tags")
        assert again == labels


def test_words_for_a_missing_value() -> None:
    words = ["nan", "NaN", "<NA>", "None", "NULL", "N/A", "#N/A"]
    labels, notes = read_labels([*words, "x"], "landmark_id")
    assert labels == [()] * len(words) + [("x",)]
    assert len(notes) == 1 and notes[0].startswith("7 cells say '#N/A' or '<NA>' or")
    assert notes[0].endswith("in the column landmark_id: read as no label")
    # A landmark may be called so: said, but read as it stands.
    for word in ("none", "NA", "-", "unknown", "no landmark", "-1"):
        labels, notes = read_labels([word, ""], "label")
        assert labels == [(plain_name(word),), ()]
        assert notes == [
            f"1 cell says {word!r} in the column label: read as the name of a landmark; leave the "
            "cell empty where there is none"
        ]
    assert read_labels(["", "0", "x"], "label") == ([(), ("0",), ("x",)], [])


def test_whole_numbers_written_as_floats() -> None:
    labels, notes = read_labels(["123.0", "", "7.0"], "landmark_id")
    assert labels == [("123",), (), ("7",)]
    assert notes == [
        "the labels of the column landmark_id are whole numbers written as floats (123.0): read "
        "as 123"
    ]
    assert read_labels(["12.0 3.0", "4.00"], "landmarks")[0] == [("12", "3"), ("4",)]
    assert read_labels(["123.0", "123"], "label") == ([("123.0",), ("123",)], [])
    assert read_labels(["1.000", "2.000"], "label")[0] == [("1.000",), ("2.000",)]
    assert read_labels(["1.5", "2.0"], "label") == ([("1.5",), ("2.0",)], [])


def test_several_numbers_in_a_column_of_one_label() -> None:
    labels, notes = read_labels(["17 4", "5"], "landmark_id")
    assert labels == [("17_4",), ("5",)]
    assert "'17 4' as 17_4" in notes[0] and "separate several labels by '|'" in notes[0]
    assert read_labels(["17 4", "5"], "landmarks") == ([("17", "4"), ("5",)], [])


def test_words_that_never_stand_apart() -> None:
    cells = ["Golden Temple", "Golden Temple ", "Golden Temple", "Paris"]
    labels, (note,) = read_labels(cells, "landmarks")
    assert labels[0] == ("Golden", "Temple")
    assert note.startswith("3 cells of the column landmarks with words that never stand apart")
    assert "'Golden Temple'" in note and "end the cell with '|'" in note
    for told in (
        [cell.strip() + "|" for cell in cells],  # the way out
        [*cells, "Temple Bar", "Golden Gate"],  # labels of their own elsewhere
        ["Golden Temple", "Paris"],  # once: two tags of one picture
        ["17 4", "17 4"],
    ):
        assert read_labels(told, "landmarks")[1] == []
    assert read_labels(cells, "landmark_id")[1] == []


@pytest.mark.parametrize("cell", ["1, 2", "['a', 'b']", "a; b", "1,"])
def test_cells_that_may_be_lists(cell: str) -> None:
    labels, notes = read_labels([cell, "x"], "labels")
    assert labels[0] == tuple(cell.split())
    assert len(notes) == 1 and notes[0].startswith("1 cell of the column labels may be lists")
    assert read_labels(["Paris, France", "x,y"], "label")[1] == []


class TestForms:
    @pytest.mark.parametrize(
        ("first", "second", "form"),
        [
            ("Paris", "PARIS", "case"),
            ("123", "123.0", "a whole number written as a float"),
            ("0123", "123", "leading zeros"),
            ("Big_Ben", "Big-Ben", "blanks, underscores or hyphens"),
            ("BigBen", "Big_Ben", "blanks, underscores or hyphens"),
            ("big ben", "Big_Ben", "case, blanks, underscores or hyphens"),
            ("Temple", "Temple\u200b", "invisible letters or the Unicode form"),
            ("\ufb01n", "fin", "invisible letters or the Unicode form"),
        ],
    )
    def test_differences(self, first: str, second: str, form: str) -> None:
        assert form_key(first) == form_key(second)
        assert difference(first, second) == difference(second, first) == form

    def test_what_is_another_name(self) -> None:
        names = ["12", "123", "1.5", "15", "ガ", "カ", "Zürich", "Zurich", "a", "b"]
        assert len({form_key(name) for name in names}) == len(names)

    def test_groups_and_pairs(self) -> None:
        assert similar_groups(["a", "A", "b", "1", "1.0", "01"]) == [("01", "1", "1.0"), ("A", "a")]
        assert similar_pairs(["a", "B", "c"], ["a", "b", "B"]) == []
        assert similar_pairs(["A", "7", "x"], ["a", "07"]) == [("7", "07"), ("A", "a")]
        assert similar_text([("7", "07"), ("A", "a")], "label") == (
            "2 labels differ from others only in form, as '7' and '07' (leading zeros)"
        )
        assert similar_text([], "label") == ""


class TestOneForm:
    """A folder, a table and a solution of the same landmarks have the same labels."""

    @pytest.fixture
    def save(self, tmp_path: Path) -> Callable[[str, str], Path]:
        def write(name: str, text: str) -> Path:
            path = tmp_path / name
            path.write_text(text)
            return path

        return write

    def test_of_several_words(self, tmp_path: Path, save: Callable[[str, str], Path]) -> None:
        picture = tmp_path / "g" / "Golden Temple" / "1.jpg"
        picture.parent.mkdir(parents=True)
        picture.touch()
        folder = read_manifest(tmp_path / "g")
        listed = read_manifest(save("g.csv", "id,path,label\n1,x.jpg,Golden Temple\n"))
        truths = [
            Truth.read(save("s.csv", text))
            for text in (
                "id,label\nq,Golden Temple\n",
                "id,landmark_id\nq, Golden  Temple \n",
                "id,landmarks\nq,Golden Temple|\n",
                "landmark_id,images\nGolden Temple,q r\n",
            )
        ]
        wanted = ("Golden_Temple",)
        assert folder.rows[0].labels == listed.rows[0].labels == wanted
        assert [truth.labels[0] for truth in truths] == [wanted] * 4

    def test_of_both_unicode_forms(self, tmp_path: Path, save: Callable[[str, str], Path]) -> None:
        for number, name in enumerate((CAFE, CAFE_NFD)):
            (tmp_path / "g" / name).mkdir(parents=True)
            (tmp_path / "g" / name / f"{number}.jpg").touch()
        folder = read_manifest(tmp_path / "g")
        assert {row.labels for row in folder.rows} == {(CAFE,)}
        assert {row.id for row in folder.rows} == {f"{CAFE}/0.jpg", f"{CAFE}/1.jpg"}
        assert {row.path for row in folder.rows} == {f"{CAFE}/0.jpg", f"{CAFE_NFD}/1.jpg"}
        assert all(folder.file(row).exists() for row in folder.rows)
        truth = Truth.read(save("s.csv", f"id,label\n{CAFE_NFD}.jpg,{CAFE_NFD}\n"))
        assert (truth.query_ids, truth.labels) == ((f"{CAFE}.jpg",), ((CAFE,),))
        assert Manifest(tmp_path, (Row(CAFE_NFD, "a.jpg", (CAFE_NFD, CAFE)),)).rows == (
            Row(CAFE, "a.jpg", (CAFE,)),
        )

    def test_of_tags(self, save: Callable[[str, str], Path]) -> None:
        predictions = save("p.csv", f"id,tags\n{CAFE_NFD},{CAFE_NFD}:0.5 sun:0.2\n")
        table = read_tag_table(predictions, save("t.csv", f"ID;Tags\n{CAFE};{CAFE}|dark blue\n"))
        assert set(table.names) == {
            CAFE, "dark_blue", "sun",
        }  # fmt: skip
        assert table.truth.sum() == 2 and not table.missing

    def test_a_table_of_labels_written_again(self, save: Callable[[str, str], Path]) -> None:
        for column, cell in (("label", "Golden Temple|Big Ben"), ("tags", "Golden_Temple Big_Ben")):
            table = LabelTable(save("t.csv", f"Id;note;{column}\na;x;{cell}\nb;y;None\n"))
            assert table.labels == {"a": ("Golden_Temple", "Big_Ben"), "b": ()}
            again = save("again.csv", table.with_labels({"b": ("one", "two")}))
            assert LabelTable(again).labels == table.labels | {"b": ("one", "two")}
            assert again.read_text().startswith(f"id,note,{column}\na,x,")


def test_words_for_a_missing_value_in_other_places(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "nan").mkdir()
    (tmp_path / "nan" / "a.jpg").touch()
    assert read_manifest(tmp_path).rows[0].labels == ("nan",)
    (tmp_path / "p.csv").write_text("id,tags\na,None\nb,x:1\n")
    (tmp_path / "t.csv").write_text("id,tags\na,nan\nb,x\n")
    assert read_tag_table(tmp_path / "p.csv", tmp_path / "t.csv").names == ("x",)
    assert [text.partition(": ")[2] for text in caplog.messages] == [
        "'nan' is the name of a landmark here, and no label in a table: rename the landmark, or "
        "give these pictures no landmark",
        "1 cell says 'nan' in the column tags: read as no label",
        "1 cell says 'None' in the column tags: read as no label",
    ]


def test_labels_that_differ_only_in_form_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "g.csv"
    path.write_text("id,path,landmark_id\na,a.jpg,123\nb,b.jpg,123.0\n")
    assert [row.labels for row in read_manifest(path).rows] == [("123",), ("123.0",)]
    assert caplog.messages == [
        f"{path}: 1 label differs from others only in form, as '123' and '123.0' (a whole number "
        "written as a float): they stay different labels"
    ]
