"""Ids of pictures that would get the same one: `IMG 1.jpg` beside `IMG_1.jpg`, a.jpg beside a.png.

A picture's id is the first of these forms that no other picture of the folder or table has too:

1. its name without blanks and in Unicode's composed form, in a flat folder without its ending:
   "a b.jpg" and "a_b.jpg" are both "a_b";
2. in a flat folder, the same with the ending: "a_b.jpg";
3. "./" and the exact name, with all but ASCII letters, digits and "_.-~/" escaped as in a URL:
   "./a%20b.jpg" and "./a_b.jpg".

All pictures that share a form go on to the next one, and the form belongs to none of them: so an id
never passes from one picture to another because further ones come. The order in which pictures are
found makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import quote


def exact_id(name: str) -> str:
    """The third form; no path has a "." in front, and different names have different ones."""
    return f"./{quote(name, safe='/')}"


def unique_ids(
    names: Sequence[str], first: Sequence[str], *others: Callable[[str], str]
) -> list[str]:
    """An id for each name; the same one for equal names only.

    Args:
        names: the exact names.
        first: the first form of each.
        others: the further forms, in their order; `exact_id` should be the last.
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
