"""Text from files, made safe to print on a terminal."""

from __future__ import annotations

import re

# Controls (C0, DEL, C1), invisible characters that reorder or hide text, line and paragraph
# separators, tag characters and lone surrogates. The joiners U+200C and U+200D and the marks
# U+200E and U+200F stay: Persian, Hindi, Arabic and Hebrew names need them.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def printable(text: str) -> str:
    """Returns a text with every character escaped that could move, hide or colour other text.

    Escapes are those of Python's string literals: the escape character becomes `\\x1b`. A
    backslash of the text itself stays as it is, so the result cannot always be turned back.
    """
    return _UNSAFE.sub(_escaped, text)


def json_escaped(text: str) -> str:
    """Returns a JSON text (without indents) with the same characters as JSON escapes."""
    return _UNSAFE.sub(_json_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] in _SHORT:
        return _SHORT[match[0]]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
