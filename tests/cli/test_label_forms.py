"""Labels and ids that are spelt in several ways: what commands read as one, and what they say."""

from __future__ import annotations

import gzip
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
GAP = ("eval", "gap", "s.csv", "truth.csv", "--resamples", 0)
NFC = unicodedata.normalize("NFC", "Café")
NFD = unicodedata.normalize("NFD", NFC)


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """save(s="...", truth="..."): writes s.csv and truth.csv where the command runs."""
    monkeypatch.chdir(tmp_path)

    def write(**texts: str | bytes) -> None:
        for name, text in texts.items():
            data = text if isinstance(text, bytes) else text.encode()
            (tmp_path / f"{name}.csv").write_bytes(data)

    return write


class TestGap:
    @pytest.mark.parametrize(
        ("submission", "solution"),
        [
            ("a,Golden_Temple 1\nb,\n", "id,label\na,Golden Temple\nb,nan\n"),
            ("a,123 1\nb,\n", "id,landmark_id\na,123.0\nb,\n"),
            ("a,123.0 1\nb,\n", "id,landmark_id\na,123\nb,\n"),
            (f"a,{NFD} 1\nb,\n", f"id,label\na,{NFC}\nb,\n"),
            ("a,x 1\nb,\n", "ID;Landmarks;usage\na;x;Public\nb;;Public\n"),
            ("a,x 1\nb,\n", "id,landmarks\na,y|x\nb,None\n"),
        ],
    )
    def test_what_is_one_label(
        self, lmk: Run, save: Callable[..., None], submission: str, solution: str
    ) -> None:
        save(s="id,landmarks\n" + submission, truth=solution)
        done = lmk(*GAP, "--json")
        found = json.loads(done.out)["all"]
        assert (done.code, found["gap"], found["with_landmark"]) == (0, 1.0, 1)
        assert found["warnings"] == []

    @pytest.mark.parametrize(
        ("answers", "truths", "says"),
        [
            (("123", "7.0"), ("123.0", "7"), "2 labels differ from the solution's only in form, as "
             "'123' and '123.0' (a whole number written as a float), so they never match"),
            (("007", "x"), ("7", "x"), "1 label differs from the solution's only in form, as '007' "
             "and '7' (leading zeros), so they never match"),
            (("EIFFEL", "x"), ("eiffel", "x"), "as 'EIFFEL' and 'eiffel' (case)"),
            (("big-ben", "x"), ("big_ben", "x"), "(blanks, underscores or hyphens)"),
            (("17", "4"), ("eiffel", "louvre"), "none of the 2 labels that answered queries show is"
             " answered: do both files use the same names? ('eiffel' there, '17' here)"),
            (("nan", "x"), ("y", "x"), "1 answer is 'nan', which counts as a landmark"),
            (("Big_Ben", "x"), ("Big Ben", "x"), "so 'Big Ben' is 2 labels there and 'Big_Ben' is "
             "answered: name the column landmark_id"),
        ],
    )  # fmt: skip
    def test_what_never_meets_is_said(
        self,
        lmk: Run,
        save: Callable[..., None],
        answers: tuple[str, str],
        truths: tuple[str, str],
        says: str,
    ) -> None:
        rows = "".join(f"q{i},{label} 0.5\n" for i, label in enumerate(answers))
        save(
            s="id,landmarks\n" + rows,
            truth="id,landmarks\n" + "".join(f"q{i},{t}\n" for i, t in enumerate(truths)),
        )
        done = lmk(*GAP, "--json", "--report", "out")
        assert done.code == 0
        told = [line for line in done.complaints if says in line]
        assert len(told) == 1 and told[0].startswith("lmk: s.csv: ")
        warnings = json.loads(done.out)["all"]["warnings"]
        assert [w for w in warnings if says in w] == [told[0].removeprefix("lmk: s.csv: ")]
        assert "Check the labels:" in Path("out/report.html").read_text()
        compared = lmk("eval", "compare", "s.csv", "s.csv", "truth.csv", "--json")
        assert json.loads(compared.out)["submissions"][0]["warnings"] == warnings

    def test_wrong_answers_are_not_taken_for_another_spelling(
        self, lmk: Run, save: Callable[..., None]
    ) -> None:
        rows = "".join(f"q{i},{i % 7} 0.5\n" for i in range(60))
        truths = "".join(f"q{i},{i % 5 if i % 2 else ''}\n" for i in range(60))
        save(s="id,landmarks\n" + rows, truth="id,landmarks\n" + truths)
        done = lmk(*GAP)
        assert (done.code, done.err) == (0, "")
        save(s="id,landmarks\na,x 1\nb,\n", truth="id,landmarks\na,y\nb,\n")
        assert lmk(*GAP).err == ""

    @pytest.mark.parametrize(
        ("given", "known", "says"),
        [
            ("0001", "1", "unknown query id 0001; truth.csv spells it '1'"),
            ("1.0", "1", "truth.csv spells it '1'"),
            ("Q_1", "q1", "truth.csv spells it 'q1'"),
            ("queries/q1.jpg", "q1", "truth.csv has 'q1', without folder and ending"),
            ("other", "q1", "it is not in truth.csv"),
        ],
    )
    def test_unknown_ids(
        self, lmk: Run, save: Callable[..., None], given: str, known: str, says: str
    ) -> None:
        save(s=f"id,landmarks\n{given},x 1\n", truth=f"id,landmarks\n{known},x\n")
        lmk(*GAP).refused(1, "s.csv, line 2: unknown query id", says)

    @pytest.mark.parametrize(
        ("submission", "says"),
        [
            ("id;landmarks\na;x 1\n", "separate the cells by commas, not by ';'"),
            ("Id,Landmarks\na,x 1\n", "write the names in small letters"),
            (",id,landmarks\n0,a,x 1\n", "to_csv(..., index=False)"),
            ("id,landmarks,note\na,x 1,y\n", "leave out the other columns"),
            ("a,x 1\n", "put it on the first line"),
            ("id,landmarks\na,x 1\n".encode("utf-16"), "written in UTF-16; save it as UTF-8"),
        ],
    )
    def test_a_submission_must_be_in_the_contests_form(
        self, lmk: Run, save: Callable[..., None], submission: str | bytes, says: str
    ) -> None:
        save(s=submission, truth="id,landmarks\na,x\n")
        lmk(*GAP).refused(1, "s.csv, line 1: ", says)

    def test_both_files_compressed(
        self, lmk: Run, save: Callable[..., None], tmp_path: Path
    ) -> None:
        save(s=gzip.compress(b"id,landmarks\na,x 1\n"), truth=gzip.compress(b"id,landmarks\na,x\n"))
        assert json.loads(lmk(*GAP, "--json").out)["all"]["gap"] == 1.0


