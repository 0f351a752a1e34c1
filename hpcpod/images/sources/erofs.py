# SPDX-License-Identifier: Apache-2.0
"""EROFS, read by this program itself: superblock, inodes, directories, data that is not compressed.

No kernel and no other program sees the bytes of an image that somebody else made (docs/adr/0012).  The format
is that of the kernel's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h; compressed files are in
erofsmap.py.  Every offset and count is checked before it is used, and what an image says of itself takes no
memory before it is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hpcpod.errors import ImageInvalid, ImageUnsupported
from hpcpod.images.limits import Limits
from hpcpod.images.sources.squashfs import check_name
from hpcpod.images.unpacking.tarheader import NANOSECONDS
from hpcpod.images.unpacking.tarstream import MTIME_END, Kind

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from hpcpod.images.sources.erofsmap import Ends

SUPERBLOCK = struct.Struct("<IIIBBHQqIIII16s16sIHHHBBIQ24x")
SUPERBLOCK_AT = 1024
MAGIC = 0xE0F5E1E2
LZ4_PADDED, COMPRESSION_LIST, CHUNKED, DEVICES, INLINE_TAILS, FRAGMENTS, XATTR_PREFIXES = (
    1 << bit for bit in range(7)
)
"""Features without which an image cannot be read.  Two bits have each a second meaning: COMPRESSION_LIST that
clusters may have several blocks, DEVICES that a file may have a second compression."""
_FEATURES = LZ4_PADDED | COMPRESSION_LIST | CHUNKED | DEVICES | INLINE_TAILS | FRAGMENTS | XATTR_PREFIXES
_NAMED_FEATURES = {0x80: "48bit", 0x100: "metabox"}
_BLOCK_LOGS = range(9, 17)
_SLOT = 32
"""Bytes that inode numbers count."""
_COMPACT = struct.Struct("<HHHHIIIIHHI")
_EXTENDED = struct.Struct("<HHHHQIIIIqII16x")
_KINDS = {
    0o010000: Kind.FIFO,
    0o020000: Kind.DEVICE,
    0o040000: Kind.DIRECTORY,
    0o060000: Kind.DEVICE,
    0o100000: Kind.FILE,
    0o120000: Kind.SYMLINK,
    0o140000: Kind.FIFO,
}
PLAIN, COMPRESSED_FULL, INLINE, COMPRESSED_COMPACT, CHUNKS = range(5)
_NOWHERE = 0xFFFFFFFF
_LAYOUTS = 5
_FORMAT_BITS = 0x1F
_ONE_LINK = 0x10
_CHUNK_LOG, _CHUNK_INDEXES, _CHUNK_WIDE = 0x1F, 0x20, 0x40
_ENTRY = struct.Struct("<QHBx")
_NAME_MAX = 255
_STEP = 1 << 20
"""Bytes that are read at once of what is not compressed."""


class Inode(NamedTuple):
    """One inode.

    number: where it is, in slots from the start of the metadata.  layout: how its data lies.  behind: offset
    of what follows it in the image, its attributes passed over.  start: first block of its data, or what a
    file in chunks has there.
    """

    kind: Kind
    mode: int
    mtime_ns: int
    number: int
    links: int
    size: int
    layout: int
    behind: int
    start: int
    target: bytes = b""


class Erofs:
    """An EROFS image.  Raises ImageInvalid, also when it is made; ImageUnsupported.

    name: of the format.  read: gives that many bytes from an offset of the image, fewer at its end.
    size: bytes of the image.
    """

    name = "erofs"

    def __init__(self, read: Callable[[int, int], bytes], size: int, limits: Limits) -> None:
        self._read = read
        self.limits = limits
        raw = read(SUPERBLOCK_AT, SUPERBLOCK.size)
        if len(raw) < SUPERBLOCK.size:
            raise ImageInvalid("erofs: ends in its superblock")
        fields = SUPERBLOCK.unpack(raw)
        magic, _, _, log, self.slots, root, _, self._epoch, self._nanoseconds, blocks, meta, _ = fields[:12]
        _, _, self.features, self.algorithms, devices, _, directory_log, _, _, self.packed = fields[12:]
        if magic != MAGIC:
            raise ImageInvalid("erofs: does not have the mark of one")
        self._check_features(devices, directory_log)
        if log not in _BLOCK_LOGS:
            raise ImageInvalid(f"erofs: blocks of 2^{log} bytes")
        self.log, self.block_size = log, 1 << log
        if blocks << log > size:
            raise ImageInvalid(f"erofs: {blocks} blocks, but the file ends before")
        self._used = blocks << log
        self._meta = meta << log
        if self._nanoseconds >= NANOSECONDS:
            raise ImageInvalid("erofs: a time of more than a second's nanoseconds")
        self._ends: Ends | None = None
        self.root = self.inode(root)
        if self.root.kind is not Kind.DIRECTORY:
            raise ImageInvalid("erofs: its root is not a directory")

    def _check_features(self, devices: int, directory_log: int) -> None:
        for bit, name in _NAMED_FEATURES.items():
            if self.features & bit:
                raise ImageUnsupported(
                    f"erofs: has the feature {name}, which is not read",
                    hint="mkfs.erofs -E^48bit makes one without, as older versions of it do",
                )
        if self.features & ~_FEATURES:
            raise ImageUnsupported(f"erofs: has features {self.features:#x}, which are not all known")
        if devices:
            raise ImageUnsupported(
                "erofs: its data lie in other files, which is not read",
                hint="mkfs.erofs without --blobdev keeps all in one",
            )
        if directory_log:
            raise ImageUnsupported("erofs: directories in blocks of another size, which is not read")

    def exactly(self, at: int, count: int) -> bytes:
        """That many bytes from an offset."""
        if at < 0 or at + count > self._used:
            raise ImageInvalid("erofs: something lies outside the image")
        raw = self._read(at, count)
        if len(raw) != count:
            raise ImageInvalid("erofs: the image has become shorter")
        return raw

    # ----------------------------------------------------------------------- inodes and directories

    def inode(self, number: int) -> Inode:
        """The inode of a number."""
        at = self._meta + number * _SLOT
        raw = self.exactly(at, _COMPACT.size)
        form = int.from_bytes(raw[:2], "little")
        if form & ~_FORMAT_BITS or form >> 1 & 7 >= _LAYOUTS:
            raise ImageInvalid(f"erofs: an inode of format {form:#x}")
        if form & 1:
            raw = self.exactly(at, _EXTENDED.size)
            _, attributes, mode, _, size, start, _, _, _, seconds, nanoseconds, links = _EXTENDED.unpack(raw)
        else:
            _, attributes, mode, links, size, seconds, start, *_ = _COMPACT.unpack(raw)
            seconds, nanoseconds = self._epoch + seconds, self._nanoseconds
        kind = _KINDS.get(mode & 0o170000)
        if kind is None:
            raise ImageInvalid(f"erofs: an inode of mode {mode:#o}")
        if not form & 1 and form & _ONE_LINK and kind is not Kind.DIRECTORY:
            links = 1
        if abs(seconds) >= MTIME_END or nanoseconds >= NANOSECONDS:
            raise ImageInvalid("erofs: a time of change out of range")
        behind = at + len(raw) + (12 + 4 * (attributes - 1) if attributes else 0)
        mtime_ns = seconds * NANOSECONDS + nanoseconds
        found = Inode(kind, mode & 0o7777, mtime_ns, number, links, size, form >> 1 & 7, behind, start)
        return found._replace(target=self._target(found)) if kind is Kind.SYMLINK else found

    def _target(self, link: Inode) -> bytes:
        if not 0 < link.size <= self.limits.link_bytes:
            raise ImageInvalid(f"erofs: a symbolic link to a name of {link.size} bytes")
        return b"".join(bytes(piece) if isinstance(piece, int) else piece for piece in self.data(link))

    def entries(self, directory: Inode) -> Iterator[tuple[bytes, int]]:
        """Of each entry its name and the number of its inode; names ascend."""
        before = b""
        for block in self._blocks(directory):
            for name, number in self._listed(block):
                if name in (b".", b".."):
                    if name == b"." and number != directory.number:
                        raise ImageInvalid("erofs: a directory that is not itself")
                    continue
                check_name(self.name, name, before)
                before = name
                yield name, number

    def _blocks(self, directory: Inode) -> Iterator[bytes]:
        """A directory's data by blocks; the last may be shorter."""
        kept = b""
        for piece in self.data(directory):
            if isinstance(piece, int):
                raise ImageInvalid("erofs: a hole in a directory")
            kept += piece
            whole = len(kept) // self.block_size * self.block_size
            for at in range(0, whole, self.block_size):
                yield kept[at : at + self.block_size]
            kept = kept[whole:]
        if kept:
            yield kept

    @staticmethod
    def _listed(block: bytes) -> Iterator[tuple[bytes, int]]:
        """Names and numbers in a block of a directory: fixed parts, then the names, the last up to NUL."""
        if len(block) < _ENTRY.size:
            raise ImageInvalid("erofs: a directory ends in an entry")
        first = _ENTRY.unpack_from(block)[1]
        if not first or first % _ENTRY.size or first > len(block):
            raise ImageInvalid("erofs: a directory whose names are not where it says")
        fixed = [_ENTRY.unpack_from(block, at) for at in range(0, first, _ENTRY.size)]
        ends = [offset for _, offset, _ in fixed[1:]] + [len(block)]
        for (number, start, _), end in zip(fixed, ends, strict=True):
            if not first <= start < end <= len(block):
                raise ImageInvalid("erofs: a directory whose names are not where it says")
            name = block[start:end]
            if end == len(block):
                name = name.partition(b"\0")[0]
            if not 0 < len(name) <= _NAME_MAX:
                raise ImageInvalid(f"erofs: a name of {len(name)} bytes")
            yield name, number

    # ----------------------------------------------------------------------- data

    def data(self, file: Inode) -> Iterator[bytes | int]:
        """The data of a file in order: bytes, or how many zeros."""
        if file.layout in (COMPRESSED_FULL, COMPRESSED_COMPACT):
            from hpcpod.images.sources.erofsmap import Compressed

            return Compressed(self, file).data()
        if file.layout == CHUNKS:
            return self._chunks(file)
        return self._flat(file)

    def end_of_file(self, file: Inode, at: int, count: int) -> Iterator[bytes]:
        """Data of a file, or of its end, that lies in the one file for such data (mkfs.erofs -Efragments)."""
        if self._ends is None:
            if not self.features & FRAGMENTS:
                raise ImageInvalid("erofs: a file's end in another file, in an image that has none")
            from hpcpod.images.sources.erofsmap import Ends

            self._ends = Ends(self, self.inode(self.packed))
        if file.number == self.packed:
            raise ImageInvalid("erofs: a file whose end is in itself")
        return self._ends.pieces(at, count)

    def _flat(self, file: Inode) -> Iterator[bytes | int]:
        """In one row of blocks; the tail may be behind the inode, in the same block."""
        if file.layout == PLAIN and file.start == _NOWHERE:
            if file.size:
                yield file.size
            return
        tail = (file.size - 1) % self.block_size + 1 if file.layout == INLINE and file.size else 0
        yield from self._row(file.start << self.log, file.size - tail)
        if tail:
            yield self._inline(file, tail)

    def block(self, file: Inode, number: int) -> bytes:
        """One block of a file that lies in one row, its end shorter."""
        at = number << self.log
        count = min(self.block_size, file.size - at)
        if file.layout == INLINE and at + count == file.size:
            return self._inline(file, count)
        return self.exactly((file.start << self.log) + at, count)

    def _inline(self, file: Inode, count: int) -> bytes:
        if file.behind % self.block_size + count > self.block_size:
            raise ImageInvalid("erofs: a file's end over the end of a block")
        return self.exactly(file.behind, count)

    def _row(self, at: int, count: int) -> Iterator[bytes]:
        while count:
            step = min(count, _STEP)
            yield self.exactly(at, step)
            at += step
            count -= step

    def _chunks(self, file: Inode) -> Iterator[bytes | int]:
        """In chunks of one size, each at a place of its own or a hole."""
        form = file.start & 0xFFFF
        if form & _CHUNK_WIDE or form & ~(_CHUNK_LOG | _CHUNK_INDEXES):
            raise ImageUnsupported(f"erofs: a file in chunks of format {form:#x}, which is not read")
        if not self.features & CHUNKED:
            raise ImageInvalid("erofs: a file in chunks, in an image that has none")
        size = self.block_size << (form & _CHUNK_LOG)
        unit = 8 if form & _CHUNK_INDEXES else 4
        at = (file.behind + unit - 1) // unit * unit
        left = file.size
        while left:
            raw = self.exactly(at, unit)
            start = int.from_bytes(raw[-4:], "little")
            step = min(left, size)
            if start == _NOWHERE:
                yield step
            elif unit == 8 and int.from_bytes(raw[2:4], "little"):
                raise ImageInvalid("erofs: a chunk in another file")
            else:
                yield from self._row(start << self.log, step)
            at += unit
            left -= step
