# SPDX-License-Identifier: Apache-2.0
"""Compressed files of an EROFS image: from their indexes to extents, from extents to plain bytes.

A file is cut into logical clusters of one size.  Its index says of each whether an extent begins in it,
where in it, and in which blocks that extent lies compressed; an extent ends where the next begins.  The
kernel looks extents up; here the index is read once from front to back, so no entry can lead anywhere.
Formats: full (8 bytes a cluster), and compact (packs of 2 or 16 clusters); erofs_fs.h, zmap.c for packs.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from hpcpod.errors import ImageInvalid, ImageLimitExceeded, ImageUnsupported
from hpcpod.images.sources.blocks import codec
from hpcpod.images.sources.erofs import (
    COMPRESSED_COMPACT,
    COMPRESSED_FULL,
    COMPRESSION_LIST,
    INLINE,
    LZ4_PADDED,
    PLAIN,
    Erofs,
    Inode,
)

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from hpcpod.images.sources.blocks import Codec

_HEADER = struct.Struct("<IHBB")
_INDEX = struct.Struct("<HHI")
_RAW, _HEAD, _NO_HEAD, _HEAD2 = range(4)
_COMPACT_2B, _BIG, _BIG2, _INLINE, _INTERLACED, _FRAGMENT = (1 << bit for bit in range(6))
_EXTENTS = 1
"""Of full indexes: the bit that means short packs in compact ones."""
_WHOLE_FRAGMENT = 1 << 63
_PARTIAL = 1 << 15
_COUNT = 1 << 11
"""In an entry that begins no extent: the rest is how many blocks the extent before it has."""
_LOW = 12
"""Bits of an entry in a pack, beside the two of its type, at least."""
_CLUSTER_MAX = 1 << 20
_PLAIN_MAX = 12 << 20
"""Z_EROFS_PCLUSTER_MAX_SIZE and Z_EROFS_PCLUSTER_MAX_DSIZE: compressed and plain bytes of an extent."""
_ALGORITHMS = ("lz4", "microlzma", "deflate", "zstd")
_CACHED = 4
_MISSING = -1
"""In the place of a count of blocks that should be there and is not."""


class Entry(NamedTuple):
    """One cluster's part of the index.

    offset: where in it an extent begins.  block: of that extent's data.  blocks: how many
    the extent before has, 0 where the entry does not say.  end: offset in the image of what follows the
    entry, or its pack.
    """

    kind: int
    offset: int = 0
    block: int = 0
    blocks: int = 0
    partial: bool = False
    end: int = 0


class Extent(NamedTuple):
    """start, size: in the file's plain data.  at, stored: of what is stored, in the image.

    at: -1 for data in the file of ends, from the offset stored.
    """

    start: int
    size: int
    kind: int
    at: int
    stored: int
    partial: bool = False


class Compressed:
    """A compressed file.  Raises ImageInvalid, ImageUnsupported."""

    def __init__(self, image: Erofs, file: Inode) -> None:
        self._image = image
        self._file = file
        at = file.behind + 7 & -8
        raw = image.exactly(at, _HEADER.size)
        self._fragment, self._advice, algorithms, log = _HEADER.unpack(raw)
        self._index = at + _HEADER.size
        self._whole = int.from_bytes(raw, "little")
        if self._whole & _WHOLE_FRAGMENT:
            self._advice = _FRAGMENT
        elif file.layout == COMPRESSED_FULL and self._advice & _EXTENTS:
            raise ImageUnsupported("erofs: a file with an index of extents, which is not read")
        self._inline = self._fragment >> 16 if self._advice & _INLINE else 0
        self._log = image.log + (log & 15)
        self._names = algorithms & 15, algorithms >> 4
        self._codecs: dict[int, Codec] = {}
        if self._log > 14 and not self._whole & _WHOLE_FRAGMENT:
            raise ImageUnsupported(f"erofs: clusters of 2^{self._log} bytes, which are not read")
        if file.layout == COMPRESSED_COMPACT and log & 15:
            raise ImageUnsupported("erofs: clusters larger than a block in a short index, which is not read")

    def data(self) -> Iterator[bytes | int]:
        """The plain data in order."""
        for extent in self.extents():
            if extent.at < 0:
                yield from self._image.end_of_file(self._file, extent.stored, extent.size)
            else:
                yield self.plain(extent)

    # ----------------------------------------------------------------------- extents

    def extents(self) -> Iterator[Extent]:
        """All extents in order, from 0 to the end of the file, without gaps."""
        size = self._file.size
        if self._whole & _WHOLE_FRAGMENT:
            if size:
                yield Extent(0, size, _HEAD, -1, self._whole ^ _WHOLE_FRAGMENT)
            return
        head, start, count = Entry(_NO_HEAD), 0, 0
        first = False
        for number, entry in enumerate(self._entries()):
            if entry.kind == _NO_HEAD:
                if not number:
                    raise ImageInvalid("erofs: a file's first cluster begins nothing")
                count = entry.blocks or _MISSING if first else count
                first = False
                continue
            at = (number << self._log) + entry.offset
            if at >= size:
                break
            if number:
                yield self._extent(head, (start, at), count)
            elif at:
                raise ImageInvalid("erofs: a file's first extent is not at its beginning")
            head, start, count, first = entry, at, 0, True
        if size:
            yield self._last(head, start, count, entry.end)

    def _extent(self, head: Entry, span: tuple[int, int], count: int) -> Extent:
        """The extent from its beginning to the next one's.  count: of blocks; 0 where no entry could say."""
        start, end = span
        big = self._advice & (_BIG if head.kind == _HEAD else _BIG2)
        if big and count == _MISSING:
            raise ImageInvalid("erofs: an extent that does not say how many blocks it has")
        stored = (count if big and count else 1) << self._image.log
        if stored > _CLUSTER_MAX:
            raise ImageInvalid(f"erofs: an extent of {stored} bytes, compressed")
        return self._bounded(
            Extent(start, end - start, head.kind, head.block << self._image.log, stored, head.partial)
        )

    @staticmethod
    def _bounded(extent: Extent) -> Extent:
        if not 0 < extent.size <= _PLAIN_MAX:
            raise ImageInvalid(f"erofs: an extent of {extent.size} bytes")
        return extent

    def _last(self, head: Entry, start: int, count: int, behind: int) -> Extent:
        """The last extent, whose data may be behind the index, or in the file of ends."""
        size = self._file.size
        if self._advice & _FRAGMENT:
            high = head.block << 32 if self._file.layout == COMPRESSED_FULL else 0
            return Extent(start, size - start, _HEAD, -1, self._fragment | high)
        if not self._inline:
            return self._extent(head, (start, size), count)
        if behind % self._image.block_size + self._inline > self._image.block_size:
            raise ImageInvalid("erofs: a file's end over the end of a block")
        return self._bounded(Extent(start, size - start, head.kind, behind, self._inline))

    # ----------------------------------------------------------------------- index

    def _entries(self) -> Iterator[Entry]:
        count = -(-self._file.size >> self._log)
        return self._full(count) if self._file.layout == COMPRESSED_FULL else self._compact(count)

    def _full(self, count: int) -> Iterator[Entry]:
        at = self._index + 8
        for _ in range(count):
            advice, offset, block = _INDEX.unpack(self._image.exactly(at, _INDEX.size))
            at += _INDEX.size
            kind = advice & 3
            if kind == _NO_HEAD:
                delta = block & 0xFFFF
                yield Entry(kind, blocks=self._count(delta), end=at)
            else:
                yield self._head(kind, offset, block, partial=bool(advice & _PARTIAL), end=at)

    def _count(self, low: int) -> int:
        if not low & _COUNT:
            return 0
        if not self._advice & (_BIG | _BIG2):
            raise ImageInvalid("erofs: a number of blocks where there is none")
        return low & _COUNT - 1

    def _head(self, kind: int, offset: int, block: int, *, partial: bool, end: int) -> Entry:
        if offset >> self._log:
            raise ImageInvalid("erofs: an extent begins outside its cluster")
        return Entry(kind, offset, block, 0, partial, end)

    def _compact(self, count: int) -> Iterator[Entry]:
        """Packs of two in 8 bytes, up to a border of 32; then, if the file says so, 16 in 32; then of two."""
        at = self._index
        first = min(-at % 32 // 4, count)
        # Where packs of 16 follow, those of two before them are whole.
        short = (count - first) // 16 * 16 if self._advice & _COMPACT_2B else 0
        if short and self._log > 12:
            raise ImageUnsupported("erofs: short packs of large clusters, which are not read")
        for number, size, clusters in ((first, 8, 2), (short, 32, 16), (count - first - short, 8, 2)):
            for done in range(0, number, clusters):
                raw = self._image.exactly(at, size)
                at += size
                yield from self._pack(raw, clusters, at)[: number - done]

    def _pack(self, raw: bytes, clusters: int, end: int) -> list[Entry]:
        """The entries of a pack, which ends with the block of its first extent, or the one before that."""
        low_bits = max(self._log, _LOW)
        width = (len(raw) - 4) * 8 // clusters
        bits, block = int.from_bytes(raw[:-4], "little"), int.from_bytes(raw[-4:], "little")
        big = self._advice & _BIG
        words = [bits >> width * number for number in range(clusters)]
        parts = [(word >> low_bits & 3, word & (1 << low_bits) - 1) for word in words]
        counts = [self._count(low) if kind == _NO_HEAD else 0 for kind, low in parts]
        used = 0 if big else 1
        found = []
        for number, (kind, low) in enumerate(parts):
            if kind == _NO_HEAD:
                # The count of blocks of an extent that began in this pack, or at the end of the one before.
                used += counts[number]
                found.append(Entry(kind, blocks=counts[number], end=end))
                continue
            found.append(self._head(kind, low, block + used, partial=False, end=end))
            # Of an end that is in another file the count is there, and 0.
            counted = number + 1 < clusters and parts[number + 1][0] == _NO_HEAD and big
            used += 0 if counted and parts[number + 1][1] & _COUNT else 1
        return found

    # ----------------------------------------------------------------------- data

    def plain(self, extent: Extent) -> bytes:
        """The plain data of an extent that has data of its own."""
        raw = self._image.exactly(extent.at, extent.stored)
        if extent.kind == _RAW:
            return self._stored(raw, extent)
        longest = _PLAIN_MAX if extent.partial else extent.size
        data = self._codec(extent.kind)(raw.lstrip(b"\0"), longest)
        if len(data) < extent.size or (len(data) > extent.size and not extent.partial):
            raise ImageInvalid(f"erofs: an extent of {len(data)} bytes, expected {extent.size}")
        return data[: extent.size]

    def _stored(self, raw: bytes, extent: Extent) -> bytes:
        """An extent that is not compressed; interlaced ones lie in their block as in the file."""
        if extent.size > len(raw):
            raise ImageInvalid("erofs: an extent longer than its blocks")
        if not self._advice & _INTERLACED or len(raw) < self._image.block_size:
            return raw[: extent.size]
        if len(raw) > self._image.block_size:
            raise ImageUnsupported("erofs: interlaced blocks in a row, which are not read")
        turn = extent.start % self._image.block_size
        return (raw[turn:] + raw[:turn])[: extent.size]

    def _codec(self, kind: int) -> Codec:
        found = self._codecs.get(kind)
        if found is None:
            number = self._names[kind == _HEAD2]
            image = self._image
            listed = image.algorithms if image.features & COMPRESSION_LIST else 1
            if number >= len(_ALGORITHMS) or not listed >> number & 1:
                raise ImageInvalid(f"erofs: compression {number}, which the image does not list")
            if not number and not image.features & LZ4_PADDED:
                raise ImageUnsupported(
                    "erofs: lz4 blocks of mkfs.erofs before 1.0, which are not read",
                    hint="mkfs.erofs without -Elegacy-compress writes others",
                )
            name = _ALGORITHMS[number]
            found = self._codecs[kind] = codec(f"erofs: {name}", name, image.limits)
        return found


class Ends:
    """The file that holds ends of others, and small files whole.  Its parts are looked up.

    Raises ImageInvalid, ImageLimitExceeded.
    """

    def __init__(self, image: Erofs, file: Inode) -> None:
        self._image = image
        self._file = file
        self._map: Compressed | None = None
        self._extents: list[Extent] = []
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        if file.layout in (COMPRESSED_FULL, COMPRESSED_COMPACT):
            self._map = Compressed(image, file)
            for extent in self._map.extents():
                if extent.at < 0:
                    raise ImageInvalid("erofs: a file whose end is in itself")
                if len(self._extents) >= image.limits.directories:
                    raise ImageLimitExceeded(
                        f"erofs: extents of ends of files, limit directories {image.limits.directories}"
                    )
                self._extents.append(extent)
        elif file.layout not in (PLAIN, INLINE):
            raise ImageUnsupported("erofs: ends of files in chunks, which are not read")
        self._starts = [extent.start for extent in self._extents]

    def pieces(self, at: int, count: int) -> Iterator[bytes]:
        """That many bytes from an offset, in order."""
        if at + count > self._file.size:
            raise ImageInvalid("erofs: a file's end that is nowhere")
        while count:
            data, start = self._around(at)
            piece = data[at - start : at - start + count]
            if not piece:
                raise ImageInvalid("erofs: a file's end that is nowhere")
            yield piece
            at += len(piece)
            count -= len(piece)

    def _around(self, at: int) -> tuple[bytes, int]:
        """Some data that holds the byte at an offset, and the offset that it begins at."""
        if self._map is None:
            block = at >> self._image.log
            return self._image.block(self._file, block), block << self._image.log
        number = bisect_right(self._starts, at) - 1
        found = self._kept.get(number)
        if found is None:
            found = self._kept[number] = self._map.plain(self._extents[number])
            if len(self._kept) > _CACHED:
                self._kept.popitem(last=False)
        return found, self._starts[number]
