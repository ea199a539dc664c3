"""Unique ids of pictures with similar names: `IMG 1.jpg` and `IMG_1.jpg`, a.jpg and a.png.

The id of a picture is the first of these forms that no other picture of the folder or table has:

1. its name without blanks and in Unicode's composed form, in a flat folder without its ending:
   "a b.jpg" and "a_b.jpg" are both "a_b";
2. in a flat folder, the same with the ending: "a_b.jpg";
3. "./" and the exact name, with all but ASCII letters, digits and "_.-~/" escaped as in a URL:
   "./a%20b.jpg" and "./a_b.jpg".

If several pictures share a form, all of them use the next one, and none of them uses the shared
form. So an id never moves from one picture to another because pictures are added. The order of the
pictures does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import quote


def exact_id(name: str) -> str:
    """Returns the third form; it is different for different names, and no path starts with "."."""
    return f"./{quote(name, safe='/')}"


def unique_ids(
    names: Sequence[str], first: Sequence[str], *others: Callable[[str], str]
) -> list[str]:
    """Returns an id for each name; only equal names get the same id.

    Args:
        names: the exact names.
        first: the first form of each name.
        others: functions for the other forms, in order; `exact_id` should be the last.
    """
    ids, level = list(first), [0] * len(first)
    if len(set(ids)) == len(ids):
        return ids
    shared: set[str] = set()
    while True:
        owners: dict[str, str] = {}
        for name, id_ in zip(names, ids, strict=True):
            if owners.setdefault(id_, name) != name:
                shared.add(id_)
        going = [at for at, id_ in enumerate(ids) if id_ in shared and level[at] < len(others)]
        if not going:
            return ids
        for at in going:
            ids[at] = others[level[at]](names[at])
            level[at] += 1
