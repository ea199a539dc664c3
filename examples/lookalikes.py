"""Buildings that resemble a landmark but are none: the hard part of the non-landmarks.

Builders as in `everyday`: they take a random generator and return parts around the origin.
"""

import numpy as np
from sdf import (
    Floats,
    Part,
    arch,
    around,
    block,
    box,
    capsule,
    cone,
    cut,
    ellipsoid,
    every,
    gable,
    noise,
    noise3,
    part,
    tube,
    union,
)

Random = np.random.Generator


def _wall(rng: Random) -> str:
    return str(rng.choice(["stone", "plaster", "brick", "marble"]))


def portico(rng: Random) -> list[Part]:
    """Town hall: a block with windows behind a porch of a few columns."""
    bays = int(rng.integers(1, 3))
    reach = 2.4 * bays + 1.2

    def walls(x: Floats, y: Floats, z: Floats) -> Floats:
        body = block(x, y, z, reach + 8, -1, 9, 6)
        panes = np.maximum(
            box(every(x, 3.0), every(y - 2.6, 3.6, 1), z, 0.7, 1.1, 99), 5.7 - np.abs(z)
        )
        cx = every(x - 1.2, 2.4)
        post = np.hypot(cx, z - 9) - 0.42
        post = np.maximum(post, np.maximum(np.abs(x) - reach, np.abs(y - 4) - 4))
        steps = union(
            block(x, y, z - 8, reach + 1.2, -1, 0.4, 3.2),
            block(x, y, z - 8, reach + 0.6, -1, 0.8, 2.6),
        )
        porch = union(
            block(x, y, z - 7.5, reach + 0.4, 7.6, 9.2, 2.2),
            gable(x, y, z - 7.5, reach + 0.8, 9.1, 2.4, 2.5),
        )
        cornice = block(x, y, z, reach + 8.4, 8.6, 9.3, 6.4)
        return union(cut(body, panes), post, steps, porch, cornice)

    def glass(x: Floats, y: Floats, z: Floats) -> Floats:
        return block(x, y, z, reach + 7.8, -1, 8.5, 5.75)

    wide = reach + 8.5
    return [part(_wall(rng), wide, -1, 11.7, 11.3, walls), part("glass", wide, -1, 8.6, 6, glass)]


def observatory(rng: Random) -> list[Part]:
    """Low hall under one plain hemisphere."""
    r = float(rng.uniform(4.5, 6.5))

    def walls(x: Floats, y: Floats, z: Floats) -> Floats:
        hall = block(x, y, z, 2.2 * r, -1, 5.5, r)
        panes = np.maximum(
            arch(every(x, 2.6), y, 0.6, 3.4), np.maximum(r - 0.4 - np.abs(z), 1.0 - y)
        )
        return union(cut(hall, panes), tube(x, y, z, 0.95 * r, 5, 7.5))

    def dome(x: Floats, y: Floats, z: Floats) -> Floats:
        bulb = np.maximum(np.sqrt(x * x + (y - 7.5) ** 2 + z * z) - r, 7.4 - y)
        return cut(bulb, box(x, y - 7.5 - r, z - r, 0.6, r, r))

    cover = str(rng.choice(["slate", "steel", "marble", "tile"]))
    return [
        part(_wall(rng), 2.3 * r, -1, 7.7, r + 0.2, walls),
        part(cover, r + 0.1, 7.3, 7.7 + r, r + 0.1, dome),
    ]


def keep(rng: Random) -> list[Part]:
    """One round or square castle tower with a stretch of wall."""
    high, r = float(rng.uniform(11, 19)), float(rng.uniform(3, 4.6))
    square, capped = bool(rng.random() < 0.5), bool(rng.random() < 0.5)

    def walls(x: Floats, y: Floats, z: Floats) -> Floats:
        far = np.maximum(np.abs(x), np.abs(z)) if square else np.hypot(x, z)
        tower = np.maximum(far - r, np.maximum(-y - 1, y - high))
        rim = np.maximum(np.abs(far - r) - 0.4, np.abs(y - high) - 1.0)
        px, pz = around(x, z, 12)
        rim = cut(rim, box(px - r, y - high - 0.7, pz, 2, 0.7, 0.45))
        slits = box(every(x, 2.6, 1), every(y - 4, 4.0, 3), z - r, 0.2, 0.8, 0.6)
        curtain = block(x - 9, y, z, 9, -1, 6.5, 0.8)
        teeth = np.maximum(np.abs(every(x, 1.6)) - 0.5, block(x - 9, y, z, 9, 6, 7.6, 0.8))
        return union(cut(tower, slits), rim, curtain, teeth)

    def roof(x: Floats, y: Floats, z: Floats) -> Floats:
        return cone(x, y, z, r - 0.2, 0.1, high - 0.2, high + (5 if capped else 0.4))

    return [
        part(str(rng.choice(["stone", "brick"])), 18.2, -1, high + 1.2, r + 0.6, walls),
        part("slate", r, high - 0.3, high + 5.1, r, roof),
    ]


