# SPDX-License-Identifier: Apache-2.0
"""Public keys: what is in a file of them.  Pure.

Read without gpg and without a library of cryptography, since a start reads keys only to know whether they
are still the same.  What is found here is a name for a key; whether it is good for anything is asked of
those two when a signature is checked.
"""

from __future__ import annotations

from hpcpod.errors import TrustUnusable
from hpcpod.frozen import frozen
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Iterator

OPENPGP, PEM = "openpgp", "pem"
DATA_MAX = 1 << 20
"""Bytes of a file of keys."""
_PUBLIC, _SUBKEY, _SECRET, _SECRET_SUBKEY, _MARKER = 6, 14, 5, 7, 10
_OF_KEY = (_PUBLIC, _SUBKEY, 2, 12, 13, 17, 60, 61, 62, 63)
"""Packets of a transferable public key: keys, signatures, user ids, trust, private use (RFC 4880, 11.1)."""
_SPKI = {
    "3059301306072a8648ce3d020106082a8648ce3d03010703420004": "ECDSA P-256",
    "302a300506032b6570032100": "Ed25519",
    "3076301006072a8648ce3d020106052b8104002203620004": "ECDSA P-384",
    "30820122300d06092a864886f70d01010105000382010f00": "RSA 2048",
    "308201a2300d06092a864886f70d01010105000382018f00": "RSA 3072",
    "30820222300d06092a864886f70d01010105000382020f00": "RSA 4096",
}
"""How a SubjectPublicKeyInfo of each kind begins (RFC 5280, 5480, 8410, 3279)."""
_FOR_RULES = ("ECDSA P-256", "Ed25519")


@frozen
class Key:
    """A public key.

    kind: OPENPGP or PEM.  fingerprint: of an OpenPGP primary key, in capitals (RFC 4880, 12.2), or
    ``sha256:HEX`` of the DER form.  subkeys: fingerprints.  data: a transferable public key, binary, or DER.
    algorithm: in words, of a PEM key.  origin: where it was found, printable.
    """

    kind: str
    fingerprint: str
    data: bytes
    origin: str
    subkeys: tuple[str, ...] = ()
    algorithm: str = ""


def parse_fingerprint(words: str) -> str | None:
    """A fingerprint as people write it, in the one form that is compared; None for what is none.

    Short key numbers are none: two keys can be made to have the same.
    """
    plain = "".join(words.split())
    algorithm, colon, digits = plain.partition(":")
    if colon:
        hexadecimal = digits.lower()
        good = algorithm == "sha256" and len(digits) == 64 and _is_hex(hexadecimal)
        return f"sha256:{hexadecimal}" if good else None
    plain = plain.removeprefix("0x").removeprefix("0X").upper()
    return plain if len(plain) in (40, 64) and _is_hex(plain.lower()) else None


def _is_hex(digits: str) -> bool:
    return frozenset("0123456789abcdef").issuperset(digits)


def parse_keys(raw: bytes, origin: str) -> tuple[Key, ...]:
    """All public keys in a file of OpenPGP keys, armored or binary, or the PEM key in it.

    Raises TrustUnusable for anything else, private keys above all.
    """
    if b"-----BEGIN PUBLIC KEY-----" in raw:
        return (parse_pem(raw, origin),)
    return parse_openpgp(raw, origin)


def parse_pem(raw: bytes, origin: str, *, for_rule: bool = False) -> Key:
    """The one public key in a PEM file (RFC 7468, section 13).  Raises TrustUnusable.

    for_rule: of the kinds that cosign makes only, as `hpcpod trust add` takes them.
    """
    import base64
    import binascii
    import hashlib

    lines = raw.decode("ascii", "replace").split("\n")
    stripped = [line.strip() for line in lines if line.strip()]
    if b"PRIVATE KEY-----" in raw:
        raise TrustUnusable(f"key {origin}: a private key", hint="give the public one; keep this one to you")
    if len(stripped) < 3 or (stripped[0], stripped[-1]) != (_BEGIN, _END):
        raise TrustUnusable(f"key {origin}: expected one PEM public key", hint=_PEM_HINT)
    try:
        data = base64.b64decode("".join(stripped[1:-1]), validate=True)
    except (binascii.Error, ValueError):
        raise TrustUnusable(f"key {origin}: expected one PEM public key, its base64 is broken") from None
    start = data.hex()
    algorithm = next((name for begin, name in _SPKI.items() if start.startswith(begin)), "")
    if not algorithm or (for_rule and algorithm not in _FOR_RULES):
        raise TrustUnusable(
            f"key {origin}: {algorithm or 'a kind of key that is not known here'}, "
            f"expected {' or '.join(_FOR_RULES if for_rule else _SPKI.values())}",
            hint=_PEM_HINT,
        )
    return Key(PEM, f"sha256:{hashlib.sha256(data).hexdigest()}", data, origin, algorithm=algorithm)


