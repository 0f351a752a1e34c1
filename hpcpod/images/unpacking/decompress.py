# SPDX-License-Identifier: Apache-2.0
"""Layers' compression formats as generators: compressed chunks in, chunks of bounded size out.

The format is the one that the media type names, never a guess.  Several gzip members or zstd frames in a
row are legal by RFC 1952 and RFC 8878, as are skippable zstd frames; a cut or a wrong checksum is an
error, and so is anything else behind the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Protocol, cast

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import Limits
from hpcpod.images.sources.manifest import Compression
from hpcpod.images.unpacking.zstdframes import FrameWalker

RAW_CHUNK = 512 * 1024
"""Largest compressed chunk, bytes."""
OUT_CHUNK = 2 * 1024 * 1024
"""Largest chunk that comes out, whatever went in: bounds the memory that a bomb can take, and is so small
that what was just decompressed is still in a core's cache when it is hashed and written."""
_GZIP_WBITS = 31
_GZIP_STEP = 4096
_GZIP_FLAGS_END = 4
_GZIP_RESERVED = 0xE0


def decompress(compression: Compression, chunks: Iterator[bytes], limits: Limits) -> Iterator[bytes]:
    """The plain bytes of a layer.  Raises ImageInvalid, ImageLimitExceeded."""
    if compression is Compression.GZIP:
        return _gunzip(chunks, limits)
    if compression is Compression.ZSTD:
        return _unzstd(chunks, limits)
    if compression in (Compression.BZIP2, Compression.XZ):
        from hpcpod.images.unpacking import streams

        return (streams.unxz if compression is Compression.XZ else streams.unbzip2)(chunks, limits)
    return chunks


def _gunzip(chunks: Iterator[bytes], limits: Limits) -> Iterator[bytes]:
    from isal import isal_zlib

    broken = cast("type[Exception]", isal_zlib.error)
    member: _Inflate | None = isal_zlib.decompressobj(wbits=_GZIP_WBITS)
    produced = empty = 0
    head = b""
    step = RAW_CHUNK
    for chunk in chunks:
        position = 0
        while position < len(chunk):
            if member is None:
                member, produced, head = isal_zlib.decompressobj(wbits=_GZIP_WBITS), 0, b""
            piece = chunk if step >= len(chunk) and not position else chunk[position : position + step]
            if len(head) < _GZIP_FLAGS_END:
                head = _checked_head(head + piece[: _GZIP_FLAGS_END - len(head)])
            try:
                out = member.decompress(piece, OUT_CHUNK)
            except broken as error:
                raise ImageInvalid(f"layer: not gzip, or broken: {error}") from None
            produced += len(out)
            if out:
                yield out
            if member.eof:
                used = len(piece) - len(member.unused_data)
                # What follows a member is copied: small steps keep small members from costing a chunk each.
                step = max(_GZIP_STEP, 2 * used)
                member, empty = None, _count_empty(empty, produced, limits)
            else:
                used = len(piece) - len(member.unconsumed_tail)
                step = min(2 * step, RAW_CHUNK)
                if used == len(piece) and len(out) == OUT_CHUNK:
                    yield from _rest(member)
            position += used
    if member is not None:
        raise ImageInvalid("layer: gzip ends too early")


def _checked_head(head: bytes) -> bytes:
    """The first bytes of a member.  ISA-L passes over what RFC 1952 (2.3.1.2) says must be an error."""
    if len(head) == _GZIP_FLAGS_END and head[-1] & _GZIP_RESERVED:
        raise ImageInvalid("layer: not gzip, or broken: reserved flags in a header")
    return head


class _Inflate(Protocol):
    """The part of isal_zlib's decompressor that is used here."""

    eof: bool
    unused_data: bytes
    unconsumed_tail: bytes

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _rest(member: _Inflate) -> Iterator[bytes]:
    """What a member still holds when its input is used up but its last answer was a full chunk."""
    while out := member.decompress(b"", OUT_CHUNK):
        yield out
        if len(out) < OUT_CHUNK:
            return


def _count_empty(empty: int, produced: int, limits: Limits) -> int:
    """Members without content cost time and add nothing; a few are what concatenating tools write."""
    if produced:
        return empty
    if empty >= limits.empty_frames:
        raise ImageLimitExceeded(
            f"layer: gzip members without content, limit empty_frames {limits.empty_frames}"
        )
    return empty + 1


class _Source:
    """What zstandard reads from; shows each chunk to the frame walker on its way."""

    def __init__(self, chunks: Iterator[bytes], walker: FrameWalker) -> None:
        self._chunks = chunks
        self._walker = walker

    def read(self, count: int) -> bytes:
        """The next chunk; chunks are never longer than RAW_CHUNK, which is what count is."""
        chunk = next(self._chunks, b"")
        self._walker.feed(chunk)
        return chunk


def _unzstd(chunks: Iterator[bytes], limits: Limits) -> Iterator[bytes]:
    import zstandard

    walker = FrameWalker(limits)
    decompressor = zstandard.ZstdDecompressor(max_window_size=limits.zstd_window)
    source = cast("IO[bytes]", _Source(chunks, walker))
    reader = decompressor.stream_reader(source, read_size=RAW_CHUNK, read_across_frames=True)
    try:
        while out := reader.read(OUT_CHUNK):
            yield out
    except zstandard.ZstdError as error:
        raise ImageInvalid(f"layer: broken zstd: {error}") from None
    for chunk in chunks:
        walker.feed(chunk)
    # The library takes a cut stream for a finished one.
    walker.finish()
