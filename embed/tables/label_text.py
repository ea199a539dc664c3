"""Text of labels and ids: Unicode form, blanks, and cells with several labels.

A label or id never contains a blank, because the contests' files separate labels by blanks, and is
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
# Words that may mean "no landmark" or be the name of one; case is ignored.
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
    """Returns the text in Unicode's composed form."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def plain_name(text: str) -> str:
    """Returns a label or id in the form of manifests: NFC, with "_" for each run of blanks."""
    return "_".join(nfc(text).split())


def name_forms(name: str) -> tuple[str, ...]:
    """Returns the forms of a name that a gallery may contain, the most likely first.

    They are the given form, the form of manifests, and the decomposed form (NFD) of old galleries.
    """
    if name.isascii() and len(name.split()) == 1:
        return (name,)
    plain = plain_name(name)
    return tuple(dict.fromkeys((name, plain, unicodedata.normalize("NFD", plain))))


def split_labels(cell: str, *, several: bool) -> tuple[str, ...]:
    """Returns the labels of a cell in order, including repeated ones.

    Args:
        cell: the text; "|" separates labels.
        several: without a "|", blanks separate labels too (a column such as `landmarks`).
            Otherwise a blank belongs to the name and becomes "_" (a column such as `label`).
    """
    if SEPARATOR in cell:
        parts = cell.split(SEPARATOR)
    elif several:
        parts = cell.split()
    else:
        parts = [cell]
    return tuple(name for name in map(plain_name, parts) if name)


def join_labels(labels: Iterable[str], column: str) -> str:
    """Returns the cell of a column that `split_labels` reads as these labels."""
    return (" " if column in SEVERAL_LABELS_COLUMNS else SEPARATOR).join(labels)


def whole_number(text: str) -> str:
    """Returns "123" for "123.0", and any other text unchanged."""
    match = _FLOAT.fullmatch(text)
    return match[1] if match else text


def are_floats(names: Iterable[str]) -> bool:
    """True if there are names and all are whole numbers written as floats ("123.0")."""
    any_name = False
    for name in names:
        if not _FLOAT.fullmatch(name):
            return False
        any_name = True
    return any_name


def read_labels(cells: Sequence[str], column: str) -> tuple[list[tuple[str, ...]], list[str]]:
    """Returns the labels of each cell of a column, and lines about unusual cells.

    A cell with a word for a missing value (MISSING_WORDS) has no label. If all cells are whole
    numbers written as floats ("123.0", as pandas writes a column with gaps), they are read as whole
    numbers.

    Args:
        cells: the texts of the column.
        column: the name, one of SINGLE_LABEL_COLUMNS or SEVERAL_LABELS_COLUMNS.
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
            f"{_count_text(doubtful)} in the column {column}: read as the name of a landmark; "
            "leave the cell empty where there is none"
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
    """Returns repeated cells of several words, whose words are in no other cell."""
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
    """Returns a line with the number of cells that have words for a missing value."""
    return f"{_count_text(words)} in the column {column}: read as no label"


def _count_text(words: Counter[str]) -> str:
    """Returns a text such as "3 cells say 'nan' or 'None'"."""
    count = words.total()
    verb = "says" if count == 1 else "say"
    return f"{_cells(count)} {verb} {' or '.join(repr(word) for word in sorted(words))}"


def _cells(count: int) -> str:
    return f"{count:,} cell" + "s" * (count != 1)
