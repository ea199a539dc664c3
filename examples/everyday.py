"""Scenes that show none of the landmarks, and what stands around a landmark: trees, people, houses.

Each builder takes a random generator and returns parts around the origin, in metres, y up.
"""

from collections.abc import Callable

import lookalikes
import numpy as np
from sdf import (
    Floats,
    Part,
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
    place,
    tube,
    union,
)

Random = np.random.Generator


def tree(rng: Random) -> list[Part]:
    """Broad-leaved tree, or a conifer one time in three."""
    high = float(rng.uniform(5, 10))
    shift = float(rng.uniform(0, 50))
    if rng.random() < 0.33:

        def needles(x: Floats, y: Floats, z: Floats) -> Floats:
            skirt = 0.35 * np.abs(every(y + 0.5 * noise3(x + shift, y, z, 9.0), 1.3))
            return 0.45 * (cone(x, y, z, 0.3 * high, 0.1, 1.2, 1.25 * high) - skirt)

        leaves = part("leaf", 0.5 * high, 0.8, 1.4 * high, 0.5 * high, needles)
    else:
        crowns = [
            (
                *rng.uniform(-0.22, 0.22, 2) * high,
                high * rng.uniform(0.6, 0.95),
                high * rng.uniform(0.2, 0.33),
            )
            for _ in range(5)
        ]

        def foliage(x: Floats, y: Floats, z: Floats) -> Floats:
            out = np.full_like(x, 1e3)
            for cx, cz, cy, r in crowns:
                out = np.minimum(out, ball(x - float(cx), y - float(cy), z - float(cz), float(r)))
            return 0.45 * (out + 0.4 * noise3(x + shift, y, z, 6.0))

        leaves = part("leaf", 0.62 * high, 0.25 * high, 1.35 * high, 0.62 * high, foliage)

    def trunk(x: Floats, y: Floats, z: Floats) -> Floats:
        return cone(x, y, z, 0.05 * high, 0.03 * high, -0.5, 0.75 * high)

    return [leaves, part("bark", 0.06 * high, -0.5, 0.76 * high, 0.06 * high, trunk)]


def person(rng: Random) -> list[Part]:
    """Standing figure."""
    stride = float(rng.uniform(0.08, 0.22))

    def body(x: Floats, y: Floats, z: Floats) -> Floats:
        torso = ellipsoid(x, y - 1.15, z, 0.24, 0.38, 0.16)
        arms = capsule(np.abs(x), y, z, (0.24, 1.38, 0), (0.31, 0.85, 0.05), 0.06)
        return union(torso, arms)

    def legs(x: Floats, y: Floats, z: Floats) -> Floats:
        return capsule(np.abs(x), y, z, (0.09, 0.9, 0), (stride, 0.0, 0), 0.09)

    def head(x: Floats, y: Floats, z: Floats) -> Floats:
        return ball(x, y - 1.66, z, 0.125)

    cloth = str(rng.choice(["paint", "paint2", "plaster", "dark"]))
    return [
        part(cloth, 0.4, 0.7, 1.6, 0.22, body),
        part("dark", 0.35, -0.1, 1.05, 0.12, legs),
        part("skin", 0.13, 1.5, 1.8, 0.13, head),
    ]


def house(rng: Random) -> list[Part]:
    """Gabled house with windows, a door and a chimney."""
    hx, hz = float(rng.uniform(3, 4.5)), float(rng.uniform(4, 7))
    high, rise = float(rng.choice([3.2, 5.8, 8.4])), float(rng.uniform(1.8, 4))

    def walls(x: Floats, y: Floats, z: Floats) -> Floats:
        body = block(x, y, z, hx, -1, high, hz)
        top = gable(x, y, z, hx, high - 0.1, rise * 0.93, hz)
        row = every(y - 1.7, 2.6, 3)
        sides = box(x, row, every(z, 2.4, 1), hx + 1, 0.65, 0.5)
        ends = box(every(x, 2.2, 1), row, z, 0.5, 0.65, hz + 1)
        deep = 0.18 - np.maximum(np.abs(x) - hx, np.abs(z) - hz) - 0.36
        panes = np.maximum(np.maximum(np.minimum(sides, ends), deep), 0.7 - y)
        door = box(x - 0.9, y - 1.0, z - hz, 0.55, 1.1, 0.2)
        return union(cut(body, np.maximum(panes, y - high + 0.3), door), top)

    def roof(x: Floats, y: Floats, z: Floats) -> Floats:
        skin = gable(x, y, z, hx + 0.5, high - 0.15, rise + 0.25, hz + 0.45)
        inner = gable(x, y, z, hx + 0.2, high - 0.4, rise + 0.2, hz + 2)
        stack = block(x - 0.5 * hx, y, z - 0.4 * hz, 0.45, high, high + rise + 0.9, 0.45)
        return union(cut(skin, inner), stack)

    def glass(x: Floats, y: Floats, z: Floats) -> Floats:
        return block(x, y, z, hx - 0.14, -1, high - 0.2, hz - 0.14)

    wall = str(rng.choice(["brick", "plaster", "stone", "planks"]))
    cover = str(rng.choice(["tile", "slate"]))
    return [
        part(wall, hx + 0.2, -1, high + rise, hz + 0.2, walls),
        part("glass", hx, -1, high, hz, glass),
        part(cover, hx + 0.6, high - 0.6, high + rise + 1, hz + 0.6, roof),
    ]