def teahouse(rng: Random) -> list[Part]:
    """Pavilion with one or two curved roofs."""
    double = bool(rng.random() < 0.5)

    def frame(x: Floats, y: Floats, z: Floats) -> Floats:
        ax, az = np.abs(x), np.abs(z)
        posts = np.maximum(np.hypot(every(x, 3.0), az - 3) - 0.22, ax - 4.8)
        posts = np.maximum(posts, np.abs(y - 2) - 2.2)
        base = block(x, y, z, 6, -1, 0.6, 4.2)
        return union(
            posts, base, block(x, y, z, 3.4, 0.5, 3.6, 2.2), block(x, y, z, 2.4, 4, 7, 1.6)
        )

    def roofs(x: Floats, y: Floats, z: Floats) -> Floats:
        out = np.full_like(x, 1e3)
        for low, wide in ((4.0, 6.4), (7.0, 4.4)) if double else ((4.0, 6.4),):
            far = np.maximum(np.abs(x) / 1.25, np.abs(z))
            slope = np.clip(1 - far / (0.82 * wide), 0, 1)
            top = y - (low + 2.6 * slope**1.5)
            out = union(out, np.maximum(0.6 * (np.abs(top) - 0.25), far - 0.82 * wide))
        return out

    high = 9.8 if double else 6.9
    return [
        part(str(rng.choice(["timber", "planks"])), 6.1, -1, 7.1, 4.3, frame),
        part(str(rng.choice(["tile", "slate"])), 6.7, 3.5, high, 5.4, roofs),
    ]


def beacon(rng: Random) -> list[Part]:
    """Squat harbour light, or a plain round tower with a flat top."""
    high, r = float(rng.uniform(9, 20)), float(rng.uniform(1.8, 3.0))
    lit = bool(rng.random() < 0.5)

    def tower(x: Floats, y: Floats, z: Floats) -> Floats:
        px, pz = around(x, z, 6)
        shaft = cone(x, y, z, r, 0.8 * r, -1, high)
        holes = np.maximum(arch(pz, every(y - 4, 4.0, 3), 0.35, 0.4), 0.7 * r - px)
        holes = np.maximum(holes, np.abs(every(y - 4, 4.0, 3)) - 0.8)
        return union(
            cut(shaft, holes),
            tube(x, y, z, 1.15 * r, high - 0.6, high),
            tube(x, y, z, 2 * r, -1, 0.8),
        )

    def top(x: Floats, y: Floats, z: Floats) -> Floats:
        cage = tube(x, y, z, 0.5 * r, high, high + (2.0 if lit else 0.2))
        return union(cage, cone(x, y, z, 0.65 * r, 0.05, high + 2, high + 3.2) if lit else cage)

    return [
        part(
            str(rng.choice(["plaster", "stone", "brick", "paint"])),
            2.1 * r,
            -1,
            high + 0.1,
            2.1 * r,
            tower,
        ),
        part("iron", r, high - 0.1, high + 3.3, r, top),
    ]


def stacks(rng: Random) -> list[Part]:
    """Two or three blunt rocks in a row."""
    spots = [
        (float(8 * i + rng.normal(0, 1.5)), float(rng.uniform(2.5, 5)), float(rng.uniform(6, 15)))
        for i in range(int(rng.integers(2, 4)))
    ]
    shift = float(rng.uniform(0, 90))

    def rock(x: Floats, y: Floats, z: Floats) -> Floats:
        out = np.full_like(x, 1e3)
        for at, r, high in spots:
            out = union(out, ellipsoid(x - at + 7, y - 0.2 * high, z, r, 0.8 * high, r))
        rough = 0.7 * noise3(x + shift, 0.5 * y, z, 26.0, soft=True) + 0.1 * noise(y, 0.2 * x, 14.0)
        return 0.6 * (out - rough)

    return [part("rock", 18, -1, 17, 7, rock)]


