# SPDX-License-Identifier: Apache-2.0
"""The frame structure of a zstd stream (RFC 8878, section 3.1), without decompressing it.

The decompressor that hpcpod uses ends silently where a stream was cut.  Walking over frame and block
headers tells a whole stream from a cut one, counts frames, and knows a frame's window before the
decompressor allocates it.
"""

from __future__ import annotations

from enum import Enum

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import Limits

_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50
_SKIPPABLE_MASK = 0xFFFFFFF0
_DICT_BYTES = (0, 1, 2, 4)
_CONTENT_BYTES = (0, 2, 4, 8)
_RESERVED_BLOCK = 3
_RLE_BLOCK = 1


class _At(Enum):
    MAGIC = "magic number"
    SKIP = "skippable frame"
    DESCRIPTOR = "frame header"
    HEADER = "frame header's end"
    BLOCK = "block header"


class FrameWalker:
    """Fed with the stream in pieces of any size.  Raises ImageInvalid, ImageLimitExceeded."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._at = _At.MAGIC
        self._need = 4
        self._pass = 0
        self._held = b""
        self._descriptor = 0
        self._last = False
        self._blocks = 0
        self._empty = 0
        self._frames = 0

    def feed(self, chunk: bytes) -> None:
        """Walk over the next piece."""
        position, end = 0, len(chunk)
        while position < end:
            if self._pass:
                step = min(self._pass, end - position)
                self._pass -= step
                position += step
                continue
            piece = chunk[position : position + self._need - len(self._held)]
            position += len(piece)
            self._held += piece
            if len(self._held) == self._need:
                value, self._held = self._held, b""
                self._step(value)

    def finish(self) -> None:
        """The stream is over: it must be behind a frame."""
        if self._at is not _At.MAGIC or self._held or self._pass or not self._frames:
            raise ImageInvalid("layer: zstd ends too early")

    def _step(self, value: bytes) -> None:
        number = int.from_bytes(value, "little")
        if self._at is _At.MAGIC:
            self._magic(number)
        elif self._at is _At.SKIP:
            self._pass = number
            self._frame_over(empty=True)
        elif self._at is _At.DESCRIPTOR:
            self._descriptor = number
            self._go(_At.HEADER, self._header_bytes(number))
        elif self._at is _At.HEADER:
            self._header(value)
            self._blocks = 0
            self._go(_At.BLOCK, 3)
        else:
            self._block(number)

    def _go(self, at: _At, need: int) -> None:
        self._at, self._need = at, need

    def _magic(self, number: int) -> None:
        if number == _MAGIC:
            self._go(_At.DESCRIPTOR, 1)
        elif number & _SKIPPABLE_MASK == _SKIPPABLE:
            self._go(_At.SKIP, 4)
        else:
            raise ImageInvalid("layer: not zstd, or something else behind the last zstd frame")

    @staticmethod
    def _header_bytes(descriptor: int) -> int:
        single = descriptor >> 5 & 1
        content = _CONTENT_BYTES[descriptor >> 6] or single
        return (1 - single) + _DICT_BYTES[descriptor & 3] + content

    def _header(self, value: bytes) -> None:
        if self._descriptor >> 5 & 1:
            skip = _DICT_BYTES[self._descriptor & 3]
            content = int.from_bytes(value[skip:], "little")
            # Fields of two bytes count from 256 (RFC 8878, section 3.1.1.1.4).
            window = content + 256 if len(value) - skip == 2 else content
        else:
            base = 1 << (10 + (value[0] >> 3))
            window = base + base // 8 * (value[0] & 7)
        if window > self._limits.zstd_window:
            raise ImageLimitExceeded(
                f"layer: zstd window of {window} bytes, limit zstd_window {self._limits.zstd_window}"
            )

    def _block(self, number: int) -> None:
        last, kind, size = number & 1, number >> 1 & 3, number >> 3
        if kind == _RESERVED_BLOCK:
            raise ImageInvalid("layer: broken zstd: reserved block type")
        self._blocks += bool(size)
        self._pass = 1 if kind == _RLE_BLOCK else size
        if last:
            self._pass += 4 if self._descriptor >> 2 & 1 else 0
            self._frame_over(empty=not self._blocks)

    def _frame_over(self, *, empty: bool) -> None:
        self._go(_At.MAGIC, 4)
        self._frames += 1
        self._empty += empty
        if self._empty > self._limits.empty_frames:
            raise ImageLimitExceeded(
                f"layer: zstd frames without content, limit empty_frames {self._limits.empty_frames}"
            )
