"""One picture: lays a scene out, points a camera at it, follows its rays, and shades what they hit.

Pictures are computed at twice their size and reduced. The same seed gives the same picture.
"""

import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from everyday import EVERYDAY, boat, boulder, car, fence, hill, house, office, person, tree
from landmarks import LANDMARKS, Landmark
from numpy.typing import NDArray
from sdf import Floats, Part, Solid, place
from surfaces import Weather, albedo, bump, develop, ground_albedo, ripples, sky, weather

SEED = 2021
LONG_SIDE = 384
FAR = 400.0
BY_NAME = {landmark.name: landmark for landmark in LANDMARKS}

Random = np.random.Generator


@dataclass(frozen=True)
class Camera:
    """Where the picture is taken from."""

    eye: Floats
    ahead: Floats
    right: Floats
    above: Floats
    width: int
    height: int
    focal: float  # in picture widths

    def rays(self, step: int) -> tuple[Floats, tuple[int, int]]:
        """Unit rays [3, n] through blocks of step x step pixels, and the grid's (rows, columns)."""
        across = np.arange(step / 2, self.width + step / 2, step)
        down = np.arange(step / 2, self.height + step / 2, step)
        u = (across - self.width / 2) / self.width / self.focal
        v = (self.height / 2 - down) / self.width / self.focal
        grid_u, grid_v = (a.ravel().astype(np.float32) for a in np.meshgrid(u, v))
        ray = self.ahead[:, None] + self.right[:, None] * grid_u + self.above[:, None] * grid_v
        return ray / np.linalg.norm(ray, axis=0), (len(down), len(across))


def aim(
    rng: Random, size: tuple[int, int], width: float, height: float, turn: float, solid: Solid
) -> tuple[Camera, float]:
    """Draw a view of something `width` x `height` metres; returns it and its direction."""
    w, h = size
    focal = float(np.exp(rng.uniform(np.log(0.75), np.log(2.2))))
    framing = rng.choice([0, 1, 2], p=[0.45, 0.32, 0.23])  # whole, a detail, far away
    fill = rng.uniform(*((0.65, 1.25), (1.4, 2.6), (0.28, 0.6))[framing])  # above 1 it is cut
    distance = max(width * focal / fill, height * focal / fill * w / h) + 0.25 * width
    for attempt in range(40):
        azimuth = np.radians(90 + rng.uniform(-turn, turn))
        low = rng.random() < 0.55
        level = rng.uniform(1.5, 2.6) if low else rng.uniform(0.15, 0.95) * height + 2
        away = distance * (1 + 0.06 * attempt)
        eye = np.array([away * np.cos(azimuth), level, away * np.sin(azimuth)], np.float32)
        if solid(eye[:, None])[0][0] > 2.5:
            break
    shift = rng.uniform(-0.25, 0.25) * width / min(fill, 1.2)
    side = np.array([-np.sin(azimuth), 0, np.cos(azimuth)]) * shift
    target = side + np.array([0, height * rng.uniform(0.3, 0.7), 0])
    ahead = target - eye
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, [0, 1, 0])
    right /= np.linalg.norm(right)
    above = np.cross(right, ahead)
    roll = rng.normal(0, 0.02)
    right, above = (
        right * np.cos(roll) + above * np.sin(roll),
        above * np.cos(roll) - right * np.sin(roll),
    )
    axes = (a.astype(np.float32) for a in (ahead, right, above))
    return Camera(eye, *axes, w, h, focal), float(azimuth + np.pi)


def surroundings(
    rng: Random, camera_at: float, away: float, width: float, ground: str
) -> list[Part]:
    """Trees behind and beside the subject, sometimes people or a tree in front of it."""
    out: list[Part] = []
    look = np.array([np.cos(camera_at), np.sin(camera_at)])
    side = np.array([-look[1], look[0]])

    def put(parts: list[Part], along: float, across: float) -> None:
        x, z = -look * along + side * across
        out.extend(place(parts, float(x), float(z), float(rng.uniform(0, 6.28))))

    if ground == "water":
        for _ in range(int(rng.integers(0, 4))):
            put(boat(rng), rng.uniform(-1.5, 0.5) * width, rng.uniform(-1.2, 1.2) * width)
    elif ground != "floor":
        for build in rng.choice(np.array([house, office, boulder, fence, hill, car]), 3):
            count = int(rng.integers(0, 5))
            for _ in range(count):
                back = -rng.uniform(0.9, 2.2) * width
                put(build(rng), back - 12, rng.uniform(-1.8, 1.8) * width)
        if ground != "sand" or rng.random() < 0.3:
            for _ in range(int(rng.integers(1, 9))):
                put(tree(rng), -rng.uniform(0.62, 1.4) * width, rng.uniform(-1.3, 1.3) * width)
            if rng.random() < 0.5:
                beside = rng.choice([-1, 1]) * rng.uniform(0.1, 0.4) * width
                put(tree(rng), 0.55 * away, float(beside))
        if rng.random() < 0.45:
            for _ in range(int(rng.integers(1, 5))):
                put(person(rng), rng.uniform(0.5, 0.85) * away, rng.uniform(-0.3, 0.3) * width)
    return out