def terraces(rng: Random) -> list[Part]:
    """Three or four plain steps, a monument's base with a slab or a statue's block on top."""
    count, half = int(rng.integers(3, 5)), float(rng.uniform(7, 12))

    def steps(x: Floats, y: Floats, z: Floats) -> Floats:
        out = np.full_like(x, 1e3)
        for i in range(count):
            side = half * (1 - 0.22 * i)
            out = union(out, block(x, y, z, side, -1, 1.6 * (i + 1), 0.6 * side))
        return union(out, block(x, y, z, 1.0, 0, 1.6 * count + 6, 0.8))

    return [part(_wall(rng), half + 0.1, -1, 1.6 * count + 6.1, 0.7 * half, steps)]


def viaduct(rng: Random) -> list[Part]:
    """Railway bridge: one tier of tall arches, or flat beams on posts."""
    pitch, high = float(rng.uniform(7, 12)), float(rng.uniform(8, 15))
    beams = bool(rng.random() < 0.4)

    def body(x: Floats, y: Floats, z: Floats) -> Floats:
        whole = block(x, y, z, 60, -1, high, 1.8)
        hole = 0.4 * pitch
        gap = box(every(x, pitch), y - 0.5 * high + 1, z, hole, 0.5 * high, 9)
        opening = gap if beams else arch(every(x, pitch), y, hole, high - hole - 1.2)
        rail = np.maximum(box(x, y - high - 0.9, np.abs(z) - 1.6, 60, 0.1, 0.1), np.abs(x) - 60)
        return union(cut(whole, opening), rail, block(x, y, z, 60, high - 0.3, high + 0.2, 2.2))

    return [part(str(rng.choice(["stone", "brick", "plaster"])), 60, -1, high + 1.2, 2.4, body)]


def carousel(rng: Random) -> list[Part]:
    """Water wheel or spoked sculpture: a small ring on one post."""
    r, count = float(rng.uniform(4, 6.5)), int(rng.integers(6, 11))

    def ring(x: Floats, y: Floats, z: Floats) -> Floats:
        up = y - r - 1.5
        px, py = around(x, up, count)
        rim = np.maximum(np.abs(np.hypot(x, up) - r) - 0.3, np.abs(z) - 0.8)
        spokes = capsule(px, py, z, (0, 0, 0), (r, 0, 0), 0.18)
        return union(rim, spokes, box(px - r, py, z, 0.7, 0.12, 0.8))

    def post(x: Floats, y: Floats, z: Floats) -> Floats:
        side = block(x, y, z + 3.2, 4.5, -1, r + 2.5, 2)
        return union(side, np.maximum(np.hypot(x, y - r - 1.5) - 0.3, np.abs(z + 0.5) - 1.6))

    return [
        part(str(rng.choice(["planks", "steel", "iron"])), r + 0.8, 0.3, 2 * r + 2.8, 1, ring),
        part(_wall(rng), 4.6, -1, r + 2.6, 5.3, post),
    ]


def pylon(rng: Random) -> list[Part]:
    """Power pylon: narrow, straight, with three arms."""
    high = float(rng.uniform(18, 30))

    def steel(x: Floats, y: Floats, z: Floats) -> Floats:
        w = 2.6 * (1 - 0.85 * y / high)
        ax, az = np.abs(x), np.abs(z)
        far, near = np.maximum(ax, az), np.minimum(ax, az)
        legs = np.maximum(np.abs(far - w), np.abs(near - w)) - 0.14
        v = every(y, 3.0)
        bars = np.abs(np.abs(near) - w * np.abs(v) / 1.5) * 0.7 - 0.09
        bars = np.maximum(np.maximum(bars, np.abs(far - w) - 0.09), near - w)
        arms = np.maximum(box(x, every(y - 0.75 * high, 3.2, 1), z, 5.0, 0.16, 0.16), ax - 5.0)
        return 0.75 * union(np.maximum(union(legs, bars), y - high), arms)

    return [part("steel", 5.2, -1, high + 0.2, 3, steel)]