def office(rng: Random) -> list[Part]:
    """Block of storeys with a grid of windows; also stands for towers of any height."""
    hx, hz = float(rng.uniform(4, 9)), float(rng.uniform(4, 9))
    floors = int(rng.integers(3, 14))
    high = 3.2 * floors + 1
    pitch = float(rng.choice([1.6, 2.2, 3.0]))

    def body(x: Floats, y: Floats, z: Floats) -> Floats:
        far = np.maximum(np.abs(x) - hx, np.abs(z) - hz)
        shell = np.maximum(far, np.maximum(-y - 1, y - high))
        row = np.abs(every(y - 1.9, 3.2)) - 0.95
        u = np.where(np.abs(x) - hx > np.abs(z) - hz, z, x)
        pane = np.maximum(row, np.abs(every(u, pitch)) - pitch * 0.33)
        pane = np.maximum(np.maximum(pane, -0.25 - far), y - high + 0.8)
        attic = block(x, y, z, 0.4 * hx, high, high + 2, 0.3 * hz)
        return union(cut(shell, pane), attic)

    def glass(x: Floats, y: Floats, z: Floats) -> Floats:
        return block(x, y, z, hx - 0.2, -1, high - 0.7, hz - 0.2)

    skin = str(rng.choice(["plaster", "brick", "stone", "steel", "marble"]))
    return [
        part(skin, hx + 0.1, -1, high + 2.1, hz + 0.1, body),
        part("glass", hx, -1, high, hz, glass),
    ]


def car(rng: Random) -> list[Part]:
    """Car, or a van."""
    van = bool(rng.random() < 0.3)

    def body(x: Floats, y: Floats, z: Floats) -> Floats:
        low = box(x, y - 0.75, z, 0.75, 0.3, 2.0) - 0.15
        lean = 0.0 if van else 0.75
        cabin = box(
            x,
            y - 1.35,
            (np.abs(z + 0.2) + lean * (y - 1.35)),
            0.7,
            0.5 + 0.4 * van,
            1.05 + 0.7 * van,
        )
        return 0.8 * union(low, cabin)

    def wheels(x: Floats, y: Floats, z: Floats) -> Floats:
        return np.maximum(
            np.hypot(y - 0.35, np.abs(z) - 1.25) - 0.36, np.abs(np.abs(x) - 0.75) - 0.18
        )

    paint = str(rng.choice(["paint", "paint2", "plaster", "dark"]))
    return [part(paint, 1, 0.2, 2.4, 2.4, body), part("dark", 1, -0.1, 0.8, 1.8, wheels)]


def boat(rng: Random) -> list[Part]:
    """Sailing boat."""
    high = float(rng.uniform(6, 9))

    def hull(x: Floats, y: Floats, z: Floats) -> Floats:
        return np.maximum(ellipsoid(x, y - 0.9, z, 1.2, 1.5, 3.6), y - 0.9)

    def sail(x: Floats, y: Floats, z: Floats) -> Floats:
        main = np.maximum(np.abs(x - 0.15 * np.sin(z)) - 0.06, np.maximum(1.6 - y, -z))
        return 0.8 * np.maximum(main, (z - 2.7 * (1 - (y - 1.6) / high)) * 0.9)

    def mast(x: Floats, y: Floats, z: Floats) -> Floats:
        cabin = block(x, y, z + 1, 0.6, 0.8, 1.5, 1.0)
        return union(tube(x, y, z, 0.08, 0.5, 1.6 + high), cabin)

    return [
        part(str(rng.choice(["paint", "paint2", "planks"])), 1.3, -0.7, 1, 3.7, hull),
        part("plaster", 0.4, 1.5, 1.7 + high, 2.9, sail),
        part("planks", 0.7, 0.5, 1.7 + high, 2.1, mast),
    ]


