"""What is installed is what is on disk: packages, data files, one copy of each module."""

from __future__ import annotations

import configparser
import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("cli", "embed", "eval", "index", "rerank")
NOT_CODE = {".py", ".pyc"}


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def packages_on_disk() -> dict[str, Path]:
    """Dotted name -> folder, of every folder with an __init__.py."""
    found = {"lmk": Path()}
    for top in FOLDERS:
        for init in (ROOT / top).rglob("__init__.py"):
            folder = init.parent.relative_to(ROOT)
            found["lmk." + ".".join(folder.parts)] = folder
    return found


def modules_on_disk() -> list[str]:
    return [
        f"{package}.{file.stem}"
        for package, folder in packages_on_disk().items()
        for file in sorted((ROOT / folder).glob("*.py"))
        if file.stem not in ("__init__", "__main__")
    ]


def test_setup_cfg_names_exactly_the_packages_on_disk() -> None:
    """One that is missing there works in a clone, and is silently absent from the wheel."""
    named = setup_cfg()["options"]["packages"].split()
    assert named == sorted(named)
    assert set(named) == set(packages_on_disk())


def test_the_root_of_the_repository_is_the_package() -> None:
    assert setup_cfg()["options"]["package_dir"].split() == ["lmk", "=", "."]
    assert [file.name for file in ROOT.glob("*.py")] == ["__init__.py"]  # others would be packed


def test_every_package_says_what_it_is() -> None:
    assert (ROOT / "py.typed").exists()  # one marks the package and all folders in it
    assert not [path for folder in FOLDERS for path in (ROOT / folder).rglob("py.typed")]
    for name in packages_on_disk():
        assert (importlib.import_module(name).__doc__ or "").strip(), f"{name} has no docstring"


def test_package_data_covers_every_file_that_is_not_code() -> None:
    """Beside py.typed: the pages of cli/, the presets of embed/ and whatever comes later."""
    lines = setup_cfg()["options.package_data"].items()
    patterns = {name: value.replace(",", " ").split() for name, value in lines}
    for name, folder in packages_on_disk().items():
        if name == "lmk":
            continue  # the root holds much that is not of the package
        covered = {
            path for pattern in patterns.get(name, ()) for path in (ROOT / folder).glob(pattern)
        }
        nested = [other for other in packages_on_disk().values() if folder in other.parents]
        for path in (ROOT / folder).rglob("*"):
            inner = any((ROOT / other) in path.parents for other in nested)
            made = "__pycache__" in path.parts  # numba keeps there what it compiled
            if path.is_file() and path.suffix not in NOT_CODE and not inner and not made:
                assert path in covered, f"{path.relative_to(ROOT)} would not be in the wheel"


@pytest.mark.parametrize("name", modules_on_disk())
def test_every_module_imports(name: str) -> None:
    assert importlib.import_module(name).__name__ == name


def test_no_module_is_there_twice() -> None:
    """`import index` in a clone would make a second copy of every class of lmk.index."""
    code = "import importlib, sys\n"
    code += "".join(f"importlib.import_module({name!r})\n" for name in modules_on_disk())
    code += f"print(*(name for name in {FOLDERS!r} if name in sys.modules))\n"
    code += "mine = [module for name, module in sys.modules.items() if name.startswith('lmk.')]\n"
    code += "files = [module.__file__ for module in mine]\n"
    code += "print(len(files) - len(set(files)))\n"
    command = [sys.executable, "-P", "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["", "0"]


def test_the_layers_are_kept() -> None:
    script = Path(sys.executable).with_name("lint-imports")
    if not script.exists():
        pytest.skip("import-linter is not installed (make install)")
    done = subprocess.run(
        [script, "--no-cache"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


def test_the_wheel_holds_exactly_the_packages_and_their_data(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build leaves build/ and *.egg-info behind
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if listed.returncode != 0:
        pytest.skip("not a git clone")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [
            *pip,
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "-q",
            "-w",
            str(tmp_path),
            str(source),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PIP_NO_INPUT": "1"},
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        entry_points = archive.read(info).decode()
    expected = {"lmk/__init__.py", "lmk/py.typed"} | {
        f"lmk/{path.relative_to(source).as_posix()}"
        for folder in FOLDERS
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    assert names == expected
    assert {"lmk/embed/presets/lite1.json", "lmk/cli/answer/query.html"} <= names
    assert "lmk = lmk.cli.entry:run" in entry_points
