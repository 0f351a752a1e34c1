# SPDX-License-Identifier: Apache-2.0
"""squashfs images, read by hpcpod itself and unpacked into a directory with canaries beside it."""

from __future__ import annotations

import functools
import struct

from hpcpod.errors import HpcpodError
from hpcpod.images.sources.fstree import FsTree
from hpcpod.images.sources.squashfs import Squashfs
from hpcpod.images.unpacking.filling import filling
from hpcpod.images.unpacking.pipeline import Budget
from hpcpod.log import Silent
from tests.fuzz.scratch import Scratch
from tests.fuzz.target import SMALL, Broken, Target, refused
from tests.testbed.sif_sample import REAL
from tests.testbed.squashes import NONE, Node, directory, file, squash, symlink

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

    image = Squashfs(lambda at, count: data[at : at + count], len(data), SMALL)
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
TREE = directory(
    {
        b"a": SHARED,
        b"d": directory({b"b": SHARED, b"l": symlink(b"../a"), b"hole": file(bytes(9000) + b"x")}),
        b"c": Node(5),
        b"f": Node(6),
    }
)

TARGET = Target(
    run=run,
    seeds={
        "tree": squash(TREE),
        "real": REAL[36864:][:4096],  # compressed by gzip, with a fragment
        "empty": squash(directory()),
        "file": squash(directory({b"a": file(b"x" * 5000)})),
        "fragment": squash(
            directory({b"a": file(b"xy", bend={"fragment": 0})}), fragments=1, fragment_table=96
        ),
        "twice": squash(directory([(b"a", TREE), (b"b", TREE)])),
        "loop": squash(directory([(b"a", directory([(b"x", Node(1, bend={"loop": 1}))]))])),
        "up": squash(directory([(b"..", SHARED)])),
        "xz": squash(TREE, compression=4),
        "zstd": squash(TREE, compression=6),
    },
    longest=8192,
    words=(
        b"hsqs",
        struct.pack("<I", NONE),
        struct.pack("<I", 1 << 24),
        struct.pack("<H", 0x8000),
        *(struct.pack("<H", kind) for kind in range(1, 15)),
    ),
)
