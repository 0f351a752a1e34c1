# SPDX-License-Identifier: Apache-2.0
"""Archives that a fuzzer changed, made whole enough to be read beyond their first checksum."""

from __future__ import annotations

from tests.testbed.layouts import BLOCK

_OCTAL = frozenset(b"01234567")


def _size(block: bytes) -> int:
    """What most readers take for the size in a header; 0 for what is no number."""
    field = block[124:136]
    if field[0] & 0x80:
        return int.from_bytes(field[4:], "big") & 0xFFFFFF
    digits = field.strip(b" \0")
    return int(digits, 8) if digits and _OCTAL.issuperset(digits) else 0


def mended(data: bytes) -> bytes:
    """The archive with the checksum of each header set right; nothing else is changed."""
    out = bytearray(data)
    at = 0
    while at + BLOCK <= len(out):
        block = out[at : at + BLOCK]
        if any(block):
            block[148:156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(block)
        at += BLOCK + (_size(bytes(block)) + BLOCK - 1) // BLOCK * BLOCK
    return bytes(out)