def boulder(rng: Random) -> list[Part]:
    """Rounded rock."""
    rx, ry, rz = (float(v) for v in rng.uniform(1, 3.2, 3))
    shift = float(rng.uniform(0, 90))

    def rock(x: Floats, y: Floats, z: Floats) -> Floats:
        return 0.55 * (
            ellipsoid(x, y - 0.2, z, rx, ry, rz) - 0.4 * noise3(x + shift, y, z, 10.0, soft=True)
        )

    return [part("rock", rx + 0.9, -1, ry + 1.2, rz + 0.9, rock)]


def fence(rng: Random) -> list[Part]:
    """Fence of posts and rails."""
    long, pitch = float(rng.uniform(12, 22)), float(rng.choice([0.35, 1.6]))

    def wood(x: Floats, y: Floats, z: Floats) -> Floats:
        posts = box(every(x, pitch), y - 0.5, z, 0.09, 0.75, 0.06)
        rails = box(x, np.abs(y - 0.7) - 0.3, z - 0.08, 99, 0.07, 0.04)
        return np.maximum(union(posts, rails), np.abs(x) - long)

    return [part("planks", long, -0.3, 1.4, 0.2, wood)]


def hill(rng: Random) -> list[Part]:
    """Broad hill."""
    rx, ry, rz = float(rng.uniform(18, 40)), float(rng.uniform(4, 14)), float(rng.uniform(14, 30))
    shift = float(rng.uniform(0, 300))

    def soil(x: Floats, y: Floats, z: Floats) -> Floats:
        return 0.7 * (
            ellipsoid(x, y + 2, z, rx, ry, rz) - 1.1 * noise3(x + shift, y, z, 90.0, soft=True)
        )

    kind = str(rng.choice(["turf", "rock", "turf"]))
    return [part(kind, rx + 2, -1, ry + 1, rz + 2, soil)]


def chimney(rng: Random) -> list[Part]:
    """Plain smoke stack or water tower: a round shaft that is no lighthouse."""
    high, r = float(rng.uniform(16, 34)), float(rng.uniform(1.3, 2.6))
    tank = bool(rng.random() < 0.5)

    def shaft(x: Floats, y: Floats, z: Floats) -> Floats:
        out = cone(x, y, z, r * 1.2, r * 0.8, -1, high)
        if tank:
            out = union(
                out,
                cone(x, y, z, r, 2.6 * r, high - 5, high - 2.5),
                tube(x, y, z, 2.6 * r, high - 2.5, high + 1.5),
            )
        return union(
            out,
            np.maximum(np.hypot(x, z) - r * 1.25, np.abs(every(y, 6.0)) - 0.15) + 1e3 * (y > high),
        )

    kind = str(rng.choice(["brick", "plaster", "steel", "stone"]))
    return [part(kind, 2.8 * r, -1, high + 1.6, 2.8 * r, shaft)]


def furniture(rng: Random) -> list[Part]:
    """Corner of a room, five times life size: walls, a table, chairs, a lamp."""
    chair_at = float(rng.uniform(-9, 9))

    def walls(x: Floats, y: Floats, z: Floats) -> Floats:
        back = cut(box(x, y - 9, z + 14, 30, 11, 0.8), box(x - 5, y - 9, z + 14, 4, 4, 3))
        return union(back, box(x + 22, y - 9, z, 0.8, 11, 15))

    def wood(x: Floats, y: Floats, z: Floats) -> Floats:
        top = box(x, y - 4.4, z, 6, 0.25, 3.4)
        legs = box(np.abs(x) - 5.4, y - 2, np.abs(z) - 2.9, 0.3, 2.4, 0.3)
        u, v = x - chair_at, z - 6.2
        seat = union(box(u, y - 2.6, v, 1.6, 0.2, 1.6), box(u, y - 5, v - 1.6, 1.6, 1.0, 0.15))
        feet = box(np.abs(u) - 1.4, y - 1.2, np.abs(v) - 1.4, 0.16, 1.4, 0.16)
        shelf = box(x + 15, every(y - 4, 3.0, 1), z + 11.5, 4, 0.2, 2)
        return union(top, legs, seat, feet, shelf)

    def things(x: Floats, y: Floats, z: Floats) -> Floats:
        lamp = union(cone(x - 13, y, z + 9, 2.2, 1.2, 9, 11.5), tube(x - 13, y, z + 9, 0.2, 0, 9))
        books = box(every(x + 15, 0.7, 4), every(y - 5.2, 3.0, 1), z + 11.5, 0.28, 0.95, 1.2)
        return union(lamp, ball(x - 2, y - 5.5, z, 0.9), books)

    return [
        part("plaster", 31, -1, 20, 16, walls),
        part("planks", 20, -0.3, 9, 14, wood),
        part("paint", 19.5, -0.1, 11.7, 13.2, things),
    ]


