"""Connection to a Milvus server: each failure is one line, and no call waits for ever."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from lmk.embed.errors import LmkError, ServerError, UsageError
from lmk.embed.memory_errors import raise_system_cause

TOKEN = "LMK_MILVUS_TOKEN"  # environment variable
_OLDEST = (2, 3)  # the first version with upsert
_POLL = 0.2  # seconds between two checks of the server's state
_AGAIN = "then run the same command again"
_NOT_LOADED = 101
_LOADING = re.compile("not loaded|not fully loaded|on recovering|no available|not servi?ceable")
_SILENT = re.compile("Fail connecting|UNAVAILABLE|DEADLINE_EXCEEDED|Retry timeout|timeout")
_DENIED = re.compile("UNAUTHENTICATED|PERMISSION_DENIED|auth check failure|privilege")


class Server:
    """A Milvus server.

    Args:
        uri: http://HOST:PORT or https://HOST:PORT.
        timeout: longest time in seconds of one call, and of loading after a start of the server.
        connect: returns the client. Default: pymilvus.MilvusClient.

    Raises:
        UsageError: the URI has another form, or pymilvus is not installed.
        ServerError: the server does not answer or is too old.
    """

    def __init__(
        self, uri: str, timeout: float = 60.0, connect: Callable[..., Any] | None = None
    ) -> None:
        _check_uri(uri)
        self.uri = uri
        self.timeout = timeout
        client, self._errors = _pymilvus()
        try:
            token = os.environ.get(TOKEN, "")
            self._client = (connect or client)(uri, token=token, timeout=timeout)
        except self._errors as error:
            raise self._failed("connecting", error) from error
        self._check_version()

    def place(self, collection: str) -> str:
        """Returns the place of an error: the server and a collection."""
        return f"{self.uri}, collection {collection}"

    def call(self, name: str, *arguments: Any, patience: float = 1, **options: Any) -> Any:
        """Calls a method of the client; waits while the server loads the collection.

        Args:
            name: name of the method.
            patience: longest time as a multiple of the timeout.
            *arguments, **options: arguments of the method.

        Raises:
            ServerError: the server cannot be reached, fails, or exceeds the time.
        """
        deadline = time.monotonic() + patience * self.timeout
        while True:
            left = max(deadline - time.monotonic(), 0.001)
            try:
                return getattr(self._client, name)(*arguments, timeout=left, **options)
            except self._errors as error:
                if not _loading(error) or left <= _POLL:
                    raise self._failed(name, error) from error
            time.sleep(_POLL)

    def wait(self, state: Callable[[], Any], done: Any, what: str, patience: float = 1) -> None:
        """Waits until `state()` equals `done`, as long as the state changes.

        Args:
            state: returns the state of the server.
            done: the value to wait for.
            what: a verb phrase that describes the work of the server.
            patience: longest time without a change, as a multiple of the timeout.

        Raises:
            ServerError: the state did not change for this time.
        """
        limit = patience * self.timeout
        last, since = state(), time.monotonic()
        while last != done:
            time.sleep(_POLL)
            now = state()
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > limit:
                problem = f"the Milvus server did not {what} within {limit:g} s"
                raise ServerError(problem, where=self.uri, remedy=f"see its log, {_AGAIN}")

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def _check_version(self) -> None:
        version = str(self.call("get_server_version"))
        number = re.search(r"(\d+)\.(\d+)", version)
        if number and (int(number[1]), int(number[2])) < _OLDEST:
            remedy = "update it to {}.{} or newer".format(*_OLDEST)
            raise ServerError(f"the server runs Milvus {version}", where=self.uri, remedy=remedy)

    def _failed(self, name: str, error: Exception) -> LmkError:
        """Returns the error for an exception of pymilvus, gRPC or the network."""
        message = str(getattr(error, "message", None) or error)
        what, remedy = f"the Milvus server refused ({name}): {message}", f"see its log, {_AGAIN}"
        if _loading(error):
            what = f"the Milvus server has not loaded the collection within {self.timeout:g} s"
            remedy = f"give it time, {_AGAIN}"
        elif _DENIED.search(message):
            what = "the Milvus server denies access"
            remedy = f"set {TOKEN} to a token or to USER:PASSWORD that it accepts"
        elif _SILENT.search(message) or _SILENT.search(str(getattr(error, "code", ""))):
            what = "the Milvus server does not answer"
            remedy = f"start it, or give the address of another, {_AGAIN}"
        return ServerError(what, where=self.uri, remedy=remedy)


def _check_uri(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        remedy = "give an address such as http://127.0.0.1:19530"
        raise UsageError(f"{uri!r} is no address of a Milvus server", remedy=remedy)
    if parts.username or parts.password:  # the gallery would store and show the address
        remedy = f"set {TOKEN} to USER:PASSWORD instead"
        where = f"{parts.scheme}://{parts.hostname}"
        raise UsageError("a password in the address of a Milvus server", where=where, remedy=remedy)


def _loading(error: Exception) -> bool:
    """Returns whether an error means that the server is still loading the collection."""
    code, message = getattr(error, "code", None), str(getattr(error, "message", ""))
    return code == _NOT_LOADED or bool(_LOADING.search(message))


def _pymilvus() -> tuple[Callable[..., Any], tuple[type[Exception], ...]]:
    """Returns the class of clients, and the exceptions of its methods."""
    try:
        import grpc
        from pymilvus import MilvusClient, MilvusException
    except ImportError as error:
        raise_system_cause(error)
        raise UsageError(
            "search on a Milvus server needs pymilvus",
            remedy="install it with `pip install 'lmk-landmarks[milvus]'`",
        ) from error
    # pymilvus prints a traceback of each error that it raises.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)
    return MilvusClient, (MilvusException, grpc.RpcError, OSError)
