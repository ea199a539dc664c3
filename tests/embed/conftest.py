"""A web server on loopback that misbehaves as told."""

from __future__ import annotations

import hashlib
import http.server
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest


class Handler(http.server.BaseHTTPRequestHandler):
    server: FaultServer

    def do_GET(self) -> None:
        self.server.log.append((self.path, dict(self.headers)))
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        faults = self.server.faults[self.path]
        (faults.pop(0) if faults else serve)(self, body)

    def answer(self, status: int, body: bytes, **headers: object) -> None:
        self.send_response(status)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": len(body)} | given).items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def wanted(self, body: bytes) -> tuple[int, bytes, dict[str, object]]:
        """Status, body and headers of a right answer: RFC 9110, 13.1.5 and 14.2."""
        etag = f'"{hashlib.sha1(body).hexdigest()}"'
        start = self.headers.get("Range", "")[len("bytes=") : -1]
        if not start or self.headers.get("If-Range", etag) != etag:
            return 200, body, {"ETag": etag}
        if int(start) >= len(body):
            return 416, b"", {"Content-Range": f"bytes */{len(body)}"}
        content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return 206, body[int(start) :], {"ETag": etag, "Content-Range": content_range}

    def log_message(self, *args: object) -> None: ...


class FaultServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.log: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *args: object) -> None: ...  # a client that hangs up is expected

    def asked(self, path: str) -> list[dict[str, str]]:
        return [headers for asked, headers in self.log if asked == path]


Fault = Callable[[Handler, bytes], None]


def serve(handler: Handler, body: bytes) -> None:
    status, part, headers = handler.wanted(body)
    handler.answer(status, part, **headers)


class Faults:
    """The ways in which one answer can go wrong."""

    serve = staticmethod(serve)

    @staticmethod
    def cut(count: int, *, reset: bool = False, ranges: bool = True) -> Fault:
        """States the whole length, sends `count` bytes, hangs up (or resets the connection)."""

        def fault(handler: Handler, body: bytes) -> None:
            status, part, headers = handler.wanted(body) if ranges else (200, body, {})
            handler.answer(status, part[:count], **(headers | {"Content-Length": len(part)}))
            if reset:
                linger = struct.pack("ii", 1, 0)
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                handler.connection.close()

        return fault

    @staticmethod
    def status(code: int, **headers: object) -> Fault:
        return lambda handler, body: handler.answer(code, b"no", **headers)

    @staticmethod
    def content(body: bytes, **headers: object) -> Fault:
        """A whole answer of something else; ignores Range."""
        return lambda handler, _: handler.answer(200, body, **headers)

    @staticmethod
    def no_ranges(handler: Handler, body: bytes) -> None:
        handler.answer(200, body)

    @staticmethod
    def hang_up(handler: Handler, body: bytes) -> None:
        """Closes without an answer."""

    @staticmethod
    def content_range(start: int, total: int) -> Fault:
        """Claims to answer with that range, whatever was asked for."""

        def fault(handler: Handler, body: bytes) -> None:
            stated = f"bytes {start}-{total - 1}/{total}"
            handler.answer(206, body[start:], Content_Range=stated)

        return fault

    @staticmethod
    def stall(count: int) -> Fault:
        """Sends `count` bytes, then nothing until the test ends."""

        def fault(handler: Handler, body: bytes) -> None:
            status, part, headers = handler.wanted(body)
            handler.answer(status, part[:count], **(headers | {"Content-Length": len(part)}))
            handler.server.closing.wait(60)

        return fault

    @staticmethod
    def chunked(handler: Handler, body: bytes) -> None:
        pieces = [body[i : i + 1000] for i in range(0, len(body), 1000)] + [b""]
        coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        handler.answer(200, coded, Content_Length=None, Transfer_Encoding="chunked")

    @staticmethod
    def chunked_cut(handler: Handler, body: bytes) -> None:
        coded = b"%x\r\n%b" % (len(body), body[: len(body) // 2])
        handler.answer(200, coded, Content_Length=None, Transfer_Encoding="chunked")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FaultServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def faults() -> type[Faults]:
    return Faults
