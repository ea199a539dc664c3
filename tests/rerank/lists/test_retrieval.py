"""Retrieval lists: each step against the function it stands for, and lists as oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lmk.embed.embeddings import Embeddings
from lmk.index.vectors.labels import Membership
from lmk.index.vectors.neighbours import Neighbours
from lmk.index.vectors.view import View
from lmk.rerank.lists.k_reciprocal import k_reciprocal
from lmk.rerank.lists.retrieval import Collection, Retrieval, rerank_lists
from lmk.rerank.steps.augmentation import Neighbourhoods
from lmk.rerank.steps.expansion import augmentation_weights, expand
from lmk.rerank.steps.ranking import ranked

Embed = Callable[..., Embeddings]


def labelled(view: View, labels: list[tuple[str, ...]]) -> View:
    names = tuple(sorted({name for row in labels for name in row}))
    offsets = np.cumsum([0, *map(len, labels)]).astype(np.int64)
    codes = np.array([names.index(name) for row in labels for name in row], np.int32)
    nobody = np.zeros(len(labels), np.bool_)
    return replace(view, labels=Membership(nobody, ~nobody, names, offsets, codes))


@pytest.fixture(scope="module")
def crowd(embed: Embed, scan: type) -> tuple[Collection, Embeddings]:
    """40 pictures of 6 landmarks that overlap, and 9 queries."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((6, 8))
    landmark = rng.integers(0, 6, 40)
    gallery = embed(centres[landmark] + rng.standard_normal((40, 8)))
    queries = embed(centres[rng.integers(0, 6, 9)] + rng.standard_normal((9, 8)), "q")
    view = labelled(View.of_embeddings(gallery), [(f"l{code}",) for code in landmark])
    return Collection(scan(gallery), view), queries


def made(*steps: dict[str, object], k: int = 10, candidates: int = 20) -> Retrieval:
    return Retrieval.model_validate({"steps": steps, "k": k, "candidates": candidates})


def same(got: Neighbours, expected: Neighbours, k: int = 10) -> None:
    assert got.query_ids == expected.query_ids
    assert got.rows.tolist() == expected.rows[:, :k].tolist()
    np.testing.assert_allclose(got.scores, expected.scores[:, :k], rtol=1e-6)


def test_each_step_is_the_function_it_stands_for(crowd: tuple[Collection, Embeddings]) -> None:
    collection, queries = crowd
    searcher, stored = collection.searcher, collection.view.stored
    found = searcher.search(queries, 20)
    same(rerank_lists(made(), queries, collection), found)
    expanded = rerank_lists(made({"step": "expand", "n": 4, "alpha": 2}), queries, collection)
    moved = expand(queries, searcher.search(queries, 4), stored, n=4, alpha=2)
    same(expanded, searcher.search(moved, 20))
    near = Neighbourhoods.build(searcher, collection.view, augmentation_weights(4, 1))
    step = {"step": "dba", "n": 4, "spread": 1}
    augmented = ranked(found.rows, near.cosines(queries, found, stored), found.query_ids)
    same(rerank_lists(made(step), queries, collection), augmented)
    step = {"step": "k_reciprocal", "k1": 6, "k2": 3, "share": 0.2}
    reciprocal = k_reciprocal(queries, found, stored, k1=6, k2=3, share=0.2)
    same(rerank_lists(made(step), queries, collection), reciprocal)
    step = {"step": "diffuse", "neighbours": 8, "sources": 5, "alpha": 0.9}
    diffused = rerank_lists(made(step), queries, collection)
    assert diffused.scores.max(axis=1).tolist() == [1] * 9
    assert set(diffused.rows[0]) <= set(found.rows[0])
    assert not np.array_equal(diffused.rows, found.rows[:, :10])


def test_the_lists_of_the_label_steps(crowd: tuple[Collection, Embeddings]) -> None:
    """By hand: whose label the three nearest give, then its pictures, then the others."""
    collection, queries = crowd
    codes = collection.own_labels.codes.tolist()
    found = collection.searcher.search(queries, 20)
    by_sort = rerank_lists(made({"step": "sort_by_label"}), queries, collection)
    by_insert = rerank_lists(made({"step": "insert_by_label"}), queries, collection)
    sure = rerank_lists(made({"step": "insert_by_label", "sure": 0.6}), queries, collection)
    soft = rerank_lists(made({"step": "boost_by_tags", "weight": 9}), queries, collection)
    inserted = 0
    for q in range(len(queries)):
        row, cosines = found.rows[q].tolist(), found.scores[q].tolist()
        sums: dict[int, float] = {}
        for r, cosine in zip(row[:3], cosines[:3], strict=True):
            sums[codes[r]] = sums.get(codes[r], 0) + max(cosine, 0)
        label = min(sums, key=lambda code, sums=sums: (-sums[code], code))
        front = [r for r in row if codes[r] == label]
        rest = [r for r in row if codes[r] != label]
        missed = [r for r in range(40) if codes[r] == label and r not in row]
        assert by_sort.rows[q].tolist() == (front + rest)[:10]
        assert by_insert.rows[q].tolist() == (front + missed + rest)[:10]
        kept = missed if sums[label] / 3 > 0.6 else []
        assert sure.rows[q].tolist() == (front + kept + rest)[:10]
        inserted += bool(missed)
        shares = [sums.get(codes[r], 0) / sum(sums.values()) for r in row]
        order = sorted(range(20), key=lambda j: -(cosines[j] + 9 * shares[j]))
        assert soft.rows[q].tolist() == [row[j] for j in order[:10]]
    assert inserted, "or nothing was shown"
    assert not np.array_equal(sure.rows, by_insert.rows)


