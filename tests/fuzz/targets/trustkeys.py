# SPDX-License-Identifier: Apache-2.0
"""Files of public keys: any bytes are keys, whole and with names, or a refusal."""

from __future__ import annotations

from hpcpod.errors import HpcpodError
from hpcpod.images.trust.keys import PEM, PacketError, dearmored, packets, parse_fingerprint, parse_keys
from tests.fuzz.target import Broken, Target, refused
from tests.unit.trust.test_keys import KEY, PUBLIC, armored, packet

PUBLIC_KEYS = {
    "p256": (
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAElas+hN+Yc7xDXFkXwebt2xnUN05G"
        "J6GQCv3XYu42GkX1IQw+JS2iKFrBeYxuTp1Ou3llKhWJcrOu5IHhH7nGXg=="
    ),
    "ed25519": "MCowBQYDK2VwAyEAyknCeZrleZXNUa/tsFjojHc3G/YZjV3cqXhO8SQArAc=",
}
"""Of each kind, in base64; the same each time, as seeds have to be."""


def pem(body: str, label: str = "PUBLIC KEY") -> bytes:
    return f"-----BEGIN {label}-----\n{body[:64]}\n{body[64:]}\n-----END {label}-----\n".encode()


def run(data: bytes) -> None:
    """Parse it; what was found must be found again in what is kept of it."""
    try:
        found = parse_keys(data, "key")
    except HpcpodError as error:
        refused(error)
        return
    for key in found:
        if parse_fingerprint(key.fingerprint) != key.fingerprint:
            raise Broken(f"fingerprint {key.fingerprint}")
        if key.kind == PEM:
            continue
        (again,) = parse_keys(key.data, "key")
        if again != key:
            raise Broken(f"{again} of {key}")
        tags = [tag for tag, _, _ in packets(key.data)]
        if tags[0] != 6 or tags.count(6) != 1 or {5, 7} & set(tags):
            raise Broken(f"packets {tags}")
    try:
        whole = dearmored(data, "PUBLIC KEY BLOCK")
    except PacketError:
        return  # a PEM file
    if found[0].kind != PEM and not all(key.data in whole or b"\xca" in whole for key in found):
        raise Broken("bytes that were not there")


TARGET = Target(
    run=run,
    seeds={
        "binary": KEY,
        "armored": armored(KEY),
        "two": KEY + packet(6, PUBLIC + b"x"),
        "old format": b"\x99\0\x15" + PUBLIC + b"\xb4\x02me",
        "version 6": packet(6, b"\x06" + bytes(20)),
        "secret": packet(5, PUBLIC),
        "p256": pem(PUBLIC_KEYS["p256"]),
        "ed25519": pem(PUBLIC_KEYS["ed25519"]),
        "private": pem("AAAA", "PRIVATE KEY"),
    },
    words=(b"-----BEGIN PGP PUBLIC KEY BLOCK-----", b"-----END PGP PUBLIC KEY BLOCK-----", b"\xc6", b"\x99"),
    runs=8000,
)
