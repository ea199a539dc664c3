"""Details of landmarks through the life of an index, and in its answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lmk.embed.data.manifest import Manifest, read_manifest
from lmk.embed.errors import ManifestError, UsageError
from lmk.embed.extract.embedder import Embedder
from lmk.embed.tables.landmark_details import LandmarkDetails
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify
from lmk.rerank.indexing.build import (
    add_pictures,
    build_index,
    compact_index,
    remove_pictures,
)
from lmk.rerank.indexing.merge import merge_indexes
from lmk.rerank.indexing.relabel import relabel_pictures, remove_label, rename_label
from lmk.rerank.indexing.repair import repair_index
from lmk.rerank.indexing.sync import sync_index
from lmk.rerank.recognizer import Recognizer

TABLE = """\
landmark_id,name,latitude,longitude,url,city
place_2,The Second Place,1.5,-2,https://example.org/2,Town
place_0,The <Zeroth> Place,,,,
place_9,Nowhere,,,,
"""
DETAILS = [
    LandmarkDetails("place_0", "The <Zeroth> Place"),
    LandmarkDetails(
        "place_2", "The Second Place", 1.5, -2.0, "https://example.org/2", extra=(("city", "Town"),)
    ),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "landmarks.csv"
    path.write_text(TABLE)
    return path


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, tiny: Embedder, table: Path
) -> Path:
    path = tmp_path_factory.mktemp("details") / "g.lmk"
    report = build_index(
        photos / "gallery", path, tiny, distractors=photos / "bank", landmarks=table
    )
    assert (report.described, report.unknown_landmarks) == (2, ("place_9",))
    return path


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "g.lmk"))


def read(path: Path) -> list[LandmarkDetails]:
    assert verify(path) == ()
    with Gallery.open(path) as gallery:
        return gallery.all_details()


def test_a_build_stores_the_details(built: Path) -> None:
    assert read(built) == DETAILS


def test_a_wrong_table_is_refused_before_anything_is_embedded(
    tmp_path: Path, photos: Path, tiny: Embedder
) -> None:
    wrong, path = tmp_path / "landmarks.csv", tmp_path / "g.lmk"
    for text, kind, message in (
        ("landmark_id,name\nx,X\n", UsageError, "is among the landmarks of the pictures, such as"),
        ("landmark_id,name,url\nplace_0,X,ftp://x\n", ManifestError, "line 2: 'ftp://x' is no"),
    ):
        wrong.write_text(text)
        with pytest.raises(kind, match=message):
            build_index(photos / "gallery", path, tiny, landmarks=wrong)
    assert not path.exists()


def test_details_survive_every_change_of_the_pictures(
    index: Path, tmp_path: Path, photos: Path, write_photos: object
) -> None:
    gallery = Path(shutil.copytree(photos / "gallery", tmp_path / "gallery"))
    more = tmp_path / "more"
    write_photos(more, landmarks=1, views=2, first=7)  # type: ignore[operator]
    assert add_pictures(index, read_manifest(more)).added == 2
    assert read(index) == DETAILS
    for place in (0, 2):  # one of them loses all of its pictures for a while
        ids = [f"place_{place}/{view}.jpg" for view in range(4 - place)]
        assert remove_pictures(index, ids).removed == 4 - place
    assert read(index) == DETAILS
    relabel_pictures(index, {"place_1/0.jpg": ["place_3"]})
    assert read(index) == DETAILS
    report = sync_index(index, read_manifest(gallery), allow_removals=True)
    assert report.added == 6 and read(index) == DETAILS
    assert compact_index(index).removed > 0
    assert read(index) == DETAILS
    remove_label(index, "place_2")
    assert read(index) == DETAILS


def test_details_survive_a_repair(index: Path) -> None:
    array = min((index / "arrays").iterdir())
    array.write_bytes(b"damaged" + array.read_bytes()[7:])
    assert verify(index)
    assert repair_index(index).remade
    assert read(index) == DETAILS


def test_details_move_to_the_new_name_of_a_landmark(index: Path) -> None:
    rename_label(index, "place_2", "second")
    names = {one.landmark_id: one.name for one in read(index)}
    assert names == {"place_0": "The <Zeroth> Place", "second": "The Second Place"}
    rename_label(index, "second", "place_0")  # which has details of its own
    assert read(index) == [DETAILS[0]]
    rename_label(index, "place_1", "first")
    assert read(index) == [DETAILS[0]]


def test_a_build_anew_has_the_details_of_its_own_table(
    index: Path, photos: Path, tiny: Embedder
) -> None:
    build_index(photos / "gallery", index, tiny)
    assert read(index) == []


def test_parts_of_an_index_merge_with_their_details(
    tmp_path: Path, photos: Path, tiny: Embedder, table: Path
) -> None:
    manifest = read_manifest(photos / "gallery")
    rows = [row for row in manifest.rows if "place_0" in row.labels]
    few = Manifest(manifest.root, tuple(rows))
    paths = [tmp_path / "0.lmk", tmp_path / "1.lmk"]
    assert build_index(few, paths[0], tiny, landmarks=table).described == 1
    shard = build_index(manifest, paths[1], tiny, landmarks=table, shard=(1, 3))
    assert shard.described == 2  # also of landmarks whose pictures are in other parts
    merge_indexes(tmp_path / "all.lmk", paths)
    assert read(tmp_path / "all.lmk") == DETAILS


def test_answers_have_the_names(built: Path, photos: Path) -> None:
    with Recognizer.open(built) as recognizer:
        (answer,) = recognizer.answer(photos / "gallery" / "place_2" / "1.jpg", k=20)
        (other,) = recognizer.answer(photos / "gallery" / "place_1" / "1.jpg", k=0)
        frame = recognizer.answer(photos / "gallery" / "place_2" / "1.jpg").to_pandas()
        page = recognizer.answer(photos / "gallery" / "place_0" / "1.jpg")._repr_html_()
    assert (answer.label, answer.name) == ("place_2", "The Second Place")
    assert answer.details_of("place_2") == DETAILS[1]
    assert answer.name_of("place_0") == "The <Zeroth> Place"
    assert answer.name_of("place_1") == "place_1"
    facts = json.loads(json.dumps(answer.as_dict()))
    assert (facts["label"], facts["name"]) == ("place_2", "The Second Place")
    assert facts["best_name"] == "The Second Place"
    assert facts["landmarks"]["place_2"] == {
        "landmark_id": "place_2",
        "name": "The Second Place",
        "latitude": 1.5,
        "longitude": -2.0,
        "url": "https://example.org/2",
        "description": None,
        "extra": {"city": "Town"},
    }
    assert facts["neighbours"][0]["labels"] == ["place_2"]  # ids stay ids
    assert set(facts["landmarks"]) == {"place_0", "place_2"}
    assert (other.best, other.landmarks, other.name_of("place_1")) == ("place_1", (), "place_1")
    assert other.as_dict()["landmarks"] == {} and other.as_dict()["best_name"] == "place_1"
    assert list(frame["name"]) == ["The Second Place"]
    assert "The &lt;Zeroth&gt; Place" in page and "<Zeroth>" not in page
