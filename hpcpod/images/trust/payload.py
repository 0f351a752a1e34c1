# SPDX-License-Identifier: Apache-2.0
"""What signatures say: signed JSON, parsed strictly.  Pure.

Only read what a good signature was over: nothing here says who wrote it.  Any field that is not known may
mean a restriction, so it makes the signature void (container-signature(5), "JSON processing and forward
compatibility").
"""

from __future__ import annotations

import base64
import binascii

from hpcpod.errors import HpcpodError
from hpcpod.frozen import frozen
from hpcpod.images.limits import DEFAULT_LIMITS
from hpcpod.images.strictjson import parse_object
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import Any

SIMPLE = "atomic container signature"
COSIGN = "cosign container image signature"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
_IN_TOTO = "application/vnd.in-toto+json"
_BUNDLE = (
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
)
_SUBJECTS_MAX = 256
_TRUSTED = {"sha256": 64, "sha384": 96, "sha512": 128}
"""Hash algorithms that may stand in what is signed, and their hexadecimal digits."""
_HEX = frozenset("0123456789abcdef")


class PayloadError(Exception):
    """A signature does not say what it must say; the text says why, printable."""


@frozen
class Claim:
    """What a signature says.  digests: of the images that it is for, with the name of each (may be empty)."""

    digests: tuple[tuple[str, str], ...]


@frozen
class Bundle:
    """A sigstore bundle, not checked.

    signed: the bytes that the signature is over; None where it is over the bytes that have `digest`.
    hint: what it says of its key, printable.
    """

    signature: bytes
    signed: bytes | None
    digest: str
    payload: bytes
    hint: str


