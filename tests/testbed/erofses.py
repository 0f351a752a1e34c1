# SPDX-License-Identifier: Apache-2.0
"""EROFS images written byte by byte, in small blocks, and as wrong as a test wants them.

Images that mkfs.erofs makes are in the integration tests; it does not write the bad ones.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lz4.block

LOG = 9
BLOCK = 1 << LOG
SUPERBLOCK_AT = 1024
FIRST = SUPERBLOCK_AT + 128
PLAIN, FULL, INLINE, COMPACT, CHUNKS = range(5)
FILE, DIRECTORY, LINK, DEVICE, FIFO, SOCKET = 0o100000, 0o040000, 0o120000, 0o020000, 0o010000, 0o140000
TIME = 1_000_000_000
FEATURES = 0x1 | 0x2 | 0x4 | 0x20
"""Padded lz4, large clusters, chunks, ends of files in a file of their own."""
BIG, FRAGMENT = 0x2 | 0x4, 0x20


@dataclass(eq=False)
class Node:
    """One inode.  A node that stands in two places is one inode.

    bend: fields of the inode that are to be wrong, by name; ``loop`` makes a directory's entry the root.
    index: of a compressed file instead of the right one.
    """

    kind: int
    data: bytes = b""
    entries: list[tuple[bytes, Node]] = field(default_factory=list)
    mode: int = 0o755
    layout: int = INLINE
    bend: Mapping[str, int] = field(default_factory=dict)
    index: bytes | None = None


def directory(entries: Mapping[bytes, Node] | list[tuple[bytes, Node]] = (), **more: Any) -> Node:  # type: ignore[assignment]
    """A directory; a list of entries is written as it is, a mapping in the order of names."""
    listed = entries if isinstance(entries, list) else sorted(dict(entries).items())
    return Node(DIRECTORY, entries=listed, **more)


def file(data: bytes = b"", **more: Any) -> Node:
    return Node(FILE, data, **more)


def symlink(target: bytes, **more: Any) -> Node:
    return Node(LINK, target, **more)


def header(*, advice: int = 0, algorithms: int = 0, log: int = 0, first: int = 0) -> bytes:
    """What an index begins with."""
    return struct.pack("<IHBB", first, advice, algorithms, log)


class Writer:
    """Writes the nodes below a root.  superblock: fields of it that are to be wrong, by name."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._links: dict[int, int] = {}
        self._order: list[Node] = []
        self._end = FIRST
        self._blocks: list[bytes] = []
        self._first_block = 0

    def image(self, top: Node, packed: Node | None = None, **superblock: int) -> bytes:
        self._visit(top)
        if packed is not None:
            self._visit(packed)
        self._first_block = -(-self._end // BLOCK)
        image = bytearray(self._first_block * BLOCK)
        for node in self._order:
            raw = self._inode(node, top)
            at = self._places[id(node)]
            image[at : at + len(raw)] = raw
        image += b"".join(self._blocks)
        fields = {
            "magic": 0xE0F5E1E2,
            "checksum": 0,
            "compatible": 0,
            "log": LOG,
            "slots": 0,
            "root": self._places[id(top)] // 32,
            "inodes": len(self._order),
            "time": TIME,
            "nanoseconds": 0,
            "blocks": len(image) // BLOCK,
            "meta": 0,
            "attributes": 0,
            "identity": bytes(16),
            "label": bytes(16),
            "features": FEATURES,
            "algorithms": 0xF,
            "devices": 0,
            "device_slot": 0,
            "directory_log": 0,
            "prefixes": 0,
            "prefix_start": 0,
            "packed": self._places[id(packed)] // 32 if packed is not None else 0,
        } | superblock
        head = struct.pack("<IIIBBHQqIIII16s16sIHHHBBIQ24x", *fields.values())
        image[SUPERBLOCK_AT : SUPERBLOCK_AT + len(head)] = head
        return bytes(image)

    def _visit(self, node: Node) -> None:
        """Give a node, and what is below it, a place; data behind an inode may not cross a block."""
        self._links[id(node)] = self._links.get(id(node), 0) + 1
        if id(node) in self._places:
            return
        size = 64 + self._behind(node)
        if size <= BLOCK and self._end % BLOCK + size > BLOCK:
            self._end = -(-self._end // BLOCK) * BLOCK
        self._places[id(node)] = self._end
        self._end = -(-(self._end + size) // 32) * 32
        self._order.append(node)
        for _, child in node.entries:
            self._visit(child)

    def _behind(self, node: Node) -> int:
        size = len(self._content(node, None))
        if node.index is not None:
            return len(node.index)
        if node.layout == INLINE:
            return size % BLOCK or (BLOCK if size else 0)
        return {PLAIN: 0, CHUNKS: 4 * -(-size // BLOCK), FULL: 16 + 8 * -(-size // BLOCK)}[node.layout]

    def _content(self, node: Node, top: Node | None) -> bytes:
        """A directory's blocks; top: None while places are not known."""
        if node.kind != DIRECTORY:
            return node.data
        here, above = (node, node), (top or node, node)
        listed = [(b".", here[0]), (b"..", above[0]), *node.entries]
        blocks, row = [], list[tuple[bytes, Node]]()
        for entry in listed:
            if sum(12 + len(name) for name, _ in [*row, entry]) > BLOCK:
                blocks.append(self._rows(row, top).ljust(BLOCK, b"\0"))
                row = []
            row.append(entry)
        return b"".join(blocks) + self._rows(row, top)

    def _rows(self, row: list[tuple[bytes, Node]], top: Node | None) -> bytes:
        at, fixed = 12 * len(row), b""
        for name, child in row:
            where = top if top is not None and child.bend.get("loop") else child
            number = self._places[id(where)] // 32 if top is not None else 0
            fixed += struct.pack("<QHBx", child.bend.get("number", number), at, 0)
            at += len(name)
        return fixed + b"".join(name for name, _ in row)

    def _put(self, data: bytes) -> int:
        """Write whole blocks; the number of the first."""
        first = self._first_block + len(self._blocks)
        data = data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")
        self._blocks += [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
        return first

    def _inode(self, node: Node, top: Node) -> bytes:
        data = self._content(node, top)
        start, behind = 0, b""
        if node.index is not None:
            start, behind = self._put(data), node.index
        elif node.layout == INLINE:
            tail = len(data) % BLOCK or (BLOCK if data else 0)
            start, behind = self._put(data[: len(data) - tail]), data[len(data) - tail :]
        elif node.layout == PLAIN:
            start = self._put(data)
        elif node.layout == CHUNKS:
            pieces = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
            numbers = [self._put(piece) if piece.strip(b"\0") else 0xFFFFFFFF for piece in pieces]
            behind = struct.pack(f"<{len(numbers)}I", *numbers)
        elif node.layout == FULL:
            behind = self._compressed(data)
        fields = {
            "format": node.layout << 1 | 1,
            "attributes": 0,
            "mode": node.kind | node.mode,
            "nb": 0,
            "size": len(data),
            "start": start,
            "ino": 1,
            "uid": 0,
            "gid": 0,
            "mtime": TIME,
            "nanoseconds": 0,
            "links": self._links[id(node)],
        }
        fields |= {name: value for name, value in node.bend.items() if name in fields}
        return struct.pack("<HHHHQIIIIqII16x", *fields.values()) + behind

    def _compressed(self, data: bytes) -> bytes:
        """Each block an extent of its own, compressed where that makes it shorter."""
        raw = header() + bytes(8)
        for at in range(0, len(data), BLOCK):
            piece = data[at : at + BLOCK]
            packed: bytes = lz4.block.compress(piece, store_size=False)
            kind = 1 if len(packed) < len(piece) else 0
            stored = packed.rjust(BLOCK, b"\0") if kind else piece
            raw += struct.pack("<HHI", kind, 0, self._put(stored))
        return raw


def erofs(top: Node, packed: Node | None = None, **superblock: Any) -> bytes:
    """The image of a tree.  packed: the file of ends of others."""
    return Writer().image(top, packed, **superblock)


def index(*entries: tuple[int, int, int], advice: int = 0, first: int = 0, algorithms: int = 0) -> bytes:
    """A full index: of each cluster its type, offset, and block (or, for the second type, a distance)."""
    head = header(advice=advice, first=first, algorithms=algorithms) + bytes(8)
    return head + b"".join(struct.pack("<HHI", *entry) for entry in entries)
