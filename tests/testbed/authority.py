# SPDX-License-Identifier: Apache-2.0
"""A certificate authority of the tests' own, and certificates by it, made by openssl."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

HOSTS = "DNS:localhost,IP:127.0.0.1"


def openssl(*words: str, input: bytes | None = None) -> bytes:
    """What openssl writes to its standard output."""
    done = subprocess.run(["openssl", *words], input=input, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


class Authority:
    """``ca.crt`` in a directory of its own, and what it signed beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate = directory / "ca.crt"
        directory.mkdir(parents=True, exist_ok=True)
        self._key = directory / "ca.key"
        _key(self._key)
        openssl(
            *("req", "-x509", "-new", "-key", str(self._key), "-subj", "/CN=tests of hpcpod", "-days", "30"),
            *("-out", str(self.certificate)),
        )

    def certify(self, name: str, hosts: str = HOSTS, days: int = 30) -> tuple[Path, Path]:
        """A certificate for a server, or a client, and its key."""
        key, request = self.directory / f"{name}.key", self.directory / f"{name}.csr"
        certificate, more = self.directory / f"{name}.pem", self.directory / f"{name}.ext"
        _key(key)
        openssl("req", "-new", "-key", str(key), "-subj", f"/CN={name}", "-out", str(request))
        more.write_text(f"subjectAltName={hosts}\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-days", str(days), "-extfile", str(more), "-out", str(certificate)),
        )
        return certificate, key

    def server(self, name: str, hosts: str = HOSTS) -> ssl.SSLContext:
        """What a server in this process needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certify(name, hosts))
        return context


def _key(path: Path) -> None:
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(path))
    path.chmod(0o600)
