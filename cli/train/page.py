"""The report of a training run: one HTML page with curves from the logs and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmk.cli.render import page, write_text
from lmk.embed.train.log import EPOCHS, STEPS, read_log
from lmk.eval.report.axes import Axis, axis_of

PAGE = "report.html"
_POINTS = 300  # maximum number of points of a curve; each point is a mean of steps
_FIGURES = {"gap": "GAP", "map": "mAP@100", "accuracy": "acc@1", "tag_map": "mAP of tags"}


@dataclass(frozen=True)
class Line:
    """The name and the points of a curve."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]


@dataclass(frozen=True)
class Plot:
    """A plot of curves over one pair of axes."""

    key: str
    title: str
    x_name: str
    y_name: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]


def write_page(folder: Path) -> Path:
    """Writes training/report.html in a run's folder from its logs, and returns the path.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    training = folder / "training"
    steps, epochs = read_log(training / STEPS), read_log(training / EPOCHS)
    text = page(
        "train/train_report.html",
        name=folder.name,
        epochs=epochs,
        plots=_plots(steps, epochs),
        settings=(training / "config.json").read_text("utf-8"),
        skipped=len(read_log(training / "skipped.csv")),
    )
    path = training / PAGE
    write_text(path, text)
    return path


def _plots(steps: Sequence[dict[str, str]], epochs: Sequence[dict[str, str]]) -> list[Plot]:
    if not steps:
        return []
    places = [float(row["step"]) for row in steps]
    losses = [name for name in steps[0] if name not in ("step", "rate")]
    plots = [
        _plot(name, f"Loss: {name}", "step", "loss", [_thinned(name, places, _column(steps, name))])
        for name in losses
    ]
    rate = _thinned("rate", places, _column(steps, "rate"))
    plots.append(_plot("rate", "Learning rate", "step", "share of its peak", [rate]))
    measured = [
        Line(text, tuple(_column(done, "epoch")), tuple(_column(done, name)))
        for name, text in _FIGURES.items()
        if (done := [row for row in epochs if row.get(name)])
    ]
    if measured:
        plots.append(_plot("validation", "Validation", "epoch", "score", measured))
    return plots


def _column(rows: Sequence[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _plot(key: str, title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> Plot:
    xs = [x for line in lines for x in line.xs]
    ys = [y for line in lines for y in line.ys]
    x = axis_of(min(xs), max(xs), exact=True, whole=True)
    return Plot(key, title, x_name, y_name, x, axis_of(min(0.0, *ys), max(ys)), tuple(lines))


def _thinned(name: str, xs: Sequence[float], ys: Sequence[float]) -> Line:
    """Returns a curve of at most _POINTS points; each point is a mean of consecutive steps."""
    size = -(-len(xs) // _POINTS)
    pieces = [slice(start, start + size) for start in range(0, len(xs), size)]
    means = [tuple(sum(v[p]) / len(v[p]) for p in pieces) for v in (xs, ys)]
    return Line(name, means[0], means[1])
