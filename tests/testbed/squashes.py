# SPDX-License-Identifier: Apache-2.0
"""squashfs images written byte by byte: nothing compressed, and as wrong as a test wants them.

Images that a real tool makes are in the integration tests; mksquashfs does not write the bad ones.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BLOCK = 4096
METADATA = 8192
PLAIN = 0x8000
PLAIN_DATA = 1 << 24
NONE = 0xFFFFFFFF
NOWHERE = 0xFFFFFFFFFFFFFFFF
TIME = 1_000_000_000


@dataclass(eq=False)
class Node:
    """One inode: a directory with entries, a file with data, a link with a target, or of another type.

    bend: fields of the inode that are to be wrong, by name.  A node that stands in two places is one inode.
    """

    kind: int
    data: bytes = b""
    entries: list[tuple[bytes, Node]] = field(default_factory=list)
    mode: int = 0o755
    bend: Mapping[str, int] = field(default_factory=dict)


def directory(entries: Mapping[bytes, Node] | list[tuple[bytes, Node]] = (), **more: Any) -> Node:  # type: ignore[assignment]
    """A directory; a list of entries is written as it is, a mapping in the order of names."""
    listed = entries if isinstance(entries, list) else sorted(dict(entries).items())
    return Node(1, entries=listed, **more)


def file(data: bytes = b"", **more: Any) -> Node:
    return Node(2, data, **more)


def symlink(target: bytes, **more: Any) -> Node:
    return Node(3, target, **more)


class _Table:
    """A table of metadata, in blocks that are not compressed."""

    def __init__(self) -> None:
        self.raw = b""

    def place(self) -> tuple[int, int]:
        """Of what is added next: offset of its block from the table's start, and offset in it."""
        block, offset = divmod(len(self.raw), METADATA)
        return block * (METADATA + 2), offset

    def blocks(self) -> bytes:
        pieces = [self.raw[at : at + METADATA] for at in range(0, len(self.raw), METADATA)]
        return b"".join(struct.pack("<H", len(piece) | PLAIN) + piece for piece in pieces)


class Writer:
    """Writes the nodes below a root.  superblock: fields of it that are to be wrong, by name."""

    def __init__(self) -> None:
        self._data = b""
        self._inodes = _Table()
        self._directories = _Table()
        self._written: dict[int, tuple[tuple[int, int], int]] = {}
        self._links: dict[int, int] = {}

    def image(self, top: Node, **superblock: int) -> bytes:
        self._count(top, set())
        (block, offset), _ = self._write(top)
        inodes, directories = self._inodes.blocks(), self._directories.blocks()
        at = 96 + len(self._data)
        ids = struct.pack("<HI", 4 | PLAIN, 0)
        table = at + len(inodes) + len(directories)
        fields = {
            "magic": 0x73717368,
            "inodes": len(self._written),
            "time": TIME,
            "block": BLOCK,
            "fragments": 0,
            "compression": 1,
            "log": 12,
            "flags": 0x0213,  # inodes, data and fragments are not compressed, no attributes
            "ids": 1,
            "major": 4,
            "minor": 0,
            "root": block << 16 | offset,
            "used": table + len(ids) + 8,
            "id_table": table + len(ids),
            "attributes": NOWHERE,
            "inode_table": at,
            "directory_table": at + len(inodes),
            "fragment_table": NOWHERE,
            "export_table": NOWHERE,
        } | superblock
        head = struct.pack("<5I6H8Q", *fields.values())
        return head + self._data + inodes + directories + ids + struct.pack("<Q", table)

    def _count(self, node: Node, above: set[int]) -> None:
        self._links[id(node)] = self._links.get(id(node), 0) + 1
        for _, child in node.entries:
            if id(child) not in above:
                self._count(child, above | {id(node)})

    def _write(self, node: Node) -> tuple[tuple[int, int], int]:
        """Write what is below a node, then its inode; where that is, and its number."""
        if id(node) in self._written:
            return self._written[id(node)]
        if node.kind == 1:
            body = self._directory(node)
        elif node.kind == 2:
            body = self._file(node)
        elif node.kind == 3:
            body = self._bent(node, "<II", links=self._links[id(node)], length=len(node.data)) + node.data
        else:
            body = struct.pack("<II", 1, 0)[: 8 if node.kind in (4, 5) else 4]
        number = len(self._written) + 1
        place = self._inodes.place()
        kind = node.bend.get("kind", 9 if node.kind == 2 else node.kind)
        self._inodes.raw += struct.pack("<HHHHII", kind, node.mode, 0, 0, TIME, number) + body
        self._written[id(node)] = place, number
        return place, number

    @staticmethod
    def _bent(node: Node, form: str, **fields: int) -> bytes:
        right = {**fields, **{name: value for name, value in node.bend.items() if name in fields}}
        return struct.pack(form, *right.values())

    def _file(self, node: Node) -> bytes:
        start = 96 + len(self._data)
        pieces = [node.data[at : at + BLOCK] for at in range(0, len(node.data), BLOCK)]
        words = [len(piece) | PLAIN_DATA if piece.strip(b"\0") else 0 for piece in pieces]
        self._data += b"".join(piece for piece, word in zip(pieces, words, strict=True) if word)
        fixed = self._bent(
            node,
            "<QQQIIII",
            start=start,
            size=len(node.data),
            sparse=0,
            links=self._links[id(node)],
            fragment=NONE,
            offset=0,
            attributes=NONE,
        )
        return fixed + struct.pack(f"<{len(words)}I", *(node.bend.get("word", word) for word in words))

    def _directory(self, node: Node) -> bytes:
        # A child that is written already, or is being written, is named by the place that it has.
        found = [(name, *self._place(child), child.kind) for name, child in node.entries]
        block, offset = self._directories.place()
        before = len(self._directories.raw)
        for name, (inode_block, inode_offset), number, kind in found:
            self._directories.raw += struct.pack("<III", node.bend.get("count", 0), inode_block, number)
            self._directories.raw += struct.pack("<HhHH", inode_offset, 0, kind, len(name) - 1) + name
        return self._bent(
            node,
            "<IIHHI",
            block=block,
            links=2,
            size=len(self._directories.raw) - before + 3,
            offset=offset,
            parent=len(self._written) + 1,
        )

    def _place(self, child: Node) -> tuple[tuple[int, int], int]:
        if child.bend.get("loop"):
            return (0, 0), 1
        return self._write(child)


def squash(top: Node, **superblock: int) -> bytes:
    """The image of a tree."""
    return Writer().image(top, **superblock)
