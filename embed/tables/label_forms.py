"""Names that differ only in form: case, blanks, leading zeros, a float for a whole number."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from lmk.embed.tables.label_text import whole_number

_JOINTS = re.compile(r"[\s_\-\u2010-\u2015]+")
_INTEGER = re.compile(r"-?[0-9]+")


def form_key(name: str) -> str:
    """Returns a key that is equal for names that differ only in form.

    The key ignores compatibility forms (NFKC), invisible letters, case, blanks, underscores,
    hyphens, leading zeros of whole numbers, and ".0" after them.
    """
    if not name.isascii():
        name = _visible(unicodedata.normalize("NFKC", name))
    number = whole_number(name.strip())
    if _INTEGER.fullmatch(number):
        return str(int(number)) if len(number) < 1000 else number
    return _JOINTS.sub("", name.casefold())


def difference(first: str, second: str) -> str:
    """Returns a text with the difference in form of two names with the same `form_key`."""
    if first.lower() == second.lower():
        return "case"
    if whole_number(first) == whole_number(second):
        return "a whole number written as a float"
    if _INTEGER.fullmatch(whole_number(first)) and _INTEGER.fullmatch(whole_number(second)):
        return "leading zeros"
    shown = [_visible(unicodedata.normalize("NFKC", name)) for name in (first, second)]
    if shown[0] == shown[1]:
        return "invisible letters or the Unicode form"
    if _JOINTS.sub("", shown[0]) == _JOINTS.sub("", shown[1]):
        return "blanks, underscores or hyphens"
    return "case, blanks, underscores or hyphens"


def similar_groups(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Returns sorted groups of different names that differ only in form."""
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        groups[form_key(name)].add(name)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def similar_pairs(names: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Returns (name, other) for each name that differs from one of the others only in form."""
    wanted = set(others)
    missing = sorted({name for name in names if name not in wanted})
    if not missing:
        return []
    by_key: dict[str, str] = {}
    for other in sorted(wanted):
        by_key.setdefault(form_key(other), other)
    keyed = ((name, by_key.get(form_key(name))) for name in missing)
    return [(name, other) for name, other in keyed if other is not None]


def similar_text(pairs: Iterable[tuple[str, str]], noun: str, *, others: str = "others") -> str:
    """Returns a line about pairs of names that differ only in form; "" for no pair.

    "2 labels differ from others only in form, as 'A' and 'a' (case)".
    """
    listed = list(pairs)
    if not listed:
        return ""
    first, second = listed[0]
    count = f"1 {noun} differs" if len(listed) == 1 else f"{len(listed):,} {noun}s differ"
    form = difference(first, second)
    return f"{count} from {others} only in form, as {first!r} and {second!r} ({form})"


def _visible(text: str) -> str:
    return "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
