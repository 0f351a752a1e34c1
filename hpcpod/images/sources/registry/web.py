# SPDX-License-Identifier: Apache-2.0
"""HTTP for registries: pooled connections, each bounded in time, with the certificates that a host needs.

Nothing is followed and nothing is tried again here: that needs to know who may see which credentials.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Mapping

from hpcpod.errors import HpcpodError, RegistryFailed, TrustUnusable, UsageError
from hpcpod.images.sources.registry.failures import trouble_of
from hpcpod.images.sources.registry.files import SYSTEM, drop_ins, user_config
from hpcpod.images.sources.registry.patience import Patience
from hpcpod.images.sources.registry.proxies import proxy_for
from hpcpod.images.sources.registry.trouble import Trouble, final
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import Any

    from urllib3 import PoolManager
    from urllib3.response import BaseHTTPResponse

AGENT = "hpcpod"
CONNECTIONS = 8
"""Connections to one host that are kept."""
_STEP = 64 << 10


class Deadline:
    """Ends a connection that is not done in time: whoever waits for it sees its end."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self.passed = False
        # A descriptor of its own: TLS takes the socket's away while it is made.
        self._own = socket.socket(fileno=os.dup(sock.fileno()))
        self._timer = threading.Timer(seconds, self._pass)
        self._timer.daemon = True
        self._timer.start()

    def _pass(self) -> None:
        self.passed = True
        try:
            self._own.shutdown(socket.SHUT_RDWR)
        except OSError:  # it has ended by itself
            return

    def end(self) -> None:
        """It is done, well or not."""
        self._timer.cancel()
        self._timer.join()
        self._own.close()


def _watched(base: type[Any], seconds: float) -> type[Any]:
    """A class of connections whose handshake, and the head of whose answers, come in time or not at all.

    A time-out of the socket alone starts again with each byte.
    """

    class Watched(base):  # type: ignore[misc]
        """A connection with a deadline."""

        _deadline: Deadline | None = None

        def _new_conn(self) -> socket.socket:
            sock: socket.socket = super()._new_conn()
            self._deadline = Deadline(sock, seconds)
            return sock

        def connect(self) -> None:
            """Connect, and shake hands."""
            try:
                super().connect()
            finally:
                self._end()

        def getresponse(self) -> Any:
            """The head of the answer."""
            if self.sock is not None:
                self._deadline = Deadline(self.sock, seconds)
            try:
                return super().getresponse()
            finally:
                self._end()

        def _end(self) -> None:
            deadline, self._deadline = self._deadline, None
            if deadline is not None:
                deadline.end()
                if deadline.passed:
                    raise ConnectionAbortedError(f"no complete head of an answer within {seconds:.0f} s")

    return Watched


