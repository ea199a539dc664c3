"""Names of landmarks and pictures as text: one Unicode form, no blanks, cells of several labels.

A label or id never holds a blank, because the contests' files separate labels by blanks, and is
always in Unicode's composed form (NFC): macOS writes file names decomposed (NFD), and both forms
look the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

SINGLE_LABEL_COLUMNS = ("landmark_id", "label")
SEVERAL_LABELS_COLUMNS = ("labels", "landmarks", "tags")
SEPARATOR = "|"  # between the labels of a cell, in any column of labels

# The words that pandas reads as a missing value (its STR_NA_VALUES), without "NA", which is also
# the code of Namibia.
MISSING_WORDS = frozenset(
    {
        "nan", "NaN", "NAN", "-nan", "-NaN", "<NA>", "NaT", "None", "null", "NULL", "N/A", "n/a",
        "#N/A", "#NA", "#N/A N/A", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN",
    }
)  # fmt: skip
# Words that may mean "no landmark", and may be the name of one; compared without case.
_DOUBTFUL_WORDS = frozenset(
    {
        "none", "null", "na", "nan", "nil", "nothing", "unknown", "unlabeled", "unlabelled", "-",
        "--", "?", "-1", "no landmark", "no-landmark", "no_landmark", "nolandmark", "non-landmark",
        "non_landmark", "not a landmark", "not_a_landmark", "none of these", "none_of_these",
        "no label", "no_label",
    }
)  # fmt: skip
_FLOAT = re.compile(r"(-?[0-9]+)\.00?")  # "1.000" may be a thousand
_LIST = re.compile(r"\[.*\]", re.DOTALL)
_ENUMERATION = re.compile(r".*[,;](\s.*)?", re.DOTALL)
_NUMBERS = re.compile(r"[0-9]+(?:\s+[0-9]+)+")


def nfc(text: str) -> str:
    """The text in Unicode's composed form."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def plain_name(text: str) -> str:
    """A label or id as manifests have it: in NFC, "_" for each run of blanks inside."""
    return "_".join(nfc(text).split())


def name_forms(name: str) -> tuple[str, ...]:
    """The texts that a gallery may hold for a name, the likeliest first.

    As given; as manifests write it; decomposed (NFD), as galleries built in the past may have it.
    """
    if name.isascii() and len(name.split()) == 1:
        return (name,)
    plain = plain_name(name)
    return tuple(dict.fromkeys((name, plain, unicodedata.normalize("NFD", plain))))


def split_labels(cell: str, *, several: bool) -> tuple[str, ...]:
    """The labels of a cell in their order, repeats kept.

    Args:
        cell: the text; "|" separates labels.
        several: blanks separate labels too, where there is no "|" (a column such as `landmarks`);
            otherwise a blank belongs to the name and becomes "_" (a column such as `label`).
    """
    if SEPARATOR in cell:
        parts = cell.split(SEPARATOR)
    elif several:
        parts = cell.split()
    else:
        parts = [cell]
    return tuple(name for name in map(plain_name, parts) if name)


def join_labels(labels: Iterable[str], column: str) -> str:
    """The cell of a column that `split_labels` reads as these labels."""
    return (" " if column in SEVERAL_LABELS_COLUMNS else SEPARATOR).join(labels)


def whole_number(text: str) -> str:
    """ "123.0" -> "123"; any other text as it is."""
    found = _FLOAT.fullmatch(text)
    return found[1] if found else text


def are_floats(names: Iterable[str]) -> bool:
    """Whether all names are whole numbers written as floats ("123.0"), and there is one."""
    found = False
    for name in names:
        if not _FLOAT.fullmatch(name):
            return False
        found = True
    return found


def read_labels(cells: Sequence[str], column: str) -> tuple[list[tuple[str, ...]], list[str]]:
    """The labels of each cell of a column, and lines about odd cells.

    A cell that only says that a value is missing (MISSING_WORDS) has no label. A column of whole
    numbers that are all written as floats ("123.0", as pandas writes a column with gaps) is read as
    whole numbers.

    Args:
        cells: the texts of the column.
        column: its name, one of SINGLE_LABEL_COLUMNS or SEVERAL_LABELS_COLUMNS.
    """
    several = column in SEVERAL_LABELS_COLUMNS
    missing: Counter[str] = Counter()
    doubtful: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    lists: Counter[str] = Counter()
    names: Counter[str] = Counter()
    read: dict[str, tuple[str, ...]] = {}  # by cell, as millions of cells repeat few texts
    for cell, count in Counter(cells).items():
        text = cell.strip()
        if text in MISSING_WORDS:
            missing[text] += count
            read[cell] = ()
            continue
        if text.casefold() in _DOUBTFUL_WORDS:
            doubtful[text] += count
        elif not several and _NUMBERS.fullmatch(text):
            numbers[text] += count
        elif _LIST.fullmatch(text) or (several and _ENUMERATION.fullmatch(text)):
            lists[text] += count
        elif several and SEPARATOR not in text:
            names[text] += count
        read[cell] = split_labels(text, several=several)
    notes = []
    if are_floats(label for labels in read.values() for label in labels):
        example = next(labels[0] for labels in read.values() if labels)
        read = {cell: tuple(map(whole_number, labels)) for cell, labels in read.items()}
        notes.append(
            f"the labels of the column {column} are whole numbers written as floats ({example}): "
            f"read as {whole_number(example)}"
        )
    if missing:
        notes.append(missing_note(missing, column))
    if doubtful:
        notes.append(
            f"{_said(doubtful)} in the column {column}: read as the name of a landmark; leave the "
            "cell empty where there is none"
        )
    if numbers:
        example = min(numbers)
        notes.append(
            f"{_cells(numbers.total())} of the column {column} with several numbers, each read as "
            f"one label ({example!r} as {plain_name(example)}); separate several labels by "
            f"{SEPARATOR!r}, or name the column landmarks"
        )
    if lists:
        example, first = min(lists), split_labels(min(lists), several=several)[0]
        notes.append(
            f"{_cells(lists.total())} of the column {column} may be lists ({example[:60]!r}), and "
            f"are read with their commas and brackets ({first[:60]!r}): separate labels by "
            f"{SEPARATOR!r}"
        )
    if whole := _inseparable(names):
        example = min(whole)
        notes.append(
            f"{_cells(whole.total())} of the column {column} with words that never stand apart "
            f"({example[:60]!r}), read as {len(example.split())} labels: where they are one name, "
            f"end the cell with {SEPARATOR!r}, or name the column landmark_id"
        )
    return [read[cell] for cell in cells], notes


def _inseparable(cells: Counter[str]) -> Counter[str]:
    """The cells of several words that are repeated, and whose words stand in no other cell."""
    within: dict[str, set[str]] = {}
    for text in cells:
        for word in text.split():
            within.setdefault(word, set()).add(" ".join(text.split()))
    return Counter(
        {
            text: count
            for text, count in cells.items()
            if count > 1
            and len(set(text.split())) > 1
            and not all(word.isdecimal() for word in text.split())
            and all(len(within[word]) == 1 for word in text.split())
        }
    )


def missing_note(words: Counter[str], column: str) -> str:
    """A line on how many cells of a column hold words for a missing value (MISSING_WORDS)."""
    return f"{_said(words)} in the column {column}: read as no label"


def _said(words: Counter[str]) -> str:
    """ "3 cells say 'nan' or 'None'"."""
    count = words.total()
    verb = "says" if count == 1 else "say"
    return f"{_cells(count)} {verb} {' or '.join(repr(word) for word in sorted(words))}"


def _cells(count: int) -> str:
    return f"{count:,} cell" + "s" * (count != 1)
