"""Words of any script, keywords, labels by likeness of texts, reading texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.errors import UsageError
from lmk.embed.tags.captions import keywords, read_contexts, weighted_labels, words


class TestWords:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("The Eiffel-Tower, at night!", ["the", "eiffel", "tower", "at", "night"]),
            ("IMG_2041.jpg", ["img", "jpg"]),
            ("Straße ＣＡＦÉ cafe\u0301", ["strasse", "café", "café"]),
            ("Красная площадь", ["красная", "площадь"]),
            ("πλατεία Συντάγματος", ["πλατεία", "συντάγματοσ"]),  # a final sigma is folded
            ("ताज महल", ["ताज", "महल"]),  # vowel signs are marks, not letters
            ("برج إيفل", ["برج", "إيفل"]),
            ("경복궁 근정전", ["경복궁", "근정전"]),
            ("長城の夕日", ["長城", "城の", "の夕", "夕日"]),
            ("山 in 日本", ["山", "in", "日本"]),
            ("ตลาดน้ำ", ["ตลาดน้ํา"]),
            ("co\u00adoperate می\u200cخواهم", ["cooperate", "میخواهم"]),
            ("\u0301 123 ٣ !? 🙂", []),
            ("", []),
        ],
    )
    def test_examples(self, text: str, expected: list[str]) -> None:
        assert words(text) == expected

    @given(st.text())
    def test_of_anything(self, text: str) -> None:
        found = words(text)
        assert all(word and not any(c.isspace() or c.isdigit() for c in word) for word in found)


TEXTS = ["the red cat", "the red dog runs", "THE cat, the cat!", "the grey bird", "", "the cat 猫"]


class TestKeywords:
    def test_without_the_most_and_the_least_common(self) -> None:
        """ "the" is in 5 of 6 texts; "red" and "cat" in 2 and 3; the others in one."""
        got = keywords(TEXTS, least=2, most=0.6)
        assert got == [("red", "cat"), ("red",), ("cat",), (), (), ("cat",)]

    def test_the_bounds_count(self) -> None:
        assert keywords(TEXTS, least=3, most=0.5)[0] == ("cat",)
        assert keywords(TEXTS, least=4, most=1)[0] == ("the",)
        assert keywords(TEXTS, least=1, most=1 / 6)[5] == ("猫",)

    def test_a_vocabulary_of_a_size(self) -> None:
        assert keywords(TEXTS, least=1, most=1, count=2)[1] == ("the",)
        got = keywords(["b a", "c a", "b c"], least=1, most=1, count=2)  # all in two texts
        assert got == [("b", "a"), ("a",), ("b",)]

    @given(st.lists(st.lists(st.sampled_from("abcd"), max_size=4), max_size=12))
    def test_reference(self, rows: list[list[str]]) -> None:
        texts = [" ".join(row) for row in rows]
        for row, got in zip(rows, keywords(texts, least=2, most=0.5), strict=True):
            counts = {w: sum(w in other for other in rows) for w in row}
            assert set(got) == {w for w, n in counts.items() if 2 <= n <= 0.5 * len(rows)}
            assert list(got) == [w for w in dict.fromkeys(row) if w in got]

    @pytest.mark.parametrize("values", [{"least": 0}, {"most": 1.5}, {"count": 0}])
    def test_mistakes(self, values: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="is out of range"):
            keywords(TEXTS, **values)


GLOSSES = {
    "warbler": "small bird that sings, a songbird",
    "eagle": "large bird of prey with broad wings",
    "cat": "feline mammal kept as a pet",
    "海": "大きな海の水",
}


class TestWeightedLabels:
    def test_against_plain_loops(self) -> None:
        """TF-IDF as scikit-learn defines it: (1 + ln((1 + n) / (1 + df))) tf, of length 1."""
        texts = ["a large bird with wings", "my pet, a cat; my pet", "日本の海", "zzz", ""]
        everything = [words(text) for text in (*texts, *GLOSSES.values())]
        vocabulary = sorted({word for own in everything for word in own})
        n = len(everything)
        rows = np.zeros((n, len(vocabulary)))
        for row, own in zip(rows, everything, strict=True):
            for j, word in enumerate(vocabulary):
                df = sum(word in other for other in everything)
                row[j] = own.count(word) * (1 + np.log((1 + n) / (1 + df)))
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        cosines = rows[:5] @ rows[5:].T
        for got, row in zip(weighted_labels(texts, GLOSSES, top=2), cosines, strict=True):
            by_name = dict(zip(GLOSSES, row, strict=True))
            wanted = sorted(by_name, key=lambda name: (-by_name[name], name))[:2]
            assert [name for name, _ in got] == [name for name in wanted if by_name[name] > 0]
            assert [weight for _, weight in got] == pytest.approx(
                [by_name[name] for name, _ in got]
            )

    def test_nothing_in_common(self) -> None:
        assert weighted_labels(["zzz", ""], GLOSSES) == [(), ()]
        assert weighted_labels([""], {"a": "", "b": "12"}) == [()]
        assert weighted_labels([], GLOSSES) == []

    def test_another_encoder(self) -> None:
        """Ties go by the alphabet, weights of 0 and below are left out; no text, no label."""
        table = {"t": [1.0, 0], "x": [3.0, 4], "y": [0.6, 0.8], "z": [-1.0, 0], "o": [0, 1.0]}
        table |= {"": [1.0, 0], " ": [0.0, 0]}

        def encode(texts: object) -> np.ndarray:
            return np.array([table[text] for text in texts])

        glosses = {"b": "x", "a": "y", "c": "z", "d": "o", "e": ""}
        (first, second), *blank = weighted_labels(["t", "", " "], glosses, encode=encode)
        assert blank == [(), ()]
        assert first == ("a", pytest.approx(0.6)) and second == ("b", pytest.approx(0.6))

    def test_mistakes(self) -> None:
        with pytest.raises(ValueError, match="there is no label"):
            weighted_labels(["x"], {})
        with pytest.raises(ValueError, match="top is below 1"):
            weighted_labels(["x"], GLOSSES, top=0)


class TestContexts:
    TABLE = pd.DataFrame({"id": ["1", "2"], "title": ["Eiffel", ""], "caption": ["塔", None]})

    def test_columns_are_put_together(self, tmp_path: Path) -> None:
        for path in (tmp_path / "t.csv", tmp_path / "t.parquet"):
            (self.TABLE.to_csv if path.suffix == ".csv" else self.TABLE.to_parquet)(
                path, index=False
            )
            assert read_contexts(path) == {"1": "Eiffel 塔", "2": ""}
            assert read_contexts(path, ["title"]) == {"1": "Eiffel", "2": ""}

    def test_mistakes(self, tmp_path: Path) -> None:
        path = tmp_path / "t.csv"
        with pytest.raises(UsageError, match="no such file"):
            read_contexts(path)
        path.write_text("id,text\n1,x\n")
        with pytest.raises(UsageError, match="has no column title or description or caption"):
            read_contexts(path)
        with pytest.raises(UsageError, match="has no column alt"):
            read_contexts(path, ["text", "alt"])
        path.write_text("id,title\n1,x\n2,y\n1,z\n")
        with pytest.raises(UsageError, match="has the id 1 twice"):
            read_contexts(path)
