"""The index that a command uses if -i is not given."""

from __future__ import annotations

from pathlib import Path

from lmk.embed.errors import UsageError


def find_index(named: Path | None) -> Path:
    """Returns the named index, or else the only *.lmk folder in the working directory.

    Raises:
        UsageError: no index is named, and there is no such folder or several.
    """
    if named is not None:
        return named
    here = Path.cwd()
    found = sorted(path.name for path in here.glob("*.lmk") if path.is_dir())
    if len(found) == 1:
        return Path(found[0])
    if not found:
        what = "there is no index (*.lmk folder) in this folder"
        remedy = "build one with: lmk build-index GALLERY, or name one with -i"
        raise UsageError(what, where=here, remedy=remedy)
    what = f"there are {len(found)} indexes here: {', '.join(found)}"
    remedy = f"name one, as in: -i {found[0]}"
    raise UsageError(what, where=here, remedy=remedy)
