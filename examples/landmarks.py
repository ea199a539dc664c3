"""The twelve invented landmarks of the sample gallery, as signed distance fields.

Each builder returns parts around the origin, in metres, y up, front towards +z.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
    noise,
    noise3,
    part,
    scatter,
    slab,
    tube,
    union,
)
from towers import campanile, lattice, lighthouse, pagoda, wheel


def aqueduct() -> list[Part]:
    """Two tiers of arches that break off at one end."""

    def stone(x: Floats, y: Floats, z: Floats) -> Floats:
        wide, narrow = every(x, 9.0), every(x - 2.25, 4.5)
        lower = np.maximum(slab(y, -1, 11.5), np.abs(z) - 2.2)
        lower = cut(lower, arch(wide, y, 3.3, 7.0))
        upper = np.maximum(slab(y, 11, 20), np.abs(z) - 1.5)
        upper = cut(upper, arch(narrow, y, 1.55, 16.2))
        bands = union(
            np.maximum(slab(y, 11.2, 11.9), np.abs(z) - 2.55),
            np.maximum(slab(y, 6.7, 7.1), np.maximum(np.abs(z) - 2.4, 3.0 - np.abs(wide))),
            np.maximum(slab(y, 18.6, 19.2), np.abs(z) - 1.9),
            np.maximum(slab(y, 15.9, 16.3), np.maximum(np.abs(z) - 1.7, 1.4 - np.abs(narrow))),
        )
        ragged = x - 26 + 0.45 * y + 1.3 * noise(y, z, 30.0)
        return 0.9 * np.maximum(union(lower, upper, bands), np.maximum(ragged, -x - 37))

    return [part("stone", 38, -1, 20.2, 2.8, stone)]


def pyramid() -> list[Part]:
    """Eight steps with a stairway up each side and a temple on top."""

    def steps(x: Floats, y: Floats, z: Floats) -> Floats:
        ax, az = np.abs(x), np.abs(z)
        far, near = np.maximum(ax, az), np.minimum(ax, az)
        tier = np.clip(np.floor(y / 2.2), 0, 7)
        out = np.full_like(x, 1e3)
        for level in (tier, np.clip(tier - 1, 0, 7), np.clip(tier + 1, 0, 7)):
            up = y - 2.2 * level
            half = 17.5 - 1.75 * level - 0.12 * up + 0.3 * (np.abs(up - 1.95) < 0.25)
            out = np.minimum(out, np.maximum(far - half, np.abs(up - 1.1) - 1.1))
        line = 0.75 * (y - 17.6 + (far - 4.6) * 1.17)
        tread = 0.1 * np.abs(every(y, 0.5)) - 0.03
        stairs = np.maximum(line + tread, near - 2.3)
        rails = np.maximum(line - 0.55, np.abs(near - 2.75) - 0.45)
        return 0.85 * union(out, np.maximum(union(stairs, rails), slab(y, -1, 17.6)))

    def temple(x: Floats, y: Floats, z: Floats) -> Floats:
        walls = block(x, y, z, 3.3, 17, 21.3, 3.3)
        ax, az = np.abs(x), np.abs(z)
        doors = np.minimum(
            np.maximum(ax - 0.8, np.abs(y - 18.9) - 1.4),
            np.maximum(az - 0.8, np.abs(y - 18.9) - 1.4),
        )
        roof = block(x, y, z, 3.7, 21.2, 21.9, 3.7)
        comb = cut(
            block(x, y, z, 2.6, 21.8, 25.0, 0.7),
            box(every(x, 1.2, 1), y - 23.4, z, 0.32, 0.8, 2.0),
        )
        return union(cut(walls, doors), roof, comb)

    return [
        part("stone", 19.5, -1, 18.2, 19.5, steps),
        part("plaster", 3.8, 17, 25.1, 3.8, temple),
    ]


def gate() -> list[Part]:
    """Two round brick towers with steep cones, and a crenellated wall with one deep arch."""

    def brick(x: Floats, y: Floats, z: Floats) -> Floats:
        dx = np.abs(x) - 9.0
        px, pz = around(dx, z, 12)
        towers = cone(dx, y, z, 5.3, 4.7, -1, 17)
        windows = np.minimum(
            np.maximum(arch(pz, every(y - 9.5, 5.2, 1) + 0.6, 0.42, 0.5), 4.2 - px),
            np.maximum(np.abs(y - 10.0) - 6.6, 9),
        )
        rows = np.maximum(slab(y, 3.4, 16), windows)
        corbel = cut(tube(dx, y, z, 5.5, 15.6, 17.6), np.maximum(arch(pz, y, 0.8, 15.8), 5.0 - px))
        wall = block(x, y, z, 6.0, -1, 14.5, 2.6)
        teeth = np.maximum(np.abs(every(x, 1.9)) - 0.55, slab(y, 14, 16.1))
        teeth = np.maximum(teeth, np.maximum(np.abs(np.abs(z) - 2.4) - 0.35, np.abs(x) - 6))
        portal = arch(x, y, 2.7, 4.6, 1.2)
        frame = np.maximum(np.abs(portal - 0.35) - 0.35, np.abs(z) - 2.95)
        frame = np.maximum(frame, slab(y, -1, 10))
        niches = np.maximum(arch(every(x, 1.7, 2), y, 0.5, 12.2), 2.1 - np.abs(z))
        niches = np.maximum(niches, slab(y, 10.8, 13))
        hall = cut(wall, np.maximum(portal, np.abs(z) - 9), niches)
        return union(cut(towers, rows), corbel, hall, teeth, np.maximum(frame, 0.02 - portal))

    def bands(x: Floats, y: Floats, z: Floats) -> Floats:
        dx = np.abs(x) - 9.0
        rings = np.maximum(np.hypot(dx, z) - 5.5, np.abs(every(y - 2.2, 5.2, 2)) - 0.22)
        return np.maximum(rings, slab(y, 1, 14))

    def roof(x: Floats, y: Floats, z: Floats) -> Floats:
        dx = np.abs(x) - 9.0
        spire = union(cone(dx, y, z, 5.9, 0.05, 17.5, 30), ball(dx, y - 30.4, z, 0.4))
        return union(spire, capsule(dx, y, z, (0, 30, 0), (0, 32, 0), 0.1))

    return [
        part("brick", 15, -1, 18, 6, brick),
        part("plaster", 14.8, 1, 13.2, 5.8, bands),
        part("slate", 15.2, 17.4, 32.3, 6.2, roof),
    ]


_ONION_Y = np.array([0, 0.12, 0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 1.7, 1.95])
_ONION_R = np.array([0.8, 0.92, 1.0, 0.99, 0.88, 0.68, 0.42, 0.2, 0.08, 0.02])


def onion(x: Floats, y: Floats, z: Floats, radius: float) -> Floats:
    """Bulb dome that stands on y = 0, about twice as high as its radius, with a finial."""
    profile = np.interp(y / radius, _ONION_Y, _ONION_R).astype(np.float32) * radius
    bulb = np.maximum(0.68 * (np.hypot(x, z) - profile), slab(y, 0, 1.95 * radius))
    return union(bulb, capsule(x, y, z, (0, 1.8 * radius, 0), (0, 2.5 * radius, 0), 0.035 * radius))


def palace() -> list[Part]:
    """Domed cube with deep portals, four small domes, and four slim towers at the corners."""

    def body(x: Floats, y: Floats, z: Floats) -> Floats:
        ax, az = np.abs(x), np.abs(z)
        far, near = np.maximum(ax, az), np.minimum(ax, az)
        plinth = block(x, y, z, 21, -1, 2, 21)
        cube = np.maximum(block(x, y, z, 11, 1.5, 13.2, 11), (ax + az - 18.5) * 0.707)
        front = np.maximum(near - 4.1, np.maximum(far - 11.6, slab(y, 1.5, 15)))
        portal = np.maximum(arch(near, y, 2.8, 7.6, 1.0), 8.8 - far)
        side = near - 6.1
        niches = np.maximum(arch(side, y, 1.15, 5.0, 0.5), 10.0 - far)
        upper = np.maximum(arch(side, y, 1.15, 10.2, 0.5), np.maximum(10.0 - far, 8.0 - y))
        floor = np.minimum(np.maximum(niches, y - 7.0), upper)
        ledge = np.maximum(np.abs(y - 7.55) - 0.18, np.maximum(far - 11.25, ax + az - 18.8))
        drum = tube(x, y, z, 5.3, 13, 16.6)
        kiosks = tube(ax - 7.4, y, az - 7.4, 1.7, 13, 15.6)
        px, pz = around(ax - 7.4, az - 7.4, 8)
        kiosks = cut(kiosks, np.maximum(arch(pz, y, 0.42, 14.5), 0.9 - px))
        return union(plinth, cut(union(cube, front), portal, floor), ledge, drum, kiosks)

    def domes(x: Floats, y: Floats, z: Floats) -> Floats:
        ax, az = np.abs(x), np.abs(z)
        return union(
            onion(x, y - 16.6, z, 6.0),
            onion(ax - 7.4, y - 15.5, az - 7.4, 1.9),
            onion(ax - 19, y - 25.2, az - 19, 1.25),
        )

    def minarets(x: Floats, y: Floats, z: Floats) -> Floats:
        ax, az = np.abs(x) - 19, np.abs(z) - 19
        shaft = cone(ax, y, az, 1.35, 0.95, 1.5, 25.3)
        balconies = np.maximum(np.hypot(ax, az) - 1.75, np.abs(every(y - 9, 7.5)) - 0.28)
        return union(shaft, np.maximum(balconies, slab(y, 5, 25.2)))

    return [
        part("marble", 21.2, -1, 16.8, 21.2, body),
        part("marble", 20.5, 15.3, 31.8, 20.5, domes),
        part("marble", 21, 1, 25.6, 21, minarets),
    ]


def temple() -> list[Part]:
    """Rectangle of fluted columns under a gabled roof, on three steps."""

    def stone(x: Floats, y: Floats, z: Floats) -> Floats:
        ax, az = np.abs(x), np.abs(z)
        base = block(x, y, z, 11.6, -1, 0.7, 20.6)
        base = union(base, block(x, y, z, 10.9, 0, 1.4, 19.9), block(x, y, z, 10.2, 1, 2.1, 19.2))
        cx = np.where(ax > 7.4, ax - 9.0, every(x - 1.8, 3.6))
        cz = np.where(az > 16.4, az - 18.0, every(z, 3.6))
        edge = np.minimum(np.abs(ax - 9.0), np.abs(az - 18.0)) - 0.95
        flute = 0.05 * np.abs(np.sin(10 * np.arctan2(cz, cx)))
        shaft = 0.9 * (np.hypot(cx, cz) - (0.98 - 0.024 * (y - 2)) + flute)
        shaft = np.maximum(shaft, slab(y, 2, 12))
        capital = np.maximum(np.maximum(np.abs(cx), np.abs(cz)) - 1.05, slab(y, 11.9, 12.4))
        bell = np.maximum(0.8 * (np.hypot(cx, cz) - 0.72 - 0.6 * (y - 11.3)), slab(y, 11.3, 12))
        columns = np.maximum(union(shaft, capital, bell), edge)
        cella = cut(block(x, y, z, 5.6, 1, 12.4, 13.5), box(x, y - 5, z - 13.5, 1.6, 5, 1.0))
        beam = block(x, y, z, 10.0, 12.4, 13.7, 19.0)
        frieze = block(x, y, z, 9.85, 13.7, 15.0, 18.85)
        tx = np.maximum(np.abs(every(x, 1.8)) - 0.4, az - 19.05)
        tz = np.maximum(np.abs(every(z, 1.8)) - 0.4, ax - 10.05)
        tri = np.maximum(np.minimum(tx, tz), slab(y, 13.7, 15))
        tri = np.maximum(tri, np.maximum(ax - 10.05, az - 19.05))
        eaves = block(x, y, z, 10.6, 15.0, 15.5, 19.6)
        return union(base, columns, cella, beam, frieze, tri, eaves)

    def roof(x: Floats, y: Floats, z: Floats) -> Floats:
        whole = gable(x, y, z, 10.8, 15.5, 4.3, 19.6)
        field = np.maximum(gable(x, y, z, 9.0, 15.75, 3.45, 30), 18.9 - np.abs(z))
        relief = ellipsoid(every(x, 1.5, 3), y - 16.4, np.abs(z) - 18.9, 0.5, 0.9, 0.3)
        return union(cut(whole, field), np.maximum(relief, gable(x, y, z, 8.8, 15.6, 3.4, 30)))

    return [part("stone", 11.8, -1, 15.6, 20.8, stone), part("stone", 11, 15.4, 20, 19.8, roof)]


def stones() -> list[Part]:
    """Ring of standing stones with lintels around taller pairs, some of them fallen."""

    def ring(x: Floats, y: Floats, z: Floats) -> Floats:
        sector = np.round(np.arctan2(z, x) / np.float32(2 * np.pi / 16))
        px, pz = around(x, z, 16)
        luck = scatter(sector, sector * 0 + 3)
        high = np.where(luck > 0.25, 5.75, 1.0 + luck * 4)
        wobble = 0.14 * noise3(x, y, z, 9.0, soft=True)
        thin = 1.25 - 0.05 * y
        stone = np.maximum(
            np.maximum(np.abs(px - 14) - 0.62, np.abs(pz) - thin * (0.8 + 0.4 * luck)), y - high
        )
        angle = np.arctan2(z, x)
        arc = np.maximum(np.abs(np.hypot(x, z) - 14) - 0.6, slab(y, 5.55, 6.75))
        step = np.float32(2 * np.pi / 16)
        present = np.abs(every(angle - 5.5 * step, 6 * step)) * 14 - 9.6
        present = np.maximum(present, np.abs(angle) * 14 - 15.0 * np.float32(np.pi))
        return 0.7 * (union(stone, np.maximum(arc, present)) - wobble)

    def trilithons(x: Floats, y: Floats, z: Floats) -> Floats:
        out = np.full_like(x, 1e3)
        wobble = 0.16 * noise3(x, y, z, 11.0, soft=True)
        for angle, high in ((0.5, 6.8), (1.57, 8.2), (2.64, 7.2), (3.75, 6.6), (5.6, 6.8)):
            c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            u, v = c * x + s * z - 7.4, c * z - s * x
            pair = np.maximum(
                np.maximum(np.abs(u) - 0.75, np.abs(np.abs(v) - 1.75) - 1.0), y - high
            )
            lintel = box(u, y - high - 0.65, v, 0.85, 0.65, 3.0)
            out = union(out, pair, lintel)
        fallen = union(
            box(x - 2, y - 0.5, z + 3, 2.6, 0.7, 0.9), box(x + 3.5, y - 0.4, z - 18, 1.0, 0.6, 2.4)
        )
        return 0.75 * (union(out, fallen) - wobble)

    return [
        part("megalith", 15.5, -1, 7.2, 15.5, ring),
        part("megalith", 10.5, -1, 9.8, 21, trilithons),
    ]


_NEEDLES = [  # x, z, radius, height
    (0, 0, 4.6, 33),
    (7.5, 3.0, 3.4, 24),
    (-8, 2.5, 3.8, 27),
    (-14.5, -2, 3.0, 16),
    (13.5, -1.5, 3.2, 19),
    (3, -9, 3.2, 22),
    (20, 2, 2.6, 10),
]


def needles() -> list[Part]:
    """Cluster of rock pinnacles, one of them with a balanced boulder, joined by an arch."""

    def rock(x: Floats, y: Floats, z: Floats) -> Floats:
        out = ellipsoid(x - 2, y + 2, z, 24, 5.5, 15)
        for x0, z0, radius, height in _NEEDLES:
            up = np.clip(y / height, 0, 1)
            width = radius * (1.15 - 0.8 * up**1.4) + 0.25 * np.sin(y * 1.3 + x0)
            spike = np.maximum(0.8 * (np.hypot(x - x0, z - z0) - width), y - height)
            out = np.minimum(out, spike)
        bridge = np.hypot(np.hypot(x + 11.4, 0.9 * (y - 9)) - 4.4, z) - 1.3
        out = union(
            out, np.maximum(bridge, 8 - y), ellipsoid(x - 13.5, y - 20.8, z + 1.5, 2.6, 2.2, 2.3)
        )
        rough = 0.75 * noise3(x, 0.4 * y, z, 26.0, soft=True) + 0.12 * noise(y, x * 0.2, 14.0)
        return 0.6 * (out - rough)

    return [part("rock", 28, -1, 36, 18, rock)]


@dataclass(frozen=True)
class Landmark:
    """One landmark: how to build it, and how it wants to be looked at."""

    name: str
    build: Callable[[], list[Part]]
    width: float  # metres that fill the picture at framing 1
    height: float
    turn: float  # largest azimuth, degrees either side of the front
    grounds: tuple[str, ...]


_LAND = ("grass", "dry", "sand", "paving", "snow")

LANDMARKS = [
    Landmark("aldermoor_aqueduct", aqueduct, 46, 20, 62, ("grass", "dry", "water", "sand")),
    Landmark("brannock_stones", stones, 32, 8, 180, ("grass", "dry", "snow", "sand")),
    Landmark("corvin_tower", lattice, 30, 55, 180, _LAND),
    Landmark("halvard_gate", gate, 32, 31, 50, _LAND),
    Landmark("helion_temple", temple, 36, 20, 180, _LAND),
    Landmark("kasane_pagoda", pagoda, 24, 40, 180, _LAND),
    Landmark("montello_campanile", campanile, 20, 36, 60, _LAND),
    Landmark("orbit_wheel", wheel, 44, 43, 58, ("grass", "paving", "water", "snow", "dry")),
    Landmark("samira_palace", palace, 44, 32, 180, ("paving", "sand", "grass", "water", "dry")),
    Landmark("skerry_lighthouse", lighthouse, 34, 32, 180, ("water", "water", "sand", "snow")),
    Landmark("tanglai_needles", needles, 48, 35, 75, ("grass", "dry", "water", "sand", "snow")),
    Landmark("yaxmal_pyramid", pyramid, 40, 25, 180, ("grass", "dry", "sand", "paving")),
]
