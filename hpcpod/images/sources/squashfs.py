# SPDX-License-Identifier: Apache-2.0
"""squashfs 4.0, read by this program itself: superblock, metadata, inodes, directories.

No other program and no kernel sees the bytes of an image that somebody else made: both have had faults that a
file system image could use.  The format is that of the kernel's Documentation/filesystems/squashfs.rst and
fs/squashfs/squashfs_fs.h; every offset and count is checked before it is used, and lists are read as they are
needed, so memory does not depend on what an image says of itself.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hpcpod.errors import ImageInvalid
from hpcpod.images.limits import Limits
from hpcpod.images.sources.blocks import codec
from hpcpod.images.unpacking.tarheader import NANOSECONDS
from hpcpod.images.unpacking.tarstream import Kind
from hpcpod.log import shown

SUPERBLOCK = struct.Struct("<5I6H8Q")
MAGIC = 0x73717368
METADATA = 8192
"""Bytes of a block of metadata, uncompressed."""
DIRECTORY, FILE, SYMLINK, BLOCK_DEVICE, CHARACTER_DEVICE, FIFO, SOCKET = range(1, 8)
_KINDS = {
    DIRECTORY: Kind.DIRECTORY,
    FILE: Kind.FILE,
    SYMLINK: Kind.SYMLINK,
    BLOCK_DEVICE: Kind.DEVICE,
    CHARACTER_DEVICE: Kind.DEVICE,
    FIFO: Kind.FIFO,
    SOCKET: Kind.FIFO,
}
_EXTENDED = 7
"""An extended inode's type is the basic one's and this."""
NO_FRAGMENT = 0xFFFFFFFF
_PLAIN_METADATA = 0x8000
_PLAIN_DATA = 1 << 24
_BLOCK_LOGS = range(12, 21)
_COMPRESSIONS = {1: "zlib", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
_CACHED = 64
"""Blocks of metadata kept."""
_FRAGMENTS_CACHED = 4
_FRAGMENT = struct.Struct("<QI4x")
_FRAGMENTS_PER_BLOCK = METADATA // _FRAGMENT.size
_COMMON = struct.Struct("<HHHHII")
_BODIES = {
    DIRECTORY: struct.Struct("<IIHHI"),
    FILE: struct.Struct("<IIII"),
    SYMLINK: struct.Struct("<II"),
    DIRECTORY + _EXTENDED: struct.Struct("<IIIIHHI"),
    FILE + _EXTENDED: struct.Struct("<QQQIIII"),
    SYMLINK + _EXTENDED: struct.Struct("<II"),
}
_HEADER = struct.Struct("<III")
_ENTRY = struct.Struct("<HhHH")
_ENTRIES_MAX = 256
_NAME_MAX = 256
_UNLISTED = 3
"""What a directory's size counts beside its entries (for ``.`` and ``..``)."""


class Place(NamedTuple):
    """Where in a table of metadata something lies: offset of the block in the file, offset within it."""

    block: int
    offset: int


class Inode(NamedTuple):
    """One inode.

    size: of a file's data, or of a directory's list.  place: of the list of a file's blocks, or of a
    directory's entries.  start: of a file's data.  fragment, offset: where its tail is.
    """

    kind: Kind
    mode: int
    mtime_ns: int
    number: int
    links: int
    size: int = 0
    place: Place = Place(0, 0)
    start: int = 0
    fragment: int = NO_FRAGMENT
    offset: int = 0
    target: bytes = b""


