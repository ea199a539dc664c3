"""The points that a query and a neighbour share, laid out for drawing over their thumbnails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmk.rerank.steps.geometry import Match

HEIGHT = 240  # of both pictures, in units of the drawing
GAP = 8  # between them
MOST_LINES = 200  # more hide what they show


@dataclass(frozen=True)
class Line:
    """One matched point: where it is in the query and in the neighbour, and whether it fits."""

    x1: float
    y1: float
    x2: float
    y2: float
    inlier: bool


@dataclass(frozen=True)
class Drawing:
    """Query and neighbour side by side, of one height.

    Attributes:
        query_width, gallery_width: of the two pictures.
        start: x where the neighbour begins.
        width, height: of the whole.
        lines: at most MOST_LINES; inliers are drawn last, over the others, and left out last.
    """

    query_width: float
    gallery_width: float
    start: float
    width: float
    height: float
    lines: tuple[Line, ...]


def drawing_of(match: Match) -> Drawing:
    """Scales a match, whose points are pixels of the pictures as they were looked at."""
    (query_width, query_scale), (gallery_width, gallery_scale) = (
        (size[0] * HEIGHT / size[1], HEIGHT / size[1])
        for size in (match.query_size, match.gallery_size)
    )
    start = query_width + GAP
    lines = [
        Line(
            round(x1 * query_scale, 1),
            round(y1 * query_scale, 1),
            round(start + x2 * gallery_scale, 1),
            round(y2 * gallery_scale, 1),
            inlier,
        )
        for (x1, y1), (x2, y2), inlier in zip(
            match.query.tolist(), match.gallery.tolist(), match.inlier.tolist(), strict=True
        )
    ]
    lines.sort(key=lambda line: line.inlier)
    return Drawing(
        round(query_width, 1),
        round(gallery_width, 1),
        round(start, 1),
        round(start + gallery_width, 1),
        HEIGHT,
        tuple(lines[-MOST_LINES:]),
    )
