# SPDX-License-Identifier: Apache-2.0
"""One 512-byte tar header, and the records of a pax header: bytes in, facts out.

Formats: POSIX ustar and pax (pax(1p)), GNU tar's, and V7.  Where readers in the wild disagree about a
header, it is refused instead of guessed: signs, underscores and spaces in numbers, negative sizes,
sizes of entries that have no data, prefixes in star's form.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import Limits

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

_FIELDS = struct.Struct("100s8s8s8s12s12s8ss100s8s32s32s8s8s155s12s")
NAME_FIELD = 100
CHECKSUM_AT = 148
CHECKSUM_END = 156
BLANKS_SUM = 8 * 0x20
POSIX = (b"ustar\x0000", b"ustar\x00\x00\x00")
GNU = b"ustar  \x00"
_V7 = bytes(8)
_BASE256 = 0x80
_BASE256_NEGATIVE = 0x40
NO_PAD = bytes(12)

_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,9}) ")
_PAX_NUMBER = re.compile(rb"[0-9]{1,19}")
_PAX_TIME = re.compile(rb"(-?)([0-9]{1,11})(?:\.([0-9]{0,40}))?")
NANOSECONDS = 1_000_000_000


class RawHeader(NamedTuple):
    """Fields of one header block.  name holds the ustar prefix; mtime is in seconds."""

    name: bytes
    kind: bytes
    mode: int
    size: int
    mtime: int
    link: bytes


def parse_number(field: bytes, what: str) -> int:
    """An octal or base-256 field, not negative.  Raises ImageInvalid.

    int() alone would take ``1_0``, ``+10`` and ``0o10``.
    """
    digits = field.rstrip(b" \0").lstrip(b" ")
    if not digits:
        return 0
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            raise ImageInvalid(f"tar header: {what} is not octal") from None
    if field[0] & _BASE256:
        if field[0] & _BASE256_NEGATIVE:
            raise ImageInvalid(f"tar header: {what} is negative")
        value = int.from_bytes(bytes((field[0] & ~_BASE256,)) + field[1:], "big")
        if value < 1 << 63:
            return value
    raise ImageInvalid(f"tar header: {what} is not a number")


def parse_time(field: bytes) -> int:
    """Seconds since 1970, octal or in base 256; there they may be negative.  Raises ImageInvalid."""
    if field[0] & _BASE256 and field[0] & _BASE256_NEGATIVE:
        return int.from_bytes(field, "big", signed=True)
    return parse_number(field, "mtime")


def parse_header(block: bytes) -> RawHeader:
    """A header block that is not all zero.  Raises ImageInvalid."""
    (name, mode, _, _, size, mtime, checksum, kind, link, magic, _, _, _, _, prefix, pad) = _FIELDS.unpack(
        block
    )
    total = sum(block) - sum(checksum) + BLANKS_SUM
    if total != parse_number(checksum, "checksum"):
        raise ImageInvalid("tar header: checksum is wrong")
    name = name.partition(b"\0")[0]
    if magic in POSIX:
        if pad != NO_PAD:
            raise ImageInvalid("tar header: star's own format is not read")
        if prefix[0]:
            name = prefix.partition(b"\0")[0] + b"/" + name
    elif magic not in (GNU, _V7):
        raise ImageInvalid("tar header: neither ustar, GNU nor V7")
    return RawHeader(
        name,
        kind,
        parse_number(mode, "mode"),
        parse_number(size, "size"),
        parse_time(mtime),
        link.partition(b"\0")[0],
    )


def parse_pax(data: bytes, limits: Limits) -> dict[bytes, bytes]:
    """Records of a pax header, each key once.  Raises ImageInvalid, ImageLimitExceeded."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        match = _PAX_LENGTH.match(data, position)
        if match is None:
            raise ImageInvalid("pax header: record without a length")
        end = position + int(match.group(1))
        if end > len(data) or end <= match.end() or data[end - 1] != ord("\n"):
            raise ImageInvalid("pax header: record of a wrong length")
        key, equals, value = data[match.end() : end - 1].partition(b"=")
        if not equals or not key:
            raise ImageInvalid("pax header: record without a key")
        if key in records:
            raise ImageInvalid("pax header: a key twice")
        records[key] = value
        if len(records) > limits.pax_records:
            raise ImageLimitExceeded(f"pax header: limit pax_records {limits.pax_records}")
        position = end
    return records


def pax_size(value: bytes) -> int:
    """The number in a pax ``size`` record.  Raises ImageInvalid."""
    if not _PAX_NUMBER.fullmatch(value):
        raise ImageInvalid("pax header: size is not a number")
    return int(value)


def pax_time(value: bytes) -> int:
    """Nanoseconds since 1970 of a pax ``mtime`` record, rounded down.  Raises ImageInvalid."""
    match = _PAX_TIME.fullmatch(value)
    if match is None:
        raise ImageInvalid("pax header: mtime is not a time")
    sign, seconds, fraction = match.groups()
    nanoseconds = int(seconds) * NANOSECONDS + int(((fraction or b"") + b"000000000")[:9])
    return -nanoseconds if sign else nanoseconds
