"""Indexes of the sample photos (5 places of 4 views, a bank of 8), and copies to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lmk.embed.data.manifest import read_manifest
from lmk.embed.extract.embedder import Embedder
from lmk.rerank.fit import fit as fit_module
from lmk.rerank.indexing.build import build_index


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, photos: Path, tiny: Embedder) -> Path:
    """An index of the photos."""
    path = tmp_path_factory.mktemp("built") / "g.lmk"
    bank = read_manifest(photos / "bank")
    build_index(read_manifest(photos / "gallery"), path, tiny, distractors=bank)
    return path


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "g.lmk"))


@pytest.fixture(scope="session")
def built_folder(tmp_path_factory: pytest.TempPathFactory, photos: Path, tiny: Embedder) -> Path:
    """A folder with gallery/, bank/ and their index g.lmk."""
    folder = tmp_path_factory.mktemp("folder")
    shutil.copytree(photos, folder, dirs_exist_ok=True)
    gallery, bank = read_manifest(folder / "gallery"), read_manifest(folder / "bank")
    build_index(gallery, folder / "g.lmk", tiny, distractors=bank)
    return folder


@pytest.fixture
def folder(built_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change; the files keep their times."""
    return Path(shutil.copytree(built_folder, tmp_path / "copy"))


@pytest.fixture(params=["anew", "updated"])
def learnt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of fitting after a change."""
    if request.param == "updated":
        monkeypatch.setattr(fit_module, "CHEAP", 0)
        monkeypatch.setattr(fit_module, "KEPT_THRESHOLD", 0)
    return str(request.param)
