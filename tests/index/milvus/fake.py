"""A Milvus server in memory, for what a real one does only now and then.

It knows the calls that lmk makes, keeps what it is given, answers ties in any order and fails when
told to. Conditions of Milvus that lmk uses are Python expressions too, and evaluated as such.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from pymilvus import MilvusException

MOST = 16_384


@dataclass
class Collection:
    properties: dict[str, str]
    dim: int
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    index: str = ""
    loaded: bool = False
    indexing: int = 0
    lasting: dict[str, str] = field(default_factory=dict)


class FakeServer:
    """What stays when clients come and go.

    Attributes:
        calls: names of the calls made, in order.
        down: refuses every call.
        blur: the most that the scores it gives are off.
        missing: the share of rows that an approximate index does not find.
        most: rows in one answer.
    """

    def __init__(self) -> None:
        self.collections: dict[str, Collection] = {}
        self.calls: list[str] = []
        self.version = "v2.3.5"
        self.down = False
        self.blur = 0.0
        self.missing = 0.0
        self.most = MOST
        self._planned: dict[str, list[Callable[[], None] | Exception | None]] = {}
        self._chance = np.random.default_rng(0)

    def connect(self, uri: str, token: str = "", timeout: float = 0) -> Any:
        self.token = token
        self._enter("connect")
        return _Client(self)

    def plan(self, name: str, *steps: Callable[[], None] | Exception | None) -> None:
        """What the next calls of that name do first: raise, run something, or nothing (None)."""
        self._planned.setdefault(name, []).extend(steps)

    def restart(self) -> None:
        """Forgets the last change of the properties, as Milvus 2.3 does."""
        for collection in self.collections.values():
            collection.properties = dict(collection.lasting)

    def _enter(self, name: str) -> None:
        self.calls.append(name)
        if self.down:
            raise MilvusException(2, "Fail connecting to server on 127.0.0.1:1")
        step = self._planned[name].pop(0) if self._planned.get(name) else None
        if isinstance(step, Exception):
            raise step
        if step:
            step()

    def has_collection(self, name: str) -> bool:
        return name in self.collections

    def drop_collection(self, name: str) -> None:
        del self.collections[name]

    def create_collection(self, name: str, schema: Any, properties: dict[str, str]) -> None:
        assert name not in self.collections
        vector = next(f for f in schema.fields if f.name == "vector")
        collection = Collection(dict(properties), vector.params["dim"], lasting=dict(properties))
        self.collections[name] = collection

    def describe_collection(self, name: str) -> dict[str, Any]:
        return {"properties": dict(self.collections[name].properties)}

    def alter_collection_properties(self, name: str, properties: dict[str, str]) -> None:
        collection = self.collections[name]
        collection.lasting = dict(collection.properties)
        collection.properties |= properties

    def list_indexes(self, name: str) -> list[str]:
        return ["vector"] if self.collections[name].index else []

    def create_index(self, name: str, params: Any, sync: bool = True) -> None:
        assert not sync
        (wanted,) = params
        assert wanted.field_name == "vector"
        assert wanted.get_index_configs()["metric_type"] == "IP"
        self.collections[name].index = wanted.index_type

    def load_collection(self, name: str) -> None:
        assert self.collections[name].index
        self.collections[name].loaded = True

    def upsert(self, name: str, records: list[dict[str, Any]]) -> None:
        collection = self.collections[name]
        for record in records:
            assert record["vector"].shape == (collection.dim,)
            record["id"].encode()  # as gRPC does: a string must be UTF-8
            collection.rows[record["row"]] = dict(record)
        collection.indexing += len(records)

    def delete(self, name: str, ids: list[int]) -> None:
        for row in ids:
            self.collections[name].rows.pop(row, None)

    def flush(self, name: str) -> None:
        assert name in self.collections

    def describe_index(self, name: str, index: str) -> dict[str, Any]:
        collection = self.collections[name]
        pending, collection.indexing = collection.indexing, collection.indexing // 2
        return {"pending_index_rows": pending}

    def query(
        self,
        name: str,
        output_fields: list[str],
        consistency_level: str,
        filter: str = "",  # noqa: A002
        limit: int = MOST,
    ) -> list[dict[str, Any]]:
        assert consistency_level == "Strong"
        found = self._matching(name, filter)
        if output_fields == ["count(*)"]:
            return [{"count(*)": len(found)}]
        return [{key: record[key] for key in output_fields} for record in found[:limit]]

    def search(self, name: str, data: list[np.ndarray], **options: Any) -> list[Any]:
        limit = options["limit"]
        assert limit <= self.most, "as Milvus does"
        assert options["search_params"]["metric_type"] == "IP"
        collection, records = self.collections[name], self._matching(name, options["filter"])
        answers = []
        for query in data:
            found = records
            if collection.index != "FLAT":
                lucky = self._chance.random(len(records)) >= self.missing
                found = [record for record, kept in zip(records, lucky, strict=True) if kept]
            vectors = np.array([record["vector"] for record in found]).reshape(-1, collection.dim)
            scores = (vectors @ query).astype(np.float32)
            scores += self._chance.uniform(-self.blur, self.blur, len(scores)).astype(np.float32)
            shuffled = self._chance.permutation(len(scores))
            best = shuffled[np.argsort(-scores[shuffled], kind="stable")][:limit]
            ids = [found[i]["row"] for i in best]
            answers.append(SimpleNamespace(ids=ids, distances=scores[best].tolist()))
        return answers

    def _matching(self, name: str, condition: str) -> list[dict[str, Any]]:
        collection = self.collections[name]
        if not collection.loaded:
            raise MilvusException(101, "failed to search: collection not loaded")
        code = compile(condition or "True", "condition", "eval")
        scope = {"array_contains_any": lambda labels, names: bool({*labels} & {*names})}
        return [r for r in collection.rows.values() if eval(code, scope, r)]

    def get_server_version(self) -> str:
        return self.version

    def close(self) -> None:
        pass


class _Client:
    """Passes each call on, as one that takes a timeout and may fail."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._server, name)

        def call(*arguments: Any, timeout: float = 0, **options: Any) -> Any:
            if name != "close":
                assert timeout > 0
                self._server._enter(name)
            return method(*arguments, **options)

        return call
