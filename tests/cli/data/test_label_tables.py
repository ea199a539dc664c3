"""lmk data caption-tags and add-tags: labels made of texts and of labels."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lmk.embed.tags import sentences

Run = Callable[..., object]

CAPTIONS = """id,path,caption
a,a.jpg,"A dog, on the beach"
b,b.jpg,a DOG in a car
c,c.jpg,红色的汽车在海边
d,d.jpg,红色的小狗
e,e.jpg,a beach
f,f.jpg,
"""


def cells(path: Path, column: str = "tags") -> dict[str, str]:
    with path.open(newline="") as file:
        return {row["id"]: row[column] for row in csv.DictReader(file)}


@pytest.fixture
def captions(here: Path) -> Path:
    (here / "captions.csv").write_text(CAPTIONS)
    return here / "captions.csv"


@pytest.fixture
def labels(here: Path) -> Path:
    """Of three beaches two show the sea for sure; of two forests one."""
    (here / "labels.csv").write_text(
        "id,path,tags\na,a.jpg,beach\nb,b.jpg,beach dog\nc,c.jpg,beach\nd,d.jpg,forest\n"
        "e,e.jpg,forest\nf,f.jpg,\n"
    )
    (here / "seen.csv").write_text(
        "id,tags,given\na,sea:0.96 tree:0.1,sea\nb,sea:0.99,\nc,sea:0.95,\nd,tree:0.99 sea:1,\n"
        "e,tree:0.98,\nf,sea:1,\n"
    )
    (here / "relations.csv").write_text("child,parent\nforest,tree\ntree,plant\n")
    return here / "labels.csv"


class TestCaptionTags:
    def test_words(self, lmk: Run, captions: Path, here: Path) -> None:
        done = lmk("data", "caption-tags", captions, "-o", "k.csv", "--least", 2, "--most", 0.4)
        assert (done.code, done.err) == (0, "")
        assert done.out == "k.csv: 6 pictures, 4 tags, 1.3 a picture; without any: 1\n"
        found = cells(here / "k.csv")
        assert found == {
            "a": "dog beach", "b": "dog", "c": "红色 色的", "d": "红色 色的", "e": "beach", "f": "",
        }  # fmt: skip
        assert cells(here / "k.csv", "caption")["a"] == "A dog, on the beach"
        done = lmk(
            "data", "caption-tags", captions, "-o", "k.csv", "--least", 2, "--most", 0.4,
            "--count", 1, "--columns", "caption", "--json",
        )  # fmt: skip
        facts = json.loads(done.out)
        assert (facts["tags"], facts["without_tag"]) == (1, 4)

    def test_labels_by_their_glosses(self, lmk: Run, captions: Path, here: Path) -> None:
        (here / "glosses.csv").write_text("label,text\ndog,dog puppy\nsea,beach sand\nzoo,zebra\n")
        options = ("--glosses", "glosses.csv", "--top", 1)
        done = lmk("data", "caption-tags", captions, "-o", "w.csv", *options)
        assert (done.code, done.err) == (0, "")
        found = cells(here / "w.csv")
        assert found["e"].startswith("sea:0.") and found["b"].startswith("dog:0.")
        assert (found["c"], found["f"]) == ("", "") and " " not in found["a"]

    def test_labels_by_a_network_of_sentences(
        self, lmk: Run, captions: Path, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Near in meaning though no word is shared; a picture without a caption gets none."""

        def encode(texts: Sequence[str]) -> np.ndarray:
            return np.array(
                [[float("dog" in t.lower() or t == "puppy"), 0.1 * bool(t)] for t in texts]
            )

        monkeypatch.setattr(sentences, "sentence_encoder", lambda: encode)
        (here / "glosses.csv").write_text("label,text\npet,puppy\n")
        options = ("--glosses", "glosses.csv", "--sentences")
        done = lmk("data", "caption-tags", captions, "-o", "w.csv", *options)
        assert (done.code, done.err) == (0, "")
        found = cells(here / "w.csv")
        assert (found["a"], found["b"], found["f"]) == ("pet:1.0000", "pet:1.0000", "")
        assert found["e"] == "pet:0.0995"

    def test_the_tables_own_tags_make_way(self, lmk: Run, here: Path) -> None:
        """Tags that people typed in are text too; the column is read before it is written."""
        (here / "t.csv").write_text("id,title,tags\na,x y,b\nb,x,b\n")
        done = lmk("data", "caption-tags", "t.csv", "-o", "o.csv", "--least", 2, "--most", 1)
        assert done.code == 0
        assert cells(here / "o.csv") == {"a": "x b", "b": "x b"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--columns", "nothing"), "has no column nothing"),
            (("--top", "3"), "--top: has no effect without --glosses"),
            (("--sentences",), "--sentences: has no effect without --glosses"),
            (("--glosses", "captions.csv"), "captions.csv: has no columns label and text"),
            (("--glosses", "none.csv"), "none.csv: no such file; check the spelling"),
            (("--glosses", "g.csv", "--least", "3"), "--least: has no effect with --glosses"),
            (("--glosses", "g.csv"), "g.csv: has the label a twice"),
            (("--glosses", "h.csv"), "h.csv: a label is empty"),
            (("--glosses", "u.csv"), "u.csv, line 2: 3 cells where the header has 2; the"),
            (("--least", "7"), "captions.csv: no word is left; lower --least or raise --most"),
        ],
    )
    def test_mistakes(
        self, lmk: Run, captions: Path, here: Path, options: tuple[str, ...], message: str
    ) -> None:
        (here / "g.csv").write_text("label,text\na,x\na,y\n")
        (here / "h.csv").write_text("label,text\n ,x\n")
        (here / "u.csv").write_text("label,text\ntench,tench, a fish\n")
        done = lmk("data", "caption-tags", captions, "-o", "k.csv", *options)
        assert done.code == 2 and message in done.err and not (here / "k.csv").exists()

    def test_labels_that_lmk_would_read_first_are_not_lost(self, lmk: Run, here: Path) -> None:
        (here / "t.csv").write_text("id,landmark_id,caption\na,7,a dog\n")
        done = lmk("data", "caption-tags", "t.csv", "-o", "o.csv", "--least", 1, "--most", 1)
        assert done.code == 2 and "t.csv: has labels already: landmark_id; rename" in done.err

    def test_another_folder_needs_the_root(self, lmk: Run, captions: Path, here: Path) -> None:
        (here / "sub").mkdir()
        options = ("--least", 2, "--most", 0.4)
        done = lmk("data", "caption-tags", captions, "-o", "sub/k.csv", *options)
        assert done.code == 0 and done.err.endswith(f"; read it with --root {here}\n")

    def test_parquet(self, lmk: Run, captions: Path, here: Path) -> None:
        pd.read_csv(captions).to_parquet(here / "c.parquet")
        done = lmk("data", "caption-tags", "c.parquet", "-o", "k.csv", "--least", 2, "--most", 0.4)
        assert done.code == 0 and cells(here / "k.csv")["a"] == "dog beach"

    def test_the_table_is_not_written_over(self, lmk: Run, captions: Path) -> None:
        done = lmk("data", "caption-tags", captions, "-o", captions)
        assert done.code == 2 and captions.read_text() == CAPTIONS


