"""Tiles: overlapping pieces of a photo, in which small objects are large."""

from __future__ import annotations

from lmk.embed.data.images import Picture, decode

TILES = 2  # number of tiles along a side


def tiled(data: bytes, size: int, tiles: int = TILES) -> list[Picture] | str:
    """Returns a photo and its (2 tiles - 1) ** 2 tiles; each tile overlaps half of the next.

    The photo is first resized to a square of `tiles` times `size`, so that a tile shows the same
    part of photos of any aspect ratio and has the size of the network's input.

    Args:
        data: the content of a picture file, as for images.decode.
        size: side of the network's input, in pixels.
        tiles: number of tiles that fit side by side; 1 for the whole photo alone.

    Returns:
        The pictures uint8 [size, size, 3], tiles row by row; or the reason why there is none.

    Raises:
        ValueError: tiles is below 1.
    """
    if tiles < 1:
        raise ValueError(f"a photo is cut into 1 tile or more a side, got {tiles}")
    whole = decode(data, size)
    if isinstance(whole, str) or tiles == 1:
        return whole if isinstance(whole, str) else [whole]
    large = decode(data, tiles * size)
    if isinstance(large, str):
        return large
    starts = [place * size // 2 for place in range(2 * tiles - 1)]
    cut = [large[y : y + size, x : x + size].copy() for y in starts for x in starts]
    return [whole, *cut]