def balls(rng: Random) -> list[Part]:
    """Heap of balls and cubes."""
    out: list[Part] = []
    for _ in range(int(rng.integers(6, 13))):
        r = float(rng.uniform(0.8, 2.6))
        kind = str(rng.choice(["paint", "paint2", "marble", "steel", "plaster", "planks"]))
        if rng.random() < 0.6:
            shape = part(kind, r, 0, 2 * r, r, lambda x, y, z, r=r: ball(x, y - r, z, r))
        else:
            shape = part(kind, r, 0, 2 * r, r, lambda x, y, z, r=r: block(x, y, z, r, 0, 2 * r, r))
        out += place(
            [shape], *(float(v) for v in rng.uniform(-9, 9, 2)), yaw=float(rng.uniform(0, 3))
        )
    return out


def spread(
    rng: Random, build: Callable[[Random], list[Part]], count: int, width: float, turn: bool = True
) -> list[Part]:
    """Several of the same kind, apart from each other, within `width` metres of the origin."""
    spots: list[tuple[float, float]] = []
    out: list[Part] = []
    for _ in range(60):
        if len(spots) == count:
            break
        x, z = (float(v) for v in rng.uniform(-width, width, 2))
        if all(np.hypot(x - a, z - b) > 1.3 * width / count**0.5 for a, b in spots):
            spots.append((x, z))
            yaw = float(rng.uniform(0, 6.28)) if turn else float(rng.normal(0, 0.1))
            out += place(build(rng), x, z, yaw, float(rng.uniform(0.85, 1.15)))
    return out


# name: (scene, width of the picture in metres, height, grounds)
Scene = tuple[Callable[[Random], list[Part]], float, float, tuple[str, ...]]
_LAND = ("grass", "dry", "sand", "paving", "snow")
EVERYDAY: dict[str, Scene] = {
    "house": (lambda r: house(r) + place(spread(r, tree, 3, 14), 0, -8), 20, 11, _LAND),
    "street": (lambda r: spread(r, house, 5, 17), 34, 11, _LAND),
    "block": (office, 24, 26, _LAND),
    "blocks": (lambda r: spread(r, office, 5, 27, turn=False), 50, 30, _LAND),
    "grove": (lambda r: spread(r, tree, 9, 16), 28, 10, _LAND),
    "hills": (lambda r: spread(r, hill, 3, 45) + spread(r, tree, 4, 15), 60, 14, _LAND),
    "boulders": (lambda r: spread(r, boulder, 8, 9), 16, 4, ("grass", "sand", "water", "snow")),
    "boats": (lambda r: spread(r, boat, 4, 13), 20, 9, ("water",)),
    "fence": (lambda r: fence(r) + place(spread(r, tree, 3, 12), 0, -12), 18, 5, _LAND),
    "cars": (lambda r: spread(r, car, 6, 8), 12, 3, ("paving", "asphalt", "dry")),
    "chimney": (lambda r: chimney(r) + place(house(r), 9, -6), 26, 28, _LAND),
    "pylon": (lambda r: lookalikes.pylon(r) + place(spread(r, tree, 3, 16), 0, -12), 26, 26, _LAND),
    "turbines": (lambda r: spread(r, lookalikes.turbine, 3, 26, turn=False), 52, 34, _LAND),
    "pergola": (lookalikes.pergola, 18, 6, _LAND),
    "church": (lookalikes.church, 26, 22, _LAND),
    "footbridge": (lookalikes.footbridge, 26, 7, ("water", "grass")),
    "room": (furniture, 30, 12, ("floor",)),
    "toys": (balls, 18, 5, ("floor", "paving", "sand")),
    "portico": (lookalikes.portico, 26, 12, _LAND),
    "observatory": (lookalikes.observatory, 26, 13, _LAND),
    "keep": (lookalikes.keep, 26, 20, _LAND),
    "teahouse": (lookalikes.teahouse, 15, 9, (*_LAND, "water")),
    "beacon": (lookalikes.beacon, 16, 19, (*_LAND, "water")),
    "stacks": (lookalikes.stacks, 24, 14, ("water", "sand", "dry", "grass")),
    "terraces": (lookalikes.terraces, 22, 13, _LAND),
    "viaduct": (lookalikes.viaduct, 50, 14, ("grass", "dry", "water", "snow")),
    "carousel": (lookalikes.carousel, 16, 13, _LAND),
}
