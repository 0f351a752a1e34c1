# SPDX-License-Identifier: Apache-2.0
"""Keys and signatures, made by the real gpg and the real cosign.

Times are gpg's ``--faked-system-time``: a key that expired yesterday need not be waited for.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from hpcpod.images.trust.keys import Key, parse_keys
from tests import needs

DAY = 86400
NOW = int(time.time())
_ENVIRONMENT = {"PATH": needs.SYSTEM_PATH, "LANG": "C.UTF-8"}


class Gpg:
    """A home of gpg with secret keys without passphrases.  A context manager."""

    def __init__(self) -> None:
        # Sockets have short names: not below a test's own directory.
        self.home = Path(tempfile.mkdtemp(prefix="hpcpod-gpg-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["gpgconf", "--homedir", self.home, "--kill", "all"], check=False, capture_output=True)
        shutil.rmtree(self.home, ignore_errors=True)

    def run(self, *words: str, data: bytes = b"", at: int = 0, check: bool = True) -> bytes:
        """Run gpg; its output.  at: seconds since 1970 that it believes in."""
        clock = [f"--faked-system-time={at}!"] if at else []
        done = subprocess.run(
            [
                *("gpg", "--batch", "--yes", "--no-tty", "--homedir", str(self.home)),
                *("--pinentry-mode=loopback", "--passphrase", "", *clock, *words),
            ],
            input=data,
            capture_output=True,
            check=False,
            env=_ENVIRONMENT,
        )
        assert done.returncode == 0 or not check, done.stderr.decode()
        return done.stdout

    def key(self, name: str, *, algorithm: str = "ed25519", expires: str = "0", at: int = 0) -> str:
        """A new key; its fingerprint.  expires: as gpg writes it, ``0`` for never, ``seconds=60``."""
        self.run("--quick-gen-key", f"{name} <{name}@example.com>", algorithm, "sign,cert", expires, at=at)
        return self.fingerprints(name)[0]

    def subkey(self, primary: str, *, expires: str = "0", at: int = 0) -> str:
        """A new signing subkey; its fingerprint."""
        before = self.fingerprints(primary)
        self.run("--quick-add-key", primary, "ed25519", "sign", expires, at=at)
        return next(each for each in self.fingerprints(primary) if each not in before)

    def fingerprints(self, name: str) -> list[str]:
        """Of the primary key, then of its subkeys."""
        listed = self.run("--with-colons", "--list-keys", name).decode()
        return re.findall(r"^fpr:+([0-9A-F]{40}):", listed, re.MULTILINE)

    def revoke(self, primary: str) -> None:
        """Let the owner revoke the key, by the certificate that gpg made with it."""
        text = (self.home / "openpgp-revocs.d" / f"{primary}.rev").read_bytes()
        self.run("--import", data=text.replace(b":-----BEGIN", b"-----BEGIN"))

    def revoke_subkey(self, primary: str, number: int = 1) -> None:
        """Let the owner revoke the n-th subkey."""
        words = f"key {number}\nrevkey\ny\n0\n\ny\nsave\n".encode()
        self.run("--command-fd=0", "--status-fd=2", "--edit-key", primary, data=words)

    def public(self, *names: str, armor: bool = False) -> bytes:
        """Public keys, as a file."""
        return self.run(*(("--armor",) if armor else ()), "--export", *names)

    def keys(self, *names: str) -> tuple[Key, ...]:
        """The same, read."""
        return parse_keys(self.public(*names), "test")

    def message(
        self, data: bytes, *by: str, at: int = 0, expires: str = "0", more: tuple[str, ...] = ()
    ) -> bytes:
        """A signed message, as simple signing has it."""
        users = [word for each in by for word in ("--local-user", f"{each}!")]
        return self.run(*users, *more, f"--default-sig-expire={expires}", "--sign", data=data, at=at)

    def clear(
        self, data: bytes, *by: str, at: int = 0, expires: str = "0", more: tuple[str, ...] = ()
    ) -> bytes:
        """A clear-signed message, as SIF has it."""
        users = [word for each in by for word in ("--local-user", f"{each}!")]
        return self.run(*users, *more, f"--default-sig-expire={expires}", "--clear-sign", data=data, at=at)

    def detached(
        self,
        data: bytes,
        *by: str,
        at: int = 0,
        expires: str = "0",
        more: tuple[str, ...] = (),
        armor: bool = True,
    ) -> bytes:
        """A detached signature, as App Container Images have it."""
        users = [word for each in by for word in ("--local-user", f"{each}!")]
        options = (*more, *(("--armor",) if armor else ()), f"--default-sig-expire={expires}")
        return self.run(*users, *options, "--detach-sign", data=data, at=at)


def simple_payload(digest: str, name: str, kind: str = "atomic container signature") -> bytes:
    """What simple signing signs (container-signature(5))."""
    return json.dumps(
        {
            "critical": {
                "type": kind,
                "image": {"docker-manifest-digest": digest},
                "identity": {"docker-reference": name},
            },
            "optional": {"creator": "tests", "timestamp": NOW},
        }
    ).encode()


# --------------------------------------------------------------------------- SIF


def sif_payload(data: bytes, *algorithms: str) -> bytes:
    """The digests that a SIF file really has, as trust.facts.Signature wants them.

    What is hashed of header and descriptors is as in github.com/sylabs/sif: launch script, magic, version and
    id; type, used, relative number, link, size, time, owner, name and extra.
    """
    used = algorithms or ("sha256",)

    def hashed(piece: bytes) -> dict[str, str]:
        return {name: hashlib.new(name, piece).hexdigest() for name in used}

    total, table = struct.unpack_from("<q", data, 88)[0], struct.unpack_from("<q", data, 96)[0]
    rows = [data[table + 585 * row : table + 585 * (row + 1)] for row in range(total)]
    rows = [row for row in rows if row[4] and struct.unpack_from("<i", row)[0] != 0x4005]
    first = min(struct.unpack_from("<I", row, 5)[0] for row in rows)
    objects = {}
    for row in rows:
        kind, present, number, _, link, offset, size, _, made, _, owner, group = struct.unpack_from(
            "<i?IIIqqqqqqq", row
        )
        protected = struct.pack("<i?IIqqqq", kind, present, number - first, link, size, made, owner, group)
        objects[str(number)] = {
            "descriptor": hashed(protected + row[-512:]),
            "data": hashed(data[offset : offset + size]),
        }
    header = data[:32] + data[32:42] + data[42:45] + data[48:64]
    return json.dumps({"first": first, "header": hashed(header), "objects": objects}).encode()


def sif_message(payload: bytes, algorithm: str = "sha256", **changes: Any) -> bytes:
    """What a SIF signature is over.  changes: top-level fields that are to be wrong."""
    real = json.loads(payload)
    objects = [
        {
            "relativeId": int(number) - real["first"],
            "descriptorDigest": f"{algorithm}:{each['descriptor'][algorithm]}",
            "objectDigest": f"{algorithm}:{each['data'][algorithm]}",
        }
        for number, each in real["objects"].items()
    ]
    header = {"digest": f"{algorithm}:{real['header'][algorithm]}"}
    return json.dumps({"version": 1, "header": header, "objects": objects} | changes).encode()


# --------------------------------------------------------------------------- cosign


class Cosign:
    """cosign with keys in a directory, and no service but a registry on loopback."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run("signing-config", "create", "--out=none.json", *_NO_SERVICES)

    def run(self, *words: str, check: bool = True) -> str:
        path = needs.cosign_path()
        assert path is not None
        environment = _ENVIRONMENT | {
            "HOME": str(self.directory),
            "COSIGN_PASSWORD": "",
            # It asks for the public instance's keys, whatever it is told: to a port where nobody listens.
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [path, *words], cwd=self.directory, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def key(self, name: str) -> Path:
        """A new pair; the public half."""
        self.run("generate-key-pair", f"--output-key-prefix={name}")
        return self.directory / f"{name}.pub"

    def import_key(self, name: str, pem: bytes) -> Path:
        """A pair from a private key in PKCS #8; the public half."""
        (self.directory / f"{name}.pem").write_bytes(pem)
        self.run("import-key-pair", f"--key={name}.pem", f"--output-key-prefix={name}")
        return self.directory / f"{name}.pub"

    def sign(self, name: str, image: str, *, bundle: bool) -> None:
        """Sign an image in a registry.  bundle: as cosign 3 does it, else as those before."""
        how = ("--signing-config=none.json",) if bundle else _LEGACY
        self.run("sign", f"--key={name}.key", *how, "--allow-http-registry", "--yes", image)


_NO_SERVICES = tuple(f"--no-default-{service}" for service in ("fulcio", "oidc", "rekor", "tsa"))
_LEGACY = ("--use-signing-config=false", "--new-bundle-format=false", "--tlog-upload=false")


class Registry:
    """docker-registry on a loopback port, plain HTTP, in a directory.  A context manager."""

    def __init__(self, directory: Path) -> None:
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{probe.getsockname()[1]}"
        configuration = directory / "registry.yml"
        configuration.write_text(
            "version: 0.1\n"
            f"storage: {{filesystem: {{rootdirectory: {directory}/blobs}}}}\n"
            f"http: {{addr: {self.host}}}\n"
            "log: {level: error}\n"
        )
        with (directory / "registry.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", configuration], stdout=log, stderr=log, env=_ENVIRONMENT
            )

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                self.get("")
                return self
            except OSError:
                time.sleep(0.05)
        raise AssertionError("docker-registry does not answer")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def get(self, path: str) -> bytes:
        """What lies at ``/v2/PATH``."""
        import urllib.request

        types = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
        request = urllib.request.Request(f"http://{self.host}/v2/{path}", headers={"Accept": types})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            return bytes(answer.read())

    def push(self, layout: str, name: str) -> str:
        """Copy an image of a layout to the registry; the digest of its manifest."""
        target = f"docker://{self.host}/{name}"
        words = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
        subprocess.run([*words, f"oci:{layout}", target], check=True, capture_output=True)
        repository, _, tag = name.partition(":")
        return f"sha256:{hashlib.sha256(self.get(f'{repository}/manifests/{tag}')).hexdigest()}"

    def cosign_signatures(self, repository: str, digest: str) -> list[tuple[bytes, bytes]]:
        """Payload and base64 signature of each legacy signature (cosign, specs/SIGNATURE_SPEC.md)."""
        manifest = json.loads(self.get(f"{repository}/manifests/{digest.replace(':', '-')}.sig"))
        return [
            (
                self.get(f"{repository}/blobs/{layer['digest']}"),
                layer["annotations"]["dev.cosignproject.cosign/signature"].encode(),
            )
            for layer in manifest["layers"]
        ]

    def bundles(self, repository: str, digest: str) -> list[bytes]:
        """Bundles that cosign 3 attached, by the tag that stands in for the referrers API."""
        index = json.loads(self.get(f"{repository}/manifests/{digest.replace(':', '-')}"))
        found = []
        for entry in index["manifests"]:
            manifest = json.loads(self.get(f"{repository}/manifests/{entry['digest']}"))
            found += [self.get(f"{repository}/blobs/{layer['digest']}") for layer in manifest["layers"]]
        return found


@functools.cache
def pem_pair(kind: str) -> tuple[bytes, bytes]:
    """A new private key (PKCS #8) and its public half, both PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    curves: dict[str, Any] = {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "rsa1024": lambda: rsa.generate_private_key(65537, 1024),
    }
    key = curves[kind]()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


def pem_sign(private: bytes, data: bytes) -> bytes:
    """A signature as cosign makes them."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    key = serialization.load_pem_private_key(private, None)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def bundle(private: bytes, statement: bytes, **changes: Any) -> bytes:
    """A bundle as cosign 3 writes them, around any statement.  changes: top-level fields."""
    kind = b"application/vnd.in-toto+json"
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(statement), statement)
    envelope = {
        "payload": base64.b64encode(statement).decode(),
        "payloadType": kind.decode(),
        "signatures": [{"sig": base64.b64encode(pem_sign(private, signed)).decode()}],
    }
    document = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": "tests"}},
        "dsseEnvelope": envelope,
    }
    return json.dumps(document | changes).encode()


def statement(digest: str, **changes: Any) -> bytes:
    """An in-toto statement as cosign 3 signs it.  changes: top-level fields."""
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {"sha256": digest.removeprefix("sha256:")}, "annotations": {}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    }
    return json.dumps(document | changes).encode()