class Squashfs:
    """A squashfs image.  Raises ImageInvalid, also when it is made; ImageUnsupported.

    name: of the format.  read: gives that many bytes from an offset of the image, fewer at its end.
    size: bytes of the image.
    """

    name = "squashfs"

    def __init__(self, read: Callable[[int, int], bytes], size: int, limits: Limits) -> None:
        self._read = read
        self._limits = limits
        raw = read(0, SUPERBLOCK.size)
        if len(raw) < SUPERBLOCK.size:
            raise ImageInvalid("squashfs: ends in its superblock")
        (magic, _, _, self.block_size, self._fragments, compression, log, _, _, major, minor, root, used) = (
            SUPERBLOCK.unpack(raw)[:13]
        )
        (_, _, self._inodes, self._directories, self._fragment_table, _) = SUPERBLOCK.unpack(raw)[13:]
        if magic != MAGIC or (major, minor) != (4, 0):
            raise ImageInvalid("squashfs: not a file system of version 4.0")
        if log not in _BLOCK_LOGS or self.block_size != 1 << log:
            raise ImageInvalid(f"squashfs: blocks of {self.block_size} bytes")
        if not SUPERBLOCK.size <= self._inodes < self._directories < used <= size:
            raise ImageInvalid("squashfs: its tables are not where it says")
        self._used = used
        self._decompress = _decompressor(compression, limits)
        self._blocks: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        self._tails: OrderedDict[int, bytes] = OrderedDict()
        self.root = self.inode(Place(root >> 16, root & 0xFFFF))
        if self.root.kind is not Kind.DIRECTORY:
            raise ImageInvalid("squashfs: its root is not a directory")

    # ----------------------------------------------------------------------- metadata

    def take(self, place: Place, count: int) -> tuple[bytes, Place]:
        """count bytes of metadata, and where the next ones are."""
        block, offset = place
        pieces = []
        while True:
            data, following = self._block(block)
            if offset > len(data):
                raise ImageInvalid("squashfs: metadata where there is none")
            piece = data[offset : offset + count]
            pieces.append(piece)
            count -= len(piece)
            if not count:
                return b"".join(pieces), Place(block, offset + len(piece))
            block, offset = following, 0

    def _block(self, at: int) -> tuple[bytes, int]:
        """A block of metadata and the offset of the next."""
        found = self._blocks.get(at)
        if found is not None:
            self._blocks.move_to_end(at)
            return found
        head = int.from_bytes(self._exactly(at, 2), "little")
        length = head & ~_PLAIN_METADATA
        raw = self._exactly(at + 2, length)
        data = raw if head & _PLAIN_METADATA else self._decompress(raw, METADATA)
        if not 0 < len(data) <= METADATA:
            raise ImageInvalid("squashfs: a block of metadata of a wrong size")
        self._blocks[at] = data, at + 2 + length
        if len(self._blocks) > _CACHED:
            self._blocks.popitem(last=False)
        return self._blocks[at]

    def _exactly(self, at: int, count: int) -> bytes:
        if at < SUPERBLOCK.size or at + count > self._used:
            raise ImageInvalid("squashfs: a block outside the image")
        raw = self._read(at, count)
        if len(raw) != count:
            raise ImageInvalid("squashfs: the image has become shorter")
        return raw

    # ----------------------------------------------------------------------- inodes and directories

    def inode(self, at: Place) -> Inode:
        """The inode at an offset of a block, which counts from the start of the table."""
        block, offset = at
        if offset >= METADATA or self._inodes + block >= self._directories:
            raise ImageInvalid("squashfs: an inode outside the table of inodes")
        raw, place = self.take(Place(self._inodes + block, offset), _COMMON.size)
        kind, mode, _, _, mtime, number = _COMMON.unpack(raw)
        basic = kind - _EXTENDED if kind > _EXTENDED else kind
        if not DIRECTORY <= basic <= SOCKET:
            raise ImageInvalid(f"squashfs: an inode of type {kind}")
        found = Inode(_KINDS[basic], mode & 0o7777, mtime * NANOSECONDS, number, 1)
        body = _BODIES.get(kind)
        if body is None:
            return found
        raw, place = self.take(place, body.size)
        fields = body.unpack(raw)
        if basic == DIRECTORY:
            return self._directory(found, fields)
        if basic == FILE:
            return self._file(found, fields, place)
        links, length = fields
        if not 0 < length <= self._limits.link_bytes:
            raise ImageInvalid(f"squashfs: a symbolic link to a name of {length} bytes")
        return found._replace(links=links, target=self.take(place, length)[0])

    def _directory(self, found: Inode, fields: tuple[int, ...]) -> Inode:
        if len(fields) == 5:
            block, _, size, offset, _ = fields
        else:
            _, size, block, _, _, offset, _ = fields
        # An empty directory's place may be anything.
        return found._replace(size=max(0, size - _UNLISTED), place=Place(self._directories + block, offset))

    def _file(self, found: Inode, fields: tuple[int, ...], place: Place) -> Inode:
        if len(fields) == 4:
            start, fragment, offset, size = fields
            links = 1
        else:
            start, size, _, links, fragment, offset, _ = fields
        return found._replace(
            links=links, size=size, place=place, start=start, fragment=fragment, offset=offset
        )

    def entries(self, directory: Inode) -> Iterator[tuple[bytes, Place]]:
        """Of each entry its name, and the place of its inode; names ascend."""
        left, place = directory.size, directory.place
        before = b""
        while left > 0:
            raw, place = self.take(place, _HEADER.size)
            count, block, _ = _HEADER.unpack(raw)
            left -= _HEADER.size
            if count >= _ENTRIES_MAX:
                raise ImageInvalid(f"squashfs: {count + 1} entries under one header of a directory")
            for _ in range(count + 1):
                raw, place = self.take(place, _ENTRY.size)
                offset, _, _, length = _ENTRY.unpack(raw)
                if length >= _NAME_MAX:
                    raise ImageInvalid(f"squashfs: a name of {length + 1} bytes")
                name, place = self.take(place, length + 1)
                left -= _ENTRY.size + len(name)
                check_name(self.name, name, before)
                before = name
                yield name, Place(block, offset)
        if left:
            raise ImageInvalid("squashfs: a directory ends in an entry")

    # ----------------------------------------------------------------------- data

    def data(self, file: Inode) -> Iterator[bytes | int]:
        """The blocks of a file in order: bytes, or how many zeros."""
        left, at, place = file.size, file.start, file.place
        tail = file.size % self.block_size if file.fragment != NO_FRAGMENT else 0
        while left > tail:
            raw, place = self.take(place, 4)
            word = int.from_bytes(raw, "little")
            length = word & ~_PLAIN_DATA
            expected = min(left, self.block_size)
            if not length:
                yield expected
            else:
                yield self._data_block(at, word, expected)
            at += length
            left -= expected
        if tail:
            data = self._tail(file.fragment)[file.offset : file.offset + tail]
            if len(data) != tail:
                raise ImageInvalid("squashfs: a file's end outside its fragment")
            yield data

    def _data_block(self, at: int, word: int, expected: int | None) -> bytes:
        """A block of data.  expected: its size when it is known; that of blocks is the most it can have."""
        length = word & ~_PLAIN_DATA
        if length > self.block_size:
            raise ImageInvalid(f"squashfs: a block of {length} bytes")
        raw = self._exactly(at, length)
        data = raw if word & _PLAIN_DATA else self._decompress(raw, expected or self.block_size)
        if expected is not None and len(data) != expected:
            raise ImageInvalid(f"squashfs: a block of {len(data)} bytes, expected {expected}")
        return data

    def _tail(self, number: int) -> bytes:
        found = self._tails.get(number)
        if found is not None:
            self._tails.move_to_end(number)
            return found
        if number >= self._fragments:
            raise ImageInvalid(f"squashfs: fragment {number} of {self._fragments}")
        block, index = divmod(number, _FRAGMENTS_PER_BLOCK)
        at = int.from_bytes(self._exactly(self._fragment_table + 8 * block, 8), "little")
        raw, _ = self.take(Place(at, index * _FRAGMENT.size), _FRAGMENT.size)
        start, word = _FRAGMENT.unpack(raw)
        self._tails[number] = self._data_block(start, word, None)
        if len(self._tails) > _FRAGMENTS_CACHED:
            self._tails.popitem(last=False)
        return self._tails[number]


def check_name(where: str, name: bytes, before: bytes) -> None:
    """A name of a directory, and the one before it: it is one, and they ascend.  Raises ImageInvalid."""
    if name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise ImageInvalid(f"{where}: {shown(name)} is not a name")
    if name <= before:
        raise ImageInvalid(f"{where}: {shown(name)}: names of a directory do not ascend")


def _decompressor(number: int, limits: Limits) -> Callable[[bytes, int], bytes]:
    """What turns a block into its plain bytes, at most that many."""
    name = _COMPRESSIONS.get(number)
    if name is None:
        raise ImageInvalid(f"squashfs: compression {number} is unknown")
    return codec(f"squashfs: {name}", name, limits)
