"""What a server that is absent, old, slow or closed to us is told the user as."""

from __future__ import annotations

import socket
import sys
import time

import grpc
import pytest
from pymilvus import MilvusException

from lmk.embed.errors import ServerError, UsageError
from lmk.index.milvus.server import Server

URI = "http://127.0.0.1:19530"


@pytest.mark.parametrize("uri", ["nonsense", "file.db", "ftp://host:1", "http://", "tcp://h:1"])
def test_other_addresses_are_refused(uri: str, server) -> None:
    with pytest.raises(UsageError, match=r"no address of a Milvus server; give .*http://127"):
        Server(uri, connect=server.connect)


def test_a_password_belongs_into_the_environment(server, monkeypatch) -> None:
    with pytest.raises(UsageError, match=r"http://host: a password .* LMK_MILVUS_TOKEN") as error:
        Server("http://me:secret@host:1", connect=server.connect)
    assert "secret" not in str(error.value)
    monkeypatch.setenv("LMK_MILVUS_TOKEN", "me:secret")
    Server(URI, connect=server.connect)
    assert server.token == "me:secret"


def test_without_pymilvus_the_command_that_installs_it_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(UsageError, match=r"needs pymilvus; .*'lmk-landmarks\[milvus\]'"):
        Server(URI)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    with pytest.raises(ServerError, match=f"^{uri}: the Milvus server does not answer; start it"):
        Server(uri, timeout=3)


def test_something_that_listens_and_never_answers_is_given_up(capfd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ServerError, match=f"^{uri}: the Milvus server does not answer; "):
            Server(uri, timeout=1)
        assert time.monotonic() - began < 20
    assert capfd.readouterr().err == ""  # pymilvus would print a traceback


@pytest.mark.parametrize(
    ("version", "fits"),
    [("v2.2.16", False), ("1.1", False), ("v2.3.5-lite", True), ("3.0.1", True), ("cloud", True)],
)
def test_servers_without_upsert_are_too_old(version: str, fits: bool, server) -> None:
    server.version = version
    if fits:
        Server(URI, connect=server.connect)
        return
    expected = f"{URI}: the server runs Milvus {version}; update it to 2.3 or newer"
    with pytest.raises(ServerError, match=expected):
        Server(URI, connect=server.connect)


class Broken(grpc.RpcError):
    def __init__(self, code: str) -> None:
        super().__init__(f"StatusCode.{code}")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Broken("UNAVAILABLE"), "does not answer; start it"),
        (Broken("DEADLINE_EXCEEDED"), "does not answer; start it"),
        (MilvusException(1, "[search] Retry timeout: 1s"), "does not answer; start it"),
        (ConnectionResetError("reset"), r"refused \(query\): reset; see its log"),
        (Broken("UNAUTHENTICATED"), "denies access; set LMK_MILVUS_TOKEN"),
        (MilvusException(1, "auth check failure"), "denies access; set LMK_MILVUS_TOKEN"),
        (MilvusException(65535, "rate limit"), r"refused \(query\): rate limit; see its log"),
    ],
)
def test_errors_are_one_line(error: Exception, message: str, server) -> None:
    connected = Server(URI, connect=server.connect)
    server.plan("query", error)
    with pytest.raises(ServerError, match=message) as raised:
        connected.call("query", "name")
    assert raised.value.where == URI
    assert raised.value.__cause__ is error
    assert "\n" not in str(raised.value)


def test_loading_is_waited_for_but_not_for_ever(server) -> None:
    loading = MilvusException(101, "collection not loaded")
    connected = Server(URI, timeout=0.5, connect=server.connect)
    server.plan("flush", *[loading] * 1000)
    with pytest.raises(ServerError, match=r"has not loaded the collection within 0.5 s; give it"):
        connected.call("flush", "name")
    assert 2 <= server.calls.count("flush") <= 101


def test_a_state_that_stands_still_is_given_up_one_that_moves_is_not(server) -> None:
    connected = Server(URI, timeout=0.5, connect=server.connect)
    steps = iter([5, 4, 3, 2, 1, 0])
    connected.wait(lambda: next(steps), 0, "build the index")  # takes longer than the timeout
    expected = f"{URI}: the Milvus server did not build the index within 0.5 s; see its log"
    with pytest.raises(ServerError, match=expected):
        connected.wait(lambda: 7, 0, "build the index")


def test_mistakes_of_the_program_are_not_hidden(server) -> None:
    connected = Server(URI, connect=server.connect)
    with pytest.raises(AttributeError):
        connected.call("no_such_method")
