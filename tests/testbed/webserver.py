# SPDX-License-Identifier: Apache-2.0
"""HTTP servers in threads of the tests, on loopback, with or without TLS; each keeps what it was asked."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Asked:
    """A request.  headers: by their names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Answer:
    """What is sent.  headers may contradict the body: they are sent as they stand.

    length: whether Content-Length is added, as it should be.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: bool = True


Conversation = Callable[["Handler"], None]
"""An answer that is sent by hand: what no honest server sends."""


class Handler(BaseHTTPRequestHandler):
    """Asks the server's function what to answer."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Answer."""
        length = int(self.headers.get("content-length", 0))
        asked = Asked(
            self.command,
            self.path,
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(length) if length else b"",
        )
        self.server.asked.append(asked)
        found = self.server.answer(asked)
        if callable(found):
            self.close_connection = True
            found(self)
        else:
            self.send(found)

    do_POST = do_HEAD = do_PUT = do_CONNECT = do_GET  # noqa: N815 - the names are http.server's

    def send(self, answer: Answer) -> None:
        """Send an answer whole."""
        self.head(answer)
        self.wfile.write(answer.body)
        self.wfile.flush()

    def head(self, answer: Answer) -> None:
        """Send the head of an answer."""
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.length:
            self.send_header("Content-Length", str(len(answer.body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.flush()

    def cut(self) -> None:
        """End the connection in the middle."""
        self.close_connection = True
        # A reset, not an orderly end: the peer sees ECONNRESET.
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


class Server(ThreadingHTTPServer):
    """A context manager.  answer: is called on a thread of its own for each request."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, answer: Callable[[Asked], Answer | Conversation], context: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.asked: list[Asked] = []
        self.ended = threading.Event()
        self._context = context
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    @property
    def host(self) -> str:
        """``localhost:PORT``."""
        return f"localhost:{self.server_address[1]}"

    @property
    def url(self) -> str:
        """Scheme and host."""
        return f"{'https' if self._context else 'http'}://{self.host}"

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands on the connection's own thread: who never does holds up nobody else."""
        if self._context is not None:
            request.settimeout(20)
            request = self._context.wrap_socket(request, server_side=True)
        try:
            Handler(request, client_address, self)
        finally:
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections break here all the time."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()
