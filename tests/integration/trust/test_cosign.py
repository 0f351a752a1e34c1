# SPDX-License-Identifier: Apache-2.0
"""Signatures by the real cosign, left in a real registry: bundles as it makes them now, and the old way."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from hpcpod.errors import TrustUnusable
from hpcpod.frozen import replace
from hpcpod.images.trust.facts import Signature, SignatureKind, Subject
from hpcpod.images.trust.identity import Identity
from hpcpod.images.trust.judge import refuse
from hpcpod.images.trust.keys import Key, parse_pem
from tests.testbed.layouts import file, image, write_layout
from tests.testbed.signing import Cosign, Registry, bundle, pem_pair, pem_sign, simple_payload, statement
from tests.testbed.trusting import DIGEST, IMAGE, INDEX, OTHER, REPOSITORY, asked, verdict

COSIGN = "cosign container image signature"
KINDS = ("p256", "ed25519")


@dataclass(frozen=True)
class Pushed:
    """An image in the registry, and its signatures by kind, in the order of signing."""

    subject: Subject
    signatures: dict[bool, tuple[Signature, ...]]


@pytest.fixture(scope="module")
def keys(cosign: Cosign) -> dict[str, Key]:
    """Pairs that cosign made, or took; the public halves."""
    found = {name: cosign.key(name) for name in ("good", "second", "stranger")}
    found["ed"] = cosign.import_key("ed", pem_pair("ed25519")[0])
    return {name: parse_pem(path.read_bytes(), name) for name, path in found.items()}


@pytest.fixture(scope="module")
def pushed(
    tmp_path_factory: pytest.TempPathFactory, cosign: Cosign, registry: Registry, keys: dict[str, Key]
) -> Pushed:
    """An image that good, second and ed have signed, in both ways."""
    assert keys
    layout = tmp_path_factory.mktemp("layout") / "image"
    write_layout(layout, image(file(b"hello", b"hello")))
    repository = "site/app"
    digest = registry.push(str(layout), f"{repository}:1")
    for by in ("good", "second", "ed"):
        for as_bundle in (True, False):
            cosign.sign(by, f"{registry.host}/{repository}@{digest}", bundle=as_bundle)
    legacy = tuple(
        Signature(SignatureKind.COSIGN, signature, f"sig-{number}", payload)
        for number, (payload, signature) in enumerate(registry.cosign_signatures(repository, digest))
    )
    bundles = tuple(
        Signature(SignatureKind.BUNDLE, data, f"referrer-{number}")
        for number, data in enumerate(registry.bundles(repository, digest))
    )
    assert (len(legacy), len(bundles)) == (3, 3)
    name = f"{registry.host}/{repository}:1"
    scopes = (name, f"{registry.host}/{repository}", f"{registry.host}/site", registry.host)
    return Pushed(Subject("docker", scopes, name, digest), {False: legacy, True: bundles})


@pytest.mark.needs("cosign", "docker-registry", "skopeo")
@pytest.mark.parametrize("as_bundle", [False, True], ids=["legacy", "bundle"])
class TestRealCosign:
    """What cosign itself has signed."""

    def test_good(self, pushed: Pushed, keys: dict[str, Key], as_bundle: bool) -> None:
        for name in ("good", "second", "ed"):
            result = verdict(asked(keys[name]), pushed.signatures[as_bundle], pushed.subject)
            assert result.accepted, result
            assert [check.key for check in result.checks if check.good] == [keys[name].fingerprint]

    def test_unknown_key(self, pushed: Pushed, keys: dict[str, Key], as_bundle: bool) -> None:
        result = verdict(asked(keys["stranger"]), pushed.signatures[as_bundle], pushed.subject)
        assert not result.accepted
        assert all(check.found.startswith("by none of these keys") for check in result.checks)
        error = refuse(result, pushed.subject)
        assert keys["stranger"].fingerprint in error.message
        assert pushed.subject.digest in error.message

    def test_unsigned(self, pushed: Pushed, keys: dict[str, Key], as_bundle: bool) -> None:
        assert not verdict(asked(keys["good"]), [], pushed.subject).accepted
        other = pushed.signatures[not as_bundle]
        assert verdict(asked(keys["good"]), other, pushed.subject).accepted

    def test_another_digest(self, pushed: Pushed, keys: dict[str, Key], as_bundle: bool) -> None:
        moved = replace(pushed.subject, digest=DIGEST)
        result = verdict(asked(keys["good"]), pushed.signatures[as_bundle], moved)
        assert not result.accepted
        assert any(check.found == f"for another image: {pushed.subject.digest}" for check in result.checks)
        listed = replace(moved, within=(INDEX, pushed.subject.digest))
        assert verdict(asked(keys["good"]), pushed.signatures[as_bundle], listed).accepted

    def test_another_name(self, pushed: Pushed, keys: dict[str, Key], as_bundle: bool) -> None:
        """A bundle names no image: whoever asks for a name does not take it."""
        elsewhere = replace(pushed.subject, identity="registry.example.com/other/app:1")
        result = verdict(asked(keys["good"]), pushed.signatures[as_bundle], elsewhere)
        assert result.accepted is as_bundle
        named = verdict(asked(keys["good"], nameless=False), pushed.signatures[as_bundle], elsewhere)
        assert not named.accepted
        here = verdict(asked(keys["good"], nameless=False), pushed.signatures[as_bundle], pushed.subject)
        assert here.accepted is not as_bundle

    def test_policies(self, pushed: Pushed, keys: dict[str, Key], as_bundle: bool) -> None:
        """As the manual page says: cosign names a repository, without a tag."""
        for kind, accepted in (
            ("matchRepoDigestOrExact", False),
            ("matchExact", False),
            ("matchRepository", not as_bundle),
        ):
            demand = asked(keys["good"], kind="sigstoreSigned", identity=Identity(kind))
            assert verdict(demand, pushed.signatures[as_bundle], pushed.subject).accepted is accepted, kind
        named = Identity("exactRepository", pushed.subject.scopes[1])
        demand = asked(keys["good"], kind="sigstoreSigned", identity=named)
        assert verdict(demand, pushed.signatures[as_bundle], pushed.subject).accepted is not as_bundle

    def test_k_of_n(self, pushed: Pushed, keys: dict[str, Key], as_bundle: bool) -> None:
        signatures = pushed.signatures[as_bundle]
        three = [keys[name] for name in ("good", "second", "stranger")]
        assert verdict(asked(*three, threshold=2), signatures, pushed.subject).accepted
        assert not verdict(asked(*three, threshold=3), signatures, pushed.subject).accepted
        # The same key in the other way is the same key.
        both = [*pushed.signatures[True], *pushed.signatures[False]]
        assert not verdict(asked(keys["good"], keys["stranger"], threshold=2), both, pushed.subject).accepted

    def test_revoked(self, pushed: Pushed, keys: dict[str, Key], as_bundle: bool) -> None:
        revoked = [keys["good"].fingerprint]
        demand = asked(keys["good"])
        result = verdict(demand, pushed.signatures[as_bundle], pushed.subject, revoked=revoked)
        assert not result.accepted
        assert "by a key that a trust directory revokes" in [check.found for check in result.checks]

    def test_one_bit(self, pushed: Pushed, keys: dict[str, Key], as_bundle: bool) -> None:
        """No change of a signature makes it good for another image, nor breaks the judge."""
        (good, *_) = pushed.signatures[as_bundle]
        moved = replace(pushed.subject, digest=OTHER)
        for at in range(0, len(good.message), 7):
            message = good.message[:at] + bytes((good.message[at] ^ 1,)) + good.message[at + 1 :]
            result = verdict(asked(keys["good"]), [replace(good, message=message)], moved)
            assert not result.accepted
            assert all(check.found.isprintable() for check in result.checks)
        for cut in (b"", b"{}", good.message[:-3], good.message * 2, b"\xff\xfe"):
            assert not verdict(asked(keys["good"]), [replace(good, message=cut)], pushed.subject).accepted


# --------------------------------------------------------------------------- signed by the tests themselves


def key_of(kind: str) -> Key:
    return parse_pem(pem_pair(kind)[1], kind)


def legacy(kind: str, payload: bytes, data: bytes | None = None) -> Signature:
    """A signature as cosign before version 3 left it.  data: what is signed instead."""
    signature = pem_sign(pem_pair(kind)[0], payload if data is None else data)
    return Signature(SignatureKind.COSIGN, base64.b64encode(signature), "sig", payload)


def bundled(kind: str, text: bytes, **changes: Any) -> Signature:
    return Signature(SignatureKind.BUNDLE, bundle(pem_pair(kind)[0], text, **changes), "referrer")


PAYLOAD = simple_payload(DIGEST, REPOSITORY, COSIGN)


@pytest.mark.parametrize("kind", [*KINDS, "p384", "rsa"])
def test_kinds_of_keys(kind: str) -> None:
    assert verdict(asked(key_of(kind)), [legacy(kind, PAYLOAD)]).accepted
    assert verdict(asked(key_of(kind)), [bundled(kind, statement(DIGEST))]).accepted
    assert not verdict(asked(key_of(kind)), [legacy(kind, PAYLOAD, PAYLOAD + b" ")]).accepted
    for other in (*KINDS, "p384", "rsa"):
        if other != kind:
            assert not verdict(asked(key_of(other)), [legacy(kind, PAYLOAD)]).accepted


@pytest.mark.parametrize("kind", ["p521", "rsa1024"])
def test_kinds_of_keys_that_are_refused(kind: str) -> None:
    with pytest.raises(TrustUnusable, match="expected ECDSA P-256"):
        key_of(kind)


def test_a_point_that_is_not_on_the_curve() -> None:
    key = key_of("p256")
    bent = replace(key, data=key.data[:-1] + bytes((key.data[-1] ^ 1,)))
    with pytest.raises(TrustUnusable, match="not a valid ECDSA P-256 key"):
        verdict(asked(bent), [legacy("p256", PAYLOAD)])


@pytest.mark.parametrize("kind", KINDS)
def test_payloads(kind: str) -> None:
    demand = asked(key_of(kind))
    whole = json.loads(PAYLOAD)
    assert verdict(demand, [legacy(kind, json.dumps({**whole, "optional": None}).encode())]).accepted
    for bad in (
        simple_payload(DIGEST, REPOSITORY),  # of simple signing
        simple_payload(OTHER, REPOSITORY, COSIGN),
        simple_payload(DIGEST, "registry.example.com/other/app", COSIGN),
        simple_payload(DIGEST, "", COSIGN),
        simple_payload("", REPOSITORY, COSIGN),
        json.dumps({**whole, "more": 1}).encode(),
        json.dumps({"critical": whole["critical"]}).encode(),
        PAYLOAD.replace(b'"critical"', b'"critical": {}, "critical"', 1),
        b"",
        b"[]",
        statement(DIGEST),
    ):
        assert not verdict(demand, [legacy(kind, bad)]).accepted, bad


@pytest.mark.parametrize(
    "change",
    [
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": "https://slsa.dev/provenance/v1"},  # says how it was built, not that it is good
        {"predicateType": "https://sigstore.dev/cosign/sign/v2"},
        {"predicate": None},
        {"predicate": {"notAfter": "2020-01-01"}},
        {"subject": []},
        {"subject": None},
        {"subject": [{"digest": {"sha256": OTHER.removeprefix("sha256:")}}]},
        {"subject": [{"digest": {"sha256": DIGEST}}]},
        {"subject": [{"digest": {"sha1": "0" * 40}}]},
        {"subject": [{"digest": {}}]},
        {"subject": [{"digest": {"sha256": DIGEST.removeprefix("sha256:").upper()}}]},
        {"subject": [{"digest": {"sha256": DIGEST.removeprefix("sha256:")}, "uri": "x"}]},
        {"subject": [{"digest": {"sha256": DIGEST.removeprefix("sha256:")}, "name": "example.com/x"}]},
        {"more": 1},
    ],
)
def test_statements_that_say_something_else(change: dict[str, Any]) -> None:
    assert not verdict(asked(key_of("p256")), [bundled("p256", statement(DIGEST, **change))]).accepted


def test_statements_that_name_the_image() -> None:
    digits = {"sha256": DIGEST.removeprefix("sha256:")}
    named = statement(DIGEST, subject=[{"digest": digits, "name": REPOSITORY}])
    demand = asked(key_of("p256"), nameless=False)
    assert verdict(demand, [bundled("p256", named)]).accepted
    two = [{"digest": {"sha256": "0" * 64}}, {"digest": digits}]
    assert verdict(asked(key_of("p256")), [bundled("p256", statement(DIGEST, subject=two))]).accepted


@pytest.mark.parametrize(
    "change",
    [
        {"mediaType": "application/vnd.dev.sigstore.bundle.v0.1+json"},
        {"mediaType": None},
        {"verificationMaterial": {}},
        {"verificationMaterial": {"certificate": {"rawBytes": ""}}},
        {"verificationMaterial": {"publicKey": {}, "certificate": {}}},
        {"messageSignature": {}},
        {"dsseEnvelope": None},
        {"dsseEnvelope": {"payload": "", "payloadType": "application/vnd.in-toto+json", "signatures": []}},
        {"more": 1},
    ],
)
def test_bundles_that_are_something_else(change: dict[str, Any]) -> None:
    assert not verdict(asked(key_of("p256")), [bundled("p256", statement(DIGEST), **change)]).accepted


@pytest.mark.parametrize(
    "change",
    [
        lambda envelope: envelope.update(payloadType="text/plain"),
        lambda envelope: envelope.update(signatures=envelope["signatures"] * 2),
        lambda envelope: envelope.update(payload=envelope["payload"] + "\n"),
        lambda envelope: envelope.update(payload=base64.b64encode(statement(OTHER)).decode()),
        lambda envelope: envelope["signatures"][0].update(sig=""),
        lambda envelope: envelope["signatures"][0].update(sig="!!!"),
        lambda envelope: envelope["signatures"][0].pop("sig"),
        lambda envelope: envelope["signatures"][0].update(cert="x"),
    ],
)
def test_envelopes_that_are_something_else(change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(bundle(pem_pair("p256")[0], statement(DIGEST)))
    change(document["dsseEnvelope"])
    signature = Signature(SignatureKind.BUNDLE, json.dumps(document).encode(), "referrer")
    assert not verdict(asked(key_of("p256")), [signature]).accepted


def test_a_signature_over_the_statement_without_the_envelope_is_none() -> None:
    """Without its type in front, a text could be taken for something else that was signed."""
    document = json.loads(bundle(pem_pair("p256")[0], statement(DIGEST)))
    raw = pem_sign(pem_pair("p256")[0], statement(DIGEST))
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    signature = Signature(SignatureKind.BUNDLE, json.dumps(document).encode(), "referrer")
    assert not verdict(asked(key_of("p256")), [signature]).accepted


def test_a_signature_over_the_manifest_itself() -> None:
    import hashlib

    manifest = b'{"schemaVersion": 2}'
    digest = hashlib.sha256(manifest)
    image_ = replace(IMAGE, digest=f"sha256:{digest.hexdigest()}")
    for kind, good in ("p256", True), ("rsa", True), ("ed25519", False):
        message = {
            "messageDigest": {"algorithm": "SHA2_256", "digest": base64.b64encode(digest.digest()).decode()},
            "signature": base64.b64encode(pem_sign(pem_pair(kind)[0], manifest)).decode(),
        }
        document = json.loads(bundle(pem_pair(kind)[0], b"", messageSignature=message))
        del document["dsseEnvelope"]
        signature = Signature(SignatureKind.BUNDLE, json.dumps(document).encode(), "referrer")
        assert verdict(asked(key_of(kind)), [signature], image_).accepted is good, kind
        assert not verdict(asked(key_of(kind)), [signature]).accepted
        document["messageSignature"]["messageDigest"]["digest"] = base64.b64encode(
            bytes.fromhex(DIGEST[7:])
        ).decode()
        signature = Signature(SignatureKind.BUNDLE, json.dumps(document).encode(), "referrer")
        assert not verdict(asked(key_of(kind)), [signature]).accepted


def test_many_signatures_are_bounded() -> None:
    bad = legacy("p256", PAYLOAD, b"other")
    assert not verdict(asked(key_of("p256")), [*([bad] * 64), legacy("p256", PAYLOAD)]).accepted
    assert verdict(asked(key_of("p256")), [*([bad] * 63), legacy("p256", PAYLOAD)]).accepted


def test_long_messages_are_not_read() -> None:
    long = Signature(SignatureKind.COSIGN, b"A" * (5 << 20), "sig", PAYLOAD)
    assert "longer than" in verdict(asked(key_of("p256")), [long]).checks[0].found
