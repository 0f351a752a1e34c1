# SPDX-License-Identifier: Apache-2.0
"""A file of which nothing is used but what was hashed, without a copy of it.

The file is read once, for its digest and for that of each piece.  Whatever is read later is taken by whole
pieces, each of which must still have its digest: somebody who writes to the file meanwhile makes an error,
never another image.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable

from hpcpod.errors import ImageDigestMismatch

PIECE = 256 * 1024
"""Bytes of a piece: about what one block of a file system asks for, so little is hashed in vain."""
_CACHED = 24
"""Pieces kept: tables of metadata and the data that they speak of are far apart."""
_STEP = 16
"""Pieces that are read at once."""


class HashedFile:
    """A regular file by its descriptor, which stays the caller's.  size: its bytes.

    Raises ImageDigestMismatch when the file changes after it was hashed, OSError as pread(2).
    """

    def __init__(self, fd: int, size: int) -> None:
        self.size = size
        self._fd = fd
        self._digest = ""
        self._pieces: list[bytes] = []
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    @property
    def digest(self) -> str:
        """``sha256:…`` of all of it; the first call reads it."""
        if not self._digest:
            self._digest = self._hash()
        return self._digest

    def _hash(self) -> str:
        """Hash the whole in one thread and its pieces in another: neither holds the interpreter's lock."""
        from concurrent.futures import ThreadPoolExecutor

        whole, pieces, at = hashlib.sha256(), list[bytes](), 0
        with ThreadPoolExecutor(1) as pool:
            while at < self.size:
                chunk = self._exactly(min(_STEP * PIECE, self.size - at), at)
                done = pool.submit(whole.update, chunk)
                view = memoryview(chunk)
                for start in range(0, len(chunk), PIECE):
                    pieces.append(hashlib.sha256(view[start : start + PIECE]).digest())
                done.result()
                at += len(chunk)
        self._pieces = pieces
        return f"sha256:{whole.hexdigest()}"

    def _exactly(self, count: int, at: int) -> bytes:
        chunk = os.pread(self._fd, count, at)
        while len(chunk) < count:  # a file system may give less at once; borders of pieces must not move
            more = os.pread(self._fd, count - len(chunk), at + len(chunk))
            if not more:
                raise ImageDigestMismatch(f"ends after {at + len(chunk)} of {self.size} bytes")
            chunk += more
        return chunk

    def read(self, at: int, count: int) -> bytes:
        """That many bytes from an offset; fewer at the file's end."""
        assert self.digest
        end = min(at + count, self.size)
        if not 0 <= at < end:
            return b""
        first, last = at // PIECE, (end - 1) // PIECE
        if first == last:
            return self._piece(first)[at - first * PIECE : end - first * PIECE]
        whole = b"".join(self._piece(number) for number in range(first, last + 1))
        return whole[at - first * PIECE : end - first * PIECE]

    def below(self, start: int) -> Callable[[int, int], bytes]:
        """What reads from offsets that count from start."""
        return lambda at, count: self.read(start + at, count)

    def _piece(self, number: int) -> bytes:
        found = self._kept.get(number)
        if found is not None:
            self._kept.move_to_end(number)
            return found
        piece = self._exactly(min(PIECE, self.size - number * PIECE), number * PIECE)
        if hashlib.sha256(piece).digest() != self._pieces[number]:
            raise ImageDigestMismatch("changed while it was read")
        self._kept[number] = piece
        if len(self._kept) > _CACHED:
            self._kept.popitem(last=False)
        return piece
