"""The connection to a Milvus server: each failure is one line, and nothing waits for ever."""

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
_OLDEST = (2, 3)  # the first with upsert
_POLL = 0.2  # seconds between two questions for something the server is doing
_AGAIN = "then run the same command again"
_NOT_LOADED = 101
_LOADING = re.compile("not loaded|not fully loaded|on recovering|no available|not servi?ceable")
_SILENT = re.compile("Fail connecting|UNAVAILABLE|DEADLINE_EXCEEDED|Retry timeout|timeout")
_DENIED = re.compile("UNAUTHENTICATED|PERMISSION_DENIED|auth check failure|privilege")


class Server:
    """A Milvus server.

    Args:
        uri: http://HOST:PORT or https://HOST:PORT.
        timeout: the longest, in seconds, that one call may take, and that a server which has just
            been started may take to load what it serves.
        connect: makes the client, a pymilvus.MilvusClient unless given.

    Raises:
        UsageError: for another kind of URI, or where pymilvus is not installed.
        ServerError: for a server that does not answer or is too old.
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

    def call(self, name: str, *arguments: Any, patience: float = 1, **options: Any) -> Any:
        """Calls a method of the client, and waits while the server loads what is asked for.

        Args:
            name: of the method.
            patience: how many times the timeout it may take.
            *arguments, **options: of the method.

        Raises:
            ServerError: when it cannot be reached, fails, or takes longer than that.
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
        """Waits until `state()` equals `done`, for as long as it changes.

        Args:
            state: asks the server.
            done: the value to wait for.
            what: is waited for, in words.
            patience: how many times the timeout it may stand still.

        Raises:
            ServerError: when it stands still for longer.
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
        found = re.search(r"(\d+)\.(\d+)", version)
        if found and (int(found[1]), int(found[2])) < _OLDEST:
            raise ServerError(
                f"the server runs Milvus {version}",
                where=self.uri,
                remedy="update it to {}.{} or newer".format(*_OLDEST),
            )

    def _failed(self, name: str, error: Exception) -> LmkError:
        """Returns the message for an error of pymilvus, gRPC or the network."""
        message = str(getattr(error, "message", None) or error)
        if _loading(error):
            what = f"the Milvus server has not loaded the collection within {self.timeout:g} s"
            return ServerError(what, where=self.uri, remedy=f"give it time, {_AGAIN}")
        if _DENIED.search(message):
            what = "the Milvus server denies access"
            remedy = f"set {TOKEN} to a token or to USER:PASSWORD that it accepts"
            return ServerError(what, where=self.uri, remedy=remedy)
        if _SILENT.search(message) or _SILENT.search(str(getattr(error, "code", ""))):
            what = "the Milvus server does not answer"
            remedy = f"start it, or give the address of another, {_AGAIN}"
            return ServerError(what, where=self.uri, remedy=remedy)
        what = f"the Milvus server refused ({name}): {message}"
        return ServerError(what, where=self.uri, remedy=f"see its log, {_AGAIN}")


def _check_uri(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        remedy = "give an address such as http://127.0.0.1:19530"
        raise UsageError(f"{uri!r} is no address of a Milvus server", remedy=remedy)
    if parts.username or parts.password:  # it would be kept with the gallery, and be shown
        remedy = f"set {TOKEN} to USER:PASSWORD instead"
        where = f"{parts.scheme}://{parts.hostname}"
        raise UsageError("a password in the address of a Milvus server", where=where, remedy=remedy)


def _loading(error: Exception) -> bool:
    """Whether a server is still at work on what it was asked to serve, as after its start."""
    code, message = getattr(error, "code", None), str(getattr(error, "message", ""))
    return code == _NOT_LOADED or bool(_LOADING.search(message))


def _pymilvus() -> tuple[Callable[..., Any], tuple[type[Exception], ...]]:
    """Returns the class of clients, and what its methods raise when a call fails."""
    try:
        import grpc
        from pymilvus import MilvusClient, MilvusException
    except ImportError as error:
        raise_system_cause(error)
        raise UsageError(
            "search on a Milvus server needs pymilvus",
            remedy="install it with `pip install 'lmk-landmarks[milvus]'`",
        ) from error
    # It prints a traceback of each error that it also raises.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)
    return MilvusClient, (MilvusException, grpc.RpcError, OSError)
