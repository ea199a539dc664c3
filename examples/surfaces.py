"""Materials, ground, sky and weather: everything about colour.

Colours are linear RGB, float32 [3, n]. Light and white balance are drawn for each picture from one
distribution for every class, so that colour alone does not tell what a picture shows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sdf import Floats, every, noise, noise3, scatter

Random = np.random.Generator

STONES = ((0.60, 0.52, 0.40), (0.50, 0.48, 0.45), (0.64, 0.55, 0.46), (0.46, 0.40, 0.33))
PAINTS = (
    (0.55, 0.10, 0.08),
    (0.10, 0.22, 0.45),
    (0.70, 0.50, 0.08),
    (0.08, 0.33, 0.22),
    (0.7, 0.7, 0.68),
)
BASE = {
    "brick": (0.42, 0.19, 0.13),
    "plaster": (0.70, 0.66, 0.58),
    "marble": (0.72, 0.69, 0.64),
    "slate": (0.15, 0.17, 0.20),
    "tile": (0.40, 0.17, 0.10),
    "timber": (0.34, 0.12, 0.08),
    "planks": (0.33, 0.22, 0.13),
    "bark": (0.14, 0.10, 0.07),
    "iron": (0.19, 0.16, 0.14),
    "steel": (0.55, 0.56, 0.58),
    "cabin": (0.75, 0.76, 0.78),
    "glass": (0.04, 0.05, 0.06),
    "dark": (0.05, 0.05, 0.06),
    "skin": (0.55, 0.36, 0.27),
    "lamp": (0.9, 0.85, 0.6),
    "banded": (0.75, 0.73, 0.70),
}
GROUND = {
    "grass": (0.13, 0.20, 0.06),
    "dry": (0.33, 0.27, 0.13),
    "sand": (0.55, 0.44, 0.29),
    "paving": (0.40, 0.38, 0.35),
    "snow": (0.68, 0.70, 0.74),
    "asphalt": (0.12, 0.12, 0.125),
    "floor": (0.38, 0.25, 0.15),
    "water": (0.03, 0.06, 0.07),
}


@dataclass(frozen=True)
class Weather:
    """Light of one picture."""

    sun: Floats  # unit vector towards the sun
    sunlight: Floats  # colour and strength
    zenith: Floats
    horizon: Floats
    clouds: float  # 0 clear ... 1 closed
    cloud_shift: float
    haze: float  # share of light lost per metre
    softness: float  # of shadows: small is soft
    hills: float  # height of the hills on the horizon, as a slope
    ground: str
    stone: tuple[float, float, float]
    paint: int
    season: float  # -1 fresh green ... 1 autumn


def weather(rng: Random, view: float, ground: str) -> Weather:
    """Draw the light; `view` is the direction the camera looks in, radians."""
    time = rng.choice(
        ["noon", "golden", "overcast", "dusk", "mist"], p=[0.38, 0.24, 0.2, 0.1, 0.08]
    )
    up = {
        "noon": (38, 65),
        "golden": (9, 22),
        "overcast": (35, 70),
        "dusk": (4, 9),
        "mist": (18, 40),
    }
    elevation = np.radians(rng.uniform(*up[time]))
    behind = view + np.pi + rng.uniform(-1.9, 1.9)  # mostly from behind the camera or the side
    sun = np.array(
        [np.cos(behind) * np.cos(elevation), np.sin(elevation), np.sin(behind) * np.cos(elevation)]
    )
    light = {
        "noon": ((1.9, 1.78, 1.6), (0.16, 0.33, 0.70), (0.60, 0.72, 0.86)),
        "golden": ((2.1, 1.30, 0.66), (0.20, 0.32, 0.56), (0.92, 0.70, 0.46)),
        "overcast": ((0.45, 0.45, 0.46), (0.52, 0.56, 0.62), (0.74, 0.76, 0.78)),
        "dusk": ((0.95, 0.55, 0.36), (0.13, 0.19, 0.36), (0.66, 0.50, 0.44)),
        "mist": ((0.95, 0.90, 0.80), (0.45, 0.54, 0.63), (0.78, 0.80, 0.80)),
    }[str(time)]
    clear = {"noon": 0.45, "golden": 0.5, "overcast": 0.95, "dusk": 0.55, "mist": 0.7}[str(time)]
    haze = {"noon": 0.0006, "golden": 0.001, "overcast": 0.0012, "dusk": 0.0012, "mist": 0.0024}
    stone = np.array(STONES[int(rng.integers(len(STONES)))]) * rng.uniform(0.85, 1.15)
    return Weather(
        sun.astype(np.float32),
        *(np.array(c, np.float32) for c in light),
        clouds=float(np.clip(clear + rng.uniform(-0.35, 0.25), 0, 1)),
        cloud_shift=float(rng.uniform(0, 500)),
        haze=haze[str(time)] * float(rng.uniform(0.5, 1.6)),
        softness=5.0 if time in ("overcast", "mist") else 16.0,
        hills=float(rng.choice([0.01, 0.03, 0.06, 0.10])),
        ground=ground,
        stone=tuple(float(v) for v in stone),
        paint=int(rng.integers(len(PAINTS))),
        season=float(rng.uniform(-1, 1)),
    )


def _column(colour: tuple[float, ...] | Floats) -> Floats:
    return np.asarray(colour, np.float32)[:, None]


def sky(ray: Floats, w: Weather, hills: bool = True) -> Floats:
    """Colour of the sky, with clouds and hills on the horizon, along unit rays [3, n]."""
    up = np.maximum(ray[1], 0)
    blend = np.exp(-3.2 * up)
    out = _column(w.zenith) * (1 - blend) + _column(w.horizon) * blend
    flat = 1 / (up + 0.12)
    cloud = noise(ray[0] * flat + w.cloud_shift, ray[2] * flat, 13.0, soft=True)
    cloud = cloud + 0.25 * noise(ray[2] * flat, ray[0] * flat + w.cloud_shift, 5.0)
    cover = np.clip((cloud + 3.2 * w.clouds - 1.8) * 0.75, 0, 1) * np.clip(up * 9, 0, 1)
    thick = np.clip(0.86 - 0.16 * cloud, 0.5, 1.0)
    white = (0.55 * w.horizon + 0.22 * w.sunlight + 0.12)[:, None] * thick
    out = out * (1 - 0.85 * cover) + white * 0.85 * cover
    facing = np.clip(w.sun @ ray, 0, 1)
    glow = 0.35 * facing**24 + 0.12 * facing**5
    out = out + _column(w.sunlight) * glow * (1.2 - w.clouds)
    if hills and w.hills > 0:
        angle = np.arctan2(ray[2], ray[0]) + np.float32(w.cloud_shift)
        for far, height in ((0.8, 1.0), (0.55, 0.6)):
            line = w.hills * height * (0.6 + 0.4 * noise(angle, angle * 0 + far, 3.3))
            rough = 0.006 * noise(angle, angle * 0 + far, 0.4)
            inside = np.clip((line + rough - ray[1]) * 220, 0, 1)
            green = np.float32(0.75) * _column(GROUND["grass"]) + 0.04
            hill = green * (1 - far) * 1.4 + _column(w.horizon) * far
            out = out * (1 - inside) + hill * inside
    return out.astype(np.float32)


def _courses(u: Floats, v: Floats, long: float, high: float) -> tuple[Floats, Floats]:
    """Brick pattern: (joint mask 0..1, a random number for each stone)."""
    row = np.floor(v / high)
    along = u / long + 0.5 * np.mod(row, 2) + 0.3 * scatter(row, row * 0)
    cell = np.floor(along)
    edge = np.minimum(
        (0.5 - np.abs(along - cell - 0.5)) * long, (0.5 - np.abs(v / high - row - 0.5)) * high
    )
    return np.clip(1 - edge / (0.05 * high + 0.02), 0, 1), scatter(cell, row)


def _wall(points: Floats, normal: Floats) -> tuple[Floats, Floats]:
    """Coordinates on the surface: along and up a wall, or both ground coordinates on a roof."""
    x, y, z = points
    sector = np.float32(np.pi / 8)  # flat walls keep one direction, round ones get a few facets
    facing = sector * np.round(np.arctan2(normal[2], normal[0]) / sector)
    c, s = np.cos(facing), np.sin(facing)
    return c * z - s * x, np.where(np.abs(normal[1]) > 0.75, c * x + s * z, y)


def _pattern(material: str, points: Floats, normal: Floats, w: Weather, base: Floats) -> Floats:
    """Albedo [3, n] before weathering."""
    u, v = _wall(points, normal)
    x, y, z = points
    n = points.shape[1]
    out = np.broadcast_to(base, (3, n)).astype(np.float32)
    sizes = {
        "stone": (1.5, 0.72),
        "marble": (1.6, 0.95),
        "brick": (0.62, 0.26),
        "tile": (0.4, 0.42),
        "slate": (0.5, 0.4),
    }
    if material in sizes:
        joint, luck = _courses(u, v, *sizes[material])
        vary = {"stone": 0.34, "marble": 0.1, "brick": 0.5}.get(material, 0.4)
        deep = {"marble": 0.22, "brick": -0.25}.get(material, 0.4)
        out = out * (1 + vary * (luck - 0.5)) * (1 - deep * joint)
    elif material in ("planks", "timber"):
        grain = noise(u * 6, v, 9.0)
        line = np.clip(1 - np.abs(every(u, 0.28)) / 0.02, 0, 1)
        out = out * (1 + 0.14 * grain) * (1 - 0.4 * line)
    elif material == "banded":
        out = np.where((np.mod(np.floor((y - 3.5) / 4.3), 2) == 0)[None], out, _column(PAINTS[0]))
    elif material == "cabin":
        luck = np.mod(np.floor((np.arctan2(y - 22, x) + 7) * 14 / (2 * np.pi) + 0.5), 2)
        glass = np.clip(1 - np.abs(z) * 0.7, 0, 1)
        out = np.where(luck[None] > 0, out, _column(PAINTS[3]))
        out = out * (1 - 0.35 * glass)
    elif material in ("rock", "megalith"):
        strata = noise(u * 0.15, y + 0.7 * noise3(x, y, z, 40.0), 16.0)
        out = out * (1 + 0.16 * strata)
        moss = np.clip(normal[1] * 1.6 - 0.75 + 0.3 * noise3(x, y, z, 14.0), 0, 1) * 0.5
        out = out * (1 - moss) + _column(GROUND["grass"]) * moss
    return out.astype(np.float32)


def albedo(material: str, points: Floats, normal: Floats, w: Weather) -> Floats:
    """Albedo [3, n] of a part's material at points [3, n]."""
    x, y, z = points
    leaf = np.array([0.11 + 0.13 * max(w.season, 0), 0.19 - 0.06 * max(w.season, 0), 0.045])
    colours = {
        "stone": w.stone,
        "rock": tuple(0.8 * c for c in w.stone),
        "megalith": tuple(0.85 * c for c in w.stone),
        "leaf": tuple(leaf),
        "turf": GROUND["grass" if w.season < 0.3 else "dry"],
        "paint": PAINTS[w.paint],
        "paint2": PAINTS[(w.paint + 2) % len(PAINTS)],
    }
    base = _column(colours.get(material) or BASE[material])
    out = _pattern(material, points, normal, w, base)
    rough = {
        "leaf": 0.4,
        "turf": 0.25,
        "rock": 0.2,
        "megalith": 0.22,
        "stone": 0.13,
        "marble": 0.06,
        "cabin": 0.02,
    }
    out = out * (1 + rough.get(material, 0.08) * noise3(x, y, z, 5.0))
    if material in ("stone", "brick", "plaster", "marble"):
        streak = noise(x * 3 + z * 3, y * 0.25, 30.0)  # rain runs down
        foot = np.clip(1 - y / 1.5, 0, 1)
        out = out * (1 - 0.09 * np.clip(streak, 0, 2)) * (1 - 0.25 * foot)
    if w.ground == "snow" and material not in ("lamp", "skin", "glass", "dark", "cabin"):
        cover = np.clip((normal[1] - 0.55) * 4 + 0.4 * noise3(x, y, z, 12.0), 0, 1)
        out = out * (1 - cover) + _column(GROUND["snow"]) * cover
    return np.clip(out, 0.01, 0.95).astype(np.float32)


