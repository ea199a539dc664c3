"""`lmk index push`, `build-index --backend milvus` and `index set`, on a server in memory."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmk.index.milvus import server as milvus_server

Run = Callable[..., object]
URI = "http://localhost:1"
QUERY = ("query", "queries/q_tower.jpg", "-i", "sample.lmk", "--json")
FAKE = Path(__file__).parents[2] / "index" / "milvus" / "fake.py"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands in for every server that is connected to."""
    spec = importlib.util.spec_from_file_location("cli_fake_milvus", FAKE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    server = module.FakeServer()
    _, errors = milvus_server._pymilvus()
    monkeypatch.setattr(milvus_server, "_pymilvus", lambda: (server.connect, errors))
    monkeypatch.setattr(milvus_server, "_POLL", 0.005)
    return server


def test_a_pushed_index_is_searched_there_with_the_same_answers(
    lmk: Run, here: Path, server: Any
) -> None:
    local = lmk(*QUERY)
    done = lmk("index", "push", "sample.lmk", "--uri", URI)
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        f"{URI}: collection lmk_sample holds 18 rows (18 sent, 0 deleted); search it with "
        f"`lmk index set sample.lmk --backend milvus --uri {URI}`\n"
    )
    assert lmk(*QUERY) == local and "search" not in server.calls
    done = lmk("index", "set", "sample.lmk", "--backend", "milvus", "--uri", URI)
    assert (done.code, done.err) == (0, "")
    assert "Milvus server" in done.out and "collection lmk_sample" in done.out
    assert lmk(*QUERY) == local and "search" in server.calls
    assert "Milvus server" in json.loads(lmk("info", "sample.lmk", "--json").out)["search"]
    done = lmk("index", "push", "sample.lmk", "--json")  # the index knows its server now
    facts = json.loads(done.out)
    assert (facts["path"], facts["uri"], facts["rows"], facts["sent"]) == ("sample.lmk", URI, 18, 0)
    assert lmk("index", "set", "sample.lmk", "--backend", "local").code == 0
    server.calls.clear()
    assert lmk(*QUERY) == local and server.calls == []


def test_a_kind_is_for_this_machine(lmk: Run, here: Path, tiny: Path, server: Any) -> None:
    assert lmk("build-index", "queries", "--model", tiny).code == 0
    assert lmk("index", "push", "sample.lmk", "--uri", URI).code == 0
    keep = ("index", "set", "sample.lmk")
    assert lmk(*keep, "--backend", "milvus", "--uri", URI).code == 0
    search = ("index", "search", "sample.lmk", "queries.lmk", "-k", "3", "-o")
    server.down = True
    done = lmk(*search, "here", "--kind", "exact")
    assert done.code == 0 and done.err.startswith("search: exact search: 12 vectors")
    lmk(*search, "there").refused(1, URI)
    for option in ("--kind exact", "--recall 0.9"):
        option_name = option.split()[0]
        way_out = f"add --backend local to {option_name}"
        lmk(*keep, *option.split()).refused(2, "on a Milvus server", way_out)
        lmk(*keep, *option.split(), "--backend", "milvus").refused(2, "an index of its own")
    assert lmk(*keep, "--backend", "local", "--kind", "exact").code == 0
    server.down = False
    assert lmk(*keep, "--backend", "milvus").code == 0  # it knows its server still
    server.calls.clear()
    assert lmk(*QUERY).code == 0 and "search" in server.calls
    server.collections["other"] = server.collections["lmk_sample"]
    assert lmk(*keep, "--uri", f"{URI}/", "--collection", "other").code == 0


def test_a_change_has_to_be_pushed(lmk: Run, here: Path, server: Any) -> None:
    assert lmk("index", "push", "sample.lmk", "--uri", URI).code == 0
    assert lmk("index", "set", "sample.lmk", "--backend", "milvus", "--uri", URI).code == 0
    assert lmk("index", "remove", "sample.lmk", "tower/0.jpg").code == 0
    lmk(*QUERY).refused(1, f"lmk index push sample.lmk --uri {URI}")
    assert "not possible now" in lmk("info", "sample.lmk").out
    done = lmk("index", "push", "sample.lmk")
    assert done.out == f"{URI}: collection lmk_sample holds 17 rows (0 sent, 1 deleted)\n"
    assert lmk(*QUERY).code == 0


