"""`lmk build-index` over 1,000 damaged and hostile pictures: no crash, bounded memory and time.

Pictures of all formats are cut, their bits are flipped, their headers are made to promise huge
sizes, and bombs are added: pictures of 178 million pixels in a few hundred kB, JPEGs of thousands
of scans, directories that name the same bytes again and again, texts and comments that unpack to
much. Every 40th picture is whole; each of those must be in the index. Memory is compared with that
of a build of the whole pictures alone; the time of each picture is the CPU time of decoding it, in
this process, one after the other.

    python benchmarks/mutated_pictures.py [--count 1000] [--seed 0] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import io
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lmk.embed.data.images import decode

WHOLE_EVERY = 40
BOMB_EVERY = 10
MOST_MEMORY, MOST_SECONDS = 1.5e9, 10.0
SIZES = (0, 1, 255, 4095, 13_000, 16_383, 65_500, 65_535, 2**31 - 1, 2**32 - 1)


def picture(seed: int, side: int = 160) -> Image.Image:
    """Coloured blotches."""
    blotches = np.random.default_rng(seed).integers(0, 255, (8, 10, 3), np.uint8)
    return Image.fromarray(blotches).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    if kind == "HEIF":
        import pillow_heif

        file = io.BytesIO()
        pillow_heif.from_pillow(image).save(file, **options)
        return file.getvalue()
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def whole(seed: int) -> list[tuple[str, bytes]]:
    """A picture in every format and most of their kinds."""
    image = picture(seed)
    grey, palette = image.convert("L"), image.quantize(64)
    clear = image.convert("RGBA")
    clear.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        (".jpg", encoded(image, "JPEG", exif=turned)),
        (".jpg", encoded(image, "JPEG", progressive=True)),
        (".jpg", encoded(image.convert("CMYK"), "JPEG")),
        (".jpg", encoded(image, "MPO", save_all=True, append_images=[image])),
        (".png", encoded(image, "PNG", exif=turned)),
        (".png", encoded(deep, "PNG")),
        (".png", encoded(palette, "PNG", transparency=3)),
        (".webp", encoded(image, "WEBP", exif=turned)),
        (".webp", encoded(clear, "WEBP", lossless=True)),
        (".gif", encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)] * 3)),
        (".tif", encoded(image, "TIFF", exif=turned)),
        (".tif", encoded(image, "TIFF", compression="jpeg")),
        (".tif", encoded(deep, "TIFF", compression="tiff_lzw")),
        (".bmp", encoded(image, "BMP")),
        (".avif", encoded(image, "AVIF", speed=10)),
        (".heic", encoded(image, "HEIF")),
    ]


def flipped(data: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, most of them in the header."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 4, 30])):
        end = chance.choice([min(64, len(data)), min(600, len(data)), len(data)])
        changed[chance.randrange(end)] = chance.randrange(256)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    """The end missing, as it is, closed by the last bytes, or replaced by zeros."""
    kept = chance.randrange(1, len(data))
    tail = chance.choice([b"", data[-2:], data[-12:], bytes(len(data) - kept)])
    return data[:kept] + tail


def resized(data: bytes, chance: random.Random) -> bytes:
    """A number of the header made huge; in a PNG with the right checksum."""
    changed = bytearray(data)
    form = chance.choice(["<H", ">H", "<I", ">I"])
    width = struct.calcsize(form)
    for _ in range(chance.choice([1, 2])):
        at = chance.randrange(min(len(data) - width, chance.choice([40, 300])))
        struct.pack_into(form, changed, at, chance.choice(SIZES) % (1 << 8 * width))
    if data.startswith(b"\x89PNG"):
        struct.pack_into(">II", changed, 16, chance.choice(SIZES[:7]), chance.choice(SIZES[:7]))
        struct.pack_into(">I", changed, 29, zlib.crc32(changed[12:29]))
    frame = data.find(b"\xff\xc0") if data.startswith(b"\xff\xd8") else -1
    if frame >= 0 and chance.random() < 0.5:
        struct.pack_into(">HH", changed, frame + 5, *chance.choices((255, 13_000, 65_500), k=2))
    return bytes(changed)


def spliced(data: bytes, chance: random.Random) -> bytes:
    """A part repeated, or put where it does not belong."""
    start = chance.randrange(len(data))
    part = data[start : start + chance.choice([4, 100, 5000])]
    at = chance.randrange(len(data))
    return data[:at] + part * chance.choice([1, 50]) + data[at:]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: int | None = None) -> bytes:
    """A PNG of zeros, of `rows` rows."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    line = b"\x02" + bytes((width * channels * bits + 7) // 8)
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(line) for _ in range(height if rows is None else rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", body + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(width: int, height: int, scans: int, components: int = 1, fill: bytes = b"") -> bytes:
    """A JPEG without coefficients: progressive with so many further scans, or plain (0)."""
    parts = b"".join(bytes([i + 1, 0x11, 0]) for i in range(components))
    frame = struct.pack(">BHHB", 8, height, width, components) + parts
    first = bytes([components]) + b"".join(bytes([i + 1, 0]) for i in range(components))
    return b"".join(
        [
            b"\xff\xd8" + segment(0xDB, b"\0" + bytes([1] * 64)),
            segment(0xC2 if scans else 0xC0, frame),
            segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0"),
            segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0"),
            segment(0xDA, first + (b"\0\0\0" if scans else b"\0\x3f\0")) + fill,
            *(segment(0xDA, bytes([1, 1 + i % components, 0, 1, 63, 0])) + fill
              for i in range(scans)),
            b"\xff\xd9",
        ]
    )  # fmt: skip


def directory(entries: int, size: int, kind: int) -> bytes:
    """A TIFF structure whose tags all name the same bytes."""
    tags = b"".join(struct.pack("<HHII", i, kind, size, 8) for i in range(entries))
    return b"II*\0" + struct.pack("<IH", 8, entries) + tags + bytes(4 + size)


def bombs(scale: float) -> list[tuple[str, Callable[[], bytes]]]:
    """Makers of hostile files; `scale` is 1 for full size, less for a quick look."""
    side = int(13_000 * scale)
    many = int(1_000_000 * scale)
    webp_side = int(16_000 * scale)
    small = picture(1)
    tiny_png, tiny_jpeg = encoded(small, "PNG"), encoded(small, "JPEG")
    tiny_gif = encoded(small.quantize(8), "GIF")
    colours = 13 + (3 << (tiny_gif[10] & 7) + 1)
    exif = b"Exif\0\0" + directory(int(60_000 * scale), many, 7)
    packed = zlib.compress(bytes(100 * many))
    short = b"Exif\0\0" + directory(2000, 30_000, 7)

    def flat(mode: str, width: int, height: int) -> Image.Image:
        return Image.new(mode, (width, height))

    def in_png(*chunks: bytes) -> bytes:
        return tiny_png[:33] + b"".join(chunks) + tiny_png[33:]

    return [
        (".png", lambda: png(side, side, 8, 2)),
        (".png", lambda: png(side, side, 16, 6)),
        (".png", lambda: png(side, side, 16, 0)),
        (".png", lambda: png(side, side, 1, 0)),
        (".png", lambda: png(50_000, 50_000, 8, 2, rows=9)),
        (".png", lambda: png(side * side, 1, 8, 0)),
        (".png", lambda: in_png(chunk(b"zTXt", b"a\0\0" + packed))),
        (".png", lambda: in_png(chunk(b"iCCP", b"a\0\0" + packed))),
        (".png", lambda: in_png(*[chunk(b"IDAT", b"")] * many)),
        (".png", lambda: in_png(chunk(b"eXIf", exif[6:]))),
        (".jpg", lambda: jpeg(side, side, 2000)),
        (".jpg", lambda: jpeg(side // 4, side // 4, 2000, 3)),
        (".jpg", lambda: jpeg(side // 4, side // 4, 50, 1, fill=b"\xfe" * (many // 10))),
        (".jpg", lambda: jpeg(65_500, 65_500, 0, 3)),
        (".jpg", lambda: jpeg(side, side, 0, 3)),
        (".jpg", lambda: jpeg(side, side, 10, 3)),
        (".jpg", lambda: tiny_jpeg[:2] + segment(0xE1, short[:65_000]) + tiny_jpeg[2:]),
        (".jpg", lambda: tiny_jpeg[:2] + b"\xff\xe0\0\2" * many + tiny_jpeg[2:]),
        (".jpg", lambda: tiny_jpeg[:2] + b"\xff" * 20 * many + tiny_jpeg[2:]),
        (".webp", lambda: encoded(flat("RGB", webp_side, webp_side * 2 // 3), "WEBP", method=0)),
        (".webp", lambda: encoded(flat("RGBA", webp_side // 2, webp_side // 2), "WEBP",
                                  lossless=True, method=0)),
        (".webp", lambda: encoded(small, "WEBP", exif=exif)),
        (".avif", lambda: encoded(flat("RGB", side // 2, side // 2), "AVIF", speed=10)),
        (".avif", lambda: encoded(small, "AVIF", speed=10, exif=exif)),
        (".gif", lambda: encoded(flat("P", side, side), "GIF")),
        (".gif", lambda: tiny_gif[:colours] + b"!\xfe\1a\0" * many + tiny_gif[colours:]),
        (".gif", lambda: tiny_gif[:colours] + bytes(5 * many) + tiny_gif[colours:]),
        (".tif", lambda: encoded(flat("RGB", side, side), "TIFF", compression="tiff_lzw")),
        (".tif", lambda: directory(int(60_000 * scale), many, 7)),
        (".tif", lambda: directory(int(60_000 * scale), many // 2, 3)),
        (".tif", lambda: encoded(small, "TIFF", save_all=True, append_images=[small] * 300)),
        (".bmp", lambda: encoded(flat("L", side, side), "BMP") if scale < 1 else
         encoded(flat("1", side, side), "BMP")),
        (".bmp", lambda: run_lengths(side)),
        (".jpg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
    ]  # fmt: skip


def run_lengths(side: int) -> bytes:
    """A run-length encoded BMP that jumps over most of its pixels."""
    data = bytearray(encoded(picture(1).quantize(8), "BMP"))
    struct.pack_into("<ii", data, 18, side, side)
    struct.pack_into("<I", data, 30, 1)
    (start,) = struct.unpack_from("<I", data, 10)
    return bytes(data[:start]) + b"\0\2\xff\xff" * 100_000


def mutated(count: int, seed: int, scale: float = 1.0) -> Iterator[tuple[str, bytes]]:
    """Names and contents of `count` files, the same for the same numbers."""
    chance = random.Random(seed)
    hostile = bombs(scale)
    kinds = whole(seed)
    changes = (flipped, cut, resized, spliced)
    made: dict[int, bytes] = {}
    for number in range(count):
        if number % WHOLE_EVERY == 0:
            yield f"whole_{number}.jpg", encoded(picture(seed + number), "JPEG")
        elif number % BOMB_EVERY == 5:
            place = number // BOMB_EVERY % len(hostile)
            suffix, make = hostile[place]
            data = made.setdefault(place, make())
            yield f"bomb_{number}{suffix}", data + number.to_bytes(4, "big")  # a file of its own
        else:
            suffix, data = kinds[number % len(kinds)]
            yield f"changed_{number}{suffix}", chance.choice(changes)(data, chance)


def build(folder: Path, index: Path) -> tuple[float, float, dict[str, object]]:
    """The peak memory in bytes, the seconds and the summary of a `lmk build-index`."""
    code = (
        "import resource, sys; from lmk.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('PEAK', open('/proc/self/status').read().split('VmHWM:')[1].split()[0],"
        " file=sys.stderr)\n"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "build-index", folder, "-o", index, "--json"],
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"build-index ended with {done.returncode}: {done.stderr[-2000:]}")
    *lines, peak = done.stderr.splitlines()
    odd = [line for line in lines if not line.startswith("lmk: ")]
    if odd:
        raise SystemExit(f"{len(odd)} lines name no file, as: {odd[0]}")
    return 1024 * float(peak.split()[1]), seconds, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's, while it writes the bombs
    with tempfile.TemporaryDirectory() as made:
        root = options.keep or Path(made)
        plain, bad = root / "plain" / "place", root / "bad" / "place"
        for folder in (plain, bad):
            folder.mkdir(parents=True, exist_ok=True)
        times, read = [], 0
        for name, data in mutated(options.count, options.seed, options.scale):
            (bad / name).write_bytes(data)
            if name.startswith("whole"):
                (plain / name).write_bytes(data)
            started = time.process_time()
            read += not isinstance(decode(data, 300), str)
            times.append((time.process_time() - started, name))
        base, _, _ = build(plain.parent, root / "plain.lmk")
        peak, seconds, summary = build(bad.parent, root / "bad.lmk")
    skipped = summary["skipped"]
    assert isinstance(skipped, list)
    lost = [skip["path"] for skip in skipped if "whole" in skip["path"]]
    slowest, slow_name = max(times)
    print(f"{options.count} pictures, seed {options.seed}: {read} decoded, {len(skipped)} skipped")
    print(f"build-index: {seconds:.0f} s, exit 0, every line names a file")
    print(f"peak memory {peak / 1e6:,.0f} MB, {(peak - base) / 1e6:,.0f} MB above a plain build")
    median = sorted(times)[len(times) // 2][0]
    print(f"slowest picture {slowest:.1f} s of CPU ({slow_name}), median {median:.3f} s")
    if lost or peak - base > MOST_MEMORY or slowest > MOST_SECONDS:
        raise SystemExit(f"FAILED: whole pictures lost: {lost}")


if __name__ == "__main__":
    main()
