"""Candidates for missing and wrong tags, and verdicts put into the labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lmk.embed.data.manifest import Row
from lmk.embed.embeddings import Embeddings, unit_rows
from lmk.embed.errors import ManifestError, UsageError
from lmk.eval.check.relabel import (
    candidates_csv,
    merge_verdicts,
    neighbour_tags,
    read_verdicts,
    relabel_candidates,
)


def rows(*tags: str) -> list[Row]:
    return [Row(f"p{i}", f"{i}.jpg", tuple(text.split())) for i, text in enumerate(tags)]


class TestNeighbours:
    def embeddings(self, points: object) -> Embeddings:
        vectors = unit_rows(np.asarray(points, np.float32))
        return Embeddings(vectors, tuple(f"p{i}" for i in range(len(vectors))), "f")

    def test_a_picture_is_judged_by_the_others(self) -> None:
        own = self.embeddings([[1, 0], [1, 0.1], [0, 1]])
        names, votes = neighbour_tags(own, [("sea",), (), ("sea",)], ["x", "y", "z"])
        near = own.vectors @ own.vectors.T
        assert names == ("sea",)
        np.testing.assert_allclose(votes[1], near[1, [0, 2]].sum() / near[1, [0, 2]].sum())
        np.testing.assert_allclose(votes[0], near[0, 2] / (near[0, 1] + near[0, 2]), atol=1e-6)

    def test_copies_do_not_vote_for_each_other(self) -> None:
        own = self.embeddings([[1, 0], [1, 0], [1, 1]])
        tags = [("sea", "rock"), ("sea", "rock"), ("sea",)]
        names, votes = neighbour_tags(own, tags, ["x", "x", "z"])
        assert names == ("rock", "sea")
        assert votes[:, 1].tolist() == [1, 1, 1]
        assert np.isnan(votes[:, 0]).all()  # the only rock, and its copy
        tags[2] = ("rock",)
        _, votes = neighbour_tags(own, tags, ["x", "x", "z"])
        assert votes[:, 0].tolist() == [1, 1, 1]

    def test_a_picture_alone(self) -> None:
        names, votes = neighbour_tags(self.embeddings([[1, 0]]), [("sea",)], ["x"])
        assert names == ("sea",) and np.isnan(votes).all()


class TestCandidates:
    def test_missing_by_neighbours_and_wrong(self) -> None:
        pictures = rows("sea", "", "sea", "sea tree", "tree")
        votes = np.array([[0.02, 0], [0.9, 0], [0.5, 0.5], [0.3, 0.6], [0.51, 0.4]], np.float32)
        found = relabel_candidates(pictures, ("sea", "tree"), votes)
        assert [(one.row.id, one.tag, one.kind) for one in found] == [
            ("p1", "sea", "missing"), ("p0", "sea", "wrong"), ("p4", "sea", "missing"),
        ]  # fmt: skip
        assert found[1].evidence == pytest.approx(0.98)
        assert (found[0].tagger, found[0].neighbours) == (None, pytest.approx(0.9))

    def test_evidence_is_what_both_say(self) -> None:
        """Two that agree come before one that is sure alone."""
        votes = np.array([[1.0], [0.9], [0.8]], np.float32)
        by_tagger = np.array([[0.1], [0.8], [0.7]], np.float32)
        found = relabel_candidates(rows("", "", ""), ("sea",), votes, ("sea",), by_tagger)
        assert [one.row.id for one in found] == ["p1", "p2", "p0"]
        assert found[0].evidence == pytest.approx(0.85)

    def test_a_tag_of_one_picture_is_not_doubted_by_neighbours(self) -> None:
        pictures, votes = rows("yeti", ""), np.full((2, 1), np.nan, np.float32)
        assert relabel_candidates(pictures, ("yeti",), votes) == []
        found = relabel_candidates(
            pictures, ("yeti",), votes, ("yeti",), np.array([[0.01], [0.02]], np.float32)
        )
        assert [(one.kind, one.neighbours) for one in found] == [("wrong", None)]

    def test_the_tagger_adds_its_best_sure_ones(self) -> None:
        pictures = rows("b", "b")
        tags, sure = ("a", "b", "c", "d"), np.array([[0.9, 0.8, 0.7, 0.6]] * 2, np.float32)
        votes = np.zeros((2, 1), np.float32)
        found = relabel_candidates(pictures, ("b",), votes, tags, sure, top=3)
        assert [(one.row.id, one.tag) for one in found] == [
            ("p0", "a"), ("p1", "a"), ("p0", "c"), ("p1", "c"),
        ]  # fmt: skip
        assert {one.kind for one in found} == {"missing"}
        assert relabel_candidates(pictures, ("b",), votes, tags, sure, above=0.9) == []

    def test_either_of_both_can_clear_a_tag(self) -> None:
        pictures = rows("a", "a", "a")
        votes = np.array([[0.0], [0.5], [0.0]], np.float32)
        known = np.array([[0.5], [0.0], [0.0]], np.float32)
        found = relabel_candidates(pictures, ("a",), votes, ("a",), known)
        assert [one.row.id for one in found] == ["p2"]

    def test_shapes(self) -> None:
        with pytest.raises(ValueError, match="votes"):
            relabel_candidates(rows("a"), ("a",), np.zeros((2, 1), np.float32))


class TestVerdicts:
    def test_there_and_back(self, tmp_path: Path) -> None:
        votes = np.array([[0.0, np.nan], [0.5, np.nan]], np.float32)
        found = relabel_candidates(rows("a", "a b"), ("a", "b"), votes)
        text = candidates_csv(found)
        assert text.splitlines() == ["id,path,tag,kind,tagger,neighbours,verdict",
                                     "p0,0.jpg,a,wrong,,0.000,"]  # fmt: skip
        (tmp_path / "v.csv").write_text(text)
        assert read_verdicts(tmp_path / "v.csv") == {}
        (tmp_path / "v.csv").write_text(text.replace("0.000,", "0.000,No"))
        assert read_verdicts(tmp_path / "v.csv") == {"p0": {"a": False}}

    def test_merged_by_picture_and_tag(self, tmp_path: Path) -> None:
        table = tmp_path / "t.csv"
        table.write_text(
            'id,path,tags,caption\np0,0.jpg,b a,"one, two"\np1,1.jpg,,\np2,2.jpg,c,x\n'
        )
        merged = merge_verdicts(
            table, {"p0": {"a": False, "d": True, "b": True}, "p1": {"c": True, "x": False}}
        )
        assert merged.text.splitlines() == [
            "id,path,tags,caption", 'p0,0.jpg,b d,"one, two"', "p1,1.jpg,c,", "p2,2.jpg,c,x",
        ]  # fmt: skip
        assert (dict(merged.added), dict(merged.removed)) == ({"d": 1, "c": 1}, {"a": 1})
        assert merged.new == ("d",)
        table.write_text(merged.text)
        again = merge_verdicts(table, {"p0": {"a": False, "d": True}})
        assert again.text == merged.text

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("a,b\n", "no column 'id' or 'tag' or 'verdict'"),
            ("id,tag,verdict\np0,a,maybe\n", "line 2.*maybe"),
            ("id,tag,verdict\np0,,yes\n", "empty"),
            ("id,tag,verdict\np0,a,yes\np0,a,no\n", "line 3.*both yes and no"),
            ('id,tag,verdict\n"p0,a,yes\n', "line 2: not a CSV row"),
        ],
    )
    def test_faults(self, tmp_path: Path, text: str, why: str) -> None:
        (tmp_path / "v.csv").write_text(text)
        with pytest.raises(UsageError, match=why):
            read_verdicts(tmp_path / "v.csv")

    def test_tables_that_will_not_do(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no such file"):
            read_verdicts(tmp_path / "v.csv")
        with pytest.raises(ManifestError, match="no such file"):
            merge_verdicts(tmp_path / "t.csv", {})
        (tmp_path / "t.csv").write_text("id,path\np0,0.jpg\n")
        with pytest.raises(ManifestError, match="columns id and tags"):
            merge_verdicts(tmp_path / "t.csv", {})
        (tmp_path / "t.csv").write_text("id,tags\np0,a\n")
        with pytest.raises(UsageError, match="first is p7"):
            merge_verdicts(tmp_path / "t.csv", {"p7": {"a": True}})