class TestAddTags:
    def test_what_follows(self, lmk: Run, labels: Path, here: Path) -> None:
        done = lmk("data", "add-tags", labels, "--relations", "relations.csv", "-o", "more.csv")
        assert (done.code, done.err) == (0, "")
        assert done.out == "more.csv: 4 tags added to 2 of 6 pictures (column tags)\n"
        assert cells(here / "more.csv")["d"] == "forest tree plant"
        assert cells(here / "more.csv")["b"] == "beach dog"

    def test_what_comes_with_it(self, lmk: Run, labels: Path, here: Path) -> None:
        """.95 is not above .95: two of three beaches; what follows does not come with it."""
        options = ("--predictions", "seen.csv", "--relations", "relations.csv")
        done = lmk("data", "add-tags", labels, *options, "-o", "more.csv", "--json")
        assert (done.code, done.err) == (0, "")
        assert json.loads(done.out)["together"] == {"beach": ["sea"], "dog": ["sea"]}
        found = cells(here / "more.csv")
        assert found["c"] == "beach sea" and found["e"] == "forest tree plant"
        assert found["f"] == ""
        done = lmk("data", "add-tags", labels, *options, "-o", "more.csv", "--above", 0.7)
        assert "dog occurs with sea" in done.out and "beach comes" not in done.out

    def test_ids_are_those_that_lmk_tag_writes(self, lmk: Run, labels: Path, here: Path) -> None:
        (here / "blank.csv").write_text("id,tags\nmy pic,beach\nother,beach\n")
        (here / "seen.csv").write_text("id,tags\nmy_pic,sea:1\n")
        options = ("--predictions", "seen.csv", "-o", "more.csv")
        done = lmk("data", "add-tags", "blank.csv", *options)
        assert done.err == "lmk: seen.csv: 1 picture without a row\n"
        assert cells(here / "more.csv") == {"my pic": "beach sea", "other": "beach sea"}

    def test_a_hierarchy_by_its_ids(self, lmk: Run, labels: Path, here: Path) -> None:
        (here / "tree.txt").write_text("0\ttree\t-1\tA\n1\tforest\t0\tB\n")
        options = ("--relations", "tree.txt", "--relations-by", "id", "-o", "more.csv")
        assert lmk("data", "add-tags", labels, *options).code == 0
        assert cells(here / "more.csv")["d"] == "forest tree"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ((), "no source of tags is given; give --relations or --predictions"),
            (("--predictions", "other.csv"), "other.csv: names none of the pictures"),
            (("--relations", "cycle.csv"), "cycle.csv: cannot be read as relations: a cycle"),
            (("--relations", "relations.csv", "--sure", "1"), "--sure: has no effect without"),
            (
                ("--relations", "relations.csv", "--relations-by", "id"),
                "--relations-by: applies to a",
            ),
        ],
    )
    def test_mistakes(
        self, lmk: Run, labels: Path, here: Path, options: tuple[str, ...], message: str
    ) -> None:
        (here / "other.csv").write_text("id,tags\nz,sea:1\n")
        (here / "cycle.csv").write_text("child,parent\na,b\nb,a\n")
        done = lmk("data", "add-tags", labels, "-o", "more.csv", *options)
        assert done.code == 2 and message in done.err and not (here / "more.csv").exists()

    def test_tables_that_will_not_do(self, lmk: Run, labels: Path, here: Path) -> None:
        options = ("--relations", "relations.csv", "-o", "more.csv")
        for text, message in (
            ("id,path\na,a.jpg\n", "no picture has a tag"),
            ("path,tags\na.jpg,x\n", "has no column id"),
            ("id,tags\na,x\na,y\n", "has the id 'a' twice"),
            ("id,tags\n", "holds no rows"),
            ('id,tags\n"",x\n', "has an empty id"),
            ("id,path,tags\na,a.jpg,forest,x\n", "4 cells where the header has 3"),
            ("id,tags\na,forest:0.9 tree:1\n", "its tags have weights"),
        ):
            (here / "bad.csv").write_text(text)
            done = lmk("data", "add-tags", "bad.csv", *options)
            assert done.code == 2 and re.search(f"bad.csv(, line 2)?: {message}", done.err)
