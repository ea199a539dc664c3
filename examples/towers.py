"""Five of the landmarks: those that are tall.

Builders as in `landmarks`: they return parts around the origin, in metres, y up.
"""

import numpy as np
from sdf import (
    Floats,
    Part,
    arch,
    around,
    ball,
    block,
    box,
    capsule,
    cone,
    cut,
    ellipsoid,
    every,
    gable,
    noise3,
    part,
    slab,
    tube,
    union,
)

_LATTICE_Y = np.array([0, 6, 12, 20, 28, 38, 50])

_LATTICE_W = np.array([11.5, 8.9, 6.8, 4.6, 3.1, 1.9, 1.0])

_STOREYS = [  # floor, half width of the walls, half width of the eaves
    (1.5, 5.2, 8.8),
    (8.3, 4.5, 7.9),
    (14.2, 3.9, 7.0),
    (19.6, 3.3, 6.2),
    (24.6, 2.8, 5.5),
]


def lattice() -> list[Part]:
    """Iron tower on four spread legs, cross-braced, with two platforms."""

    def iron(x: Floats, y: Floats, z: Floats) -> Floats:
        ax, az = np.abs(x), np.abs(z)
        far, near = np.maximum(ax, az), np.minimum(ax, az)
        w = np.interp(y, _LATTICE_Y, _LATTICE_W).astype(np.float32)
        leg = 0.13 * w + 0.75
        posts = union(
            np.maximum(np.abs(far - w), np.abs(near - w)) - 0.34,
            np.maximum(np.abs(far - w), np.abs(near - (w - 2 * leg))) - 0.26 + 1e3 * (y > 19.5),
        )
        panel = np.maximum(2 * leg, 0.9)
        v = every(y, 2.4)
        u = near - (w - leg)
        brace = np.abs(np.abs(u / leg) - np.abs(v / 1.2)) * 0.55 * leg - 0.17
        brace = np.maximum(np.maximum(brace, np.abs(u) - leg), np.abs(far - w) - 0.16)
        inner = np.abs(np.abs(near / w) - np.abs(v / 1.2)) * 0.6 * np.minimum(w, 1.6) - 0.17
        inner = np.maximum(np.maximum(inner, near - w), np.abs(far - w) - 0.16)
        bars = np.where(y > 19.5, inner, brace)
        rungs = np.maximum(np.abs(np.abs(v) - 1.2) - 0.13, np.abs(far - w) - 0.14)
        rungs = np.maximum(
            rungs, np.where(y > 19.5, near - w, np.abs(u) - np.maximum(leg, panel / 2))
        )
        curve = np.abs(np.hypot(near, y - 1.5) - 8.0) - 0.45
        curve = np.maximum(curve, np.maximum(np.abs(far - w - 0.1) - 0.3, 1.5 - y))
        frame = np.maximum(union(posts, bars, rungs), slab(y, 0, 47))
        return 0.75 * union(frame, np.maximum(curve, near - w))

    def decks(x: Floats, y: Floats, z: Floats) -> Floats:
        far = np.maximum(np.abs(x), np.abs(z))
        near = np.minimum(np.abs(x), np.abs(z))
        first = cut(block(x, y, z, 8.2, 11.2, 12.9, 8.2), block(x, y, z, 6.6, 11, 13.2, 6.6))
        first = cut(first, box(far - 8.2, y - 12.3, every(near, 1.1), 0.3, 0.42, 0.4))
        feet = np.maximum(
            np.maximum(np.abs(far - 10.4), np.abs(near - 10.4)) - 2.3, slab(y, -1, 1.2)
        )
        second = union(block(x, y, z, 5.2, 19.2, 19.7, 5.2), block(x, y, z, 5.5, 20.1, 20.3, 5.5))
        cabin = union(block(x, y, z, 1.9, 46.4, 46.9, 1.9), tube(x, y, z, 1.3, 46, 49))
        mast = union(cone(x, y, z, 1.3, 0.3, 48.9, 50.4), tube(x, y, z, 0.18, 50, 56))
        return union(first, feet, second, cabin, mast)

    return [part("iron", 12.6, -1, 47.2, 12.6, iron), part("iron", 13, -1, 56.2, 13, decks)]


