"""Labels from texts: keywords of captions and titles, and the similarity of texts to labels.

Yan et al., "Rethinking Model Pretraining for Noisy Image Classification" (second place of WebVision
2020), with words of any script instead of English nouns and adjectives.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk.embed.data.manifest_table import plain_ids, read_table
from lmk.embed.embeddings import unit_rows
from lmk.embed.errors import UsageError

CONTEXT_COLUMNS = ("title", "description", "caption", "tags")
_UNSPACED = ("IDEOGRAPHIC", "CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA")
_BLOCK = 4096  # number of texts at a time

Encode = Callable[[Sequence[str]], NDArray[np.floating]]


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case: runs of letters and their marks, in order.

    Numbers and signs separate words. Chinese and Japanese text has no separators and is cut into
    overlapping pairs of characters, as by Lucene's CJKAnalyzer. Thai, Lao, Khmer and Burmese text
    is only separated at blanks.
    """
    words: list[str] = []
    folded = unicodedata.normalize("NFKC", text).casefold()
    shown = (c for c in folded if unicodedata.category(c) != "Cf")  # no joiners, no soft hyphens
    for kind, run in groupby(shown, _kind):
        piece = "".join(run)
        if kind == "word" and any(unicodedata.category(c)[0] == "L" for c in piece):
            words.append(piece)
        elif kind == "unspaced":
            words += [piece[i : i + 2] for i in range(max(len(piece) - 1, 1))]
    return words


def _kind(character: str) -> str:
    """Returns the kind of a character: "word", "unspaced" (script without blanks), or ""."""
    if character.isascii():
        return "word" if character.isalpha() else ""
    if unicodedata.category(character)[0] not in "LM":
        return ""
    name = unicodedata.name(character, "")
    return "unspaced" if name.startswith(_UNSPACED) else "word"


def keywords(
    texts: Sequence[str], *, least: int = 5, most: float = 0.05, count: int | None = None
) -> list[tuple[str, ...]]:
    """Returns the keywords of each text: its words without the most and the least common ones.

    The most common words ("the", "of", "photo") do not describe a picture, and the least common
    ones (misspellings, names) have too few examples. Grammar is not used.

    Args:
        texts: the text of each picture.
        least: words in fewer texts are left out.
        most: words in more than this fraction of the texts are left out, 0 to 1.
        count: largest size of the vocabulary. The most common words stay; ties go by the alphabet.

    Returns:
        The keywords of each text, without repetition, in their order in the text.

    Raises:
        ValueError: `least` is below 1, `most` is outside 0 to 1, or `count` is below 1.
    """
    if least < 1 or not 0 <= most <= 1 or (count is not None and count < 1):
        raise ValueError(f"least {least}, most {most} or count {count} is out of range")
    of_texts: dict[str, int] = {}
    for text in texts:
        for word in set(words(text)):
            of_texts[word] = of_texts.get(word, 0) + 1
    chosen = [w for w, texts_of in of_texts.items() if least <= texts_of <= most * len(texts)]
    if count is not None:
        chosen = sorted(chosen, key=lambda word: (-of_texts[word], word))[:count]
    vocabulary = frozenset(chosen)
    return [tuple(dict.fromkeys(w for w in words(text) if w in vocabulary)) for text in texts]


def weighted_labels(
    texts: Sequence[str], glosses: Mapping[str, str], *, top: int = 5, encode: Encode | None = None
) -> list[tuple[tuple[str, float], ...]]:
    """Returns the labels nearest to each text, with the cosine as weight.

    Args:
        texts: the text of each picture.
        glosses: a description of each label: its synonyms, its definition.
        top: largest number of labels of a text.
        encode: returns vectors float [n, d] of texts. Default: TF-IDF of their words, fitted on the
            texts and the glosses. lmk.embed.tags.sentences has vectors of a network.

    Returns:
        The (label, weight) pairs of each text, nearest first; ties go by the alphabet. Only
        weights above 0 are included, so an empty text has none.

    Raises:
        ValueError: there is no label, or `top` is below 1.
    """
    if not glosses or top < 1:
        raise ValueError("there is no label" if not glosses else "top is below 1")
    if not texts:
        return []
    names = sorted(glosses)
    own, labels = _vectors(texts, [glosses[name] for name in names], encode)
    result: list[tuple[tuple[str, float], ...]] = []
    for start in range(0, len(texts), _BLOCK):
        cosines = own[start : start + _BLOCK] @ labels.T
        dense: NDArray[np.floating] = cosines.toarray() if hasattr(cosines, "toarray") else cosines
        for row in dense:
            best = np.argsort(-row, kind="stable")[:top]
            result.append(tuple((names[i], float(row[i])) for i in best if row[i] > 0))
    return result


def _vectors(
    texts: Sequence[str], glosses: Sequence[str], encode: Encode | None
) -> tuple[Any, Any]:
    """Returns unit vectors of texts and glosses, dense or sparse; 0 for an empty text."""
    if encode is not None:
        own, labels = (unit_rows(np.asarray(encode(each), np.float32)) for each in (texts, glosses))
        for each, vectors in ((texts, own), (glosses, labels)):
            vectors[[not text.strip() for text in each]] = 0  # an empty text has no similar label
        return own, labels
    from sklearn.feature_extraction.text import TfidfVectorizer

    together = [*texts, *glosses]
    if not any(words(text) for text in together):
        return np.zeros((len(texts), 1)), np.zeros((len(glosses), 1))
    learnt = TfidfVectorizer(analyzer=words).fit(together)
    return learnt.transform(texts), learnt.transform(glosses)


def read_contexts(path: Path, columns: Sequence[str] | None = None) -> dict[str, str]:
    """Returns the texts of pictures by id, from a CSV or Parquet file with a column id.

    Args:
        path: the file.
        columns: the columns whose texts are joined. Default: the existing ones of CONTEXT_COLUMNS.

    Raises:
        ManifestError: the file cannot be read.
        UsageError: a column is missing, or an id is repeated.
    """
    table = read_table(path, {"id", *CONTEXT_COLUMNS, *(columns or ())})
    wanted = [c for c in CONTEXT_COLUMNS if c in table] if columns is None else list(columns)
    missing = [c for c in ("id", *wanted) if c not in table]
    if missing or not wanted:
        lacking = ", ".join(missing) or " or ".join(CONTEXT_COLUMNS)
        what = f"has no column {lacking} (its columns are: {', '.join(map(str, table.columns))})"
        remedy = "name the columns that hold the texts"
        raise UsageError(what, where=path, remedy=remedy)
    ids = plain_ids(table["id"])
    if len(set(ids)) < len(ids):
        twice = next(id_ for id_, count in Counter(ids).items() if count > 1)
        raise UsageError(
            f"has the id {twice} twice", where=path, remedy="join the texts of a picture"
        )
    texts = (" ".join(row).strip() for row in table[wanted].itertuples(index=False))
    return dict(zip(ids, texts, strict=True))
