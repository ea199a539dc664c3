"""Labels of a set of pictures that differ only in form, and folders that become one label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from lmk.embed.data.manifest import Row
from lmk.embed.tables.label_forms import difference, similar_groups
from lmk.embed.tables.label_text import nfc, plain_name


def similar_labels(rows: Iterable[Row]) -> list[tuple[tuple[Row, ...], str]]:
    """Returns groups of labels that differ only in form, and of folders that become one label.

    Each group has the first picture of each label or folder, and a note.
    """
    first_of: dict[str, Row] = {}
    folders: defaultdict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        folder, slash, _ = row.path.partition("/")
        for label in row.labels:
            first_of.setdefault(label, row)
            if slash and plain_name(folder) == label:
                folders[label].setdefault(folder, row)
    groups = []
    for group in similar_groups(first_of):
        form = difference(group[0], group[1])
        note = f"the labels {_listed(group)} differ only in form ({form}): they stay different"
        groups.append((tuple(first_of[label] for label in group), note))
    for label, own in sorted(folders.items()):
        if len(own) > 1:
            note = f"the folders {_listed(own)} are one label, {label}"
            groups.append((tuple(own.values()), note))
    return groups


def _listed(names: Iterable[str]) -> str:
    """Returns the names as one text, with escapes if two names would look the same."""
    given = tuple(names)
    same = len(set(map(nfc, given))) < len(given)
    return ", ".join(map(ascii if same else repr, given))
