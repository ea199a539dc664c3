"""Text, thumbnails, HTML pages and output files of commands.

The folder of each command group has the functions and templates of its pages. For example, the
page of `lmk query` comes from `answers_page` in cli/answer/answers.py and cli/answer/query.html.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmk.cli.printing import echo
from lmk.embed.errors import UsageError

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

    from lmk.embed.data.images import Skipped

NONE_OF_THESE = "none of these"
_SKIPPED_SHOWN = 10
_THUMBNAIL_PIXELS = 240


def echo_skipped(skipped: Sequence[Skipped], rest: str) -> None:
    """Prints the first skipped files and the number of further ones on stderr.

    Args:
        skipped: the skipped files.
        rest: the text that refers to the further files.
    """
    for skip in skipped[:_SKIPPED_SHOWN]:
        echo(f"lmk: skipped {skip.path}: {skip.reason}", err=True)
    if len(skipped) > _SKIPPED_SHOWN:
        more = len(skipped) - _SKIPPED_SHOWN
        echo(f"lmk: skipped {more:,} more ({rest})", err=True)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Returns a count with its noun, such as "1 picture" or "1,200 queries"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def first_of(names: Sequence[str], most: int) -> str:
    """Returns at most `most` names as text: "a, b and 1 more" for ["a", "b", "c"] and 2."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def human_bytes(count: int) -> str:
    """Returns a number of bytes as text: "1.2 MB" for 1234567."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def page(template: str, **values: Any) -> str:
    """Returns a self-contained HTML page from a template below this folder."""
    return _environment().get_template(template).render(**values)


def data_uri(path: str, sha256: str | None = None) -> str | None:
    """Returns a thumbnail as a data URI, or None if the picture cannot be read.

    Args:
        path: the file of the picture.
        sha256: the required checksum of the content; None accepts any content.
    """
    from lmk.embed.data.images import thumbnail

    jpeg = thumbnail(Path(path), _THUMBNAIL_PIXELS, sha256=sha256)
    return None if jpeg is None else f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def breakable(name: str) -> Markup:
    """Returns a label or path as HTML with line break opportunities after "_" and "/"."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(map(escape, re.split(r"(?<=[_/])(?=.)", name, flags=re.DOTALL)))


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmk.cli", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["thumbnail"] = cache(data_uri)  # A page may repeat a picture many times.
    environment.globals["none_of_these"] = NONE_OF_THESE
    environment.filters["breakable"] = breakable
    return environment


def require_folder(path: Path) -> None:
    """Checks, before the work starts, that the folder of an output exists.

    Raises:
        UsageError: the folder does not exist.
    """
    if not path.parent.is_dir():
        raise UsageError("no such folder", where=path.parent, remedy="create it first")


def check_output(path: Path | None, *, reads: Sequence[Path] = ()) -> None:
    """Checks, before the work starts, that an output file can be written.

    Args:
        path: the file to write; None skips the check.
        reads: the inputs of the work, which must not be overwritten.

    Raises:
        UsageError: the folder does not exist, or the path is one of `reads`, a picture (as in
            `lmk query --html a.jpg b.jpg`, which lacks the name of the page), or not a plain file
            (the output would replace a device such as /dev/null).
    """
    from lmk.embed.decode.formats import PICTURE_SUFFIXES

    if path is None:
        return
    require_folder(path)
    if not path.exists():
        return
    if not path.is_file():
        raise UsageError("is not a plain file", where=path, remedy="name a file to write")
    if any(source.exists() and path.samefile(source) for source in reads):
        raise UsageError("would be read and overwritten", where=path, remedy="name another file")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise UsageError(
            "is a picture and would be overwritten", where=path, remedy="name another file"
        )


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically.

    Raises:
        StorageError: the disk is full or the folder is read-only.
    """
    from lmk.embed.files import write_whole

    write_whole(path, text.encode("utf-8", "backslashreplace"))
