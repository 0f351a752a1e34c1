# SPDX-License-Identifier: Apache-2.0
"""Files of keys, fingerprints, armor and packets."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import HpcpodError, TrustUnusable
from hpcpod.images.trust.keys import (
    PacketError,
    dearmored,
    packets,
    parse_fingerprint,
    parse_keys,
    parse_pem,
)
from tests.testbed.signing import pem_pair

FPR = "0123456789ABCDEF0123456789ABCDEF01234567"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (FPR, FPR),
        (FPR.lower(), FPR),
        (f"0x{FPR}", FPR),
        ("0123 4567 89AB CDEF 0123  4567 89AB CDEF 0123 4567", FPR),
        (f"sha256:{'AB' * 32}", f"sha256:{'ab' * 32}"),
        ("AB" * 32, "AB" * 32),
        (FPR[:-1], None),
        (FPR[-16:], None),
        (FPR[-8:], None),
        (f"{FPR}0", None),
        (f"sha1:{FPR}", None),
        ("sha256:" + "a" * 63, None),
        ("g" * 40, None),
        ("", None),
        ("\u0660" * 40, None),
    ],
)
def test_fingerprints(text: str, plain: str | None) -> None:
    assert parse_fingerprint(text) == plain


def packet(tag: int, body: bytes) -> bytes:
    assert len(body) < 192
    return bytes((0xC0 | tag, len(body))) + body


PUBLIC = b"\x04" + bytes(20)
KEY = (
    packet(6, PUBLIC) + packet(13, b"me") + packet(2, b"sig") + packet(14, PUBLIC + b"s") + packet(2, b"sig")
)


def armored(data: bytes, label: str = "PUBLIC KEY BLOCK", head: str = "") -> bytes:
    body = base64.encodebytes(data).decode()
    return f"-----BEGIN PGP {label}-----\n{head}\n{body}=abcd\n-----END PGP {label}-----\n".encode()


def test_openpgp() -> None:
    for raw in (KEY, armored(KEY), armored(KEY, head="Version: x\n"), armored(KEY).replace(b"\n", b"\r\n")):
        (key,) = parse_keys(raw, "x")
        expected = hashlib.sha1(b"\x99\0\x15" + PUBLIC).hexdigest().upper()
        assert (key.fingerprint, len(key.subkeys), key.data) == (expected, 1, KEY)
    first, second = parse_keys(KEY + packet(6, PUBLIC + b"x") + packet(13, b"you"), "x")
    assert first.data == KEY
    assert second.subkeys == ()


BAD_KEYS: dict[str, bytes] = {
    "nothing": b"",
    "a text": b"hello",
    "secret": packet(5, PUBLIC),
    "secret subkey": packet(6, PUBLIC) + packet(7, PUBLIC),
    "secret, armored": armored(packet(5, PUBLIC), "PRIVATE KEY BLOCK"),
    "signature alone": packet(2, b"sig"),
    "message": KEY + packet(11, b"data"),
    "version 3": packet(6, b"\x03" + bytes(20)),
    "no version": packet(6, b""),
    "cut": KEY[:-1],
    "unknown length": b"\xc6\xe0" + bytes(40),
    "old unknown length": b"\x9b" + PUBLIC,
    "no end": armored(KEY)[:-20],
    "base64": armored(KEY).replace(b"=abcd", b"!!!"),
    "text before": b"-----BEGIN\n" + armored(KEY),
    "certificate": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "pem private": pem_pair("p256")[0],
    "pem both": pem_pair("p256")[0] + pem_pair("p256")[1],
    "two pem": pem_pair("p256")[1] * 2,
    "pem cut": pem_pair("p256")[1][:60],
    "pem base64": pem_pair("p256")[1].replace(b"MFk", b"M!k"),
    "p521": pem_pair("p521")[1],
    "small rsa": pem_pair("rsa1024")[1],
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_bad_keys(case: str) -> None:
    with pytest.raises(TrustUnusable) as caught:
        parse_keys(BAD_KEYS[case], "key")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("kind", ["p256", "ed25519", "p384", "rsa"])
def test_pem(kind: str) -> None:
    raw = pem_pair(kind)[1]
    key = parse_pem(raw, "x")
    der = base64.b64decode(b"".join(raw.split(b"\n")[1:-2]))
    assert key.fingerprint == f"sha256:{hashlib.sha256(der).hexdigest()}"
    assert parse_pem(raw.replace(b"\n", b"\r\n") + b"\n", "x").data == der
    if kind in ("p256", "ed25519"):
        assert parse_pem(raw, "x", for_rule=True) == key
    else:
        with pytest.raises(TrustUnusable, match=f"{key.algorithm}, expected ECDSA P-256 or Ed25519"):
            parse_pem(raw, "x", for_rule=True)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda data: KEY + data))
def test_rubbish_is_refused(raw: bytes) -> None:
    try:
        parse_keys(raw, "x")
    except HpcpodError as error:
        assert error.message.isprintable()


@given(st.lists(st.tuples(st.integers(1, 63), st.binary(max_size=100))))
def test_packets_are_found(written: list[tuple[int, bytes]]) -> None:
    raw = b"".join(packet(tag, body) for tag, body in written)
    found = list(packets(raw))
    assert [(tag, body) for tag, body, _ in found] == written
    assert b"".join(whole for *_, whole in found) == raw
    assert dearmored(armored(raw, "SIGNATURE") * 2, "SIGNATURE") == raw * 2


def test_an_armored_file_of_another_kind() -> None:
    with pytest.raises(PacketError, match="expected an armored signature"):
        dearmored(armored(KEY), "SIGNATURE")
