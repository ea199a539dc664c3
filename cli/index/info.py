"""The commands `lmk index info` and `lmk index list`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmk.cli.index_path import INDEX
from lmk.cli.landmark_names import shown_name
from lmk.cli.options import as_json, labels
from lmk.cli.printing import echo, echo_fields, echo_json
from lmk.cli.render import counted, human_bytes
from lmk.embed.errors import LmkError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lmk.index.gallery.gallery import Gallery

_ROWS_AT_A_TIME = 10_000
_NO_LANDMARK = "(no landmark)"


@click.command(short_help="Show the content, the search and the steps.")
@click.argument("index", type=INDEX)
@as_json
def info(index: Path, as_json: bool) -> None:
    """Show what INDEX contains and how it is searched.

    Every file of the index is compared with its checksum first.

    Example: lmk index info gallery.lmk
    """
    from lmk.index.gallery.gallery import Gallery

    with Gallery.open(index, verify=True) as gallery:
        facts = _facts(gallery)
    if as_json:
        echo_json(facts)
        return
    for name, text in _lines(facts).items():
        echo(f"{name:14} {text}")
    for skip in facts["skipped_files"]:
        echo(f"skipped        {skip['path']}: {skip['reason']}")


def _facts(gallery: Gallery) -> dict[str, Any]:
    from lmk.embed.extract.embedder import Embedder
    from lmk.index.gallery.info import bytes_below
    from lmk.rerank.fit.saved import saved_pipeline
    from lmk.rerank.lists.retrieval import saved_retrieval

    embedder = Embedder.load(gallery.embedder_dir, checked=True)
    skipped = [{"path": path, "reason": reason} for path, reason in gallery.skipped()]
    return asdict(gallery.info()) | {
        "path": str(gallery.path),
        "removed": gallery.removed,
        "precision": gallery.precision,
        "cache_bytes": bytes_below(gallery.path / "cache"),
        "search": _search(gallery),
        "embedder": embedder.config.model_dump() | {"whitened": embedder.whitening is not None},
        "steps": [step.model_dump() for step in saved_pipeline(gallery).steps],
        "retrieval": saved_retrieval(gallery).model_dump(),
        "skipped_files": skipped,
    }


class _NotReadyError(Exception):
    """Error for a search whose files do not exist yet; the message names the missing file."""


def _search(gallery: Gallery) -> str:
    """Returns the kind of search and its reason as text, without building any file."""
    from lmk.index.search.choose import choose

    def stop(text: str) -> None:
        raise _NotReadyError(text)

    try:
        return choose(gallery, on_message=stop).reason
    except _NotReadyError as error:
        return f"the next search first needs: {error}"
    except LmkError as error:
        return f"not possible now: {error}"


def _lines(facts: dict[str, Any]) -> dict[str, str]:
    embedder = facts["embedder"]
    whitened = ", whitened" if embedder["whitened"] else ""
    model = f"{embedder['name']} at {embedder['size']} px, {facts['dim']}-d{whitened}"
    cache = human_bytes(facts["cache_bytes"])
    removed, segments = facts["removed"], facts["segments"]
    details = facts["landmark_details"]
    return {
        "index": facts["path"],
        "landmarks": f"{facts['landmarks']:,}" + f" (details of {details:,})" * bool(details),
        "pictures": f"{facts['pictures']:,} ({facts['unlabelled']:,} without a landmark)",
        "distractors": f"{facts['distractors']:,}",
        "removed rows": f"{removed:,}" + " (`lmk index compact` frees them)" * bool(removed),
        "skipped files": f"{facts['skipped']:,}",
        "embedder": f"{model}, fingerprint {facts['fingerprint'][:16]}",
        "vectors": f"{facts['precision']}, in "
        + ("catalog.db" if not segments else counted(segments, "segment file")),
        "search": facts["search"],
        "steps": ", ".join(_step_text(step) for step in facts["steps"]),
        "lists": ", ".join(_step_text(step) for step in facts["retrieval"]["steps"])
        or "in the order of the search",
        "size": f"{human_bytes(facts['bytes_on_disk'])}, of it cache {cache}; "
        f"format {facts['format']}",
        "created": _to_the_second(facts["created"]),
        "updated": _to_the_second(facts["updated"]),
    }


def _step_text(step: dict[str, object]) -> str:
    parameters = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in step.items()
        if name != "step" and value is not None
    )
    return f"{step['step']} ({parameters})" if parameters else str(step["step"])


@click.command("list", short_help="List landmarks or pictures.")
@click.argument("index", type=INDEX)
@click.option("--pictures", is_flag=True, help="List pictures and distractors, not landmarks.")
@labels
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def list_(index: Path, pictures: bool, labels: tuple[str, ...], as_json: bool) -> None:
    """List the landmarks of INDEX with their numbers of pictures.

    With --pictures, list each picture: id, landmarks and file, separated by tabs.

    Example: lmk index list gallery.lmk --pictures --label eiffel_tower
    """
    import numpy as np

    from lmk.index.gallery.gallery import Gallery, class_sizes

    with Gallery.open(index) as gallery:
        rows = gallery.role_rows("gallery")
        allowed = gallery.view().allowed(labels or None)
        rows = rows[allowed[rows]]
        if pictures:
            _list_pictures(gallery, rows, "gallery", as_json)
            if not labels:
                _list_pictures(gallery, gallery.role_rows("distractor"), "distractor", as_json)
            return
        sizes: dict[str | None, int] = {
            label: count
            for label, count in class_sizes(gallery).items()
            if count and (not labels or label in labels)
        }
        if unlabelled := int((np.diff(gallery.label_offsets)[rows] == 0).sum()):
            sizes[None] = unlabelled
        width = max((len(f"{count:,}") for count in sizes.values()), default=0)
        for label, count in sizes.items():
            own = None if label is None else gallery.landmark_details(label)
            if as_json:
                facts = {} if own is None else {"details": own.as_dict()}
                echo_json({"label": label, "pictures": count} | facts)
            else:
                name = _NO_LANDMARK if label is None else shown_name(label, own)
                echo(f"{count:{width},}  {name}")


def _list_pictures(gallery: Gallery, rows: NDArray[np.int64], role: str, as_json: bool) -> None:
    for row, picture in _pictures(gallery, rows):
        if as_json:
            facts = asdict(picture) | {"row": row, "role": role, "file": str(gallery.file(picture))}
            echo_json(facts)
        else:
            names = "(distractor)" if role == "distractor" else " ".join(picture.labels)
            echo_fields(picture.id, names or _NO_LANDMARK, str(gallery.file(picture)))


def _pictures(gallery: Gallery, rows: NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
    for low in range(0, len(rows), _ROWS_AT_A_TIME):
        piece = rows[low : low + _ROWS_AT_A_TIME]
        yield from zip(piece.tolist(), gallery.pictures(piece), strict=True)


def _to_the_second(moment: str) -> str:
    return datetime.fromisoformat(moment).isoformat(timespec="seconds")
