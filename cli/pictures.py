"""How commands read a folder or table of pictures, and what they say of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lmk.cli.printing import echo

if TYPE_CHECKING:
    from lmk.embed.manifest import Manifest

_NAMES_SHOWN = 6  # different names of a system's folders and files


def read_pictures(source: Path, *, root: Path | None = None, tell: bool = True) -> Manifest:
    """Reads a folder, CSV or Parquet file of pictures; says on stderr what was left out.

    Args:
        source: the folder or file.
        root: the folder that a table's paths start from; its own folder unless given.
        tell: whether to say it; one of several processes does.

    Raises:
        ManifestError: as embed.manifest.read_manifest.
    """
    from lmk.embed.manifest import read_manifest

    manifest = read_manifest(source, root=root)
    if tell and manifest.system:
        echo(f"lmk: {source}: left out {_system_text(manifest.system)}", err=True)
    return manifest


def _system_text(paths: tuple[str, ...]) -> str:
    """What was left out: "3 folders or files of a system or device: @eaDir (2), Thumbs.db"."""
    counts: Counter[str] = Counter()
    spelling: dict[str, str] = {}
    for path in paths:
        name = path.rpartition("/")[2]
        counts[spelling.setdefault(name.casefold(), name)] += 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    names = [f"{name} ({n:,})" if n > 1 else name for name, n in ordered[:_NAMES_SHOWN]]
    names += ["..."] if len(ordered) > _NAMES_SHOWN else []
    noun = "folder or file" if len(paths) == 1 else "folders or files"
    return f"{len(paths):,} {noun} of a system or device: {', '.join(names)}"
