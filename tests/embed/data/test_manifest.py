"""Manifests: every layout of folders and tables, and one clear line for every wrong one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from lmk.embed.data.images import Skipped
from lmk.embed.data.manifest import Manifest, Row, read_manifest
from lmk.embed.data.unseen import Unseen
from lmk.embed.errors import ManifestError


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """tree("a/b.jpg", ...): empty files below a folder."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "in"

    return make


def error_of(source: Path, **options: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(source, **options)
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert "\n" not in text and "; " in text  # one line that says the way out
    return text


def triples(manifest: Manifest) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(row.id, row.path, row.labels) for row in manifest.rows]


class TestFolder:
    def test_one_folder_for_each_landmark(self, tree: Callable[..., Path]) -> None:
        root = tree("Eiffel Tower/b 1.JPG", "Eiffel Tower/a.png", "東京 タワー/x.webp", "top.jpg")
        manifest = read_manifest(root)
        assert triples(manifest) == [
            ("top.jpg", "top.jpg", ()),
            ("Eiffel_Tower/a.png", "Eiffel Tower/a.png", ("Eiffel_Tower",)),
            ("Eiffel_Tower/b_1.JPG", "Eiffel Tower/b 1.JPG", ("Eiffel_Tower",)),
            ("東京_タワー/x.webp", "東京 タワー/x.webp", ("東京_タワー",)),
        ]
        assert manifest.labelled and len(manifest) == 4
        assert all(manifest.file(row).is_file() for row in manifest.rows)

    def test_deeper_folders_belong_to_the_landmark(self, tree: Callable[..., Path]) -> None:
        manifest = read_manifest(tree("arc/north/1.jpg", "arc/2.jpg", "bow/3.jpg"))
        assert [row.labels for row in manifest.rows] == [("arc",), ("arc",), ("bow",)]
        assert [row.id for row in manifest.rows] == ["arc/2.jpg", "arc/north/1.jpg", "bow/3.jpg"]

    def test_flat(self, tree: Callable[..., Path]) -> None:
        manifest = read_manifest(tree("b.jpg", "a b.png", "c.jpg", "c.png"))
        assert triples(manifest) == [
            ("a_b", "a b.png", ()),
            ("b", "b.jpg", ()),
            ("c.jpg", "c.jpg", ()),
            ("c.png", "c.png", ()),
        ]
        assert not manifest.labelled

    def test_gldv2_layout(self, tree: Callable[..., Path]) -> None:
        manifest = read_manifest(tree("0/a/f/0af19.jpg", "0/b/c/0bc00.jpg"))
        assert triples(manifest) == [
            ("0af19", "0/a/f/0af19.jpg", ()),
            ("0bc00", "0/b/c/0bc00.jpg", ()),
        ]

    def test_a_stray_picture_does_not_change_gldv2_ids(self, tree: Callable[..., Path]) -> None:
        manifest = read_manifest(tree("0/a/f/0af19.jpg", "0/b/c/0bc00.jpg", "cover.jpg"))
        assert [row.id for row in manifest.rows] == ["0af19", "0bc00"]
        assert [(skip.path, "layout" in skip.reason) for skip in manifest.skipped] == [
            ("cover.jpg", True)
        ]

    @pytest.mark.parametrize("other", ["0/a/f/xyz.jpg", "0/ab/c/0abc1.jpg", "0/a/0a1.jpg"])
    def test_what_only_resembles_it_is_labelled(
        self, tree: Callable[..., Path], other: str
    ) -> None:
        manifest = read_manifest(tree("1/a/f/1af19.jpg", other))
        assert [row.labels for row in manifest.rows] == [("0",), ("1",)]

    def test_hidden_files_and_galleries_are_left_out(self, tree: Callable[..., Path]) -> None:
        root = tree(
            "p/a.jpg", ".cache/b.jpg", "p/.c.jpg", "old.lmk/d.jpg", "p/notes.txt", "p/README"
        )
        manifest = read_manifest(root)
        assert [row.path for row in manifest.rows] == ["p/a.jpg"]
        assert manifest.skipped == (
            Skipped("p/README", "not a picture (no file ending)"),
            Skipped("p/notes.txt", "not a picture (.txt)"),
        )

    def test_links(self, tree: Callable[..., Path], tmp_path: Path) -> None:
        root = tree("p/a.jpg")
        (root / "p" / "loop").symlink_to(root)
        (root / "again").symlink_to(root / "p")
        (root / "self").symlink_to(root / "self")
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "b.jpg").touch()
        (root / "q").symlink_to(outside)
        manifest = read_manifest(root)
        assert sorted(row.path for row in manifest.rows) == ["p/a.jpg", "q/b.jpg"]
        assert {skip.path for skip in manifest.skipped} == {"again", "p/loop", "self"}
        assert [place.path for place in manifest.unseen] == ["self"]

    @pytest.mark.parametrize("link", ["again", "a/z", "z"])
    def test_a_link_never_takes_the_place_of_the_folder_it_leads_to(
        self, tree: Callable[..., Path], link: str
    ) -> None:
        """The landmark p would be called `again` as soon as somebody makes a link of this name."""
        root = tree("p/1.jpg", "a/2.jpg")
        (root / link).symlink_to(root / "p")
        manifest = read_manifest(root)
        assert [row.id for row in manifest.rows] == ["a/2.jpg", "p/1.jpg"]
        assert manifest.skipped == (Skipped(link, "a link to a folder that was already read"),)

    def test_a_name_that_is_no_utf8(self, tree: Callable[..., Path]) -> None:
        root = tree("p/a.jpg")
        for name in (b"p/caf\xe9.jpg", b"d\xff/b.jpg"):
            path = root / os.fsdecode(name)
            path.parent.mkdir(exist_ok=True)
            path.touch()
        manifest = read_manifest(root)
        assert [row.path for row in manifest.rows] == ["p/a.jpg"]
        assert manifest.skipped == (
            Skipped("d\\udcff", "its name is not valid UTF-8"),
            Skipped("p/caf\\udce9.jpg", "its name is not valid UTF-8"),
        )

    def test_folders_that_cannot_be_read(
        self, tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = tree("p/a.jpg", "q/b.jpg")
        scandir = os.scandir

        def refuse(path: object) -> object:
            if str(path) in refused:
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        refused = {str(root / "q")}
        manifest = read_manifest(root)
        assert [row.path for row in manifest.rows] == ["p/a.jpg"]
        assert manifest.skipped == (Skipped("q", "cannot be read: permission denied"),)
        assert manifest.unseen == (Unseen("q", "cannot be read: permission denied", "unreadable"),)
        refused = {str(root)}
        assert "cannot be read: permission denied" in error_of(root)

    def test_places_that_could_not_be_looked_at(
        self, tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = tree(
            "p/a.jpg", "closed/deep/b.jpg", "away/.keep", "bad/c.jpg", "notes", "kept/x.jpg"
        )
        (root / "gone").symlink_to("/mnt/away/gone")
        (root / "p" / "gone.jpg").symlink_to("/mnt/away/gone.jpg")
        (root / os.fsdecode(b"caf\xe9")).mkdir()
        scandir = os.scandir

        def fail(path: object) -> object:
            if Path(str(path)) == root / "closed" / "deep":
                raise PermissionError(13, "Permission denied", str(path))
            if Path(str(path)) == root / "bad":
                raise OSError(5, "Input/output error")
            return scandir(path)  # type: ignore[call-overload]

        monkeypatch.setattr(os, "scandir", fail)
        manifest = read_manifest(root)
        assert {row.path for row in manifest.rows} == {"p/a.jpg", "p/gone.jpg", "kept/x.jpg"}
        assert {(place.path, place.kind) for place in manifest.unseen} == {
            ("closed/deep", "unreadable"),
            ("bad", "unreadable"),
            ("gone", "link"),
            ("away", "empty"),
            ("caf\\udce9", "name"),
        }
        named = {skip.path for skip in manifest.skipped}
        assert named == {"closed/deep", "bad", "gone", "caf\\udce9", "notes"}  # "away" is no fault
        places = manifest.unseen_places()
        hidden = ["closed/deep/b.jpg", "bad/c.jpg", "bad", "gone/1/2.jpg", "away/x.jpg"]
        hidden += ["café/1.jpg", "cafe\u0301/1.jpg", "notes/old.jpg"]
        for path in hidden:
            assert places.at(path) is not None, path
        for path in (
            "closed/b.jpg",
            "closed/deeper/b.jpg",
            "p/b.jpg",
            "cafe/1.jpg",
            "caf",
            "notes",
        ):
            assert places.at(path) is None, path

    def test_what_belongs_to_a_system_is_left_out(self, tree: Callable[..., Path]) -> None:
        left = (
            "@eaDir", "p/@EADIR", "#recycle", "#snapshot", ".@__thumb", "p/.@__thumb", "@Recycle",
            "@Recently-Snapshot", "$RECYCLE.BIN", "System Volume Information", "RECYCLER",
            "__MACOSX", "lost+found", ".Trashes", ".Trash-1000", ".thumbnails", ".picasaoriginals",
            "Lightroom Previews.lrdata", "My Photos.photoslibrary", "LOST.DIR", "found.000",
        )  # fmt: skip
        files = ("Thumbs.db", "p/thumbs.DB", "ehthumbs.db", "Desktop.ini")
        root = tree("p/a.jpg", "Originals/b.jpg", "found/c.jpg", "p/._a.jpg", "p/.DS_Store")
        tree(*(f"{name}/x/1.jpg" for name in left), *(f"{name}/2.jpg" for name in left), *files)
        manifest = read_manifest(root)
        assert [row.path for row in manifest.rows] == ["Originals/b.jpg", "found/c.jpg", "p/a.jpg"]
        assert manifest.skipped == () and manifest.unseen == ()
        assert sorted(manifest.system) == sorted((*left, *files))
        named = read_manifest(root / "@eaDir")  # a user who names such a folder means it
        assert [row.path for row in named.rows] == ["2.jpg", "x/1.jpg"]

    def test_errors(self, tree: Callable[..., Path], tmp_path: Path) -> None:
        (tmp_path / "drives" / "eiffel").mkdir(parents=True)
        assert "it holds 1 empty folder: is a drive away?" in error_of(tmp_path / "drives")
        assert "no such folder or file" in error_of(tmp_path / "none")
        (tmp_path / "empty").mkdir()
        assert "empty: no pictures in this folder; put" in error_of(tmp_path / "empty")
        (tmp_path / "text").mkdir()
        for i in range(3):
            (tmp_path / "text" / f"{i}.txt").touch()
        assert "it holds 3 other files, not a picture (.txt)" in error_of(tmp_path / "text")
        picture = tree("a.jpg") / "a.jpg"
        assert "is one picture" in error_of(picture)
        (tmp_path / "a.rar").touch()
        assert "neither a folder nor a .csv" in error_of(tmp_path / "a.rar")

    def test_names_that_differ_in_a_blank_only(self, tree: Callable[..., Path]) -> None:
        root = tree("p/a b.jpg", "p/a_b.jpg", "p q/1.jpg", "p_q/1.jpg", "p_q/2 3.jpg")
        assert triples(read_manifest(root)) == [
            ("./p/a%20b.jpg", "p/a b.jpg", ("p",)),
            ("./p/a_b.jpg", "p/a_b.jpg", ("p",)),
            ("./p%20q/1.jpg", "p q/1.jpg", ("p_q",)),
            ("./p_q/1.jpg", "p_q/1.jpg", ("p_q",)),
            ("p_q/2_3.jpg", "p_q/2 3.jpg", ("p_q",)),
        ]

    def test_folders_that_differ_in_the_unicode_form_only(self, tree: Callable[..., Path]) -> None:
        rows = read_manifest(tree("é/1.jpg", "e\u0301/1.jpg", "é/2.jpg")).rows
        assert {row.id for row in rows} == {"./%C3%A9/1.jpg", "./e%CC%81/1.jpg", "é/2.jpg"}
        assert {row.labels for row in rows} == {("é",)}

    def test_flat_names_that_differ_in_a_blank_or_ending_only(
        self, tree: Callable[..., Path]
    ) -> None:
        root = tree(
            "a b.jpg", "a_b.jpg", "c.jpg", "c.png", "c.JPG", "d e.jpg", "d_e.png", "f g.jpg"
        )
        assert [(row.id, row.path) for row in read_manifest(root).rows] == [
            ("./a%20b.jpg", "a b.jpg"),
            ("./a_b.jpg", "a_b.jpg"),
            ("c.JPG", "c.JPG"),
            ("c.jpg", "c.jpg"),
            ("c.png", "c.png"),
            ("d_e.jpg", "d e.jpg"),
            ("d_e.png", "d_e.png"),
            ("f_g", "f g.jpg"),
        ]


class TestTable:
    @pytest.fixture
    def table(self, tmp_path: Path) -> Callable[..., Path]:
        def write(text: str | bytes, name: str = "list.csv") -> Path:
            path = tmp_path / name
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            return path

        return write

    def test_ids_paths_and_several_labels(self, table: Callable[..., Path]) -> None:
        path = table("path,id,landmark_id\n./x/a.jpg,a,17|4\nb c.jpg,b 1,\n")
        manifest = read_manifest(path)
        assert triples(manifest) == [("a", "x/a.jpg", ("17", "4")), ("b_1", "b c.jpg", ())]
        assert manifest.root == path.parent

    def test_a_label_given_twice_counts_once(
        self, table: Callable[..., Path], tmp_path: Path
    ) -> None:
        """It would vote twice, and a picture with one label would be taken for one with several."""
        manifest = read_manifest(table("id,path,labels\na,a.jpg,b a  b c a\nd,d.jpg,x x\n"))
        assert [row.labels for row in manifest.rows] == [("b", "a", "c"), ("x",)]
        path = tmp_path / "list.parquet"
        pd.DataFrame({"id": ["a"], "path": ["a.jpg"], "labels": [["y", "x", "y"]]}).to_parquet(path)
        assert read_manifest(path).rows[0].labels == ("y", "x")

    @pytest.mark.parametrize("column", ["landmark_id", "label", "labels", "landmarks", "tags"])
    def test_the_names_of_the_label_column(self, table: Callable[..., Path], column: str) -> None:
        manifest = read_manifest(table(f"id,path,{column}\n007,a.jpg,NA\n"))
        assert triples(manifest) == [("007", "a.jpg", ("NA",))]

    def test_a_byte_order_mark_and_non_latin_text(self, table: Callable[..., Path]) -> None:
        text = "\ufeffid,path,label\r\nä,写真/ä.jpg,エッフェル塔\r\n"
        manifest = read_manifest(table(text))
        assert triples(manifest) == [("ä", "写真/ä.jpg", ("エッフェル塔",))]

    @pytest.mark.parametrize("nested", [True, False])
    def test_without_paths(
        self, table: Callable[..., Path], tree: Callable[..., Path], nested: bool
    ) -> None:
        root = tree("a/b/c/abc1.jpg" if nested else "abc1.jpg")
        path = table("id,url,landmark_id\nxyz9,http://,1\nabc1,http://,2\n")
        manifest = read_manifest(path, root=root)
        found = [row.path for row in manifest.rows]
        assert found == (
            ["x/y/z/xyz9.jpg", "a/b/c/abc1.jpg"] if nested else ["xyz9.jpg", "abc1.jpg"]
        )
        assert manifest.root == root
        text = error_of(path)
        assert "no picture was found as x/y/z/xyz9.jpg or xyz9.jpg" in text and "--root" in text

    def test_train_clean(self, table: Callable[..., Path], tree: Callable[..., Path]) -> None:
        root = tree("a/b/c/abc1.jpg")
        path = table("landmark_id,images\n1,abc1 abd2\n7,xyz9\n8,\n", "train_clean.csv")
        assert triples(read_manifest(path, root=root)) == [
            ("abc1", "a/b/c/abc1.jpg", ("1",)),
            ("abd2", "a/b/d/abd2.jpg", ("1",)),
            ("xyz9", "x/y/z/xyz9.jpg", ("7",)),
        ]

    def test_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "list.parquet"
        frame = pd.DataFrame(
            {
                "id": ["a", "b", "c"],
                "path": ["a.jpg", "b.jpg", "c.jpg"],
                "landmark_id": [17.0, None, 203_094.0],
            }
        )
        frame.to_parquet(path)
        assert [row.labels for row in read_manifest(path).rows] == [("17",), (), ("203094",)]
        frame["landmark_id"] = [["x", "y"], [], None]
        frame["id"] = [1, 2, 3]
        frame.to_parquet(path)
        manifest = read_manifest(path)
        assert [row.labels for row in manifest.rows] == [("x", "y"), (), ()]
        assert [row.id for row in manifest.rows] == ["1", "2", "3"]
        path.write_text("no parquet")
        assert "cannot be read as a table" in error_of(path)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("name,label\na,1\n", "no column 'id' (its columns are: name, label)"),
            ("image_id,label\na,1\n", "rename the column 'image_id' to 'id'"),
            ("id path\na a.jpg\n", "separate the cells by commas"),
            ("a,a.jpg\nb,b.jpg\n", "name the columns on the first line"),
            ("id,path\n", "holds no rows"),
            ("landmark_id,images\n", "holds no rows"),
            ("", "line 1: an empty file"),
            ("id,path\na,x.jpg,1\n", "line 2: 3 cells where the header has 2"),
            ("id,path\nb,y.jpg\na,x.jpg,1\n", "line 3: 3 cells where the header has 2"),
            ('id,path\na,"x.jpg\n', "line 2: not a CSV row"),
            ("id,path\ncaf\xe9,x.jpg\n".encode("latin-1"), "line 2: not UTF-8; save the file as"),
            (b"PK\3\4\0\0\0", "the compressed file is cut or damaged"),
            ("id,path\na,x.jpg\nb,y.jpg\na,z.jpg\n", "'a' stands for several pictures (x.jpg, z"),
            ("id,path\na,1\na,2\nb,3\nb,4\n", "and 1 more ids are repeated"),
            ("id,path\na,/etc/x.jpg\n", "leads outside the folder"),
            ("id,path\na,b/../../x.jpg\n", "leads outside the folder"),
            ("id,path\na,\n", "the path of a is empty"),
            ("id,path\n,x.jpg\n", "an id or label is empty"),
            ("id,path\nb\n", "the path of b is empty"),
            ("id\n../x\n", "no picture was found"),
        ],
    )  # fmt: skip
    def test_errors(self, table: Callable[..., Path], text: str | bytes, says: str) -> None:
        path = table(text)
        message = error_of(path)
        assert says in message and str(path) in message

    def test_ids_that_differ_in_a_blank_or_unicode_form_only(
        self, table: Callable[..., Path]
    ) -> None:
        rows = "a b,1.jpg\na_b,2.jpg\na  b ,3.jpg\ncafé,4.jpg\ncafe\u0301,5.jpg\nx y,6.jpg\n"
        manifest = read_manifest(table(f"id,path\n{rows}"))
        ids = ["./a%20b", "./a_b", "./a%20%20b", "./caf%C3%A9", "./cafe%CC%81", "x_y"]
        assert [row.id for row in manifest.rows] == ids
        assert [row.path for row in manifest.rows] == [f"{n}.jpg" for n in range(1, 7)]

    @pytest.mark.parametrize("rows", ["a b,1.jpg\na b,2.jpg\n", "a b,1.jpg\n a b ,2.jpg\n"])
    def test_the_same_id_for_two_paths_is_an_error(
        self, table: Callable[..., Path], rows: str
    ) -> None:
        text = error_of(table(f"id,path\n{rows}"))
        assert "the id 'a_b' stands for several pictures (1.jpg, 2.jpg)" in text
        assert "stands for several pictures" in error_of(table(f"id,path\n{rows}a_b,3.jpg\n"))

    def test_a_folder_with_the_name_of_a_table(self, tree: Callable[..., Path]) -> None:
        root = tree("x.csv/p/a.jpg") / "x.csv"
        assert read_manifest(root).rows[0].labels == ("p",)


@pytest.mark.parametrize(
    "row",
    [Row("", "a.jpg"), Row("a b", "a.jpg"), Row("a", "a.jpg", ("x y",)), Row("a", "a", ("",))],
)
def test_a_manifest_built_wrong(row: Row) -> None:
    with pytest.raises(ManifestError, match="empty or holds a blank"):
        Manifest(Path("/"), (row,))