@dataclass(frozen=True)
class Shot:
    """Everything one picture needs."""

    camera: Camera
    solid: Solid
    weather: Weather
    plaza: float
    rng: Random


def compose(kind: str, seed: int, size: tuple[int, int]) -> Shot:
    """Lay out one picture of a landmark or an everyday scene."""
    rng = np.random.default_rng([SEED, zlib.crc32(kind.encode()), seed])
    if rng.random() < 0.22:
        size = size[::-1]
    if kind in BY_NAME:
        subject: Landmark = BY_NAME[kind]
        parts, width, height, turn = subject.build(), subject.width, subject.height, subject.turn
        ground = str(rng.choice(subject.grounds))
    else:
        build, width, height, grounds = EVERYDAY[kind]
        parts, turn = build(rng), 60.0
        ground = str(rng.choice(grounds))
    camera, view = aim(rng, size, width, height, turn, Solid(parts))
    around = surroundings(rng, view, float(np.hypot(camera.eye[0], camera.eye[2])), width, ground)
    eye = camera.eye
    clear = [
        p for p in around if np.hypot(p.centre[0] - eye[0], p.centre[2] - eye[2]) > p.half[0] + 3
    ]
    plaza = float(rng.choice([0.0, 0.0, 0.75])) * width
    if ground in ("water", "floor", "snow"):
        plaza = 0.0
    return Shot(camera, Solid(parts + clear), weather(rng, view, ground), plaza, rng)


def _light(
    shot: Shot, points: Floats, normal: Floats, colour: Floats, open_: Floats, lit: Floats
) -> Floats:
    """Sun, sky from above, and light thrown back by the ground."""
    w = shot.weather
    facing = np.clip((w.sun[:, None] * normal).sum(axis=0), 0, 1) * lit
    above = (0.5 + 0.5 * normal[1]) * open_
    below = (0.5 - 0.5 * normal[1]) * open_
    ambient = (0.55 * w.zenith + 0.45 * w.horizon)[:, None] * np.float32(0.62)
    bounce = (0.22 * w.sunlight * max(float(w.sun[1]), 0.15) + 0.12 * w.horizon)[:, None]
    return colour * (w.sunlight[:, None] * facing + ambient * above + bounce * below)


def _haze(shot: Shot, colour: Floats, ray: Floats, t: Floats) -> Floats:
    w = shot.weather
    clear = np.exp(-w.haze * np.minimum(t, 2500)).astype(np.float32)
    level = ray * np.array([[1], [0], [1]], np.float32)
    veil = sky(level / (np.linalg.norm(level, axis=0) + 1e-6), w, hills=False)
    return colour * clear + veil * (1 - clear)


def _shade_parts(shot: Shot, at: Floats, ray: Floats, t: Floats, pixel: float) -> Floats:
    which = shot.solid(at)[1]
    normal = shot.solid.normal(at, np.maximum(t * pixel, 0.004))
    lit = shot.solid.shadow(at + normal * np.float32(0.06), shot.weather.sun, shot.weather.softness)
    open_ = shot.solid.openness(at, normal)
    colour = np.zeros_like(at)
    rough = normal.copy()
    materials = np.array([p.material for p in shot.solid.parts])[which]
    for material in np.unique(materials):
        here = np.flatnonzero(materials == material)
        colour[:, here] = albedo(str(material), at[:, here], normal[:, here], shot.weather)
        rough[:, here] = bump(str(material), at[:, here], normal[:, here])
    out = _light(shot, at, rough, colour, open_, lit)
    shiny = np.isin(
        materials, ["glass", "paint", "paint2", "cabin", "steel", "marble", "slate", "lamp"]
    )
    if shiny.any():
        s = np.flatnonzero(shiny)
        mirror = ray[:, s] - 2 * (ray[:, s] * rough[:, s]).sum(axis=0) * rough[:, s]
        edge = np.where(materials[s] == "glass", 0.3, 0.04)
        edge = edge + 0.5 * np.clip(1 + (ray[:, s] * rough[:, s]).sum(axis=0), 0, 1) ** 5
        half = np.clip(shot.weather.sun @ mirror, 0, 1) ** 40 * lit[s]
        out[:, s] += edge * sky(mirror, shot.weather) * open_[s]
        out[:, s] += 0.35 * half * shot.weather.sunlight[:, None]
    return _haze(shot, out, ray, t)