def turbine(rng: Random) -> list[Part]:
    """Wind turbine."""
    high, turn = float(rng.uniform(18, 28)), float(rng.uniform(0, 2))

    def white(x: Floats, y: Floats, z: Floats) -> Floats:
        px, py = around(x, y - high, 3, turn)
        blade = np.maximum(box(px - 5, py, z - 1.2, 5.2, 0.55, 0.14), np.abs(py) - 0.6 + 0.05 * px)
        pod = ellipsoid(x, y - high, z, 0.8, 0.8, 1.8)
        return 0.9 * union(cone(x, y, z, 1.0, 0.5, -1, high), blade, pod)

    return [part("plaster", 10.8, -1, high + 10.8, 2.2, white)]


def pergola(rng: Random) -> list[Part]:
    """Row of plain posts with beams: columns, but no temple."""
    bays = int(rng.integers(2, 5))
    round_posts = bool(rng.random() < 0.5)

    def frame(x: Floats, y: Floats, z: Floats) -> Floats:
        cx, cz = every(x, 3.2, bays), np.abs(z) - 2
        post = np.hypot(cx, cz) - 0.28 if round_posts else np.maximum(np.abs(cx), np.abs(cz)) - 0.26
        long = 3.2 * bays + 0.8
        beams = union(
            box(x, y - 4.1, np.abs(z) - 2, long, 0.22, 0.2),
            np.maximum(box(every(x, 0.8), y - 4.45, z, 0.12, 0.16, 2.9), np.abs(x) - long),
        )
        return union(np.maximum(post, np.abs(y - 1.5) - 2.5), beams)

    return [
        part(str(rng.choice(["planks", "stone", "plaster"])), 3.2 * bays + 1, -1, 4.8, 3, frame)
    ]


def church(rng: Random) -> list[Part]:
    """Village church: nave, square tower, pointed spire."""
    high = float(rng.uniform(11, 16))

    def walls(x: Floats, y: Floats, z: Floats) -> Floats:
        nave = union(block(x, y, z, 4, -1, 6.5, 9), gable(x, y, z, 4, 6.4, 3.6, 9))
        panes = np.maximum(
            arch(every(z, 3.4, 2), y, 0.6, 4.2), np.maximum(3.6 - np.abs(x), 1.8 - y)
        )
        tower = block(x, y, z - 11, 2.6, -1, high, 2.6)
        bell = np.maximum(arch(x, y, 0.7, high - 2), high - 4 - y)
        door = np.maximum(arch(x, y, 0.9, 2.2), 13 - z)
        return union(cut(nave, panes), cut(tower, bell, door))

    def roofs(x: Floats, y: Floats, z: Floats) -> Floats:
        far = np.maximum(np.abs(x), np.abs(z - 11))
        spire = np.maximum(0.95 * (far - 2.9 + (y - high) * 0.32), np.abs(y - high - 4.5) - 4.5)
        nave = cut(gable(x, y, z, 4.5, 6.4, 4.1, 9.2), gable(x, y, z, 4.2, 6.0, 3.9, 12))
        return union(spire, nave)

    return [
        part(str(rng.choice(["stone", "plaster", "brick"])), 4.2, -1, high + 0.2, 13.8, walls),
        part("slate", 4.6, 6, high + 9.1, 14, roofs),
    ]


def footbridge(rng: Random) -> list[Part]:
    """Small hump-backed bridge with one arch."""
    span = float(rng.uniform(3.5, 5.5))

    def stone(x: Floats, y: Floats, z: Floats) -> Floats:
        deck = y - (span * 1.05 + 1.2 - 0.012 * x * x)
        body = cut(np.maximum(deck, np.abs(z) - 2), arch(x, y, span, 0.4))
        walls = np.maximum(np.abs(deck - 0.4) - 0.5, np.abs(np.abs(z) - 1.9) - 0.2)
        return 0.8 * np.maximum(np.maximum(union(body, walls), np.abs(x) - 17), -y - 1)

    return [part(str(rng.choice(["stone", "brick"])), 17.2, -1, span * 1.05 + 2.3, 2.3, stone)]
