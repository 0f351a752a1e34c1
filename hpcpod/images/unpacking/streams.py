# SPDX-License-Identifier: Apache-2.0
"""bzip2 and xz by the standard library: compressed chunks in, chunks of bounded size out.

Image layers do not use them, App Container Images may (decompress.py has the others).  Several streams in a
row are legal in both, as is the zero padding between xz streams (The .xz File Format, 2.2); anything else
behind the last one is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import Limits

OUT_CHUNK = 4 * 1024 * 1024
"""Largest chunk that comes out."""
STEP = 256 * 1024
_SMALL_STEP = 4096
_XZ_PADDING = 4
_XZ_EXTRA = 1 << 20
"""What the decoder takes beside the window."""


class _Stream(Protocol):
    """What the standard library's two decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def unbzip2(chunks: Iterator[bytes], limits: Limits) -> Iterator[bytes]:
    """The plain bytes.  Raises ImageInvalid, ImageLimitExceeded."""
    import bz2

    return _Streams("bzip2", bz2.BZ2Decompressor, OSError, limits).plain(chunks)


def unxz(chunks: Iterator[bytes], limits: Limits) -> Iterator[bytes]:
    """The plain bytes; limit zstd_window bounds the dictionary.  Raises ImageInvalid, ImageLimitExceeded."""
    import lzma

    memory = limits.zstd_window + _XZ_EXTRA

    def make() -> _Stream:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory)

    return _Streams("xz", make, lzma.LZMAError, limits).plain(chunks)


class _Streams:
    """Streams of one format, one after the other."""

    def __init__(
        self, name: str, make: Callable[[], _Stream], errors: type[Exception], limits: Limits
    ) -> None:
        self._name = name
        self._make = make
        self._errors = errors
        self._limits = limits
        self._stream: _Stream | None = make()
        self._empty = 0
        self._produced = 0
        self._zeros = 0
        self._step = STEP

    def plain(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            position = 0
            while position < len(chunk):
                if self._stream is None:
                    position += self._between(chunk[position : position + self._step])
                    if self._stream is None:
                        continue
                piece = chunk[position : position + self._step]
                yield from self._feed(piece)
                position += len(piece) - self._unused()
        if self._stream is not None:
            raise ImageInvalid(f"{self._name}: ends too early")
        if self._zeros % _XZ_PADDING:
            raise ImageInvalid(f"{self._name}: data behind its end")

    def _between(self, piece: bytes) -> int:
        """Pass over padding, and begin the next stream at what is none; how many bytes were padding."""
        rest = piece.lstrip(b"\0") if self._name == "xz" else piece
        padding = len(piece) - len(rest)
        self._zeros += padding
        if rest:
            if self._zeros % _XZ_PADDING:
                raise ImageInvalid(f"{self._name}: data behind its end")
            self._stream, self._produced, self._zeros = self._make(), 0, 0
        return padding

    def _feed(self, piece: bytes) -> Iterator[bytes]:
        stream = self._stream
        assert stream is not None
        data = piece
        while True:
            try:
                out = stream.decompress(data, OUT_CHUNK)
            except self._errors as error:
                raise self._broken(error) from None
            data = b""
            self._produced += len(out)
            if out:
                yield out
            if stream.eof or (stream.needs_input and len(out) < OUT_CHUNK):
                return

    def _unused(self) -> int:
        """End the stream if it has ended; how many bytes behind it were not taken."""
        stream = self._stream
        if stream is None or not stream.eof:
            self._step = min(2 * self._step, STEP)
            return 0
        if not self._produced:
            self._empty += 1
            if self._empty > self._limits.empty_frames:
                raise ImageLimitExceeded(
                    f"{self._name}: streams without content, limit empty_frames {self._limits.empty_frames}"
                )
        # What follows a stream is copied: small steps keep small streams from costing a chunk each.
        self._step = _SMALL_STEP
        self._stream = None
        return len(stream.unused_data)

    def _broken(self, error: Exception) -> ImageInvalid:
        text = str(error)
        if "emory" in text:
            return ImageLimitExceeded(
                f"{self._name}: needs more memory than limit zstd_window {self._limits.zstd_window}"
            )
        return ImageInvalid(f"{self._name}: broken: {text[:80].lower()}")
