"""Picture formats: recognises pictures by their suffix and by their content.

The files of a folder are selected by their suffix. The content of a file determines its decoder.
Only the formats of FORMATS are decoded, as other plugins of Pillow run programs (EPS starts
Ghostscript) or read a page description as a picture.
"""

from __future__ import annotations

import re

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng"}
    | {".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs"}
    | {".heic", ".heif", ".heics", ".heifs", ".hif", ".jxl"}
)
RAW_SUFFIXES = frozenset(
    {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc"}
    | {".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl"}
    | {".sr2", ".srf", ".srw", ".x3f"}
)
FORMATS = frozenset({"JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF"})
NOT_A_PICTURE = "not a picture that can be decoded"
RAW = "a camera raw file, which is not read (export it as JPEG)"

_JXL = "a JPEG XL picture, which is not read (save it as JPEG or PNG)"
_JPEG_2000 = "a JPEG 2000 picture, which is not read (save it as JPEG or PNG)"
_SIGNATURES = (  # the first bytes of a file, and its format or the reason why it is not read
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\xff\x0a", _JXL),
    (b"\0\0\0\x0cJXL \r\n\x87\n", _JXL),
    (b"\0\0\0\x0cjP  \r\n\x87\n", _JPEG_2000),
    (b"\xff\x4f\xff\x51", _JPEG_2000),
    (b"FUJIFILMCCD-RAW", RAW),
    (b"IIRO", RAW),
    (b"IIRS", RAW),
    (b"MMOR", RAW),
    (b"IIU\0", RAW),
    (b"\0MRM", RAW),
    (b"FOVb", RAW),
    (b"%!PS", "a PostScript file, not a picture (save it as PNG)"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file, not a picture (save it as PNG)"),
    (b"%PDF", "a PDF file, not a picture (save its page as PNG)"),
    (b"8BPS", "a Photoshop file, which is not read (save it as JPEG or PNG)"),
    (b"8BPB", "a Photoshop file, which is not read (save it as JPEG or PNG)"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile, not a picture (save it as PNG)"),
    (b"\x01\0\x09\0\0\x03", "a Windows metafile, not a picture (save it as PNG)"),
    (b"PK\x03\x04", "a ZIP archive, not a picture (unpack it)"),
    (b"\x1f\x8b", "a gzip file, not a picture (unpack it)"),
)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
_OS2_DIB = 12  # bytes of the oldest bitmap header
_DIB_SIZES = frozenset({_OS2_DIB, 40, 52, 56, 64, 108, 124})
_VIDEO_BRANDS = re.compile(rb"isom|iso\d|mp4\d|M4V |qt  |3gp\d|avc1|dash")
_MARKUP = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:(!doctype html|html)|(\?xml|svg|!--))", re.I)


class Unreadable(Exception):
    """A file cannot be decoded as a picture; the text is the reason."""


def picture_format(data: bytes) -> str:
    """Returns the format of a picture, one of FORMATS, from its content alone.

    Raises:
        Unreadable: the format is another one; the reason names it if it is known.
    """
    start = data[:512]
    kind = next((name for signature, name in _SIGNATURES if start.startswith(signature)), None)
    if kind is None and start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        kind = "WEBP"
    if kind is None and start[4:8] == b"ftyp":
        kind = _by_brand(start)
    if kind == "TIFF" and start[8:10] == b"CR":
        kind = RAW
    if kind is None and _is_dib(start):
        kind = "BMP"
    if kind is None:
        kind = _other(start)
    if kind not in FORMATS:
        raise Unreadable(kind)
    return kind


def reason_to_skip(suffix: str) -> str:
    """Returns the reason why a file is left out, from its suffix in lower case."""
    if suffix in RAW_SUFFIXES:
        return RAW
    return f"not a picture ({suffix or 'no file ending'})"


def _by_brand(start: bytes) -> str | None:
    """Returns the format of an ISO base media file, from the brands of its first box."""
    box = start[8 : max(int.from_bytes(start[:4], "big"), 12)]
    brands = [box[i : i + 4] for i in range(0, len(box), 4) if i != 4]  # the second is a version
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    if any(brand in _HEIF_BRANDS for brand in brands):
        return "HEIF"
    if brands[:1] == [b"crx "]:
        return RAW
    if brands and _VIDEO_BRANDS.fullmatch(brands[0]):
        return "a video, not a picture"
    return None


def _is_dib(start: bytes) -> bool:
    """True if a file is a BMP without its file header, from the first bitmap header fields."""
    size = int.from_bytes(start[:4], "little")
    planes = start[8:10] if size == _OS2_DIB else start[12:14]
    return size in _DIB_SIZES and planes == b"\1\0"


def _other(start: bytes) -> str:
    if start[40:44] == b" EMF":
        return "a Windows metafile, not a picture (save it as PNG)"
    if markup := _MARKUP.match(start):
        if markup[1]:
            return "a web page, not a picture"
        if b"<svg" in start:
            return "an SVG drawing, not a picture (save it as PNG)"
    return NOT_A_PICTURE