def test_pictures_and_tags_that_never_meet(lmk: Run, save: Callable[..., None]) -> None:
    save(
        lists="id,images\nq,G1 G2\n", wanted="id,images\nq,g1 g2\n",
        told="id,tags\na,Cat:0.5 dog:0.1\n", tags="id,tags\na,cat dog\n",
        truth="id,label\nq,EIFFEL\n", gallery="id,label\nG1,eiffel\nG2,\n",
    )  # fmt: skip
    done = lmk("eval", "retrieval", "lists.csv", "wanted.csv", "--json", "--resamples", 0)
    assert "lmk: lists.csv: 2 picture ids differ from the solution's only in form" in done.err
    assert len(json.loads(done.out)["all"]["warnings"]) == 2
    done = lmk("eval", "retrieval", "lists.csv", "truth.csv", "--gallery", "gallery.csv")
    done.refused(1, "no query shows a landmark of gallery.csv", "as 'EIFFEL' and 'eiffel' (case)")
    done = lmk("eval", "tags", "told.csv", "tags.csv", "--json", "--resamples", 0)
    assert done.complaints == [
        "lmk: told.csv: 1 tag differs from the solution's only in form, as 'Cat' and 'cat' (case), "
        "so they never match"
    ]


class TestIndex:
    @pytest.fixture
    def listed(self, here: Path) -> Callable[..., Path]:
        """listed(name, bridge="...", ...): a table of the gallery with labels of one's own."""

        def write(name: str, column: str = "label", **labels: str) -> Path:
            rows = [
                f"{place}{view},gallery\\{place}\\{view}.jpg,{labels.get(place, place)}"
                for place in ("bridge", "castle", "tower")
                for view in range(4)
            ]
            path = here / name
            path.write_text("\n".join([f"ID,Path,{column}", *rows]) + "\n")
            return path

        return write

    def test_a_folder_and_tables_of_several_words_meet(
        self, lmk: Run, here: Path, tiny: Path, listed: Callable[..., Path]
    ) -> None:
        (here / "gallery" / "tower").rename(here / "gallery" / "Victoria Tower")
        done = lmk(
            "build-index", "gallery", "--model", tiny, "-o", "g.lmk", "--distractors", "bank"
        )
        assert done.code == 0
        done = lmk("submit", "queries", "-i", "g.lmk", "-o", "s.csv")
        assert done.code == 0
        solution = (here / "solution.csv").read_text().replace("landmarks", "Landmark ID")
        (here / "solution.csv").write_text(
            solution.replace("q_tower,tower", "q_tower,Victoria Tower").replace(",,", ",NaN,")
        )
        done = lmk("eval", "gap", "s.csv", "solution.csv", "--json", "--resamples", 0)
        assert json.loads(done.out)["all"]["accuracy"] == 1.0
        assert done.complaints == [
            "lmk: solution.csv: 6 cells say 'NaN' in the column landmark_id: read as no label"
        ]
        done = lmk("index", "list", "g.lmk", "--pictures", "--label", "Victoria Tower")
        assert len(done.out.splitlines()) == 4

    def test_numbers_and_floats_in_one_gallery(
        self, lmk: Run, here: Path, tiny: Path, listed: Callable[..., Path]
    ) -> None:
        table = listed("g.csv", bridge="17.0", castle="17", tower="tower")
        done = lmk("build-index", table, "--model", tiny)
        assert done.code == 0
        said = "1 label differs from others only in form, as '17' and '17.0' (a whole number writ"
        assert sum(said in line for line in done.complaints) == 1
        listed("g.csv", bridge="17.0", castle="18.0", tower="19.0")
        done = lmk("build-index", table, "--model", tiny)
        assert "are whole numbers written as floats (17.0): read as 17" in done.err
        lines = lmk("index", "list", "g.lmk").out.splitlines()
        assert [line.split()[-1] for line in lines[-3:]] == ["17", "18", "19"]
        more = listed("more.csv", bridge="017", castle="18", tower="19")
        done = lmk("index", "add", "g.lmk", more)
        assert (
            f"lmk: {more}: 1 label differs from those of g.lmk only in form, as '017' and '17' "
            "(leading zeros): they become landmarks of their own" in done.err
        )

    def test_a_packed_table_gives_its_index_the_plain_name(
        self, lmk: Run, here: Path, tiny: Path, listed: Callable[..., Path]
    ) -> None:
        packed = here / "places.csv.gz"
        packed.write_bytes(gzip.compress(listed("g.csv").read_bytes()))
        done = lmk("build-index", packed, "--model", tiny)
        assert done.out.startswith(f"{here / 'places.lmk'}: 12 pictures")

    def test_remove_takes_both_unicode_forms(self, lmk: Run, here: Path, tiny: Path) -> None:
        for number, form in enumerate((NFC, NFD)):
            (here / "gallery" / form).mkdir()
            shutil.move(here / "gallery" / "tower" / f"{number}.jpg", here / "gallery" / form)
        done = lmk("data", "check", "gallery", "--model", tiny, "--json")
        notes = [
            f["note"] for f in json.loads(done.out)["findings"] if f["kind"] == "similar_labels"
        ]
        assert notes == [f"the folders {NFD!a}, {NFC!a} are one label, {NFC}"]
        lmk("build-index", "gallery", "--model", tiny, "-o", "g.lmk")
        assert (
            len(lmk("index", "list", "g.lmk", "--pictures", "--label", NFD).out.splitlines()) == 2
        )
        done = lmk("index", "remove", "g.lmk", "--label", NFD)
        assert (done.code, "2 pictures removed" in done.out) == (0, True)
        lmk("index", "remove", "g.lmk", "--label", "TOWER").refused(2, "there is 'tower'")

    def test_known_photos_whose_labels_never_meet(self, lmk: Run, here: Path) -> None:
        (here / "p.csv").write_text(
            "id,path,label\na,queries/q_tower.jpg,TOWER\nb,queries/q_none1.jpg,\n"
        )
        for command in (("tune", "sample.lmk"), ("calibrate", "sample.lmk")):
            done = lmk(*command, "--data", "p.csv")
            done.refused(2, "as 'TOWER' and 'tower' (case): use the names of the index")

    def test_no_query_at_all_can_be_read(self, lmk: Run, here: Path) -> None:
        (here / "s.csv").write_text("kept")
        (here / "q.csv").write_text("id,path\na,gone/a.jpg\nb,gone/b.jpg\n")
        for task in ("recognition", "retrieval"):
            done = lmk("submit", "q.csv", "-i", "sample.lmk", "-o", "s.csv", "--task", task)
            done.refused(
                1, "q.csv: none of the 2 queries can be read (the first, gone/a.jpg: no such file)",
                "so s.csv is not written", f"its paths start at {here}: name the folder",
            )  # fmt: skip
            assert (here / "s.csv").read_text() == "kept"
            assert [path.name for path in here.glob(".s.csv*")] == []
        (here / "q.csv").write_text("id,path\na,gone/a.jpg\nb,queries/q_tower.jpg\n")
        done = lmk("submit", "q.csv", "-i", "sample.lmk", "-o", "s.csv")
        assert (done.code, "1 left blank" in done.out) == (0, True)