def document(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object without anything ambiguous.  Raises PayloadError."""
    try:
        return parse_object(raw, what, DEFAULT_LIMITS)
    except HpcpodError as error:
        raise PayloadError(error.message) from None


def fields(
    value: object, what: str, required: tuple[str, ...], other: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The object with just these fields.  Raises PayloadError."""
    if not isinstance(value, dict):
        raise PayloadError(f"{what}: expected an object")
    for key in value:
        if key not in required and key not in other:
            raise PayloadError(f"{what}: field {shown(key)} is unknown")
    for key in required:
        if key not in value:
            raise PayloadError(f"{what}: no field {key}")
    return value


def text(value: object, what: str) -> str:
    """The string.  Raises PayloadError."""
    if not isinstance(value, str):
        raise PayloadError(f"{what}: expected a string")
    return value


def decoded(value: object, what: str) -> bytes:
    """The bytes behind base64 (RFC 4648, section 4, padded, nothing else in it).  Raises PayloadError."""
    try:
        return base64.b64decode(text(value, what), validate=True)
    except (binascii.Error, ValueError):
        raise PayloadError(f"{what}: not base64") from None


def parse_claim(raw: bytes, kind: str) -> Claim:
    """The payload of simple signing or of cosign.  kind: SIMPLE or COSIGN.  Raises PayloadError."""
    whole = fields(document(raw, "payload"), "payload", ("critical", "optional"))
    optional = whole["optional"]
    if optional is None and kind == COSIGN:  # cosign writes it so
        optional = {}
    optional = fields(optional, "optional", (), tuple(optional) if isinstance(optional, dict) else ())
    text(optional.get("creator", ""), "optional.creator")
    stamp = optional.get("timestamp", 0)
    whole_float = isinstance(stamp, float) and stamp.is_integer()  # as other languages write them
    if isinstance(stamp, bool) or not (isinstance(stamp, int) or whole_float):
        raise PayloadError("optional.timestamp: expected an integer")
    critical = fields(whole["critical"], "critical", ("type", "image", "identity"))
    if text(critical["type"], "critical.type") != kind:
        raise PayloadError(f"critical.type: expected {kind!r}, got {shown(critical['type'])!r}")
    image = fields(critical["image"], "critical.image", ("docker-manifest-digest",))
    identity = fields(critical["identity"], "critical.identity", ("docker-reference",))
    digest = text(image["docker-manifest-digest"], "docker-manifest-digest")
    name = text(identity["docker-reference"], "docker-reference")
    if not name:  # which is how "no name" is written elsewhere
        raise PayloadError("docker-reference: empty")
    return Claim(((digest, name),))


def parse_statement(raw: bytes) -> Claim:
    """An in-toto statement as cosign 3 signs it.  Raises PayloadError.

    cosign leaves the subject's name empty: such a signature is for no name in particular.
    """
    whole = fields(
        document(raw, "statement"), "statement", ("_type", "subject", "predicateType", "predicate")
    )
    for key, expected in ("_type", _STATEMENT), ("predicateType", _PREDICATE):
        if text(whole[key], key) != expected:
            raise PayloadError(f"{key}: expected {expected}, got {shown(whole[key])}")
    fields(whole["predicate"], "predicate", ())
    subjects = whole["subject"]
    if not isinstance(subjects, list) or not 0 < len(subjects) <= _SUBJECTS_MAX:
        raise PayloadError(f"subject: expected a list of 1 to {_SUBJECTS_MAX}")
    found = []
    for subject in subjects:
        each = fields(subject, "subject", ("digest",), ("name", "annotations"))
        annotations = each.get("annotations", {})
        if not isinstance(annotations, dict):
            raise PayloadError("subject.annotations: expected an object")
        name = text(each.get("name", ""), "subject.name")
        digests = fields(each["digest"], "subject.digest", (), tuple(_TRUSTED))
        found += [(f"{kind}:{_hex(kind, value)}", name) for kind, value in digests.items()]
    return Claim(tuple(found))


def _hex(algorithm: str, value: object) -> str:
    digits = text(value, algorithm)
    if len(digits) != _TRUSTED[algorithm] or not _HEX.issuperset(digits):
        raise PayloadError(f"{algorithm}: expected {_TRUSTED[algorithm]} hexadecimal digits")
    return digits


def parse_bundle(raw: bytes) -> Bundle:
    """A bundle, version 0.3, signed by a key (sigstore protobuf-specs, bundle.proto).  Raises PayloadError.

    Time stamps and log entries in it are not looked at.
    """
    whole = fields(
        document(raw, "bundle"),
        "bundle",
        ("mediaType", "verificationMaterial"),
        ("dsseEnvelope", "messageSignature"),
    )
    if text(whole["mediaType"], "mediaType") not in _BUNDLE:
        raise PayloadError(f"bundle: of type {shown(whole['mediaType'])}, expected version 0.3")
    material = fields(
        whole["verificationMaterial"],
        "verificationMaterial",
        (),
        ("publicKey", "certificate", "tlogEntries", "timestampVerificationData"),
    )
    if "certificate" in material or "publicKey" not in material:
        raise PayloadError("bundle: signed by a certificate, not by a key, which is not supported here")
    hint = text(fields(material["publicKey"], "publicKey", (), ("hint",)).get("hint", ""), "publicKey.hint")
    given = [key for key in ("dsseEnvelope", "messageSignature") if key in whole]
    if len(given) != 1:
        raise PayloadError("bundle: expected one of dsseEnvelope and messageSignature")
    if given[0] == "dsseEnvelope":
        return _envelope(whole["dsseEnvelope"], shown(hint))
    return _message(whole["messageSignature"], shown(hint))


def _envelope(value: object, hint: str) -> Bundle:
    """A DSSE envelope with one signature (secure-systems-lab/dsse, envelope.md and protocol.md)."""
    envelope = fields(value, "dsseEnvelope", ("payload", "payloadType", "signatures"))
    if text(envelope["payloadType"], "payloadType") != _IN_TOTO:
        raise PayloadError(f"payloadType: expected {_IN_TOTO}, got {shown(envelope['payloadType'])}")
    payload = decoded(envelope["payload"], "dsseEnvelope.payload")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise PayloadError("dsseEnvelope: expected one signature")
    one = fields(signatures[0], "signature", ("sig",), ("keyid",))
    kind = _IN_TOTO.encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    return Bundle(decoded(one["sig"], "sig"), signed, "", payload, hint)


def _message(value: object, hint: str) -> Bundle:
    """A signature over the manifest's own bytes, of which the bundle has the digest alone."""
    message = fields(value, "messageSignature", ("messageDigest", "signature"))
    digest = fields(message["messageDigest"], "messageDigest", ("algorithm", "digest"))
    if text(digest["algorithm"], "messageDigest.algorithm") != "SHA2_256":
        raise PayloadError(f"messageDigest: expected SHA2_256, got {shown(digest['algorithm'])}")
    raw = decoded(digest["digest"], "messageDigest.digest")
    if len(raw) * 2 != _TRUSTED["sha256"]:
        raise PayloadError("messageDigest: expected 32 bytes")
    return Bundle(decoded(message["signature"], "signature"), None, f"sha256:{raw.hex()}", b"", hint)


# --------------------------------------------------------------------------- SIF


def compare_sif(signed: bytes, real: bytes) -> None:
    """Raise PayloadError unless the signed digests are those that the file really has, of all its objects.

    signed: the message of a SIF signature (github.com/sylabs/sif, pkg/integrity, metadata.go).  real: a
    Signature's payload (facts.py).
    """
    try:
        _compare_sif(signed, fields(document(real, "file"), "file", ("first", "header", "objects")))
    except (KeyError, TypeError, AttributeError):
        raise PayloadError("file: its digests are not there") from None


def _compare_sif(signed: bytes, has: dict[str, Any]) -> None:
    says = fields(document(signed, "message"), "message", ("version", "header", "objects"))
    if says["version"] != 1 or isinstance(says["version"], bool):
        raise PayloadError("message: expected version 1")
    _compare(fields(says["header"], "header", ("digest",))["digest"], has["header"], "header")
    listed = says["objects"]
    if not isinstance(listed, list):
        raise PayloadError("message: objects: expected a list")
    objects, seen = has["objects"], set()
    for value in listed:
        each = fields(value, "object", ("relativeId", "descriptorDigest", "objectDigest"))
        relative = each["relativeId"]
        if isinstance(relative, bool) or not isinstance(relative, int) or relative < 0:
            raise PayloadError("relativeId: expected a number")
        number = str(has["first"] + relative)
        if number in seen:
            raise PayloadError(f"object {number}: stands there twice")
        if number not in objects:
            raise PayloadError(f"object {number}: signed, but not in the file")
        seen.add(number)
        _compare(each["descriptorDigest"], objects[number]["descriptor"], f"descriptor of object {number}")
        _compare(each["objectDigest"], objects[number]["data"], f"object {number}")
    missing = [number for number in objects if number not in seen]
    if missing or not seen:
        raise PayloadError(f"object {missing[0] if missing else 'none'}: not covered by the signature")


def _compare(value: object, real: dict[str, str], what: str) -> None:
    algorithm, colon, digits = text(value, what).partition(":")
    if not colon or algorithm not in _TRUSTED:
        raise PayloadError(f"{what}: digest by {shown(algorithm)}, which is not accepted")
    if algorithm not in real:
        raise PayloadError(f"{what}: digest by {algorithm}, which was not computed")
    if _hex(algorithm, digits) != real[algorithm]:
        raise PayloadError(f"{what}: is not what was signed")
