# SPDX-License-Identifier: Apache-2.0
"""EROFS images, read by hpcpod itself and unpacked into a directory with canaries beside it."""

from __future__ import annotations

import functools
import struct

import lz4.block

from hpcpod.errors import HpcpodError
from hpcpod.images.sources.erofs import Erofs
from hpcpod.images.sources.fstree import FsTree
from hpcpod.images.unpacking.filling import filling
from hpcpod.images.unpacking.pipeline import Budget
from hpcpod.log import Silent
from tests.fuzz.scratch import Scratch
from tests.fuzz.target import SMALL, Broken, Target, refused
from tests.testbed.erofses import (
    BIG,
    CHUNKS,
    DEVICE,
    FULL,
    PLAIN,
    Node,
    directory,
    erofs,
    file,
    header,
    index,
    symlink,
)

scratch = functools.cache(Scratch)


def check(data: bytes) -> None:
    """Unpack; no more is written than was counted.  Raises HpcpodError."""
    place, budget = scratch(), Budget(SMALL)
    written = 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        if written > budget.used:
            raise Broken(f"{written} bytes written, {budget.used} counted")

    image = Erofs(lambda at, count: data[at : at + count], len(data), SMALL)
    with filling(place.make(), (0, 0), SMALL, Silent()) as applier:
        applier.layer(FsTree(image, SMALL, budget.spend, advance), lowest=True)
    place.check_tree(SMALL)


def run(data: bytes) -> None:
    """An image."""
    try:
        check(data)
    except HpcpodError as error:
        refused(error)
    scratch().check_outside()


SHARED = file(b"shared")
TEXT = b"some text that is worth being compressed, " * 60
PACKED: bytes = lz4.block.compress(TEXT, store_size=False).rjust(512, b"\0")
REST = ((2, 0, 1), (2, 0, 2), (2, 0, 3), (2, 0, 4))
SHORT = struct.pack("<HH", 0x1000, 0x2001) + struct.pack("<I", 3)
TREE = directory(
    {
        b"a": SHARED,
        b"d": directory({b"b": SHARED, b"l": symlink(b"../a"), b"h": file(bytes(900) + b"x", layout=CHUNKS)}),
        b"c": Node(DEVICE),
        b"z": file(TEXT, layout=FULL),
    }
)


def compressed(raw: bytes, layout: int = FULL) -> bytes:
    """A file with this index, and TEXT compressed in its one block."""
    node = file(PACKED, layout=layout, index=raw, bend={"size": len(TEXT)})
    return erofs(directory({b"a": node}))


TARGET = Target(
    run=run,
    seeds={
        "tree": erofs(TREE),
        "empty": erofs(directory()),
        "plain": erofs(directory({b"a": file(b"x" * 1500, layout=PLAIN)})),
        "extent": compressed(index((1, 0, 3), *REST)),
        "large": compressed(index((1, 0, 3), (2, 0, 0x801), *REST[1:], advice=BIG)),
        "partial": compressed(index((0x8001, 0, 3), *REST)),
        "packs": compressed(header() + SHORT * 8, 3),
        "short packs": compressed(header(advice=1) + SHORT * 16, 3),
        "inline": compressed(index((1, 0, 3), *REST, advice=8, first=40 << 16) + bytes(64)),
        "ends": erofs(
            directory({b"a": file(layout=FULL, index=struct.pack("<Q", 1 << 63), bend={"size": 600})}),
            packed=file(TEXT, layout=PLAIN),
        ),
        "compressed ends": erofs(
            directory({b"a": file(layout=FULL, index=struct.pack("<Q", 1 << 63 | 9), bend={"size": 1600})}),
            packed=file(TEXT, layout=FULL),
        ),
        "lzma": compressed(index((1, 0, 3), *REST, algorithms=1)),
        "deflate": compressed(index((1, 0, 3), *REST, algorithms=2)),
        "zstd": compressed(index((1, 0, 3), *REST, algorithms=3)),
        "loop": erofs(directory([(b"a", directory(bend={"loop": 1}))])),
        "twice": erofs(directory([(b"a", TREE), (b"b", TREE)])),
    },
    longest=8192,
    words=(
        struct.pack("<I", 0xE0F5E1E2),
        struct.pack("<I", 0xFFFFFFFF),
        *(struct.pack("<H", layout << 1 | extended) for layout in range(5) for extended in (0, 1)),
        *(struct.pack("<H", kind << 12) for kind in (1, 2, 4, 6, 8, 10, 12)),
    ),
)
