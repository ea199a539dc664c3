"""Signed distance fields in numpy: primitives, noise, parts with bounds, and the ray marcher.

A field is a function of three float32 arrays (x, y, z; metres, y up) that returns a lower bound of
the distance to a surface, negative inside. Boxes use the largest coordinate instead of the exact
corner distance: still a lower bound, at half the cost. Method: J. C. Hart, "Sphere tracing", 1996.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Field = Callable[[Floats, Floats, Floats], Floats]

MARGIN = 1.0  # metres around a part's box in which its own field is evaluated
CHUNK = 8192  # points evaluated at once: the working set stays in the second-level cache


def box(x: Floats, y: Floats, z: Floats, hx: float, hy: float, hz: float) -> Floats:
    """Box of half sizes (hx, hy, hz) around the origin."""
    return np.maximum(np.maximum(np.abs(x) - hx, np.abs(y) - hy), np.abs(z) - hz)


def slab(y: Floats, low: float, high: float) -> Floats:
    """All points with low <= y <= high."""
    return np.abs(y - 0.5 * (low + high)) - 0.5 * (high - low)


def block(x: Floats, y: Floats, z: Floats, hx: float, low: float, high: float, hz: float) -> Floats:
    """Box that stands from height `low` to `high`."""
    return np.maximum(np.maximum(np.abs(x) - hx, np.abs(z) - hz), slab(y, low, high))


def tube(x: Floats, y: Floats, z: Floats, radius: float, low: float, high: float) -> Floats:
    """Upright cylinder from height `low` to `high`."""
    return np.maximum(np.hypot(x, z) - radius, slab(y, low, high))


def cone(x: Floats, y: Floats, z: Floats, r0: float, r1: float, low: float, high: float) -> Floats:
    """Upright cone frustum of radius r0 at `low` and r1 at `high`."""
    slope = (r1 - r0) / (high - low)
    side = (np.hypot(x, z) - (r0 + slope * (y - low))) / np.float32(np.hypot(1.0, slope))
    return np.maximum(side, slab(y, low, high))


def ball(x: Floats, y: Floats, z: Floats, radius: float) -> Floats:
    """Sphere around the origin."""
    return np.sqrt(x * x + y * y + z * z) - radius


def ellipsoid(x: Floats, y: Floats, z: Floats, rx: float, ry: float, rz: float) -> Floats:
    """Ellipsoid around the origin; first-order distance."""
    k0 = np.sqrt((x / rx) ** 2 + (y / ry) ** 2 + (z / rz) ** 2)
    k1 = np.sqrt((x / rx**2) ** 2 + (y / ry**2) ** 2 + (z / rz**2) ** 2) + 1e-6
    return k0 * (k0 - 1) / k1


def capsule(
    x: Floats,
    y: Floats,
    z: Floats,
    a: tuple[float, float, float],
    b: tuple[float, float, float],
    radius: float,
) -> Floats:
    """Rod with round ends from point a to point b."""
    ux, uy, uz = (b[i] - a[i] for i in range(3))
    px, py, pz = x - a[0], y - a[1], z - a[2]
    h = np.clip((px * ux + py * uy + pz * uz) / (ux * ux + uy * uy + uz * uz), 0, 1)
    return np.sqrt((px - ux * h) ** 2 + (py - uy * h) ** 2 + (pz - uz * h) ** 2) - radius


def arch(u: Floats, y: Floats, radius: float, spring: float, point: float = 0.0) -> Floats:
    """Arched opening, seen along its axis: straight to `spring`, then round, or pointed."""
    side = np.abs(u)
    top = np.hypot(side + point, y - spring) - (radius + point)
    return np.where(y > spring, top, side - radius).astype(np.float32)


def gable(x: Floats, y: Floats, z: Floats, hx: float, low: float, rise: float, hz: float) -> Floats:
    """Triangular prism with its ridge along z."""
    norm = float(np.hypot(rise, hx))
    side = (np.abs(x) * rise + (y - low) * hx - rise * hx) / norm
    return np.maximum(np.maximum(side, low - y), np.abs(z) - hz).astype(np.float32)


def every(u: Floats, pitch: float, count: int | None = None) -> Floats:
    """Fold a coordinate so that what stands at 0 repeats each `pitch`, `count` times each way."""
    n = np.round(u / pitch)
    if count is not None:
        n = np.clip(n, -count, count)
    return u - np.float32(pitch) * n


def around(x: Floats, z: Floats, count: int, phase: float = 0.0) -> tuple[Floats, Floats]:
    """Fold the plane so that what stands on the +x axis repeats `count` times round the origin."""
    sector = np.float32(2 * np.pi / count)
    angle = np.arctan2(z, x) - np.float32(phase)
    angle -= sector * np.round(angle / sector)
    radius = np.hypot(x, z)
    return radius * np.cos(angle), radius * np.sin(angle)


def union(*fields: Floats) -> Floats:
    """The nearest of several fields."""
    out = fields[0]
    for other in fields[1:]:
        out = np.minimum(out, other)
    return out


def cut(solid: Floats, *holes: Floats) -> Floats:
    """The solid without the holes."""
    for hole in holes:
        solid = np.maximum(solid, -hole)
    return solid


def _noise_tile(size: int, power: float, seed: int) -> Floats:
    """Periodic fractal noise, mean 0, deviation 1: white noise filtered by frequency**-power."""
    white = np.fft.rfft2(np.random.default_rng(seed).standard_normal((size, size)))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]) * size
    frequency[0, 0] = np.inf
    tile = np.fft.irfft2(white * frequency**-power, (size, size))
    return (tile / tile.std()).astype(np.float32)


_ROUGH, _SOFT = _noise_tile(512, 1.35, 7), _noise_tile(512, 1.95, 8)


def noise(u: Floats, v: Floats, size: float, soft: bool = False) -> Floats:
    """Fractal noise over the plane, mean 0, deviation 1; it repeats after `size` metres."""
    tile = _SOFT if soft else _ROUGH
    scale = np.float32(512 / size)
    shape = u.shape
    mu = np.mod(np.ravel(u) * scale, 512).astype(np.float32)[:, None]
    mv = np.mod(np.ravel(v) * scale, 512).astype(np.float32)[:, None]
    out: list[Floats] = [
        cv2.remap(
            tile, mu[i : i + 30000], mv[i : i + 30000], cv2.INTER_LINEAR, None, cv2.BORDER_WRAP
        )
        for i in range(0, len(mu), 30000)
    ]
    return np.concatenate(out).reshape(shape) if out else np.zeros(shape, np.float32)


def noise3(x: Floats, y: Floats, z: Floats, size: float, soft: bool = False) -> Floats:
    """Fractal noise in space: the mean of three planes, deviation about 1."""
    planes = noise(x, y, size, soft) + noise(y + 3.1, z, size, soft)
    planes = planes + noise(z + 5.7, x, size, soft)
    return planes * np.float32(0.577)


def scatter(i: Floats, j: Floats, salt: float = 0.0) -> Floats:
    """A number in [0, 1) for each pair of cell numbers, always the same for the same pair."""
    wave = np.sin(i * 12.9898 + j * 78.233 + salt * 37.719) * 43758.547
    return (wave - np.floor(wave)).astype(np.float32)


@dataclass(frozen=True)
class Part:
    """A field with one material and the box (centre, half sizes) that holds it."""

    material: str
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    field: Field


def part(material: str, hx: float, low: float, high: float, hz: float, field: Field) -> Part:
    """A part around the origin whose box stands from height `low` to `high`."""
    return Part(material, (0, 0.5 * (low + high), 0), (hx, 0.5 * (high - low), hz), field)


def place(
    parts: list[Part], x0: float, z0: float, yaw: float = 0.0, scale: float = 1.0, y0: float = 0.0
) -> list[Part]:
    """The parts turned by `yaw` (radians), scaled, and moved to (x0, y0, z0)."""
    c, s = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    moved = []
    for p in parts:

        def field(x: Floats, y: Floats, z: Floats, inner: Field = p.field) -> Floats:
            dx, dz = (x - x0) / scale, (z - z0) / scale
            return inner(c * dx + s * dz, (y - y0) / scale, c * dz - s * dx) * np.float32(scale)

        cx, cy, cz = p.centre
        hx, hy, hz = p.half
        centre = (
            float(x0 + scale * (c * cx - s * cz)),
            y0 + scale * cy,
            float(z0 + scale * (s * cx + c * cz)),
        )
        half = (
            float(scale * (abs(c) * hx + abs(s) * hz)),
            scale * hy,
            float(scale * (abs(s) * hx + abs(c) * hz)),
        )
        moved.append(replace(p, centre=centre, half=half, field=field))
    return moved


class Solid:
    """Several parts as one field, each evaluated only near its box."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.top = max((p.centre[1] + p.half[1] for p in parts), default=0.0) + 0.1

    def _chunk(self, x: Floats, y: Floats, z: Floats) -> tuple[Floats, NDArray[np.int16]]:
        best = np.full(len(x), 1e4, np.float32)
        which = np.full(len(x), -1, np.int16)
        for number, p in enumerate(self.parts):
            d = box(x - p.centre[0], y - p.centre[1], z - p.centre[2], *p.half)
            near = np.flatnonzero(d < np.minimum(best, MARGIN))
            if len(near):
                d[near] = p.field(x[near], y[near], z[near])
            closer = d < best
            which[closer] = number
            best = np.minimum(best, d)
        return best, which

    def __call__(self, points: Floats) -> tuple[Floats, NDArray[np.int16]]:
        """Distance [n] and number of the nearest part [n] at points [3, n]."""
        n = points.shape[1]
        distance, which = np.empty(n, np.float32), np.empty(n, np.int16)
        for i in range(0, n, CHUNK):
            at = slice(i, i + CHUNK)
            distance[at], which[at] = self._chunk(*points[:, at])
        return distance, which

    def march(
        self, origin: Floats, ray: Floats, start: Floats, stop: Floats, spread: float, cone: bool
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Follow rays [3, n] from `start` until they hit or pass `stop`.

        `spread` is the angle of half a pixel. With `cone`, each ray stands for a bundle as wide as
        `spread` and stops where the bundle may touch something. Returns (length [n], hit [n]).
        """
        t = start.copy()
        rising = ray[1] > 1e-6
        leave = np.where(rising, (self.top - origin[1]) / np.where(rising, ray[1], 1), np.inf)
        stop = np.minimum(stop, leave).astype(np.float32)
        hit = np.zeros(len(t), bool)
        active = np.flatnonzero(t < stop)
        for step in range(48 if cone else 110):
            if not len(active):
                break
            o = origin[:, active] if origin.shape[1] > 1 else origin
            ta = t[active]
            distance, _ = self(o + ray[:, active] * ta)
            limit = np.maximum(ta * np.float32(spread), 2e-3)
            arrived = distance < limit * (1 if step < 70 else 3)
            hit[active[arrived]] = True
            going = ~arrived
            ta = ta + np.where(going, distance - limit * cone, 0)
            t[active] = ta
            active = active[going & (ta < stop[active])]
        return t, hit

    def shadow(self, points: Floats, light: Floats, softness: float) -> Floats:
        """Share of the sun [n] that reaches each point, with penumbras (I. Quilez's estimate)."""
        lit = np.ones(points.shape[1], np.float32)
        t = np.full(points.shape[1], 0.12, np.float32)
        active = np.arange(points.shape[1])
        for _ in range(28):
            at = points[:, active] + light[:, None] * t[active]
            distance, _ = self(at)
            lit[active] = np.minimum(lit[active], np.maximum(distance * softness / t[active], 0))
            t[active] += np.clip(distance, 0.12, 6.0)
            active = active[(lit[active] > 0.02) & (t[active] < 70) & (at[1] < self.top)]
            if not len(active):
                break
        return lit * lit * (3 - 2 * lit)

    def normal(self, points: Floats, step: Floats) -> Floats:
        """Unit normals [3, n] by differences over four corners of a tetrahedron."""
        out = np.zeros_like(points)
        for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
            way = np.array(corner, np.float32)[:, None]
            out += way * self(points + way * step)[0]
        return out / (np.linalg.norm(out, axis=0) + 1e-9)

    def openness(self, points: Floats, normal: Floats) -> Floats:
        """Ambient light [n] that reaches each point: distances along the normal against lengths."""
        closed = np.zeros(points.shape[1], np.float32)
        for weight, reach in ((0.4, 0.15), (0.3, 0.45), (0.25, 0.95), (0.3, 2.6)):
            distance, _ = self(points + normal * np.float32(reach))
            closed += weight * np.clip(1 - distance / reach, 0, 1)
        return np.clip(1 - closed, 0.12, 1)