def _shade_ground(
    shot: Shot, at: Floats, ray: Floats, t: Floats, pixel: float, depth: int
) -> Floats:
    near = np.flatnonzero(t < FAR)
    lit, open_ = np.ones(len(t), np.float32), np.ones(len(t), np.float32)
    lifted = at[:, near] + np.array([[0], [0.05], [0]], np.float32)
    lit[near] = shot.solid.shadow(lifted, shot.weather.sun, shot.weather.softness)
    up = np.zeros_like(lifted)
    up[1] = 1
    open_[near] = shot.solid.openness(at[:, near], up)
    colour, normal = ground_albedo(at, t, shot.weather, shot.plaza)
    out = _light(shot, at, normal, colour, open_, lit)
    if shot.weather.ground == "water" and depth == 0:
        wave = ripples(at, t)
        mirror = ray - 2 * (ray * wave).sum(axis=0) * wave
        mirror[1] = np.abs(mirror[1]) + 1e-3
        mirror /= np.linalg.norm(mirror, axis=0)
        edge = 0.05 + 0.9 * np.clip(1 + (ray * wave).sum(axis=0), 0, 1) ** 3.2
        out = out * (1 - edge) + trace(shot, at, mirror, np.full_like(t, 0.05), pixel * 2, 1) * edge
    return _haze(shot, out, ray, t)


def trace(
    shot: Shot, origin: Floats, ray: Floats, start: Floats, pixel: float, depth: int
) -> Floats:
    """Light [3, n] that comes along rays [3, n] from origins [3, n or 1]."""
    falls = ray[1] < -1e-5
    ground = np.where(falls, -origin[1] / np.where(falls, ray[1], -1), np.inf).astype(np.float32)
    t, hit = shot.solid.march(origin, ray, start, np.minimum(ground, FAR), pixel, cone=False)
    out = np.empty_like(ray)
    miss = np.flatnonzero(~hit & ~falls)
    out[:, miss] = sky(ray[:, miss], shot.weather)
    for mask, distance in ((hit, t), (~hit & falls, ground)):
        some = np.flatnonzero(mask)
        if not len(some):
            continue
        far = np.minimum(distance[some], 20000)
        at = (origin[:, some] if origin.shape[1] > 1 else origin) + ray[:, some] * far
        if mask is hit:
            out[:, some] = _shade_parts(shot, at, ray[:, some], far, pixel)
        else:
            out[:, some] = _shade_ground(shot, at, ray[:, some], far, pixel, depth)
    return out


def photograph(kind: str, seed: int, long_side: int = LONG_SIDE) -> NDArray[np.uint8]:
    """Render one picture [h, w, 3] RGB; `seed` picks the view, the light and the surroundings."""
    cv2.setNumThreads(1)
    fine = long_side * 2
    shot = compose(kind, seed, (fine, fine * 3 // 4))
    camera = shot.camera
    origin = camera.eye[:, None]
    pixel = 0.5 / (camera.width * camera.focal)
    step = 8
    bundle, (rows, columns) = camera.rays(step)
    falls = bundle[1] < -1e-5
    stop = np.where(falls, -origin[1] / np.where(falls, bundle[1], -1), FAR) + 1
    begin = np.full(bundle.shape[1], 0.5, np.float32)
    t, _ = shot.solid.march(origin, bundle, begin, stop, pixel * step * 1.5, cone=True)
    ray, (high, wide) = camera.rays(1)
    start = np.repeat(np.repeat(t.reshape(rows, columns), step, 0), step, 1)[:high, :wide]
    light = trace(shot, origin, ray, np.maximum(start.ravel() * 0.97, 0.5), pixel, 0)
    image = np.minimum(light.T.reshape(high, wide, 3), 4)
    size = (long_side, long_side * 3 // 4) if wide > high else (long_side * 3 // 4, long_side)
    return develop(cv2.resize(image, size, interpolation=cv2.INTER_AREA), shot.rng)