def campanile() -> list[Part]:
    """Round tower of seven arcaded storeys that leans."""
    lean = np.float32(np.radians(7.5))
    c, s = np.cos(lean), np.sin(lean)

    def tower(x: Floats, y: Floats, z: Floats) -> Floats:
        lx, ly = c * x - s * y, s * x + c * y
        r = np.hypot(lx, z)
        px, pz = around(lx, z, 18)
        floor = np.floor((ly - 6.0) / 3.9)
        v = ly - 6.0 - 3.9 * floor
        core = tube(lx, ly, z, 4.3, -2, 30)
        gallery = np.maximum(np.abs(r - 5.05) - 0.3, slab(ly, 5.5, 29.4))
        gallery = cut(gallery, np.maximum(arch(pz, v, 0.62, 2.2), 0.35 - v))
        base = cut(
            np.maximum(r - 5.5, slab(ly, -2, 6)),
            np.maximum(np.maximum(arch(pz, ly, 0.7, 4.1), 0.5 - ly), 5.2 - px),
        )
        ledges = np.maximum(
            np.maximum(r - 5.75, np.abs(every(ly - 6.0, 3.9)) - 0.2), slab(ly, 5.5, 29.8)
        )
        _, bz = around(lx, z, 8)
        bell = np.maximum(np.abs(r - 3.4) - 0.5, slab(ly, 29, 35))
        bell = cut(bell, np.maximum(arch(bz, ly, 0.85, 32.4), 30.2 - ly))
        crown = np.maximum(r - 4.2, slab(ly, 34.4, 35.2))
        return (
            union(core, gallery, base, ledges, bell, crown, tube(lx, ly, z, 2.6, 29, 34.6)) * 0.95
        )

    return [part("marble", 11.8, -1, 36, 6.2, tower)]


def wheel() -> list[Part]:
    """Observation wheel with cabins on slanted legs."""
    hub = 22.0

    def steel(x: Floats, y: Floats, z: Floats) -> Floats:
        az = np.abs(z)
        px, pz = around(x, y - hub, 28)
        rims = np.hypot(np.hypot(x, y - hub) - 18.0, az - 1.0) - 0.32
        inner = np.hypot(np.hypot(x, y - hub) - 16.2, z) - 0.24
        ties = capsule(px, pz, az, (16.2, 0.0, 0.0), (18.0, 0.0, 1.0), 0.15)
        spokes = capsule(px, pz, az, (0.8, 0.0, 1.6), (16.2, 0.0, 0.0), 0.1)
        axle = np.maximum(np.hypot(x, y - hub) - 1.1, az - 2.6)
        legs = capsule(np.abs(x), y, az, (0.4, hub, 2.7), (9.5, -1.0, 6.0), 0.62)
        cross = capsule(np.abs(x), y, az, (0, 7.4, 5.0), (6.8, 7.4, 5.0), 0.3)
        return union(rims, inner, ties, spokes, axle, legs, cross)

    def cabins(x: Floats, y: Floats, z: Floats) -> Floats:
        px, pz = around(x, y - hub, 14)
        pod = ellipsoid(px - 19.7, pz, z, 1.15, 1.45, 1.25)
        return union(pod, np.hypot(np.hypot(px - 18.6, pz), z) - 0.3)

    def hall(x: Floats, y: Floats, z: Floats) -> Floats:
        deck = block(x, y, z, 13, -1, 0.8, 7.5)
        house = cut(
            block(x, y, z - 4, 4.5, 0, 3.0, 2), box(every(x, 1.5, 2), y - 1.9, z - 6, 0.6, 0.7, 0.3)
        )
        return union(deck, house, block(x, y, z - 4.2, 5.2, 3.0, 3.35, 2.8))

    return [
        part("steel", 18.5, -1, 41, 6.8, steel),
        part("cabin", 21.2, 0.8, 43.2, 1.6, cabins),
        part("plaster", 13.2, -1, 3.5, 7.6, hall),
    ]


