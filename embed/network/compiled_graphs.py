"""Cache of graphs that OpenVINO compiled, so that a command does not compile its graph each time.

The cache is a folder of the user. Compiling is repeatable, so a file that is missing, damaged or of
another version costs time only. OpenVINO's own cache (CACHE_DIR) does not notice a changed file.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from lmk.embed.checksums import file_sha256
from lmk.embed.errors import LmkError
from lmk.embed.files import write_whole

_SUFFIX = ".blob"
_DIGEST_BYTES = hashlib.sha256().digest_size
_MOST_FILES = 8  # of about 10 MB each


def compile_graph(openvino: Any, graph: Path, options: dict[str, Any]) -> Any:
    """Returns a graph compiled for the CPU, from the cache if it holds that graph.

    Args:
        openvino: the module.
        graph: the file of the graph (.xml, with its .bin beside it).
        options: the settings of OpenVINO's CPU plugin.

    Raises:
        RuntimeError: OpenVINO cannot read the graph.
    """
    core = openvino.Core()
    cached = _cached_file(openvino, core, graph, options)
    content = None if cached is None else _read(cached)
    if content is not None:
        with suppress(RuntimeError):
            return core.import_model(content, "CPU", options)
    compiled = core.compile_model(graph, "CPU", options)
    if cached is not None:
        stream = BytesIO()
        compiled.export_model(stream)
        _write(cached, stream.getvalue())
    return compiled


def cache_folder() -> Path | None:
    """Returns the folder of compiled graphs, or None if the user has no home folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "lmk" / "graphs"


def _cached_file(openvino: Any, core: Any, graph: Path, options: dict[str, Any]) -> Path | None:
    """Returns the path for a graph; it depends on all that changes the compiled form."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        parts = [file_sha256(graph), file_sha256(graph.with_suffix(".bin"))]
    except OSError:  # the compilation names the reason
        return None
    parts += [openvino.__version__, core.get_property("CPU", "FULL_DEVICE_NAME")]
    parts += [f"{name}={value}" for name, value in sorted(options.items())]
    return folder / (hashlib.sha256("\n".join(parts).encode()).hexdigest() + _SUFFIX)


def _read(file: Path) -> bytes | None:
    """Returns a compiled graph, or None if the file is missing or damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, compiled = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return compiled if hashlib.sha256(compiled).digest() == digest else None


def _write(file: Path, compiled: bytes) -> None:
    """Stores a compiled graph and removes the oldest ones; a failure changes nothing else."""
    with suppress(OSError, LmkError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(file, (hashlib.sha256(compiled).digest(), compiled))
        ages = {other: other.stat().st_mtime for other in file.parent.iterdir()}
        for old in sorted(ages, key=ages.__getitem__, reverse=True)[_MOST_FILES:]:
            old.unlink(missing_ok=True)
