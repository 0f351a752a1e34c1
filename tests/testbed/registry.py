# SPDX-License-Identifier: Apache-2.0
"""A real registry on loopback: Debian's docker-registry, over TLS, with Basic or token authentication."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.testbed.authority import HOSTS, Authority, openssl
from tests.testbed.webserver import Answer, Asked, Server

USER, PASSWORD = "tester", "sesame and salt"
HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuuPYy2IYJUif0O.l1PMmamUaTrNQb/0Xm\n"
"""bcrypt, of little cost, as crypt(3) makes it."""
SERVICE, ISSUER = "registry of the tests", "token server of the tests"
SECONDS = 20.0


def free_port() -> int:
    """A port of loopback that nobody uses just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class TokenServer(Server):
    """distribution's token server (spec/auth/token.md, oauth.md): tokens are JWT, RS256.

    seconds: how long they are good; said_seconds: what is said of that.  leeway: seconds that the registry
    takes them for longer.
    """

    def __init__(self, authority: Authority) -> None:
        super().__init__(self._token, authority.server("tokens"))
        self.directory = authority.directory
        self.key, self.certificate = self.directory / "jwt.key", self.directory / "jwt.pem"
        openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(self.key), "-days", "30"),
            *("-subj", "/CN=tokens", "-out", str(self.certificate)),
        )
        self.seconds = 300
        self.said_seconds: int | None = None
        self.leeway = 0
        self.name = "token"
        self.refresh = "identity-of-the-tester"
        self._x5c = base64.b64encode(
            openssl("x509", "-in", str(self.certificate), "-outform", "DER")
        ).decode()

    def _token(self, asked: Asked) -> Answer:
        form = parse_qs(asked.body.decode() if asked.method == "POST" else urlsplit(asked.path).query)
        if asked.method == "POST":
            good = form.get("refresh_token") == [self.refresh]
        else:
            given = asked.headers.get("authorization", "")
            good = given == f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        if not good:
            errors = {"errors": [{"code": "UNAUTHORIZED", "message": "who are you"}]}
            return Answer(401, {"Content-Type": "application/json"}, json.dumps(errors).encode())
        said = self.seconds if self.said_seconds is None else self.said_seconds
        body = {self.name: self.make(form.get("scope", [])), "expires_in": said}
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def make(self, scopes: list[str]) -> str:
        """A token for these scopes."""
        now = int(time.time())
        access = [
            {"type": kind, "name": name, "actions": actions.split(",")}
            for kind, _, rest in (scope.partition(":") for scope in scopes)
            for name, _, actions in [rest.rpartition(":")]
        ]
        claims = {"iss": ISSUER, "sub": USER, "aud": SERVICE, "jti": os.urandom(8).hex(), "access": access}
        times = {"iat": now - 10, "nbf": now - 10, "exp": now + self.seconds - self.leeway}
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self._x5c]}
        text = b".".join(_encoded(json.dumps(part).encode()) for part in (head, {**claims, **times}))
        signature = openssl("dgst", "-sha256", "-sign", str(self.key), input=text)
        return (text + b"." + _encoded(signature)).decode()


def _encoded(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


class Registry:
    """A docker-registry.  A context manager.

    auth: ``none``, ``basic`` or ``token``.  tls: by the authority, for these hosts.
    """

    def __init__(
        self,
        directory: Path,
        authority: Authority,
        auth: str = "none",
        *,
        tls: bool = True,
        hosts: str = HOSTS,
    ) -> None:
        self.hosts = hosts
        self.directory = directory
        self.authority = authority
        self.auth = auth
        self.tls = tls
        self.port = free_port()
        self.host = f"localhost:{self.port}"
        self.tokens = TokenServer(authority) if auth == "token" else None
        directory.mkdir(parents=True)
        self._log = (directory / "log").open("wb")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self.tokens:
            self.tokens.__enter__()
        configuration = self.directory / "config.json"  # YAML knows JSON
        configuration.write_text(json.dumps(self._configuration()))
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
        )
        self._wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        if self.tokens:
            self.tokens.__exit__(kind, error, trace)
        self._log.close()

    def _configuration(self) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": f"127.0.0.1:{self.port}", "secret": "of the tests"}
        if self.tls:
            certificate, key = self.authority.certify(f"registry-{self.port}", self.hosts)
            http["tls"] = {"certificate": str(certificate), "key": str(key)}
        found: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(self.directory / "data")}},
            "http": http,
        }
        if self.auth == "basic":
            (self.directory / "htpasswd").write_text(HTPASSWD)
            found["auth"] = {"htpasswd": {"realm": "tests", "path": str(self.directory / "htpasswd")}}
        if self.tokens:
            found["auth"] = {
                "token": {
                    "realm": f"{self.tokens.url}/token",
                    "service": SERVICE,
                    "issuer": ISSUER,
                    "rootcertbundle": str(self.tokens.certificate),
                }
            }
        return found

    def _wait(self) -> None:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError((self.directory / "log").read_text())

    def push(self, layout: Path, name: str, *words: str, tag: str = "") -> None:
        """Copy an image of an OCI layout, or of a whole index with ``--all``, by skopeo."""
        certificates = self.directory / "certificates"
        if not certificates.exists():
            certificates.mkdir()
            (certificates / "ca.crt").write_bytes(self.authority.certificate.read_bytes())
        access = [f"--dest-cert-dir={certificates}"] if self.tls else ["--dest-tls-verify=false"]
        if self.auth != "none":
            access.append(f"--dest-creds={USER}:{PASSWORD}")
        source = f"oci:{layout}:{tag}" if tag else f"oci:{layout}"
        done = subprocess.run(
            [
                "skopeo",
                "--insecure-policy",
                "copy",
                "-q",
                *words,
                *access,
                source,
                f"docker://{self.host}/{name}",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


def write_home(home: Path, authority: Authority, *hosts: str, login: bool = True) -> dict[str, str]:
    """A home directory whose owner trusts the authority for these hosts, and has credentials for them.

    Returns the environment of that user.
    """
    for host in hosts:
        directory = home / ".config/containers/certs.d" / host
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "ca.crt").write_bytes(authority.certificate.read_bytes())
    if login:
        secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        auths = {"auths": {host: {"auth": secret} for host in hosts}}
        (home / ".config/containers").mkdir(parents=True, exist_ok=True)
        (home / ".config/containers/auth.json").write_text(json.dumps(auths))
    return {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), "PATH": os.environ["PATH"]}
