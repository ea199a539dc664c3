"""Tables of landmark details: landmarks.csv, and GLDv2's files as they are."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from lmk.embed.errors import ManifestError, UsageError
from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.embed.tables.landmark_table import read_landmarks


def read(folder: Path, *texts: str | bytes) -> tuple[LandmarkDetails, ...]:
    paths = [folder / f"landmarks{number}.csv" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_landmarks(*paths).details


WHOLE = """\
landmark_id,name,latitude,longitude,url,description,height,Built
eiffel_tower,"Eiffel  Tower",48.8584,2.2945,https://example.org/eiffel,"Iron,
and tall",330 m,1889
big_ben,Big Ben,,,,,96 m,
"""


def test_every_column_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, WHOLE) == (
        LandmarkDetails(
            "eiffel_tower",
            "Eiffel Tower",
            48.8584,
            2.2945,
            "https://example.org/eiffel",
            "Iron,\nand tall",
            (("height", "330 m"), ("Built", "1889")),
        ),
        LandmarkDetails("big_ben", "Big Ben", extra=(("height", "96 m"),)),
    )


@pytest.mark.parametrize(
    "content",
    [
        WHOLE.encode("utf-8-sig"),
        WHOLE.encode("utf-16"),
        WHOLE.replace("\n", "\r\n").replace(",\r\nand", ",\nand").encode(),
        WHOLE.replace("landmark_id,name", " Landmark-ID ,NAME").encode(),
        WHOLE.replace("landmark_id,name", "label,name").encode(),
        b"# made by hand\n" + WHOLE.encode(),
        WHOLE.replace("eiffel_tower,", "eiffel tower,").encode(),
    ],
)
def test_other_forms_of_the_same_table(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == read(tmp_path, WHOLE)


def test_a_compressed_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.csv.gz"
    path.write_bytes(gzip.compress(WHOLE.encode()))
    assert read_landmarks(path).details == read(tmp_path, WHOLE)


def test_a_landmark_without_a_name_is_named_by_its_id(tmp_path: Path) -> None:
    details = read(tmp_path, "landmark_id,name,latitude,longitude\na_b,,1,2\nc,nan,,\n")
    assert details == (LandmarkDetails("a_b", "a b", 1.0, 2.0), LandmarkDetails("c", "c"))


def test_ids_that_pandas_wrote_as_floats_are_whole_numbers(tmp_path: Path) -> None:
    details = read(tmp_path, "landmark_id,name\n12.0,A\n7.0,B\n")
    assert [one.landmark_id for one in details] == ["12", "7"]


CATEGORIES = """\
landmark_id,category
0,http://commons.wikimedia.org/wiki/Category:Happy_Valley_Racecourse
7,"http://commons.wikimedia.org/wiki/Category:Sparkassen-Arena,_G%C3%B6ttingen"
9,//commons.wikimedia.org/wiki/Category:Ch\u00e2teau_de_Blois
"""
TRAIN_HIERARCHICAL = """\
landmark_id,category,supercategory,hierarchical_label,natural_or_human_made
0,http://commons.wikimedia.org/wiki/Category:Happy_Valley_Racecourse,race,sports venue,human-made
2,http://commons.wikimedia.org/wiki/Category:Grand_Ventron,,mountain,natural
"""
INDEX_HIERARCHICAL = (
    "landmark_id,hierarchical_label,natural_or_human_made\n458,ocean area ,natural\n"
)


def test_names_come_from_the_categories_of_gldv2(tmp_path: Path) -> None:
    start = "commons.wikimedia.org/wiki/Category:"
    assert read(tmp_path, CATEGORIES) == (
        LandmarkDetails(
            "0", "Happy Valley Racecourse", url=f"http://{start}Happy_Valley_Racecourse"
        ),
        LandmarkDetails(
            "7",
            "Sparkassen-Arena, Göttingen",
            url=f"http://{start}Sparkassen-Arena,_G%C3%B6ttingen",
        ),
        LandmarkDetails("9", "Château de Blois", url=f"https://{start}Ch%C3%A2teau_de_Blois"),
    )


def test_hierarchical_labels_of_gldv2_are_further_columns(tmp_path: Path) -> None:
    first, second = read(tmp_path, TRAIN_HIERARCHICAL)
    assert first.name == "Happy Valley Racecourse"
    assert dict(first.extra) == {
        "supercategory": "race",
        "hierarchical_label": "sports venue",
        "natural_or_human_made": "human-made",
    }
    assert dict(second.extra) == {
        "hierarchical_label": "mountain",
        "natural_or_human_made": "natural",
    }
    (third,) = read(tmp_path, INDEX_HIERARCHICAL)  # the file of the index split has no category
    assert (third.name, third.url) == ("458", None)
    assert dict(third.extra)["hierarchical_label"] == "ocean area"


def test_several_files_complete_each_other_and_the_first_wins(tmp_path: Path) -> None:
    own = "landmark_id,name,latitude,longitude\n0,Racecourse,22,114\n5,Five,,\n"
    others = "landmark_id,name,latitude,longitude,city\n0,Other,1,2,HK\n5,Cinq,3,4,Paris\n"
    assert read(tmp_path, own, others, CATEGORIES)[:2] == (
        LandmarkDetails(
            "0",
            "Racecourse",
            22.0,
            114.0,
            "http://commons.wikimedia.org/wiki/Category:Happy_Valley_Racecourse",
            extra=(("city", "HK"),),
        ),
        LandmarkDetails("5", "Five", 3.0, 4.0, extra=(("city", "Paris"),)),
    )
    assert len(read(tmp_path, own, CATEGORIES)) == 4


def test_a_name_of_a_later_file_replaces_the_name_made_of_an_id(tmp_path: Path) -> None:
    (one,) = read(tmp_path, "landmark_id,hierarchical_label\n0,church\n", "landmark_id,name\n0,A\n")
    assert one == LandmarkDetails("0", "A", extra=(("hierarchical_label", "church"),))


def test_files_that_are_too_much_together_are_refused(tmp_path: Path) -> None:
    texts = [f"landmark_id,name,{column}\na,A,{'x' * 6000}\n" for column in ("b", "c")]
    message = "landmarks1.csv: with the files before it, the landmark 'a' has more than 10,000"
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, *texts)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,A,91,0,", "line 2: latitude 91.0 is not between -90 and 90"),
        ("a,A,0,-180.5,", "line 2: longitude -180.5 is not between -180 and 180"),
        ("a,A,inf,0,", "line 2: the latitude 'inf' is no number such as 48.8584"),
        ('a,A,"48,8",0,', "line 2: the latitude '48,8' is no number"),
        ("a,A,1_0,0,", "is no number"),
        ("a,A,1e999,0,", "is not between"),
        ("a,A,1,,", "line 2: a latitude without a longitude"),
        ("a,A,,1,", "line 2: a longitude without a latitude"),
        ("a,A,,,javascript:alert(1)", r"'javascript:alert\(1\)' is no http or https address"),
        ("a,A,,,data:text/html", "is no http or https address"),
        ("a,A,,,//example.org", "is no http or https address"),
        ("a,A,,,www.example.org", "is no http or https address"),
        ("a,A,,,http://", "has no host"),
        ("a,A,,,https://example.org@evil.org/", "or a user name before it"),
        ("a,A,,,https://example.org:x/", "has a wrong port"),
        ("a,A,,,https://example.org/a b", "holds a character that no address has"),
        ('a,A,,,"https://example.org/""x"', "holds a character that no address has"),
        ("a,A,,,https://example.org/\u202egro", "holds a character that no address has"),
        (",A,,,", "line 2: the id is empty"),
        ("a,A,,,\nb,B,,,\na,C,,,", "line 4: the landmark 'a' is on line 2 already"),
        ("a b,A,,,\na_b,B,,,", "line 3: the landmark 'a_b' is on line 2 already"),
        (f"a,{'x' * 501},,,", "line 2: name of 501 characters; 500 are allowed"),
        (f"a,A,,,https://e.org/{'x' * 2048}", "url of 2,062 characters; 2,048 are allowed"),
        ("a,A,,,,too,many", "line 2: 7 cells where the header has 5"),
        ("", "holds no rows"),
    ],
)
def test_wrong_rows_are_refused(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        read(tmp_path, f"landmark_id,name,latitude,longitude,url\n{row}\n")
    assert "landmarks0.csv" in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("id,name\n1,A\n", "line 1: no column 'landmark_id'"),
        ("landmark_id,images\n1,a b\n", "line 1: no column 'name'"),
        ("landmark_id,name,name\n1,A,B\n", "line 1: a column name stands twice: name, name"),
        ("landmark_id,name,city,city\n1,A,B,C\n", "line 1: a column 'city' stands twice"),
        ("landmark_id,category\n1,church\n", "'church' is no address of a Wikimedia Commons"),
        ("landmark_id,category\n1,https://e.org/wiki/Category:\n", "is no address of a Wikimedia"),
        ("landmark_id,category\n1,javascript:/wiki/Category:A\n", "is no http or https address"),
        (f"landmark_id,name,description\n1,A,{'x' * 10_001}\n", "description of 10,001 characters"),
        (f"landmark_id,name,city\n1,A,{'x' * 10_001}\n", "city of 10,001 characters"),
        (
            f"landmark_id,name,b,c\n1,A,{'x' * 6000},{'y' * 6000}\n",
            "more than 10,000 characters in the further columns",
        ),
        (f"landmark_id,name,{','.join(map(str, range(63)))}\n1,A\n", "has 65 columns"),
        (f"landmark_id,name,{'c' * 101}\n1,A,B\n", "column name of 101 characters"),
        (b"landmark_id,name\n1,Caf\xe9\n", "line 2: not UTF-8"),
        (b"landmark_id,name\n1,A\0B\n", "not a text file|a NUL byte"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not a text file|not UTF|no column"),
        ('landmark_id,name\n1,"A\n', "not a CSV row"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, text)


def test_a_missing_file_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_landmarks(tmp_path / "landmarks.csv")


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    """pandas writes its row numbers in a first column without a name."""
    assert read(tmp_path, ",landmark_id,name\n0,a,A\n") == (LandmarkDetails("a", "A"),)


@pytest.mark.parametrize(
    "values",
    [
        {"landmark_id": ""},
        {"landmark_id": "a\0"},
        {"name": " "},
        {"name": "\ud800"},
        {"latitude": True, "longitude": 0.0},
        {"latitude": float("nan"), "longitude": 0.0},
        {"extra": (("a", ""),)},
        {"extra": (("a", "1"), ("a", "2"))},
        {"extra": tuple((f"c{n}", "x") for n in range(65))},
    ],
)
def test_details_check_themselves(values: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        LandmarkDetails(**({"landmark_id": "a", "name": "A"} | values))  # type: ignore[arg-type]


def test_json_values_make_the_same_details(tmp_path: Path) -> None:
    for one in read(tmp_path, WHOLE):
        values = one.as_dict()
        assert LandmarkDetails.from_dict(values.pop("landmark_id"), values) == one
    assert list(values) == ["name", "latitude", "longitude", "url", "description", "extra"]
    assert values["extra"] == {"height": "96 m"} and values["url"] is None