class Web:
    """Connections to all hosts of a pull.  May be used from any thread."""

    def __init__(self, environment: Mapping[str, str], patience: Patience) -> None:
        self.patience = patience
        self._environment = environment
        self._managers: dict[tuple[str, str, int, bool], PoolManager] = {}
        self._lock = threading.Lock()

    def open(
        self, method: str, url: str, headers: Mapping[str, str], verify: bool, body: bytes | None = None
    ) -> BaseHTTPResponse:
        """Ask; the answer's body is still to be read.  Raises Trouble, TrustUnusable, UsageError.

        verify: whether the server's certificate must be good.
        """
        import urllib3

        manager = self._manager(url, verify)
        try:
            return manager.urlopen(
                method,
                url,
                headers={"User-Agent": AGENT, "Accept-Encoding": "identity", **headers},
                body=body,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=self.patience.connect, read=self.patience.silence),
            )
        except (urllib3.exceptions.HTTPError, ValueError, OSError) as error:
            raise trouble_of(error, self.patience) from None

    def _manager(self, url: str, verify: bool) -> PoolManager:
        scheme, host, port = origin_of(url)
        with self._lock:
            key = (scheme, host, port, verify)
            if key not in self._managers:
                self._managers[key] = self._make(*key)
            return self._managers[key]

    def _make(self, scheme: str, host: str, port: int, verify: bool) -> PoolManager:
        import urllib3
        from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

        more: dict[str, Any] = {"maxsize": CONNECTIONS}
        if scheme == "https":
            more["ssl_context"] = self._context(host, port, verify)
        proxy = proxy_for(self._environment, scheme, host.strip("[]"), port)
        manager = self._through(proxy, more) if proxy else urllib3.PoolManager(**more)
        manager.pool_classes_by_scheme = {
            "http": type("Pool", (HTTPConnectionPool,), {"ConnectionCls": self._class(HTTPConnectionPool)}),
            "https": type(
                "Pool", (HTTPSConnectionPool,), {"ConnectionCls": self._class(HTTPSConnectionPool)}
            ),
        }
        return manager

    def _class(self, pool: type[Any]) -> type[Any]:
        return _watched(pool.ConnectionCls, self.patience.header)

    def _through(self, proxy: str, more: dict[str, Any]) -> PoolManager:
        import urllib3

        try:
            parsed = urllib3.util.parse_url(proxy)
        except urllib3.exceptions.LocationParseError:
            parsed = urllib3.util.Url()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError(
                f"proxy {shown(parsed.scheme or '')}: only http:// and https:// proxies are spoken to",
                hint="HTTPS_PROXY, HTTP_PROXY and ALL_PROXY name proxies",
            )
        headers = None
        if parsed.auth:
            from urllib.parse import unquote

            headers = urllib3.util.make_headers(proxy_basic_auth=unquote(parsed.auth))
        plain = f"{parsed.scheme}://{parsed.netloc}"
        return urllib3.ProxyManager(plain, proxy_headers=headers, **more)

    def _context(self, host: str, port: int, verify: bool) -> ssl.SSLContext:
        """The certificates for a host: the system's, and those of containers-certs.d(5)."""
        context = ssl.create_default_context()
        directory = certificates(self._environment, host, port)
        for path in drop_ins(directory, ".crt") if directory else ():
            _load(lambda path=path: context.load_verify_locations(path), path)
        for path in drop_ins(directory, ".cert") if directory else ():
            key = f"{path.removesuffix('.cert')}.key"
            if not os.path.exists(key):
                raise TrustUnusable(f"{shown(path)}: a client certificate without its key {shown(key)}")
            _load(lambda path=path, key=key: context.load_cert_chain(path, key, ""), path)
        if not verify:
            import urllib3

            # Whoever switched the check off knows it.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def close(self) -> None:
        """Close all connections that nobody uses."""
        with self._lock:
            for manager in self._managers.values():
                manager.clear()
            self._managers.clear()


def _load(load: Any, path: str) -> None:
    try:
        load()
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise TrustUnusable(f"{shown(path)}: not a certificate and key in PEM: {shown(str(error))}") from None


def certificates(environment: Mapping[str, str], host: str, port: int) -> str:
    """The directory of a host's certificates, the first that is there; empty for none."""
    user = user_config(environment)
    for base in (f"{user}/certs.d" if user else "", f"{SYSTEM}/certs.d", "/etc/docker/certs.d"):
        for name in (f"{host}:{port}", host) if port == 443 else (f"{host}:{port}",):
            if base and os.path.isdir(f"{base}/{name}"):
                return f"{base}/{name}"
    return ""


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL.  Raises Trouble for one that is none of http and https."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}[parts.scheme]
        host = parts.hostname or ""
    except (ValueError, KeyError):
        raise final("names a place that is no http:// or https:// address") from None
    if not host or parts.username is not None or not url.isascii() or not url.isprintable() or " " in url:
        raise final("names a place that is no http:// or https:// address")
    return parts.scheme, f"[{host}]" if ":" in host else host, port


def read_body(
    response: BaseHTTPResponse,
    longest: int,
    patience: Patience,
    kind: type[HpcpodError] = RegistryFailed,
) -> bytes:
    """A short body, whole.  Raises Trouble for one that is too long (of this kind), too slow, or cut."""
    import urllib3

    if response.headers.get("content-encoding", "identity").lower() != "identity":
        response.close()
        raise final(
            f"encodes its answer as {shown(response.headers['content-encoding'])}, which nobody asked for"
        )
    until = time.monotonic() + patience.document
    parts, count = [], 0
    try:
        while chunk := response.read1(_STEP):
            parts.append(chunk)
            count += len(chunk)
            if count > longest:
                raise final(f"answers more than {longest} bytes", kind)
            if time.monotonic() > until:
                raise Trouble(f"answer not complete after {patience.document:.0f} s")
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise trouble_of(error, patience) from None
    finally:
        response.close()  # its connection is kept for the next request where the answer was read to its end
    return b"".join(parts)