def pagoda() -> list[Part]:
    """Five stacked roofs with raised corners under a ringed spire."""

    def walls(x: Floats, y: Floats, z: Floats) -> Floats:
        ax, az = np.abs(x), np.abs(z)
        far, near = np.maximum(ax, az), np.minimum(ax, az)
        out = block(x, y, z, 7.6, -1, 1.5, 7.6)
        for floor, half, _ in _STOREYS:
            body = np.maximum(far - half, slab(y, floor - 0.5, floor + 4.2))
            bay = every(near, half / 1.5)
            pane = np.maximum(np.abs(bay) - half / 4.2, np.abs(y - floor - 2.0) - 1.1)
            body = cut(body, np.maximum(pane, half - 0.3 - far))
            rail = np.maximum(np.abs(far - half - 0.75) - 0.1, np.abs(y - floor - 0.75) - 0.1)
            out = union(out, body, rail)
        return out

    def roofs(x: Floats, y: Floats, z: Floats) -> Floats:
        ax, az = np.abs(x), np.abs(z)
        far, near = np.maximum(ax, az), np.minimum(ax, az)
        out = np.full_like(x, 1e3)
        for floor, half, eave in _STOREYS:
            rise = 2.2 if floor < 24 else 3.4
            slope = np.clip((eave - far) / (eave - 0.55 * half), 0, 1)
            lift = 0.85 * (near / eave) ** 4 * np.clip(far / eave, 0, 1) ** 3
            top = y - (floor + 3.7 + rise * slope**1.6 + lift)
            tiles = 0.045 * np.cos(near * 9.0)
            shell = np.maximum(0.62 * (np.abs(top + 0.28) - 0.28 - tiles), far - eave)
            out = np.minimum(out, shell)
        return out

    def spire(x: Floats, y: Floats, z: Floats) -> Floats:
        rings = np.hypot(np.hypot(x, z) - 0.55, every(y - 34, 0.85, 4)) - 0.17
        return union(tube(x, y, z, 0.2, 30, 39.5), rings, ball(x, y - 39.6, z, 0.45))

    return [
        part("timber", 7.8, -1, 29, 7.8, walls),
        part("tile", 8.9, 4.5, 33.2, 8.9, roofs),
        part("iron", 0.8, 30, 40.2, 0.8, spire),
    ]


def lighthouse() -> list[Part]:
    """Banded tower with a lantern, and a keeper's house, on a rock in the water."""

    def rock(x: Floats, y: Floats, z: Floats) -> Floats:
        mound = union(
            ellipsoid(x, y + 1.5, z, 13, 6.2, 10),
            ellipsoid(x - 9, y + 1, z - 4, 6, 4.0, 5),
            ellipsoid(x + 11, y + 1.2, z - 2, 6.5, 4.4, 6),
        )
        rough = 0.7 * noise3(x, y, z, 30.0, soft=True)
        return 0.6 * np.maximum(mound - rough, y - 4.6)

    def tower(x: Floats, y: Floats, z: Floats) -> Floats:
        shaft = cone(x, y, z, 3.3, 2.0, 3.5, 25)
        window = box(every(y - 8, 5.0, 2), x, z - 2.8, 0.6, 0.36, 1.2)
        foot = tube(x, y, z, 3.9, 3.5, 5.2)
        return union(cut(shaft, window), foot)

    def gallery(x: Floats, y: Floats, z: Floats) -> Floats:
        deck = union(tube(x, y, z, 3.1, 24.8, 25.4), cone(x, y, z, 2.0, 2.9, 23.9, 24.9))
        px, pz = around(x, z, 16)
        posts = np.maximum(np.hypot(px - 2.95, pz) - 0.07, slab(y, 25, 26.6))
        rail = np.hypot(np.hypot(x, z) - 2.95, y - 26.6) - 0.09
        bars = np.maximum(np.hypot(px - 1.6, pz) - 0.09, slab(y, 25, 28.7))
        cap = np.maximum(ellipsoid(x, y - 28.6, z, 2.1, 1.9, 2.1), 28.5 - y)
        return union(deck, posts, rail, bars, cap, tube(x, y, z, 0.1, 30, 32))

    def lamp(x: Floats, y: Floats, z: Floats) -> Floats:
        return tube(x, y, z, 1.5, 25, 28.6)

    def house(x: Floats, y: Floats, z: Floats) -> Floats:
        walls = block(x + 7, y, z - 1, 2.6, 3.2, 7.0, 3.4)
        panes = box(x + 7, y - 5.6, every(z - 1, 2.2, 1), 3.5, 0.55, 0.4)
        return cut(walls, np.maximum(panes, 2.4 - np.abs(x + 7)))

    def roof(x: Floats, y: Floats, z: Floats) -> Floats:
        chimney = block(x + 7, y, z - 3, 0.5, 7, 10.2, 0.5)
        return union(gable(x + 7, y, z - 1, 3.1, 6.9, 2.4, 3.8), chimney)

    return [
        part("rock", 18, -1, 5.4, 11.5, rock),
        part("banded", 4, 3.4, 25.2, 4, tower),
        part("iron", 3.2, 23.8, 32.1, 3.2, gallery),
        part("lamp", 1.6, 24.9, 28.7, 1.6, lamp),
        part("plaster", 9.8, 3, 7.1, 4.8, house),
        part("tile", 10.3, 6.8, 10.3, 5, roof),
    ]