def test_an_index_is_built_for_a_server(lmk: Run, here: Path, tiny: Path, server: Any) -> None:
    build = ("build-index", "gallery", "--distractors", "bank", "--model", tiny)
    done = lmk(*build, "--backend", "milvus", "--uri", URI)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[1] == (
        f"{URI}: collection lmk_gallery holds 18 rows (18 sent, 0 deleted)"
    )
    assert "search" not in server.calls
    asked = lmk("query", "queries/q_tower.jpg", "-i", "gallery.lmk", "--json")
    assert json.loads(asked.out)["best"] == "tower"
    assert "search" in server.calls
    again = json.loads(lmk(*build, "--backend", "milvus", "--uri", URI, "--json").out)
    assert again["pushed"]["collection"] == "lmk_gallery"


def test_an_index_is_built_for_a_collection(lmk: Run, here: Path, tiny: Path, server: Any) -> None:
    build = ("build-index", "gallery", "--model", tiny, "--collection", "mine")
    lmk(*build).refused(2, "--backend milvus")
    assert lmk(*build, "--backend", "milvus", "--uri", URI).code == 0
    assert list(server.collections) == ["mine"]
    asked = lmk("query", "queries/q_tower.jpg", "-i", "gallery.lmk", "--json")
    assert json.loads(asked.out)["best"] == "tower"
    done = lmk("index", "push", "gallery.lmk", "--collection", "other")
    assert "search it with `lmk index set gallery.lmk --backend milvus" in done.out


def test_a_build_for_the_collection_of_another_index_names_the_way_out(
    lmk: Run, here: Path, tiny: Path, server: Any
) -> None:
    assert lmk("index", "push", "sample.lmk", "--uri", URI, "--collection", "mine").code == 0
    build = ("build-index", "queries", "--model", tiny, "--backend", "milvus", "--uri", URI)
    way_out = f"lmk index push queries.lmk --uri {URI} --collection mine --replace"
    lmk(*build, "--collection", "mine").refused(1, f"`{way_out}`")
    assert lmk(*way_out.split()[1:]).code == 0
    assert lmk("query", "queries/q_tower.jpg", "-i", "queries.lmk", "--json").code == 0


def test_collections_of_ones_own(lmk: Run, here: Path, server: Any) -> None:
    push = ("index", "push", "sample.lmk", "--uri", URI, "--collection")
    done = lmk(*push, "mine")
    own = f"`lmk index set sample.lmk --backend milvus --uri {URI} --collection mine`"
    assert done.out.endswith(f"search it with {own}\n")
    assert list(server.collections) == ["mine"]
    call = ("index", "set", "sample.lmk", "--backend", "milvus", "--uri", URI)
    lmk(*call).refused(1, "lmk_sample", "lmk index push")  # nothing was set
    assert lmk("info", "sample.lmk").code == 0
    assert lmk(*call, "--collection", "mine").code == 0
    assert lmk(*QUERY).code == 0
    lmk(*push, "not a name").refused(2, "not a name")


def test_a_collection_of_another_index_is_replaced_only_when_asked(
    lmk: Run, here: Path, tiny: Path, server: Any
) -> None:
    assert lmk("build-index", "queries", "--model", tiny).code == 0
    push = ("index", "push", "queries.lmk", "--uri", URI, "--collection", "lmk_sample")
    assert lmk("index", "push", "sample.lmk", "--uri", URI).code == 0
    again = f"lmk index push queries.lmk --uri {URI} --collection"
    lmk(*push).refused(1, f"`{again} NAME`", f"`{again} lmk_sample --replace`")
    assert "holds 9 rows (9 sent" in lmk(*push, "--replace").out


def test_a_server_that_is_down_is_one_line_and_the_push_goes_on(
    lmk: Run, here: Path, server: Any
) -> None:
    server.down = True
    lmk("index", "push", "sample.lmk", "--uri", URI).refused(1, URI)
    server.down = False
    assert lmk("index", "push", "sample.lmk", "--uri", URI).code == 0
    assert lmk("index", "set", "sample.lmk", "--backend", "milvus", "--uri", URI).code == 0
    server.down = True
    lmk(*QUERY).refused(1, URI)
    done = lmk("info", "sample.lmk")
    assert done.code == 0 and "not possible now" in done.out
