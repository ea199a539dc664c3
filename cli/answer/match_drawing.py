"""Layout of the lines between matched points, drawn over the thumbnails of two pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmk.rerank.steps.state import Match

HEIGHT = 240  # height of both pictures, in units of the drawing
GAP = 8  # distance between the pictures
MOST_LINES = 200  # More lines would hide the pictures.


@dataclass(frozen=True)
class Line:
    """A pair of matched points: (x1, y1) in the query and (x2, y2) in the neighbour."""

    x1: float
    y1: float
    x2: float
    y2: float
    inlier: bool


@dataclass(frozen=True)
class Drawing:
    """A query and a neighbour side by side at equal height.

    Attributes:
        query_width, gallery_width: the widths of the query and the neighbour.
        start: the x coordinate of the left edge of the neighbour.
        width, height: the size of the whole drawing.
        lines: at most MOST_LINES lines. Inliers come last, so that they cover the other lines.
    """

    query_width: float
    gallery_width: float
    start: float
    width: float
    height: float
    lines: tuple[Line, ...]


def drawing_of(match: Match) -> Drawing:
    """Returns the drawing of a match, whose points are in pixels of the matched pictures."""
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
