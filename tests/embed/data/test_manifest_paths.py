"""Paths as tables write them: found where they are unambiguous, else refused with the way out."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from lmk.embed.data.manifest import read_manifest
from lmk.embed.errors import ManifestError
from lmk.embed.extract.extract import extract

NFC = unicodedata.normalize("NFC", "Müller/é 1.jpg")
NFD = unicodedata.normalize("NFD", NFC)
Read = Callable[..., list[str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with pictures, reached by its own name and by a link."""
    for name in ("a.jpg", "sub/b c.jpg", "sub/d.jpg"):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "link").symlink_to(tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def paths(root: Path) -> Read:
    """The paths of a table of these cells."""

    def read(*cells: str, below: Path = root) -> list[str]:
        table = root.parent / "list.csv"
        quoted = (cell.replace('"', '""') for cell in cells)
        table.write_text("id,path\n" + "".join(f'p{i},"{c}"\n' for i, c in enumerate(quoted)))
        return [row.path for row in read_manifest(table, root=below).rows]

    return read


def test_what_lies_inside_the_folder(root: Path, paths: Read) -> None:
    link = root.parent / "link"
    cells = [
        "sub/d.jpg", "./sub//d.jpg", "sub\\d.jpg", ".\\sub\\d.jpg", " sub/d.jpg ",
        f"{root}/sub/d.jpg", f"{link}/sub/d.jpg", f"file://{root}/sub/d.jpg", f"file://localhost{root}/sub/d.jpg",
        "sub/../sub/d.jpg", f"{root}/../root/sub/d.jpg",
    ]  # fmt: skip
    assert paths(*cells) == ["sub/d.jpg"] * len(cells)
    assert paths(*cells, below=link) == ["sub/d.jpg"] * len(cells)
    assert paths(f"file://{root}/sub/b%20c.jpg", "sub\\b c.jpg") == ["sub/b c.jpg"] * 2


def test_a_name_that_only_looks_like_another_path(root: Path, paths: Read) -> None:
    for name in ("e\\f.jpg", " g.jpg", "C:\\h.jpg"):
        (root / name).touch()
    assert paths("e\\f.jpg", " g.jpg", "C:\\h.jpg") == ["e\\f.jpg", " g.jpg", "C:\\h.jpg"]


def test_the_home_folder(root: Path, paths: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert paths("~/root/a.jpg") == ["a.jpg"]


@pytest.mark.parametrize(("there", "said"), [(NFC, NFD), (NFD, NFC), (NFD, NFD), (NFC, NFC)])
def test_the_other_unicode_form(root: Path, paths: Read, there: str, said: str) -> None:
    path = root / there
    path.parent.mkdir()
    path.touch()
    assert paths(said) == [there]
    mixed = f"{NFC.split('/')[0]}/{NFD.split('/')[1]}"
    assert paths(mixed) == [there]
    assert paths(f"{said}.gone") == [f"{said}.gone"]


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("https://example.org/a.jpg", "is a URL (https://example.org/a.jpg), and lmk reads files"),
        ("s3://bucket/a.jpg", "is a URL"),
        ("nan", "the path of p1 is empty"),
        ("file://server/share/a.jpg", "is a URL"),
        ("D:\\photos\\a.jpg", "is of a Windows drive"),
        ("/elsewhere/a.jpg", "leads outside the folder {root}; name a folder above all pictures "
         "(--root /) and give paths relative"),
        ("../x/a.jpg", "name a folder above all pictures (--root {above})"),
        ("\\\\server\\share\\a.jpg", "leads outside"),
    ],
)  # fmt: skip
def test_refused(root: Path, paths: Read, cell: str, says: str) -> None:
    with pytest.raises(ManifestError) as caught:
        paths("a.jpg", cell)
    text = str(caught.value)
    assert says.format(root=root, above=root.parent) in text
    assert text.startswith(str(root.parent / "list.csv")) and "\n" not in text


def test_the_remedy_for_a_path_outside_helps(root: Path, paths: Read) -> None:
    cell = f"{root}/sub/d.jpg"
    with pytest.raises(ManifestError, match=f"--root {root}\\)"):
        paths("../root/sub/d.jpg", below=root / "sub")
    assert paths(cell, below=root.parent) == ["root/sub/d.jpg"]
    assert paths(cell, below=Path("/")) == [cell[1:]]


class TestWithoutPaths:
    def ids(self, root: Path, *ids: str) -> list[tuple[str, str]]:
        table = root.parent / "ids.csv"
        table.write_text("id\n" + "".join(f"{id_}\n" for id_ in ids))
        return [(row.id, row.path) for row in read_manifest(table, root=root).rows]

    def test_as_the_files_are_called(self, root: Path) -> None:
        (root / f"{NFD.split('/')[1]}").touch()
        plain = NFC.split("/")[1].removesuffix(".jpg")
        assert self.ids(root, "a", plain) == [
            ("a", "a.jpg"),
            (plain.replace(" ", "_"), f"{NFD.split('/')[1]}"),
        ]

    def test_ids_that_are_paths_themselves(self, root: Path) -> None:
        assert self.ids(root, "sub/d.jpg", "sub/b c.jpg") == [
            ("sub/d.jpg", "sub/d.jpg"),
            ("sub/b_c.jpg", "sub/b c.jpg"),
        ]

    def test_ids_that_no_file_can_have(self, root: Path) -> None:
        """They are pictures that are missing, not the end of the run."""
        long = "x" * 300
        assert self.ids(root, "a", long)[1] == (long, f"{long}.jpg")
        with pytest.raises(ManifestError, match="no picture was found as x/x/x/xxxx"):
            self.ids(root, long)

    def test_whole_numbers_written_as_floats(self, root: Path) -> None:
        (root / "12.jpg").touch()
        assert self.ids(root, "12.0", "7.0") == [("12", "12.jpg"), ("7", "7.jpg")]


def test_a_name_too_long_for_a_file_is_skipped(root: Path, tiny: object) -> None:
    table = root.parent / "list.csv"
    table.write_text(f"id,path\na,{'x' * 300}.jpg\n")
    from lmk.embed.extract.feature_store import FeatureStore

    store = FeatureStore(root.parent / "f", tiny.feature_fingerprint, tiny.feature_dim)  # type: ignore[attr-defined]
    found = extract(read_manifest(table, root=root), tiny, store)  # type: ignore[arg-type]
    assert [skip.path for skip in found.skipped] == [f"{'x' * 300}.jpg"]


def test_a_nul_character(root: Path) -> None:
    import pandas as pd

    table = root.parent / "list.parquet"
    pd.DataFrame({"id": ["a"], "path": ["a\0.jpg"]}).to_parquet(table)
    with pytest.raises(ManifestError, match="the path of a holds a NUL character; write"):
        read_manifest(table, root=root)
    pd.DataFrame({"id": ["a\0"], "path": ["a.jpg"]}).to_parquet(table)
    with pytest.raises(ManifestError, match=r"the id or path of .* has a NUL character"):
        read_manifest(table, root=root)