def bump(material: str, points: Floats, normal: Floats) -> Floats:
    """Normals [3, n] disturbed as the material is rough."""
    strength = {
        "glass": 0.01,
        "rock": 0.28,
        "megalith": 0.2,
        "leaf": 0.5,
        "bark": 0.3,
        "turf": 0.25,
        "stone": 0.14,
        "brick": 0.1,
    }
    amount = strength.get(material, 0.03)
    x, y, z = points
    planes = (
        (x + 0.6 * z, y + 0.5 * z),
        (y + 0.6 * x, z + 0.5 * x),
        (z + 0.6 * y, x + 0.5 * y),
    )
    shake = np.stack([noise(u, v, 2.3) for u, v in planes])
    out = normal + np.float32(amount) * shake
    return out / np.linalg.norm(out, axis=0)


def ground_albedo(
    points: Floats, distance: Floats, w: Weather, plaza: float
) -> tuple[Floats, Floats]:
    """Albedo [3, n] and normals [3, n] of flat ground, paved within `plaza` metres."""
    x, _, z = points
    kind = w.ground
    n = points.shape[1]
    out = np.broadcast_to(_column(GROUND[kind]), (3, n)).astype(np.float32)
    fade = np.clip(1.4 - distance / 60, 0.15, 1)
    wide, fine = noise(x, z, 70.0), noise(z + 1, x, 4.0)
    if kind in ("grass", "dry"):
        other = _column(GROUND["dry" if kind == "grass" else "grass"])
        mix = np.clip(0.25 + 0.22 * wide + 0.25 * max(w.season, 0), 0, 0.8)
        out = out * (1 - mix) + other * mix
        out = out * (1 + fade * (0.30 * fine + 0.15 * noise(x, z, 0.9)))
    else:
        amount = {"snow": 0.05, "floor": 0.1, "water": 0.0}.get(kind, 0.12)
        out = out * (1 + amount * (wide + fade * fine))
    radius = np.hypot(x, z) + 0.5 * wide
    paved = np.full(n, kind == "paving") | (radius < plaza)
    if paved.any():
        joint, luck = _courses(x, z, 1.6, 1.6)
        tiles = _column(GROUND["paving"]) * (1 + 0.22 * (luck - 0.5) * fade + 0.08 * wide)
        tiles = tiles * (1 - 0.35 * joint * fade)
        out = np.where(paved[None], tiles, out)
    if kind == "floor":
        line = np.clip(1 - np.abs(every(x, 0.9)) / 0.05, 0, 1)
        out = out * (1 - 0.4 * line * fade) * (1 + 0.15 * noise(x * 5, z, 12.0))
    rough = np.where(
        paved, 0.02, {"grass": 0.22, "dry": 0.2, "sand": 0.12, "snow": 0.08}.get(kind, 0.03)
    )
    normal = np.stack([rough * fine * fade, np.ones(n), rough * noise(x + 7, z, 3.0) * fade])
    normal = normal / np.linalg.norm(normal, axis=0)
    return np.clip(out, 0.01, 0.95).astype(np.float32), normal.astype(np.float32)


