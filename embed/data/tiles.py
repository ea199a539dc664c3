"""Tiles: a photo cut into overlapping pieces, in which small things are large."""

from __future__ import annotations

from lmk.embed.data.images import Picture, decode

TILES = 2  # a side


def tiled(data: bytes, size: int, tiles: int = TILES) -> list[Picture] | str:
    """The whole photo, then its tiles: (2 tiles - 1) ** 2 of them, each overlapping half the next.

    The photo is squashed to `tiles` times `size` first, so that each tile shows the same part of
    it whatever its shape, and is what the network takes.

    Args:
        data: as for images.decode.
        size: side of the pictures that the network takes, in pixels.
        tiles: that fit beside each other into the photo; 1 for the whole photo alone.

    Returns:
        uint8 [size, size, 3] each, tiles by rows; or the reason why there is no picture.

    Raises:
        ValueError: when tiles is below 1.
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