_BEGIN, _END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"
_PEM_HINT = "cosign generate-key-pair makes a pair; the public half is cosign.pub"


# --------------------------------------------------------------------------- OpenPGP


class PacketError(Exception):
    """Bytes that are no sequence of OpenPGP packets; the text says why."""


def dearmored(raw: bytes, label: str) -> bytes:
    """The bytes of OpenPGP: as they are, or of all armored blocks of that label, one behind the other.

    label: ``PUBLIC KEY BLOCK``, ``SIGNATURE``, ``MESSAGE``.  Raises PacketError.  RFC 4880, section 6.2; the
    checksum is not looked at, since what matters in it is signed.
    """
    if not raw.lstrip().startswith(b"-----"):
        return raw
    found, inside, head, body = b"", False, False, b""
    for line in raw.split(b"\n"):
        row = line.strip()
        if not inside:
            if row and row != b"-----BEGIN PGP %s-----" % label.encode():
                raise PacketError(f"expected an armored {label.lower()}, got {shown(row[:60])}")
            inside, head, body = bool(row), True, b""
        elif row == b"-----END PGP %s-----" % label.encode():
            found += _unarmored(body)
            inside = False
        elif head:
            head = bool(row)
            if row and b": " not in row and not row.endswith(b":"):
                raise PacketError("no empty line behind the armor's head")
        elif not row.startswith(b"="):
            body += row
    if inside:
        raise PacketError("its armor has no end")
    return found


def _unarmored(body: bytes) -> bytes:
    import base64
    import binascii

    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise PacketError("its base64 is broken") from None


def packets(raw: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Tag, body and whole of each packet (RFC 4880, section 4.2).  Raises PacketError.

    Lengths that are not known before the end are for data alone; there is none in keys and signatures.
    """
    at = 0
    while at < len(raw):
        start, first = at, raw[at]
        if not first & 0x80:
            raise PacketError(f"no packet at byte {at}")
        at += 1
        if first & 0x40:
            tag = first & 0x3F
            lead = raw[at] if at < len(raw) else 255
            if lead < 192:
                size, at = lead, at + 1
            elif lead < 224:
                size, at = ((lead - 192) << 8) + int.from_bytes(raw[at + 1 : at + 2]) + 192, at + 2
            elif lead == 255:
                size, at = int.from_bytes(raw[at + 1 : at + 5]), at + 5
            else:
                raise PacketError(f"a packet of unknown length at byte {start}")
        else:
            tag, width = (first >> 2) & 0x0F, 1 << (first & 3)
            if width == 8:
                raise PacketError(f"a packet of unknown length at byte {start}")
            size, at = int.from_bytes(raw[at : at + width]), at + width
        if at + size > len(raw):
            raise PacketError("ends within a packet")
        yield tag, raw[at : at + size], raw[start : at + size]
        at += size


def parse_openpgp(raw: bytes, origin: str) -> tuple[Key, ...]:
    """The public keys in a key ring, one or more.  Raises TrustUnusable."""
    found: list[tuple[str, list[str], bytes]] = []
    try:
        for tag, body, whole in packets(dearmored(raw, "PUBLIC KEY BLOCK")):
            if tag in (_SECRET, _SECRET_SUBKEY):
                raise TrustUnusable(f"key {origin}: a private key", hint="gpg --export writes public ones")
            if tag == _MARKER:
                continue
            if tag == _PUBLIC:
                found.append((_fingerprint(body), [], b""))
            elif not found or tag not in _OF_KEY:
                raise PacketError(f"a packet of type {tag} where a public key was expected")
            elif tag == _SUBKEY:
                found[-1][1].append(_fingerprint(body))
            fingerprint, subkeys, data = found[-1]
            found[-1] = fingerprint, subkeys, data + whole
    except PacketError as error:
        private = b"PRIVATE KEY" in raw[:200]
        raise TrustUnusable(
            f"key {origin}: {'a private key' if private else f'not a public key: {error}'}", hint=_KEY_HINT
        ) from None
    if not found:
        raise TrustUnusable(f"key {origin}: no public key in it", hint=_KEY_HINT)
    return tuple(
        Key(OPENPGP, fingerprint, data, origin, tuple(subkeys)) for fingerprint, subkeys, data in found
    )


_KEY_HINT = "gpg --export --armor KEY writes one; cosign's are PEM files"


def _fingerprint(body: bytes) -> str:
    """RFC 4880, section 12.2; version 5 as GnuPG makes it, 6 as RFC 9580."""
    import hashlib

    version = body[0] if body else 0
    if version == 4:
        head = b"\x99" + len(body).to_bytes(2) if len(body) <= 0xFFFF else b""
        return hashlib.sha1(head + body, usedforsecurity=False).hexdigest().upper()
    if version in (5, 6):
        head = (b"\x9a" if version == 5 else b"\x9b") + len(body).to_bytes(4)
        return hashlib.sha256(head + body).hexdigest().upper()
    raise PacketError(f"a key of version {version}")