def ripples(points: Floats, distance: Floats) -> Floats:
    """Normals [3, n] of water."""
    x, _, z = points
    calm = 0.055 / (1 + distance / 25)
    nx = calm * (noise(x, z * 2.2, 14.0) + 0.6 * noise(z, x, 5.0))
    nz = calm * (noise(z * 2.2, x, 17.0) + 0.6 * noise(x, z, 6.0))
    normal = np.stack([nx, np.ones_like(nx), nz])
    return (normal / np.linalg.norm(normal, axis=0)).astype(np.float32)


def develop(linear: Floats, rng: Random) -> NDArray[np.uint8]:
    """Photograph [h, w, 3] from light [h, w, 3]: exposure, white balance, tone, lens, grain."""
    h, w, _ = linear.shape
    middle = float(np.percentile(linear @ np.array([0.21, 0.72, 0.07], np.float32), 65))
    meter = (0.29 / max(middle, 0.02)) ** 0.8  # the camera's own exposure, most of the way
    light = linear * np.float32(meter * 2 ** rng.normal(0, 0.25))
    warm, tint = rng.normal(0, 0.09), rng.normal(0, 0.03)
    light = light * np.array([1 + warm, 1 + tint, 1 - warm], np.float32)
    yy, xx = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    light = light * (1 - rng.uniform(0.05, 0.2) * (xx**2 + yy**2) / 2)[..., None]
    tone = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)  # ACES, Narkowicz
    image = np.clip(tone, 0, 1) ** (1 / 2.2)
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * rng.uniform(0.75, 1.3)
    image = 0.5 + (image - 0.5) * rng.uniform(0.95, 1.2)
    image = (
        image
        + rng.normal(0, rng.uniform(0.003, 0.010), (h, w, 1))
        + rng.normal(0, 0.003, (h, w, 3))
    )
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
