"""Labels from texts: keywords of captions and titles, and how near a text is to each label.

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
_BLOCK = 4096  # texts at a time

Encode = Callable[[Sequence[str]], NDArray[np.floating]]


def words(text: str) -> list[str]:
    """The words of a text, in order, in small letters: runs of letters and their marks.

    Numbers and signs part words. Chinese and Japanese, which part none, are cut into overlapping
    pairs of characters (a lone one stays), as Lucene's CJKAnalyzer cuts them. Thai, Lao, Khmer and
    Burmese stay in one piece between blanks.
    """
    found: list[str] = []
    folded = unicodedata.normalize("NFKC", text).casefold()
    shown = (c for c in folded if unicodedata.category(c) != "Cf")  # no joiners, no soft hyphens
    for kind, run in groupby(shown, _kind):
        piece = "".join(run)
        if kind == "word" and any(unicodedata.category(c)[0] == "L" for c in piece):
            found.append(piece)
        elif kind == "unspaced":
            found += [piece[i : i + 2] for i in range(max(len(piece) - 1, 1))]
    return found


def _kind(character: str) -> str:
    """What a character is a part of: "word", "unspaced" writing, or nothing."""
    if character.isascii():
        return "word" if character.isalpha() else ""
    if unicodedata.category(character)[0] not in "LM":
        return ""
    name = unicodedata.name(character, "")
    return "unspaced" if name.startswith(_UNSPACED) else "word"


def keywords(
    texts: Sequence[str], *, least: int = 5, most: float = 0.05, count: int | None = None
) -> list[tuple[str, ...]]:
    """The keywords of each text: its words without the most and the least common ones.

    The most common ones ("the", "of", "photo") say nothing of a picture and the least common
    ones (misspellings, names) cannot be learnt. Grammar is not looked at.

    Args:
        texts: of each picture.
        least: words of fewer texts are left out.
        most: words of more than this part of the texts are left out, 0 to 1.
        count: the vocabulary's size at most; the words of most texts stay, of equal ones the first
            by the alphabet.

    Returns:
        For each text its keywords, each once, in the order in which they come in it.

    Raises:
        ValueError: `least` below 1, `most` outside 0 to 1, `count` below 1.
    """
    if least < 1 or not 0 <= most <= 1 or (count is not None and count < 1):
        raise ValueError(f"least {least}, most {most} or count {count} is out of range")
    of_texts: dict[str, int] = {}
    for text in texts:
        for word in set(words(text)):
            of_texts[word] = of_texts.get(word, 0) + 1
    kept = [w for w, texts_of in of_texts.items() if least <= texts_of <= most * len(texts)]
    if count is not None:
        kept = sorted(kept, key=lambda word: (-of_texts[word], word))[:count]
    vocabulary = frozenset(kept)
    return [tuple(dict.fromkeys(w for w in words(text) if w in vocabulary)) for text in texts]


def weighted_labels(
    texts: Sequence[str],
    glosses: Mapping[str, str],
    *,
    top: int = 5,
    encode: Encode | None = None,
) -> list[tuple[tuple[str, float], ...]]:
    """The labels nearest to each text, and the cosine to each as its weight.

    Args:
        texts: of each picture.
        glosses: what each label means, in words: its synonyms, its definition.
        top: labels of a text at most.
        encode: vectors float [n, d] of texts; those of their words unless given, by TF-IDF learnt
            on the texts and the glosses. See lmk.embed.tags.sentences for those of a network.

    Returns:
        For each text (label, weight), nearest first, of equal ones the first by the alphabet;
        only weights above 0, so none for an empty text, or for one without a word of any gloss.

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
    """Unit vectors of both, dense or sparse; 0 where there is no text."""
    if encode is not None:
        own, labels = (unit_rows(np.asarray(encode(each), np.float32)) for each in (texts, glosses))
        for each, vectors in ((texts, own), (glosses, labels)):
            vectors[[not text.strip() for text in each]] = 0  # no text is near to nothing
        return own, labels
    from sklearn.feature_extraction.text import TfidfVectorizer

    together = [*texts, *glosses]
    if not any(words(text) for text in together):
        return np.zeros((len(texts), 1)), np.zeros((len(glosses), 1))
    learnt = TfidfVectorizer(analyzer=words).fit(together)
    return learnt.transform(texts), learnt.transform(glosses)


def read_contexts(path: Path, columns: Sequence[str] | None = None) -> dict[str, str]:
    """The texts of pictures by id, from a CSV or Parquet file with a column id.

    Args:
        path: the file.
        columns: the columns whose texts are put together; those of CONTEXT_COLUMNS that there are
            unless given.

    Raises:
        ManifestError: the file cannot be read.
        UsageError: it lacks the columns, or has an id twice.
    """
    table = read_table(path, {"id", *CONTEXT_COLUMNS, *(columns or ())})
    wanted = [c for c in CONTEXT_COLUMNS if c in table] if columns is None else list(columns)
    missing = [c for c in ("id", *wanted) if c not in table]
    if missing or not wanted:
        lacking = ", ".join(missing) or " or ".join(CONTEXT_COLUMNS)
        raise UsageError(
            f"has no column {lacking} (its columns are: {', '.join(map(str, table.columns))})",
            where=path,
            remedy="name the columns that hold the texts",
        )
    ids = plain_ids(table["id"])
    if len(set(ids)) < len(ids):
        twice = next(id_ for id_, count in Counter(ids).items() if count > 1)
        raise UsageError(
            f"has the id {twice} twice", where=path, remedy="join the texts of a picture"
        )
    texts = (" ".join(row).strip() for row in table[wanted].itertuples(index=False))
    return dict(zip(ids, texts, strict=True))
