# SPDX-License-Identifier: Apache-2.0
"""gzip and zstd streams: what comes out is what zlib, and libzstd frame by frame, make of them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import zstandard

from hpcpod.errors import HpcpodError, ImageLimitExceeded
from hpcpod.images.sources.manifest import Compression
from hpcpod.images.unpacking.decompress import decompress
from tests.fuzz.target import SMALL, Broken, Target, refused
from tests.testbed.layouts import gz, zst

SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 5) + b"extra"
LARGEST = 4 << 20
"""Bytes that are taken from one input; a bomb is cut here, as bytes_out would."""


def unzstd(data: bytes, step: int = LARGEST) -> bytes | None:
    """All frames, each whole; None for what libzstd refuses, or more than LARGEST."""
    out = b""
    while data:
        if data[1:4] == SKIPPABLE[1:4] and 0x50 <= data[0] <= 0x5F:
            end = 8 + int.from_bytes(data[4:8], "little")
            if len(data) < end or len(data) < 8:
                return None
            data = data[end:]
            continue
        frame = zstandard.ZstdDecompressor(max_window_size=SMALL.zstd_window).decompressobj()
        at = 0
        while not frame.eof and at < len(data):
            try:
                out += frame.decompress(data[at : at + step])
            except zstandard.ZstdError:
                return None
            at += step
        if not frame.eof or len(out) > LARGEST:
            return None
        data = frame.unused_data + data[at:]
    return out


def gunzip(data: bytes) -> bytes | None:
    """All members, each whole; None for what zlib refuses, or more than LARGEST."""
    out = b""
    while data:
        member = zlib.decompressobj(wbits=31)
        try:
            out += member.decompress(data, LARGEST)
        except zlib.error:
            return None
        if not member.eof or len(out) > LARGEST:
            return None
        data = member.unused_data
    return out


def taken(form: Compression, data: bytes, step: int) -> bytes | None:
    """What hpcpod makes of it; None for a refusal.  Raises ImageLimitExceeded."""
    pieces: Iterator[bytes] = (data[at : at + step] for at in range(0, len(data), step))
    out = []
    count = 0
    try:
        for chunk in decompress(form, pieces, SMALL):
            out.append(chunk)
            count += len(chunk)
            if len(chunk) > LARGEST:
                raise Broken(f"a chunk of {len(chunk)} bytes")
            if count > LARGEST:
                raise ImageLimitExceeded("more than is looked at")
    except ImageLimitExceeded:
        raise
    except HpcpodError as error:
        refused(error)
        return None
    return b"".join(out)


def run(data: bytes) -> None:
    """The first byte: gzip or zstd, and the size of pieces."""
    how, body = (data[0], data[1:]) if data else (0, b"")
    form = Compression.ZSTD if how & 1 else Compression.GZIP
    try:
        mine = taken(form, body, (1, 7, 4096, 1 << 20)[how >> 1 & 3])
    except ImageLimitExceeded as error:
        refused(error)
        return
    theirs = unzstd(body) if form is Compression.ZSTD else gunzip(body)
    if mine is None and theirs is not None and body:
        raise Broken(f"{form.value}: refused, but {len(theirs)} bytes to others")
    if form is Compression.ZSTD and theirs is None:
        # Streaming, libzstd does not compare a frame's content size when its last block is empty.
        theirs = unzstd(body, 1)
    if mine is not None and theirs != mine:
        raise Broken(
            f"{form.value}: accepted, but {'other bytes' if theirs is not None else 'refused'} by others"
        )


TEXT = b"abcdefgh" * 40 + bytes(range(256))
PLAIN_FRAME = zstandard.ZstdCompressor(1, write_checksum=False, write_content_size=False).compress(TEXT)

TARGET = Target(
    run=run,
    seeds={
        "gzip": b"\6" + gz(TEXT),
        "members": b"\4" + gz(TEXT) + gz(b"") + gz(b"x"),
        "zstd": b"\7" + zst(TEXT),
        "frames": b"\5" + zst(TEXT) + SKIPPABLE + zst(b"") + PLAIN_FRAME,
        "no sizes": b"\7" + PLAIN_FRAME,
        "runs": b"\7" + zst(b"a" * 5000) + zst(bytes(300)),
        "pieces": b"\1" + zst(TEXT) + SKIPPABLE,
    },
    known={
        "size that lies before an empty block": bytes.fromhex("0128b52ffd244001000099e9d851"),
        "reserved gzip flag": b"\4" + gz(TEXT) + gz(b"x")[:3] + b"\x40" + gz(b"x")[4:],
        "reserved gzip flag, in pieces": b"\0" + gz(b"x")[:3] + b"\x80" + gz(b"x")[4:],
    },
    longest=2048,
    words=(b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", SKIPPABLE, gz(b""), zst(b"")),
    runs=5000,
)
