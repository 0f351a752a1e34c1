# SPDX-License-Identifier: Apache-2.0
"""Entries of a tar archive, read once from front to back.

The reader holds one chunk at a time, whatever the size of the archive; file data goes from the chunk
straight to a file descriptor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import Limits
from hpcpod.images.unpacking.tarheader import (
    BLOCK,
    NANOSECONDS,
    ZERO_BLOCK,
    RawHeader,
    parse_header,
    parse_pax,
    pax_size,
    pax_time,
)
from hpcpod.log import shown

USTAR_SIZE_END = 1 << 33
"""Sizes from here on do not fit the octal field of a ustar header."""
MTIME_END = 1 << 37
"""Seconds from 1970, either way; those beyond overflow file systems and nanosecond arithmetic."""


class Kind(Enum):
    """What an entry is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    DEVICE = "device"
    FIFO = "fifo"


class Entry(NamedTuple):
    """One entry with its extension headers merged.  name and link are as in the archive."""

    name: bytes
    kind: Kind
    mode: int
    size: int
    mtime_ns: int
    link: bytes


_KINDS = {
    b"\0": Kind.FILE,
    b"0": Kind.FILE,
    b"7": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.DEVICE,
    b"4": Kind.DEVICE,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
_GLOBAL_REFUSED = (b"path", b"linkpath", b"size", b"mtime", b"charset")


class ByteStream:
    """Chunks of bytes read as blocks, copied or passed over."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._position = 0

    def _more(self) -> bool:
        """Take the next chunk; False at the end."""
        for chunk in self._chunks:
            if chunk:
                self._chunk, self._position = chunk, 0
                return True
        self._chunk, self._position = b"", 0
        return False

    def at_hand(self) -> tuple[bytes, int]:
        """The present chunk, and where in it the next byte is; may be at its end."""
        return self._chunk, self._position

    def went_to(self, position: int) -> None:
        """Somebody took the bytes of the present chunk up to there."""
        self._position = position

    def take(self, count: int) -> bytes:
        """The next count bytes; fewer only at the end of the stream."""
        start = self._position
        piece = self._chunk[start : start + count]
        self._position = start + len(piece)
        if len(piece) == count:
            return piece
        pieces = [piece]
        missing = count - len(piece)
        while missing and self._more():
            piece = self._chunk[:missing]
            self._position = len(piece)
            missing -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def copy(self, count: int, fd: int | None) -> int:
        """Write the next count bytes to fd, or pass over them; returns how many there were."""
        missing = count
        while missing:
            available = len(self._chunk) - self._position
            if not available:
                if not self._more():
                    break
                continue
            step = min(available, missing)
            if fd is not None:
                write_all(fd, memoryview(self._chunk)[self._position : self._position + step])
            self._position += step
            missing -= step
        return count - missing

    def drain_zeros(self) -> bool:
        """Read to the end; whether all of it was zero."""
        clean = not self._chunk[self._position :].strip(b"\0")
        while self._more():
            clean = clean and not self._chunk.strip(b"\0")
        return clean


def write_all(fd: int, view: memoryview) -> None:
    """write(2) until all is written.  Raises OSError."""
    written = os.write(fd, view)
    while written < len(view):
        view = view[written:]
        written = os.write(fd, view)


class TarReader:
    """Iterates over entries; the data of a FILE is taken with copy_data before the next entry.

    Raises ImageInvalid and ImageLimitExceeded while iterating.  Whatever follows the end-of-archive
    blocks must be zero, so that no two readers see different archives.
    """

    def __init__(self, stream: ByteStream, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._data = 0
        self._padding = 0

    def copy_data(self, fd: int) -> None:
        """Write the whole data of the present entry to fd.  Raises OSError as write(2)."""
        self._consume(fd)

    def at_header(self) -> ByteStream | None:
        """The stream where the next header is, for one who takes whole entries off it; None for no tar."""
        if type(self) is not TarReader:
            return None
        if self._data:
            self._consume(None)
        if self._padding:
            self._padding -= self._stream.copy(self._padding, None)
        return self._stream

    def _consume(self, fd: int | None) -> None:
        count, self._data = self._data, 0
        if self._stream.copy(count, fd) != count:
            raise ImageInvalid("tar: ends in the middle of a file's data")

    def __iter__(self) -> Iterator[Entry]:
        """Entries in the order of the archive."""
        while (header := self._next_header()) is not None:
            entry = self._plain(header) if header.kind in _KINDS else self._extended(header)
            if entry is None:
                return
            yield entry

    def _next_header(self) -> RawHeader | None:
        if self._data or self._padding:
            self._consume(None)
            if self._stream.copy(self._padding, None) != self._padding:
                return None  # `umoci insert` ends so: the last file whole, without padding and zero blocks
            self._padding = 0
        block = self._stream.take(BLOCK)
        if len(block) == BLOCK and block != ZERO_BLOCK:
            return parse_header(block)
        if len(block) % BLOCK:
            raise ImageInvalid("tar: ends in the middle of a header")
        if not self._stream.drain_zeros():
            raise ImageInvalid("tar: has data after its end")
        return None

    def _expect(self, size: int) -> None:
        self._data = size
        self._padding = -size % BLOCK

    def _plain(self, header: RawHeader) -> Entry:
        if abs(header.mtime) >= MTIME_END:
            raise ImageInvalid(f"tar entry {shown(header.name)}: mtime out of range")
        return self._entry(header, header.name, header.link, header.size, header.mtime * NANOSECONDS)

    def _entry(self, header: RawHeader, name: bytes, link: bytes, size: int, mtime_ns: int) -> Entry:
        kind = _KINDS[header.kind]
        if kind is Kind.FILE:
            if name.endswith(b"/"):
                # V7 had no type for directories; with another type flag readers disagree.
                if header.kind != b"\0" or size:
                    raise ImageInvalid(f"tar entry {shown(name)}: a file whose name ends with a slash")
                kind = Kind.DIRECTORY
            elif size > self._limits.file_bytes:
                raise ImageLimitExceeded(
                    f"tar entry {shown(name)}: {size} bytes, limit file_bytes {self._limits.file_bytes}"
                )
            self._expect(size)
        elif size:
            raise ImageInvalid(f"tar entry {shown(name)}: a {kind.value} with {size} bytes of data")
        return Entry(name, kind, header.mode, size, mtime_ns, link)

    def _extended(self, header: RawHeader | None) -> Entry | None:
        """Merge extension headers up to the entry that they belong to; None at the archive's end."""
        long: dict[bytes, bytes] = {}
        records: dict[bytes, bytes] | None = None
        budget = self._limits.header_bytes
        while header is not None and header.kind not in _KINDS:
            data = self._extension(header, budget)
            budget -= len(data)
            if header.kind in b"LK":
                if header.kind in long:
                    raise ImageInvalid("tar: two GNU long names before one entry")
                long[header.kind] = data.partition(b"\0")[0]
            elif header.kind == b"x":
                if records is not None:
                    raise ImageInvalid("tar: two pax headers before one entry")
                records = parse_pax(data, self._limits)
            else:
                _check_global(parse_pax(data, self._limits))
            header = self._next_header()
        if header is None:
            if long or records is not None:
                raise ImageInvalid("tar: ends after an extension header")
            return None
        return self._merged(header, long, records or {})

    def _extension(self, header: RawHeader, budget: int) -> bytes:
        if header.kind not in (b"L", b"K", b"x", b"g"):
            raise ImageInvalid(f"tar entry {shown(header.name)}: type {shown(header.kind)} is not read")
        if header.size > budget:
            raise ImageLimitExceeded(
                f"tar: extension header of {header.size} B, limit header_bytes {self._limits.header_bytes}"
            )
        data = self._stream.take(header.size)
        if len(data) != header.size:
            raise ImageInvalid("tar: ends in the middle of an extension header")
        self._padding = -header.size % BLOCK
        return data

    def _merged(self, header: RawHeader, long: dict[bytes, bytes], records: dict[bytes, bytes]) -> Entry:
        if any(key.startswith(b"GNU.sparse.") for key in records):
            raise ImageInvalid(f"tar entry {shown(header.name)}: sparse files are not read")
        name = _one_of(header.name, long.get(b"L"), records.get(b"path"))
        link = _one_of(header.link, long.get(b"K"), records.get(b"linkpath"))
        size = header.size
        if b"size" in records:
            size = pax_size(records[b"size"])
            if header.size != size and (size < USTAR_SIZE_END or header.size >= USTAR_SIZE_END):
                raise ImageInvalid(f"tar entry {shown(name)}: two sizes, {header.size} and {size}")
        mtime_ns = pax_time(records[b"mtime"]) if b"mtime" in records else header.mtime * NANOSECONDS
        if abs(mtime_ns) >= MTIME_END * NANOSECONDS:
            raise ImageInvalid(f"tar entry {shown(name)}: mtime out of range")
        return self._entry(header, name, link, size, mtime_ns)


def _one_of(plain: bytes, gnu: bytes | None, pax: bytes | None) -> bytes:
    """The long form where there is one; two that differ are refused."""
    if gnu is not None and pax is not None and gnu != pax:
        raise ImageInvalid(f"tar entry {shown(plain)}: GNU and pax headers name it differently")
    found = pax if pax is not None else gnu
    return plain if found is None else found


def _check_global(records: dict[bytes, bytes]) -> None:
    """Global records may only say what does not matter here (git's comment, owners, times of access)."""
    for key in records:
        if key in _GLOBAL_REFUSED or key.startswith(b"GNU.sparse."):
            raise ImageInvalid(f"tar: a global pax header sets {shown(key)}")
