# SPDX-License-Identifier: Apache-2.0
"""One place of a registry, asked by HTTP: who may see credentials, which redirects are followed.

Credentials go to the registry's own host and to its token server, never to where they redirect to, and by
TLS alone unless the registry was said to be insecure.
"""

from __future__ import annotations

import time

from hpcpod.errors import RegistryDenied
from hpcpod.frozen import frozen
from hpcpod.images.dockername import HUB
from hpcpod.images.sources.registry.auth import ANSWER, Authorizer
from hpcpod.images.sources.registry.challenge import retry_after
from hpcpod.images.sources.registry.conf import Place
from hpcpod.images.sources.registry.keyring import Keyring
from hpcpod.images.sources.registry.patience import Patience
from hpcpod.images.sources.registry.trouble import ERROR_BYTES, Trouble, final, refusal
from hpcpod.images.sources.registry.web import Web, origin_of, read_body
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Mapping

    from urllib3.response import BaseHTTPResponse

HUB_HOST = f"registry-1.{HUB}"
"""Who answers for docker.io."""
REDIRECTS = 5
_REDIRECT = (301, 302, 303, 307, 308)


@frozen
class Leave:
    """Checks that are switched off for a place.  tls: of certificates.  http: that there is TLS at all."""

    tls: bool = False
    http: bool = False


class Client:
    """A place where an image may be.  May be used from any thread."""

    def __init__(self, place: Place, web: Web, keyring: Keyring, leave: Leave) -> None:
        self.place = place
        self._web = web
        self._leave = leave
        self._host = HUB_HOST if place.host == HUB else place.host
        self._scheme = "https"
        self._settled = False
        self._authorizer = Authorizer(
            place.host,
            lambda: keyring.find(place.host, place.path),
            self._ask_token_server,
            secure=not leave.http,
        )

    @property
    def patience(self) -> Patience:
        """How long it is waited for."""
        return self._web.patience

    @property
    def scope(self) -> str:
        """What a token must permit (distribution, spec/auth/scope.md)."""
        return f"repository:{self.place.path}:pull"

    def get(self, path: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """The successful answer for /v2/REPOSITORY/PATH, its body still to be read.  Raises Trouble.

        Success is 200 or 206.
        """
        try:
            response = self._asked(path, headers)
        except Trouble as trouble:
            if not (trouble.unencrypted and self._leave.http and not self._settled):
                raise
            self._scheme = "http"
            try:
                response = self._asked(path, headers)
            except Trouble as plain:
                if not plain.unencrypted:  # it has answered: what it said is what is wrong
                    raise
                self._scheme = "https"
                raise trouble from None
        self._settled = True
        if response.status not in (200, 206):
            raise self.refusal(response)
        return response

    def _asked(self, path: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        url = f"{self._scheme}://{self._host}/v2/{self.place.path}/{path}"
        used = self._authorizer.header(self.scope)
        response, own = self._follow(url, headers, used)
        for _ in range(2):  # nothing was known; or what was known is no longer good
            if response.status != 401 or not own:
                break
            read_body(response, ERROR_BYTES, self._web.patience)
            fresh = self._authorizer.refused(_lower(response), self.scope, used)
            if fresh == used:
                raise final("does not accept the credentials that are there for it (401)", RegistryDenied)
            used = fresh
            response, own = self._follow(url, headers, used)
        return response

    def _follow(
        self, url: str, headers: Mapping[str, str], authorization: str
    ) -> tuple[BaseHTTPResponse, bool]:
        """Ask, and go where the answer leads; the last answer, and whether it is the registry's own.

        Once it leads away, nobody sees the credentials any more, not even the registry.
        """
        from urllib.parse import urljoin

        first = origin_of(url)
        own = True
        sent = {**headers, "Authorization": authorization} if authorization else dict(headers)
        for _ in range(REDIRECTS + 1):
            response = self._web.open("GET", url, sent, not self._leave.tls)
            if response.status not in _REDIRECT:
                return response, own
            target = response.headers.get("location", "")
            _discard(response, self._web)
            url = urljoin(url, target) if target else ""
            there = origin_of(url)
            if first[0] == "https" and there[0] != "https" and not self._leave.http:
                raise final(f"redirects to {shown(there[1])} without TLS, which is not followed")
            if there != first:
                own = False
                sent.pop("Authorization", None)
        raise final(f"redirects more than {REDIRECTS} times")

    def _ask_token_server(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> bytes:
        host = shown(origin_of(url)[1])
        try:
            response = self._web.open(method, url, headers, not self._leave.tls, body)
            raw = read_body(response, ANSWER, self._web.patience)
        except Trouble as trouble:
            trouble.text = f"its token server {host}: {trouble.text}"
            trouble.unencrypted = False
            raise
        if response.status == 200:
            return raw
        refused = refusal(response.status, _lower(response), raw, _asked_to_wait(response))
        refused.text = f"its token server {host} {refused.text}"
        if response.status in (400, 401, 403, 404):
            refused.kind = RegistryDenied
        raise refused

    def refusal(self, response: BaseHTTPResponse) -> Trouble:
        """The trouble that an answer without success means."""
        try:
            body = read_body(response, ERROR_BYTES, self._web.patience)
        except Trouble:
            body = b""
        return refusal(response.status, _lower(response), body, _asked_to_wait(response))


def _discard(response: BaseHTTPResponse, web: Web) -> None:
    """Read the body of a redirect, if it is short, so that the connection can be used again."""
    try:
        read_body(response, ERROR_BYTES, web.patience)
    except Trouble:
        response.close()


def _lower(response: BaseHTTPResponse) -> dict[str, str]:
    """Headers by their names in lower case; those that come several times as one list."""
    found: dict[str, str] = {}
    for name, value in response.headers.items():
        found[name.lower()] = value
    return found


def _asked_to_wait(response: BaseHTTPResponse) -> float | None:
    value = response.headers.get("retry-after")
    return None if value is None else retry_after(value, time.time())
