"""Details of landmarks in a gallery: written, read, compared with their checksums, kept."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from lmk.embed.errors import GalleryDamaged, UsageError
from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.embed.tables.landmark_table import LandmarkTable
from lmk.index.catalog.records import checksum
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.landmarks import DetailsReport, match_details, set_landmarks
from lmk.index.gallery.merge import merge
from lmk.index.gallery.verify import verify
from lmk.index.gallery.writer import GalleryWriter

GOLDEN = Path(__file__).parents[2] / "golden"
CITY = LandmarkDetails("city 0", "Ville Zéro", 48.8584, -2.5, "https://example.org/0", "a\nb")
TOWER = LandmarkDetails("landmark 7", "Tower", extra=(("height", "7 m"), ("built", "1889")))


def write(path: Path, *details: LandmarkDetails) -> None:
    with GalleryWriter(path) as writer:
        writer.set_landmarks(details)
        writer.commit()


def read(path: Path) -> list[LandmarkDetails]:
    with Gallery.open(path) as gallery:
        return gallery.all_details()


def test_details_are_read_as_they_were_written(path: Path) -> None:
    with Gallery.open(path) as before:
        write(path, TOWER, CITY)
        assert not before.has_details and before.landmark_details("city 0") is None
    with Gallery.open(path) as gallery:
        assert gallery.has_details
        assert gallery.landmark_details("city 0") == CITY
        assert gallery.landmark_details("landmark 7") == TOWER
        assert gallery.landmark_details("landmark 1") is None
        assert gallery.landmark_details("a\0b") is None
        assert list(gallery.details_of(["landmark 7", "x", "city 0"])) == ["landmark 7", "city 0"]
        assert gallery.all_details() == [CITY, TOWER]
    assert verify(path) == ()


def test_a_label_is_looked_up_in_the_form_of_manifests(path: Path) -> None:
    write(path, LandmarkDetails("Café_Noir", "Café Noir"))
    with Gallery.open(path) as gallery:
        for label in ("Café_Noir", "Café Noir", "Cafe\u0301 Noir"):
            assert gallery.details_of([label])[label].name == "Café Noir"


def test_setting_replaces_all_details(path: Path) -> None:
    write(path, TOWER, CITY)
    write(path, CITY)
    assert read(path) == [CITY]
    write(path)
    with Gallery.open(path) as gallery:
        assert (gallery.all_details(), gallery.has_details) == ([], False)
        assert gallery.details_of(["city 0"]) == {}


def test_an_abandoned_change_leaves_the_details(path: Path) -> None:
    write(path, TOWER)
    with GalleryWriter(path) as writer:
        writer.set_landmarks([CITY])
        assert writer.uncommitted.details() == [CITY]
    assert read(path) == [TOWER]


@pytest.mark.parametrize("act", ["grow", "sync", "compact", "mend"])
def test_details_survive_changes_of_the_pictures(
    path: Path, scenario: ModuleType, act: str
) -> None:
    write(path, TOWER, CITY)
    if act != "grow":  # `path` is grown already
        scenario.ACTS[act](path)
    else:
        with GalleryWriter(path) as writer:
            writer.append(*scenario.batch(range(400, 410)))
            writer.commit()
    assert read(path) == [CITY, TOWER]
    assert verify(path) == ()


def test_details_of_a_landmark_without_pictures_stay(path: Path) -> None:
    write(path, TOWER)
    with Gallery.open(path) as gallery:
        ids = [one.id for _, one, _ in gallery.entries() if "landmark 7" in one.labels]
    with GalleryWriter(path) as writer:
        assert writer.remove(ids) > 0
        writer.compact()
        writer.commit()
    with Gallery.open(path) as gallery:
        assert "landmark 7" not in gallery.label_names
        assert gallery.landmark_details("landmark 7") == TOWER


def test_a_reset_removes_the_details(path: Path, scenario: ModuleType) -> None:
    write(path, TOWER)
    scenario.rebuild(path)
    assert read(path) == []


def test_a_merge_joins_the_details_and_the_first_index_wins(
    tmp_path: Path, scenario: ModuleType
) -> None:
    for i in range(2):
        scenario.rebuild(tmp_path / f"{i}.lmk", count=5 + i)
    other = LandmarkDetails("landmark 7", "Another tower")
    write(tmp_path / "0.lmk", TOWER)
    write(tmp_path / "1.lmk", other, CITY)
    merge(tmp_path / "all.lmk", [tmp_path / "0.lmk", tmp_path / "1.lmk"])
    assert read(tmp_path / "all.lmk") == [CITY, TOWER]
    merge(tmp_path / "all.lmk", [tmp_path / "1.lmk", tmp_path / "0.lmk"])
    assert read(tmp_path / "all.lmk") == [CITY, other]
    assert verify(tmp_path / "all.lmk") == ()


@pytest.mark.parametrize(
    "statement",
    [
        """UPDATE landmark SET details = replace(details, 'Tower', 'Towes')""",
        "UPDATE landmark SET id = 'landmark 8' WHERE id = 'landmark 7'",
        "UPDATE landmark SET crc = crc + 1",
        "UPDATE landmark SET details = CAST(details AS BLOB)",
        "DELETE FROM landmark WHERE id = 'landmark 7'",
    ],
)
def test_changed_details_are_damage(path: Path, statement: str) -> None:
    write(path, TOWER, CITY)
    connection = sqlite3.connect(path / "catalog.db")
    connection.execute(statement)
    connection.commit()
    connection.close()
    (finding,) = verify(path)
    assert finding.mend == "none" and finding.where == path / "catalog.db"
    with Gallery.open(path) as gallery, pytest.raises(GalleryDamaged):
        gallery.all_details()


@pytest.mark.parametrize(
    "details",
    [
        "[]",
        "{}",
        '{"name": 7}',
        '{"name": "x", "latitude": 91, "longitude": 0}',
        '{"name": "x", "latitude": "1", "longitude": 0}',
        '{"name": "x", "url": "javascript:alert(1)"}',
        '{"name": "x", "other": 1}',
        '{"name": "x", "extra": [1]}',
        '{"name": "\\ud800"}',
        "{",
        "[" * 100_000,
    ],
)
def test_details_that_lmk_does_not_write_are_refused(path: Path, details: str) -> None:
    """An index of somebody else may have right checksums for any value."""
    write(path, TOWER)
    with GalleryWriter(path) as writer:
        values = (details, checksum("landmark 7", details))
        writer._t.catalog.all("UPDATE landmark SET details = ?, crc = ?", values)
        writer.commit()
    assert len(verify(path)) == 1
    with Gallery.open(path) as gallery:
        with pytest.raises(GalleryDamaged, match="an entry has changed"):
            gallery.landmark_details("landmark 7")
        assert gallery.landmark_details("city 0") is None


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_older_index_has_no_details_until_they_are_set(tmp_path: Path, number: int) -> None:
    path = Path(shutil.copytree(GOLDEN / f"format{number}.lmk", tmp_path / "old.lmk"))
    content = (path / "catalog.db").read_bytes()
    with Gallery.open(path) as gallery:
        assert gallery.info().format == number
        assert (gallery.has_details, gallery.all_details()) == (False, [])
        assert gallery.landmark_details("landmark 7") is None
    assert verify(path) == ()
    assert (path / "catalog.db").read_bytes() == content
    assert not list(path.glob("catalog.db-*"))
    with GalleryWriter(path) as writer:
        assert writer.uncommitted.details() == []
    with Gallery.open(path) as gallery:
        assert gallery.info().format == number  # nothing was committed
    write(path, TOWER)
    with Gallery.open(path) as gallery:
        assert (gallery.info().format, gallery.all_details()) == (4, [TOWER])
    assert verify(path) == ()


def test_the_sample_of_format_3_opens(tmp_path: Path, scenario: ModuleType) -> None:
    """As sample 2; made by format 3's writer."""
    path = Path(shutil.copytree(GOLDEN / "format3.lmk", tmp_path / "format3.lmk"))
    with Gallery.open(path) as gallery:
        assert gallery.alive.tolist() == [True] * 6 + [False]
        assert gallery.find(["00007.jpg"]) == {"00007.jpg": 5}
        assert gallery.array("penalty").tolist() == list(range(7))
        before = scenario.answers(gallery)
    with GalleryWriter(path) as writer:
        assert writer.uncommitted.removed_ids(["00008.jpg"]) == {"00008.jpg"}
        writer.set("pipeline", {"k": 3})
        writer.commit()
    with Gallery.open(path) as gallery:
        assert gallery.info().format == 4
        assert scenario.answers(gallery) == before