@given(seed=st.integers(0, 10_000))
def test_the_answer_to_a_query_does_not_depend_on_the_others(
    seed: int, crowd: tuple[Collection, Embeddings]
) -> None:
    collection, queries = crowd
    rng = np.random.default_rng(seed)
    steps = [
        {"step": "expand", "n": 3},
        {"step": str(rng.choice(["dba", "k_reciprocal"]))},
        {"step": "diffuse", "neighbours": 6},
        {"step": str(rng.choice(["sort_by_label", "insert_by_label", "boost_by_tags"]))},
    ]
    retrieval = made(*(step for step in steps if rng.random() < 0.6), k=7)
    together = rerank_lists(retrieval, queries, collection)
    i = int(rng.integers(len(queries)))
    one = Embeddings(queries.vectors[i : i + 1], queries.ids[i : i + 1], queries.fingerprint)
    alone = rerank_lists(retrieval, one, collection)
    assert alone.rows.tolist() == together.rows[i : i + 1].tolist()
    assert alone.rows.shape == (1, 7)


def test_several_labels_none_and_those_outside_the_view(embed: Embed, scan: type) -> None:
    gallery = embed([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [1, 0.4]])
    labels = [("b", "a"), ("c",), (), ("a",), ("b",)]
    view = labelled(View.of_embeddings(gallery), labels)
    collection = Collection(scan(gallery), view)
    assert collection.own_labels.codes.tolist() == [1, 2, -1, 0, 1], "the first of several"
    assert collection.own_labels.scores.tolist() == [1, 1, 0, 1, 1]
    retrieval = made({"step": "insert_by_label", "n": 1}, k=3, candidates=3)
    query = embed([[1, 0]], "q")
    # b is one code below c, a another: the nearest has a and b, of which the smaller code wins
    assert rerank_lists(retrieval, query, collection).rows.tolist() == [[3, 0, 1]]
    hidden = replace(view, mask=np.array([True, True, True, False, True]))
    assert Collection(scan(gallery), hidden).own_labels.codes.tolist() == [1, 2, -1, -1, 1]
    bare = Collection(scan(gallery), View.of_embeddings(gallery))
    assert rerank_lists(retrieval, query, bare).rows.tolist() == [[0, 1, 2]]


def test_a_small_collection_and_no_query(embed: Embed, scan: type) -> None:
    gallery = embed([[1, 0], [0, 1]])
    collection = Collection(scan(gallery), labelled(View.of_embeddings(gallery), [("a",), ()]))
    got = rerank_lists(Retrieval(), embed([[0, 1]], "q"), collection)
    assert got.rows.shape == (1, 100) and got.rows[0, :3].tolist() == [0, 1, -1]
    nobody = Embeddings(np.zeros((0, 2), np.float32), (), "f")
    assert rerank_lists(Retrieval(), nobody, collection).rows.shape == (0, 100)


def test_what_a_step_needs_is_made_once_and_taken_where_it_is_kept(
    crowd: tuple[Collection, Embeddings],
) -> None:
    collection, queries = crowd
    said: list[str] = []
    telling = replace(collection, on_message=said.append)
    retrieval = made({"step": "dba", "n": 4}, {"step": "diffuse", "neighbours": 6})
    first = rerank_lists(retrieval, queries, telling)
    assert rerank_lists(retrieval, queries, telling).rows.tolist() == first.rows.tolist()
    assert len(said) == 2 and telling._made.keys() == set(retrieval.steps)
    kept = Neighbourhoods.build(collection.searcher, collection.view, augmentation_weights(6))
    keeping = replace(telling, saved_neighbourhoods=kept)
    assert rerank_lists(retrieval, queries, keeping).rows.tolist() == first.rows.tolist()
    assert len(said) == 3, "only the graph was made"
    more = made({"step": "dba", "n": 7})
    rerank_lists(more, queries, keeping)
    assert len(said) == 4, "what is kept is too short"


def test_steps_that_undo_each_other_or_are_unknown_are_refused() -> None:
    for steps in (
        [{"step": "dba"}, {"step": "k_reciprocal"}],
        [{"step": "sort_by_label"}, {"step": "insert_by_label"}],
        [{"step": "diffuse"}, {"step": "expand"}],
    ):
        with pytest.raises(ValidationError, match="in this order"):
            made(*steps)
    for step in ({"step": "rotate"}, {"step": "expand", "beta": 1}, {"step": "expand", "n": 0}):
        with pytest.raises(ValidationError):
            made(step)
    assert Retrieval.model_validate_json(Retrieval().model_dump_json()) == Retrieval()
