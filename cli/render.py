"""What commands print and show: lines, thumbnails, HTML pages, files written whole."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmk.cli.printing import echo

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

    from lmk.embed.data.images import Skipped

NONE_OF_THESE = "none of these"
_SKIPPED_SHOWN = 10
_THUMBNAIL_PIXELS = 240


def echo_skipped(skipped: Sequence[Skipped], rest: str) -> None:
    """Lists on stderr the files that gave nothing: the first ones, and how many more.

    Args:
        skipped: the files.
        rest: where the others can be seen.
    """
    for skip in skipped[:_SKIPPED_SHOWN]:
        echo(f"lmk: skipped {skip.path}: {skip.reason}", err=True)
    if len(skipped) > _SKIPPED_SHOWN:
        more = len(skipped) - _SKIPPED_SHOWN
        echo(f"lmk: skipped {more:,} more ({rest})", err=True)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """1 and "picture" -> "1 picture"; 1200 and "query", "queries" -> "1,200 queries"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def first_of(names: Sequence[str], most: int) -> str:
    """["a", "b", "c"] and 2 -> "a, b and 1 more"."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def human_bytes(count: int) -> str:
    """1234567 -> "1.2 MB"."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def page(template: str, **values: Any) -> str:
    """Renders a template of this folder into one self-contained HTML page."""
    return _environment().get_template(template).render(**values)


def data_uri(path: str, sha256: str | None = None) -> str | None:
    """A picture's thumbnail for an HTML page; None where it cannot be read.

    Args:
        path: of the picture.
        sha256: of its content, where an index names it; another content is not shown.
    """
    from lmk.embed.data.images import thumbnail

    jpeg = thumbnail(Path(path), _THUMBNAIL_PIXELS, sha256=sha256)
    return None if jpeg is None else f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def breakable(name: str) -> Markup:
    """A label or path as HTML that may be broken behind "_" and "/" rather than inside words."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(map(escape, re.split(r"(?<=[_/])(?=.)", name, flags=re.DOTALL)))


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmk.cli", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["thumbnail"] = cache(data_uri)  # a page shows some pictures many times
    environment.globals["none_of_these"] = NONE_OF_THESE
    environment.filters["breakable"] = breakable
    return environment


def require_folder(path: Path) -> None:
    """Checks that the folder of something to write is there, before the work is done.

    Raises:
        UsageError: when it is not.
    """
    from lmk.embed.errors import UsageError

    if not path.parent.is_dir():
        raise UsageError("no such folder", where=path.parent, remedy="make it first")


def check_output(path: Path, *, reads: Sequence[Path] = ()) -> None:
    """Checks, before the work is done, that a file can be put there.

    Args:
        path: of the file to write.
        reads: what the work reads; none of it may be written over.

    Raises:
        UsageError: when its folder is missing; when what is there is one of `reads`, or a picture
            (as in `lmk query --html a.jpg b.jpg`, where the page's name was forgotten), or no
            plain file: putting a file in its place would replace a device such as /dev/null.
    """
    from lmk.embed.decode.formats import PICTURE_SUFFIXES
    from lmk.embed.errors import UsageError

    require_folder(path)
    if not path.exists():
        return
    if not path.is_file():
        raise UsageError("is no plain file", where=path, remedy="name a file to write")
    if any(source.exists() and path.samefile(source) for source in reads):
        raise UsageError("would be read and written over", where=path, remedy="name another file")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise UsageError(
            "is a picture, and would be written over", where=path, remedy="name another file"
        )


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        StorageError: the disk is full, the folder read-only.
    """
    from lmk.embed.files import write_whole

    write_whole(path, text.encode("utf-8", "backslashreplace"))
