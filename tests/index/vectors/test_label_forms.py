"""A gallery built in the past may hold labels and ids in a decomposed Unicode form (NFD)."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lmk.embed.errors import GalleryError, UsageError
from lmk.index.gallery.gallery import Gallery
from lmk.index.gallery.verify import verify
from lmk.index.gallery.writer import GalleryWriter

NFC = unicodedata.normalize("NFC", "Café_é")
NFD = unicodedata.normalize("NFD", NFC)


@pytest.fixture
def old(tmp_path: Path, scenario: ModuleType) -> Path:
    """Rows: NFD label and id, NFC label and id, another label."""
    path = tmp_path / "g.lmk"
    scenario.rebuild(path)
    with scenario.committing(path) as writer:
        embeddings, pictures = scenario.batch([300, 301, 302])
        names = (NFD, NFC, "plain")
        pictures = [
            replace(picture, id=f"{name}/{n}.jpg", labels=(name,))
            for n, (picture, name) in enumerate(zip(pictures, names, strict=True))
        ]
        ids = tuple(picture.id for picture in pictures)
        writer.append(replace(embeddings, ids=ids), pictures)
    return path


def test_both_forms_are_one_label(old: Path) -> None:
    with Gallery.open(old) as gallery:
        assert NFC in gallery.label_names and NFD not in gallery.label_names
        assert list(gallery.label_names) == sorted(set(gallery.label_names))
        rows = [gallery.find([f"{name}/{n}.jpg"]) for n, name in enumerate((NFD, NFC))]
        places = [row for found in rows for row in found.values()]
        assert [gallery.labels(row) for row in places] == [(NFC,)] * 2
        assert [picture.labels for picture in gallery.pictures(places)] == [(NFC,)] * 2
        for name in (NFC, NFD, NFD.replace("_", " ")):
            assert np.flatnonzero(gallery.view().allowed([name])).tolist() == places
        with pytest.raises(UsageError, match=f"there is {NFC!r}, and `lmk index list`"):
            gallery.view().allowed([NFC.upper()])
    assert list(verify(old)) == []


def test_ids_are_found_in_either_form(old: Path) -> None:
    with Gallery.open(old) as gallery:
        wanted = [f"{NFC}/0.jpg", f"{NFD}/1.jpg", f"{NFD.replace('_', ' ')}/1.jpg"]
        assert list(gallery.find(wanted)) == wanted
        rows = gallery.rows
    with GalleryWriter(old) as writer:
        with pytest.raises(GalleryError, match="no picture of the gallery has this id"):
            writer.remove([f"{NFC}/7.jpg"])
        assert writer.remove([f"{NFC}/0.jpg", f"{NFD}/0.jpg", f"{NFD}/1.jpg"]) == 2
        writer.commit()
    with Gallery.open(old) as gallery:
        assert (gallery.rows, gallery.removed) == (rows, 2)
        assert NFC not in gallery.label_names
    assert list(verify(old)) == []
