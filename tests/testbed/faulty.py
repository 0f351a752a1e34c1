# SPDX-License-Identifier: Apache-2.0
"""A proxy in front of a registry that does what registries, and what stands before them, do wrong.

Each fault is a function: from what was asked and the registry's good answer to what is answered instead, an
``Answer`` or a conversation by hand.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from time import time

from tests.testbed.webserver import Answer, Asked, Conversation, Handler, Server

Fault = Callable[[Asked, Answer], "Answer | Conversation"]
_DROPPED = ("transfer-encoding", "connection", "content-length", "date")
MANIFESTS, BLOBS = "/manifests/", "/blobs/"


@dataclass
class Rule:
    """Do it the first so many times that this is in a path."""

    part: str
    fault: Fault
    times: int = 1 << 30


class Faulty(Server):
    """The proxy.  upstream: ``localhost:PORT`` of a registry without TLS.  ranges: whether it knows them."""

    def __init__(self, upstream: str, context: ssl.SSLContext | None) -> None:
        super().__init__(self._answer, context)
        self.upstream = upstream
        self.ranges = True
        self.rules: list[Rule] = []

    def do(self, part: str, fault: Fault, times: int = 1 << 30) -> None:
        """Answer so from now on."""
        self.rules.append(Rule(part, fault, times))

    def count(self, part: str) -> int:
        """How often something with this in its path was asked for."""
        return sum(part in asked.path for asked in self.asked)

    def _answer(self, asked: Asked) -> Answer | Conversation:
        good = self._good(asked)
        for rule in self.rules:
            if rule.part in asked.path and rule.times > 0:
                rule.times -= 1
                return rule.fault(asked, good)
        return good

    def _good(self, asked: Asked) -> Answer:
        connection = http.client.HTTPConnection(self.upstream, timeout=20)
        try:
            kept_back = ("host", "connection", *(() if self.ranges else ("range",)))
            passed = {k: v for k, v in asked.headers.items() if k not in kept_back}
            connection.request(asked.method, asked.path, headers=passed)
            response = connection.getresponse()
            headers = {k: v for k, v in response.getheaders() if k.lower() not in _DROPPED}
            return Answer(response.status, headers, response.read())
        finally:
            connection.close()


# --------------------------------------------------------------------------- faults


def status(code: int, headers: dict[str, str] | None = None, message: str = "\x1b[31mno\n") -> Fault:
    body = json.dumps({"errors": [{"code": "TOOMANYREQUESTS", "message": message}]}).encode()
    return lambda asked, good: Answer(code, {"Content-Type": "application/json", **(headers or {})}, body)


def retry_date(seconds: float) -> Fault:
    """503 with Retry-After as a date."""
    return lambda asked, good: Answer(503, {"Retry-After": formatdate(time() + seconds, usegmt=True)})


def html(code: int) -> Fault:
    page = b"<html><body>Please log in to the guest network</body></html>"
    return lambda asked, good: Answer(code, {"Content-Type": "text/html; charset=utf-8"}, page)


def flipped(asked: Asked, good: Answer) -> Answer:
    """One bit of the last byte is another."""
    return replace(good, body=good.body[:-1] + bytes([good.body[-1] ^ 1])) if good.body else good


def longer(asked: Asked, good: Answer) -> Answer:
    return replace(good, body=good.body + b"more")


def shorter(asked: Asked, good: Answer) -> Answer:
    return replace(good, body=good.body[: len(good.body) // 2])


def endless(asked: Asked, good: Answer) -> Conversation:
    """The body again and again, without a length."""

    def talk(handler: Handler) -> None:
        handler.head(replace(good, length=False))
        for _ in range(1 << 14):
            handler.wfile.write(good.body or b"x")

    return talk


def lying_length(asked: Asked, good: Answer) -> Conversation:
    """A length of more than what comes; then the end."""

    def talk(handler: Handler) -> None:
        headers = {**good.headers, "Content-Length": str(len(good.body) + 5)}
        handler.head(Answer(good.status, headers, b"", length=False))
        handler.wfile.write(good.body)
        handler.cut()

    return talk


def cut(after: int) -> Fault:
    """The connection ends after so many bytes of the body."""

    def fault(asked: Asked, good: Answer) -> Conversation:
        def talk(handler: Handler) -> None:
            handler.head(good)
            handler.wfile.write(good.body[:after])
            handler.wfile.flush()
            handler.cut()

        return talk

    return fault


def stall(after: int) -> Fault:
    """Nothing comes any more after so many bytes; the connection stays."""

    def fault(asked: Asked, good: Answer) -> Conversation:
        def talk(handler: Handler) -> None:
            handler.head(good)
            handler.wfile.write(good.body[:after])
            handler.wfile.flush()
            handler.server.ended.wait(60)

        return talk

    return fault


def silent(asked: Asked, good: Answer) -> Conversation:
    """No answer at all; the connection stays."""

    def talk(handler: Handler) -> None:
        handler.server.ended.wait(60)

    return talk


def hang_up(asked: Asked, good: Answer) -> Conversation:
    """No answer, and the end of the connection."""
    return Handler.cut


def noise(asked: Asked, good: Answer) -> Conversation:
    """What is not HTTP."""

    def talk(handler: Handler) -> None:
        handler.wfile.write(b"220 mail.example ESMTP\r\n" * 10)
        handler.cut()

    return talk


def dripping_head(asked: Asked, good: Answer) -> Conversation:
    """A byte of the head ten times a second: no silence is ever long."""

    def talk(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not handler.server.ended.wait(0.1):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    return talk


def dripping_body(asked: Asked, good: Answer) -> Conversation:
    """The same with the body."""

    def talk(handler: Handler) -> None:
        handler.head(good)
        for byte in good.body:
            if handler.server.ended.wait(0.1):
                return
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()

    return talk


def typed(media_type: str) -> Fault:
    return lambda asked, good: replace(good, headers={**good.headers, "Content-Type": media_type})


def with_digest(digest: str) -> Fault:
    return lambda asked, good: replace(good, headers={**good.headers, "Docker-Content-Digest": digest})


def body(raw: bytes, media_type: str) -> Fault:
    return lambda asked, good: Answer(200, {"Content-Type": media_type}, raw)


def redirect(url: str, code: int = 307) -> Fault:
    """To another host, with the same path; a body that is long."""
    return lambda asked, good: Answer(code, {"Location": f"{url}{asked.path}"}, b"moved" * 100)


def redirect_to_itself(asked: Asked, good: Answer) -> Answer:
    return Answer(302, {"Location": asked.path})


def unauthorized(challenge: str) -> Fault:
    return lambda asked, good: Answer(401, {"WWW-Authenticate": challenge})


def encoded(asked: Asked, good: Answer) -> Answer:
    return replace(good, headers={**good.headers, "Content-Encoding": "gzip"})


def wrong_range(asked: Asked, good: Answer) -> Answer:
    """The right bytes, said to be others."""
    if good.status != 206:
        return good
    return replace(good, headers={**good.headers, "Content-Range": f"bytes 0-9/{10**9}"})
