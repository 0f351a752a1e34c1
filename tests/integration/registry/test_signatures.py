# SPDX-License-Identifier: Apache-2.0
"""Signatures that lie beside an image: found, bounded, and never taken for absent when they cannot be had.

What lies in the registry has the form of cosign's SIGNATURE_SPEC and of its bundles; that real ones are
accepted is for the tests of trust.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcpod.errors import HpcpodError, ImageDigestMismatch, ImageLimitExceeded, RegistryFailed
from hpcpod.images.trust.facts import Signature, SignatureKind
from tests.testbed import faulty as do
from tests.testbed.authority import Authority
from tests.testbed.faulty import Faulty
from tests.testbed.layouts import CONFIG, INDEX, MANIFEST, as_json, descriptor, digest
from tests.testbed.pulls import AMD64, Puller, Told
from tests.testbed.registry import Registry, write_home
from tests.testbed.webserver import Answer, Asked, Server

pytestmark = pytest.mark.needs("registry")

PAYLOAD = b'{"critical": {}}'
SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
ANNOTATION = "dev.cosignproject.cosign/signature"


class Attached:
    """Answers for what is attached to an image; all else goes to the registry behind."""

    def __init__(self, proxy: Faulty) -> None:
        self.found: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        proxy.do("", self._fault)

    def _fault(self, asked: Asked, good: Answer) -> Answer:
        name = asked.path.partition("?")[0].rpartition("/")[2]
        if "/referrers/" in asked.path:
            name = f"referrers/{name}"
        if name not in self.found:
            return good
        return Answer(200, {"Content-Type": self.types.get(name, MANIFEST)}, self.found[name])

    def add(self, raw: bytes) -> bytes:
        self.found[digest(raw)] = raw
        return raw

    def cosign(self, of: str, *signatures: str, payload: bytes = PAYLOAD) -> None:
        layers = [descriptor(self.add(payload), SIMPLE, annotations={ANNOTATION: s}) for s in signatures]
        config = descriptor(b"{}", CONFIG)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        self.found[f"{of.replace(':', '-')}.sig"] = as_json(manifest)

    def bundle(self, of: str, message: bytes, place: str) -> None:
        layers = [descriptor(self.add(message), BUNDLE)]
        config = descriptor(b"{}", "application/vnd.oci.empty.v1+json")
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        raw = self.add(as_json({**manifest, "artifactType": BUNDLE}))
        other = descriptor(b"x", MANIFEST, artifactType="application/sbom")
        index = [other, descriptor(raw, MANIFEST, artifactType=BUNDLE)]
        name = f"referrers/{of}" if place == "referrers" else of.replace(":", "-")
        self.types[name] = INDEX
        self.found[name] = as_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": index})


@pytest.fixture
def proxy(authority: Authority, plain_registry: Registry, puller: Puller) -> Any:
    with Faulty(plain_registry.host, authority.server("signed")) as server:
        write_home(puller.home, authority, server.host)
        yield server


def collect(puller: Puller, proxy: Faulty) -> tuple[tuple[Signature, ...], str]:
    with puller.source(f"docker://{proxy.host}/a/image:1", Told()) as source:
        return source.signatures(AMD64), source.find(AMD64)


def digest_of(puller: Puller, proxy: Faulty) -> str:
    return collect(puller, proxy)[1]


def refused(puller: Puller, proxy: Faulty) -> HpcpodError:
    with pytest.raises(HpcpodError) as caught:
        collect(puller, proxy)
    return caught.value


def test_none(proxy: Faulty, puller: Puller) -> None:
    assert collect(puller, proxy)[0] == ()


def test_cosign_s_own(proxy: Faulty, puller: Puller) -> None:
    of = digest_of(puller, proxy)
    Attached(proxy).cosign(of, "c2ln", "c2ln2")
    found, _ = collect(puller, proxy)
    assert [(s.kind, s.message, s.payload) for s in found] == [
        (SignatureKind.COSIGN, b"c2ln", PAYLOAD),
        (SignatureKind.COSIGN, b"c2ln2", PAYLOAD),
    ]
    assert found[0].origin == f"docker://{proxy.host}/a/image:{of.replace(':', '-')}.sig"


@pytest.mark.parametrize("place", ["referrers", "tag"])
def test_bundles(place: str, proxy: Faulty, puller: Puller) -> None:
    Attached(proxy).bundle(digest_of(puller, proxy), b'{"a": "bundle"}', place)
    (found,), _ = collect(puller, proxy)
    assert (found.kind, found.message) == (SignatureKind.BUNDLE, b'{"a": "bundle"}')


def test_payload_that_is_another(proxy: Faulty, puller: Puller) -> None:
    attached = Attached(proxy)
    attached.cosign(digest_of(puller, proxy), "c2ln")
    attached.found[digest(PAYLOAD)] = PAYLOAD.replace(b"critical", b"CRITICAL")
    assert type(refused(puller, proxy)) is ImageDigestMismatch


def test_too_many_and_too_large(proxy: Faulty, puller: Puller) -> None:
    of = digest_of(puller, proxy)
    attached = Attached(proxy)
    attached.cosign(of, *["c2ln"] * 64, payload=b"x")
    assert len(collect(puller, proxy)[0]) == 64
    attached.bundle(of, b"one more", "referrers")
    assert type(refused(puller, proxy)) is ImageLimitExceeded
    attached.cosign(of, "c2ln", payload=b"x" * (1 << 20))
    assert len(collect(puller, proxy)[0]) == 2
    attached.cosign(of, "c2ln", payload=b"x" * (1 << 20) + b"y")
    assert type(refused(puller, proxy)) is ImageLimitExceeded


@pytest.mark.parametrize("part", [".sig", "/referrers/"])
def test_failure_is_no_absence(part: str, proxy: Faulty, puller: Puller) -> None:
    proxy.do(part, do.status(500))
    error = refused(puller, proxy)
    assert type(error) is RegistryFailed and "answers 500" in error.message
    assert "signatures" in error.message or "referrers" in error.message


# --------------------------------------------------------------------------- lookaside


def configure(puller: Puller, text: str) -> None:
    directory = puller.home / ".config/containers/registries.d"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tests.yaml").write_text(text)


def test_lookaside_in_files(proxy: Faulty, puller: Puller, tmp_path: Path) -> None:
    of = digest_of(puller, proxy)
    configure(puller, f"docker:\n  {proxy.host}:\n    lookaside: file://{tmp_path}/sigs\n")
    place = tmp_path / "sigs" / proxy.host / f"a/image@sha256={of.partition(':')[2]}"
    assert collect(puller, proxy)[0] == ()
    place.mkdir(parents=True)
    for number, text in ((1, b"one"), (2, b"two"), (4, b"behind a gap")):
        (place / f"signature-{number}").write_bytes(text)
    found, _ = collect(puller, proxy)
    assert [(s.kind, s.message) for s in found] == [
        (SignatureKind.SIMPLE, b"one"),
        (SignatureKind.SIMPLE, b"two"),
    ]
    (place / "signature-2").write_bytes(bytes(2 << 20))
    assert type(refused(puller, proxy)) is ImageLimitExceeded


def test_lookaside_on_the_web(proxy: Faulty, puller: Puller, authority: Authority) -> None:
    of = digest_of(puller, proxy)
    known = {f"/sigs/{proxy.host}/a/image@{of.replace(':', '=')}/signature-1": b"one"}
    failing: list[int] = []

    def answer(asked: Asked) -> Answer:
        if failing:
            return Answer(failing[0])
        return Answer(200, {}, known[asked.path]) if asked.path in known else Answer(404)

    with Server(answer, authority.server("lookaside")) as server:
        write_home(puller.home, authority, proxy.host, server.host)
        configure(puller, f"default-docker:\n  sigstore: {server.url}/sigs\n")
        (found,), _ = collect(puller, proxy)
        assert (found.kind, found.message) == (SignatureKind.SIMPLE, b"one")
        assert not [asked for asked in server.asked if "authorization" in asked.headers]
        for status in (500, 403, 302):
            failing[:] = [status]
            error = refused(puller, proxy)
            assert "signature-1" in error.message and str(status) in error.message
