# SPDX-License-Identifier: Apache-2.0
"""What is signed, and bundles: any bytes say what a plain reader of JSON finds, or are refused.

The first byte of an input says what the rest is.
"""

from __future__ import annotations

import base64
import json

from hpcpod.images.trust.payload import (
    COSIGN,
    SIMPLE,
    PayloadError,
    compare_sif,
    parse_bundle,
    parse_claim,
    parse_statement,
)
from tests.fuzz.target import LONGEST, Broken, Target
from tests.testbed.sifs import ENVIRONMENT, Object, partition, sif
from tests.testbed.signing import sif_message, sif_payload, simple_payload, statement

DIGEST = "sha256:" + "ab" * 32
REAL = sif_payload(sif([Object(ENVIRONMENT, b"A=1"), partition(b"r" * 100)], total=2))
MESSAGE = sif_message(REAL)
BUNDLE = {
    "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
    "verificationMaterial": {"publicKey": {"hint": "x"}},
    "dsseEnvelope": {
        "payload": base64.b64encode(statement(DIGEST)).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": "c2ln"}],
    },
}


def fixed(kind: str) -> bytes:
    """A payload that is the same each time."""
    whole = json.loads(simple_payload(DIGEST, "a.b/c:1", kind))
    return json.dumps({**whole, "optional": {"creator": "x", "timestamp": 1}}).encode()


def run(data: bytes) -> None:
    """Parse it as what its first byte says."""
    kind, raw = data[:1], data[1:]
    try:
        if kind in (b"s", b"c"):
            simple(raw, SIMPLE if kind == b"s" else COSIGN)
        elif kind == b"t":
            in_toto(raw)
        elif kind == b"b":
            in_bundle(raw)
        elif kind == b"f":
            compare_sif(raw, REAL)
            if json.loads(raw)["objects"] != json.loads(MESSAGE)["objects"]:
                same(raw)
    except PayloadError as error:
        if not str(error).isprintable() or len(str(error)) > LONGEST:
            raise Broken(f"a message that cannot be shown: {error!r}") from error


def simple(raw: bytes, kind: str) -> None:
    """Digest and name are those that stand there."""
    claim = parse_claim(raw, kind)
    critical = json.loads(raw)["critical"]
    said = critical["image"]["docker-manifest-digest"], critical["identity"]["docker-reference"]
    if claim.digests != (said,) or critical["type"] != kind or len(critical) != 3:
        raise Broken(f"{claim} of {raw!r}")


def in_toto(raw: bytes) -> None:
    """All digests stand there, in the subject."""
    claim = parse_statement(raw)
    whole = json.loads(raw)
    said = {
        (f"{name}:{digits}", subject.get("name", ""))
        for subject in whole["subject"]
        for name, digits in subject["digest"].items()
    }
    if set(claim.digests) != said or "cosign/sign" not in whole["predicateType"]:
        raise Broken(f"{claim} of {raw!r}")


def in_bundle(raw: bytes) -> None:
    """What is signed holds the payload that will be believed."""
    found = parse_bundle(raw)
    if found.signed is None:
        if not found.digest.startswith("sha256:"):
            raise Broken(f"{found}")
        return
    payload = base64.b64decode(json.loads(raw)["dsseEnvelope"]["payload"])
    if payload != found.payload or not found.signed.endswith(b" %d %s" % (len(payload), payload)):
        raise Broken(f"{found}")


def same(raw: bytes) -> None:
    """Objects in another order are the same; anything else is not."""
    said, real = json.loads(raw), json.loads(MESSAGE)

    def ordered(objects: list[dict[str, object]]) -> list[str]:
        return sorted(json.dumps(each, sort_keys=True) for each in objects)

    if ordered(said["objects"]) != ordered(real["objects"]) or said["header"] != real["header"]:
        raise Broken(f"{raw!r} passes for {MESSAGE!r}")


TARGET = Target(
    run=run,
    seeds={
        "simple": b"s" + fixed(SIMPLE),
        "cosign": b"c" + fixed(COSIGN),
        "statement": b"t" + statement(DIGEST),
        "named": b"t" + statement(DIGEST, subject=[{"name": "a.b/c", "digest": {"sha512": "0" * 128}}]),
        "bundle": b"b" + json.dumps(BUNDLE).encode(),
        "sif": b"f" + MESSAGE,
        "sif, other order": b"f" + sif_message(REAL, objects=json.loads(MESSAGE)["objects"][::-1]),
    },
    words=(b"messageSignature", b"messageDigest", b"SHA2_256", b"annotations", b"sha384", b"keyid", b"hint"),
    runs=6000,
)