def table(*details: LandmarkDetails) -> LandmarkTable:
    return LandmarkTable("landmarks.csv", details)


def test_the_details_of_a_table_are_stored(path: Path) -> None:
    unknown = LandmarkDetails("nowhere", "Nowhere")
    city = replace(CITY, landmark_id="city_0")  # tables write "_" for a blank
    report = set_landmarks(path, table(city, unknown, replace(TOWER, landmark_id="landmark_7")))
    assert read(path) == [CITY, TOWER]
    with Gallery.open(path) as gallery:
        assert report == DetailsReport(len(gallery.label_names), 2, ("nowhere",))
    assert set_landmarks(path, None).described == 0
    assert read(path) == []


def test_a_table_of_other_landmarks_is_refused(path: Path) -> None:
    write(path, TOWER)
    message = (
        r"^landmarks.csv: none of its landmarks, such as 'nowhere', is among the landmarks of "
        r".*g.lmk, such as 'city 0'; write the landmarks in the column landmark_id as"
    )
    with pytest.raises(UsageError, match=message):
        set_landmarks(path, table(LandmarkDetails("nowhere", "Nowhere")))
    with pytest.raises(UsageError, match=r"'City-0' and 'city 0' \(case, blanks"):
        set_landmarks(path, table(LandmarkDetails("City-0", "City")))
    with pytest.raises(UsageError, match="the pictures, of which there are none"):
        match_details(table(TOWER), (), where="the pictures")
    assert read(path) == [TOWER]
