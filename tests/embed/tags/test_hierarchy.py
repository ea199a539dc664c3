"""Relations between tags: closure, cycles, scores, every form of file, faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmk.embed.errors import UsageError
from lmk.embed.tables.csv_file import MAX_CELL
from lmk.embed.tags.hierarchy import RelationGraph, read_relations

GRAPH = RelationGraph(
    {"forest": ["tree"], "tree": ["plant"], "basketball": ["sports", "ball"], "ball": ["thing"]}
)
TAGS = [f"t{i}" for i in range(8)]
# Every edge leads to a larger number, so there is no cycle.
graphs = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=14).map(
    lambda pairs: RelationGraph(
        {tag: [f"t{max(p)}" for p in pairs if min(p) == i != max(p)] for i, tag in enumerate(TAGS)}
    )
)


def reachable(graph: RelationGraph, tag: str) -> set[str]:
    """By following one edge after the other."""
    found: set[str] = set()
    left = [tag]
    while left:
        for parent in graph.parents.get(left.pop(), ()):
            if parent not in found:
                found.add(parent)
                left.append(parent)
    return found


class TestClosure:
    def test_of_the_examples(self) -> None:
        assert GRAPH.close(["forest"]) == ("forest", "tree", "plant")
        assert GRAPH.close(["sun", "basketball", "sun"]) == (
            "sun", "basketball", "sports", "ball", "thing",
        )  # fmt: skip
        assert GRAPH.close([]) == () and GRAPH.ancestors("no_such_tag") == ()
        assert len(GRAPH.tags) == 7

    @given(graphs, st.lists(st.sampled_from(TAGS)))
    def test_all_ancestors_idempotent_and_nothing_removed(
        self, graph: RelationGraph, tags: list[str]
    ) -> None:
        closed = graph.close(tags)
        assert set(closed) == set(tags).union(*(reachable(graph, tag) for tag in tags))
        assert len(set(closed)) == len(closed)
        assert closed[: len(set(tags))] == tuple(dict.fromkeys(tags))
        assert graph.close(closed) == closed

    def test_related(self) -> None:
        assert GRAPH.related("forest", "plant") and GRAPH.related("plant", "forest")
        assert GRAPH.related("sun", "sun")
        assert not GRAPH.related("sports", "ball") and not GRAPH.related("sun", "tree")

    @pytest.mark.parametrize(
        ("parents", "cycle"),
        [
            ({"a": ["b"], "b": ["c"], "c": ["a"], "x": ["a"]}, "a => b => c => a"),
            ({"a": ["a"]}, "a => a"),
        ],
    )
    def test_a_cycle_is_named(self, parents: dict[str, list[str]], cycle: str) -> None:
        with pytest.raises(ValueError, match="a cycle: ") as caught:
            RelationGraph(parents)
        steps = str(caught.value).removeprefix("a cycle: ").split(" => ")
        turns = [[*steps[i:-1], *steps[: i + 1]] for i in range(len(steps) - 1)]
        assert cycle.split(" => ") in turns

    @pytest.mark.parametrize("name", ["", "a b"])
    def test_names_that_are_none(self, name: str) -> None:
        with pytest.raises(ValueError, match="is empty or holds a blank"):
            RelationGraph({"a": [name]})


class TestScores:
    def test_a_parent_has_at_least_its_childrens(self) -> None:
        names = ["plant", "sun", "forest", "ball"]
        scores = np.array([[0.1, 0.2, 0.9, 0.3], [0.8, 0.1, 0.2, 0.4]], np.float32)
        before = scores.copy()
        closed = GRAPH.close_scores(scores, names)
        assert closed.dtype == np.float32 and np.array_equal(scores, before)
        np.testing.assert_array_equal(
            closed, np.array([[0.9, 0.2, 0.9, 0.3], [0.8, 0.1, 0.2, 0.4]], np.float32)
        )  # through "tree", which has no column

    @given(graphs, st.integers(0, 1000))
    def test_reference(self, graph: RelationGraph, seed: int) -> None:
        scores = np.random.default_rng(seed).random((3, 6))
        names = TAGS[1:7]
        closed = graph.close_scores(scores, names)
        for j, name in enumerate(names):
            below = [i for i, other in enumerate(names) if name in reachable(graph, other)]
            np.testing.assert_array_equal(closed[:, j], scores[:, [j, *below]].max(axis=1))
        np.testing.assert_array_equal(graph.close_scores(closed, names), closed)

    def test_shapes(self) -> None:
        with pytest.raises(ValueError, match="2 names for scores of shape"):
            GRAPH.close_scores(np.zeros((2, 3)), ["a", "b"])


HIERARCHY = (
    "category_index\tcategory_id\tindex_of_parent\tname\n"
    "0\tn00001740\t-1\tphysical object\n1\tn00002137\t0\tplant\n2\tn1\t1\tcrane\n3\tn2\t0\tcrane\n"
)


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("r.csv", "child,parent,note\nforest,tree,x\ntree,green plant,\nforest,land,\n"),
            ("r.json", json.dumps({"forest": ["tree", "land"], "tree": "green plant"})),
            ("r.yaml", "forest: [tree, land]\ntree: green plant\n"),
            ("r.yml", "forest:\n- tree\n- land\ntree: green plant\n"),
        ],
    )
    def test_forms(self, name: str, text: str, tmp_path: Path) -> None:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        graph = read_relations(path)
        assert graph.parents == {"forest": ("tree", "land"), "tree": ("green_plant",)}

    @pytest.mark.parametrize("header", [True, False])
    def test_tencents_hierarchy(self, header: bool, tmp_path: Path) -> None:
        path = tmp_path / "dictionary_and_semantic_hierarchy.txt"
        path.write_text(HIERARCHY if header else HIERARCHY.partition("\n")[2])
        by_index = read_relations(path, by="index")
        assert by_index.ancestors("2") == ("1", "0") and by_index.ancestors("0") == ()
        assert read_relations(path, by="id").ancestors("n2") == ("n00001740",)
        with pytest.raises(UsageError, match="name 'crane' belongs to two categories"):
            read_relations(path)
        path.write_text("\n".join(HIERARCHY.splitlines()[:4]))
        assert read_relations(path).close(["crane"]) == ("crane", "plant", "physical_object")

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("r.csv", "a,b\n1,2\n", "no column 'child' or 'parent' (its columns are: a, b)"),
            ("r.csv", "child,parent\na,b\nb,a\n", "a cycle: "),
            ("r.csv", "child,parent\na\n", "the tag '' is empty"),
            ("r.json", "{", "Expecting property name"),
            ("r.json", "[]", "one object of parents by child is wanted"),
            ("r.json", '{"a": [1]}', "the parents of 'a' are no name and no list of names"),
            ("r.yaml", "yes: a\n", "the parents of True are no name"),
            ("r.yaml", "a: [b\n", "while parsing"),
            ("r.txt", "0\tn1\t-1\n", "line 1 of the categories has 3 cells, not 4"),
            ("r.tsv", "0\tn1\t7\tplant\n", "'plant' has the parent 7, which there is not"),
            ("r.tsv", "0\tn1\t-1\ta\n0\tn2\t-1\tb\n", "the index 0 belongs to two categories"),
            ("r.toml", "", "relations are .csv, .json, .yaml, .txt or .tsv"),
        ],
    )
    def test_mistakes(self, name: str, text: str, message: str, tmp_path: Path) -> None:
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(UsageError) as caught:
            read_relations(path)
        assert message in str(caught.value) and "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no such file"):
            read_relations(tmp_path / "none.csv")

    def test_a_cell_that_csv_refuses(self, tmp_path: Path) -> None:
        path = tmp_path / "r.csv"
        path.write_text("child,parent\na," + "b" * (MAX_CELL + 1) + "\n")
        with pytest.raises(UsageError, match="line 2: not a CSV row: field larger"):
            read_relations(path)
