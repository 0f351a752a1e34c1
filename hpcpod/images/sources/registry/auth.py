# SPDX-License-Identifier: Apache-2.0
"""How a registry is told who asks: Basic, or tokens of its token server.

distribution's spec/auth/token.md and oauth.md.  A token is kept for its scope, renewed a little before it
expires, and once more when it is refused all the same.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

from hpcpod.errors import RegistryDenied
from hpcpod.frozen import frozen
from hpcpod.images.sources.registry.authfile import Credentials
from hpcpod.images.sources.registry.challenge import Challenge, parse_challenges
from hpcpod.images.sources.registry.trouble import Trouble, final
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Mapping

CLIENT = "hpcpod"
ANSWER = 256 << 10
"""Bytes of a token server's answer."""
DAY = 86400
"""No token is taken to be good for longer, in seconds."""
LEAST_SECONDS = 60
"""How long a token is good that does not say it (spec/auth/token.md)."""
MARGIN = 0.1
"""Part of its life before its end in which a token is renewed."""
_HINT = "containers-auth.json(5) says where credentials are looked for; podman login, docker login write them"


@frozen
class Token:
    """What goes into the header, and until when, by time.monotonic()."""

    header: str
    until: float


Ask = Callable[[str, str, "Mapping[str, str]", bytes | None], bytes]
"""Method, URL, headers and body in; the bytes of a good answer out.  Raises Trouble."""


class Authorizer:
    """Makes Authorization headers for one registry.  May be asked from any thread.

    find: the credentials, looked for when the registry wants some.  ask: the token server, by Ask.
    secure: that tokens come by TLS alone.
    """

    def __init__(self, host: str, find: Callable[[], Credentials | None], ask: Ask, *, secure: bool) -> None:
        self._host = host
        self._find = find
        self._ask = ask
        self._secure = secure
        self._challenge: Challenge | None = None
        self._tokens: dict[str, Token] = {}
        self._refresh = ""
        self._lock = threading.Lock()

    def header(self, scope: str) -> str:
        """What to send, as far as it is known; empty for nothing.  Raises Trouble."""
        with self._lock:
            if self._challenge is None:
                return ""
            token = self._tokens.get(scope)
            if token is not None and time.monotonic() < token.until:
                return token.header
            return self._obtain(self._challenge, scope).header

    def refused(self, headers: Mapping[str, str], scope: str, used: str) -> str:
        """What to send after a refusal (401) of `used`.  Raises Trouble, in the end RegistryDenied."""
        challenges = {c.scheme: c for c in reversed(parse_challenges(headers.get("www-authenticate", "")))}
        wanted = challenges.get("bearer") or challenges.get("basic")
        if wanted is None:
            offered = ", ".join(map(shown, challenges)) or "none that can be understood"
            raise final(f"wants to be told who asks, by: {offered}", RegistryDenied)
        with self._lock:
            known = self._tokens.get(scope)
            if known is not None and known.header != used:
                return known.header  # another thread was faster
            self._tokens.pop(scope, None)
            self._challenge = wanted
            return self._obtain(wanted, scope).header

    def _obtain(self, challenge: Challenge, scope: str) -> Token:
        credentials = self._find()
        if credentials is not None and credentials.registry:
            token = Token(f"Bearer {credentials.registry}", float("inf"))
        elif challenge.scheme == "basic":
            token = self._basic(credentials)
        else:
            token = self._bearer(challenge, scope, credentials)
        self._tokens[scope] = token
        return token

    def _basic(self, credentials: Credentials | None) -> Token:
        if credentials is None or not credentials.user:
            raise final("wants a user and a password, and there are none for it", RegistryDenied, _HINT)
        return Token(basic(credentials), float("inf"))

    def _bearer(self, challenge: Challenge, scope: str, credentials: Credentials | None) -> Token:
        realm = challenge.get("realm")
        if not realm.startswith("https://") and (self._secure or not realm.startswith("http://")):
            raise final(
                f"names a token server that is no https:// address: {shown(realm) or 'none'}", RegistryDenied
            )
        wanted = challenge.get("scope") or scope
        identity = self._refresh or (credentials.identity if credentials else "")
        before = time.monotonic()
        if identity:
            raw = self._exchange(realm, challenge.get("service"), wanted, identity)
        else:
            raw = self._plain(realm, challenge.get("service"), wanted, credentials)
        return self._parsed(raw, before)

    def _plain(self, realm: str, service: str, scope: str, credentials: Credentials | None) -> bytes:
        """The GET of token.md, with Basic where there are credentials."""
        from urllib.parse import urlencode

        query = {"service": service, "scope": scope} if service else {"scope": scope}
        headers = {}
        if credentials is not None and credentials.user:
            headers["Authorization"] = basic(credentials)
            query["account"] = credentials.user
        separator = "&" if "?" in realm else "?"
        return self._ask("GET", f"{realm}{separator}{urlencode(query)}", headers, None)

    def _exchange(self, realm: str, service: str, scope: str, identity: str) -> bytes:
        """The POST of oauth.md: an identity token for a token of this scope."""
        from urllib.parse import urlencode

        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": CLIENT,
            "scope": scope,
            "refresh_token": identity,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._ask("POST", realm, headers, urlencode(form).encode())

    def _parsed(self, raw: bytes, before: float) -> Token:
        try:
            answer = json.loads(raw)
            text = answer.get("token") or answer.get("access_token")
            seconds = answer.get("expires_in") or LEAST_SECONDS
            refresh = answer.get("refresh_token") or ""
        except (ValueError, AttributeError, RecursionError):
            raise Trouble("its token server's answer is not JSON") from None
        if (
            not isinstance(text, str)
            or not text.isascii()
            or not text.isprintable()
            or " " in text
            or not text
        ):
            raise final("its token server's answer has no token", RegistryDenied)
        if isinstance(refresh, str) and refresh:
            self._refresh = refresh
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            seconds = LEAST_SECONDS
        return Token(f"Bearer {text}", before + min(seconds, DAY) * (1 - MARGIN))


def basic(credentials: Credentials) -> str:
    """The header of RFC 7617."""
    import base64

    return f"Basic {base64.b64encode(f'{credentials.user}:{credentials.password}'.encode()).decode()}"
