# SPDX-License-Identifier: Apache-2.0
"""A tree with some of everything that a file system image can hold, and what is in it."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from tests.testbed.places import scan

SIZES = (0, 1, 4095, 4096, 4097, 70_000, 300_001, 2_000_003)
TIME_NS = 1_500_000_000_123_456_789


def make(tree: Path) -> None:
    """Files of many sizes that compress well, badly and in parts, small ones, links, a hole, a FIFO."""
    source = random.Random(1)
    words = [bytes(source.randrange(97, 123) for _ in range(source.randrange(2, 9))) for _ in range(300)]

    def text(count: int) -> bytes:
        return b" ".join(source.choices(words, k=count // 2 + 1))[:count]

    (tree / "small/deep/er").mkdir(parents=True)
    for number in range(400):
        (tree / f"small/file-{number}").write_bytes(text(source.randrange(200)))
    for size in SIZES:
        (tree / f"text-{size}").write_bytes(text(size))
        (tree / f"random-{size}").write_bytes(source.randbytes(size))
        parts = text(size // 2) + source.randbytes(size // 3) + bytes(size // 2) + text(size // 7)
        (tree / f"mixed-{size}").write_bytes(parts)
        shutil.copy(tree / f"text-{size}", tree / f"small/copy-{size}")
    (tree / "small/hard").hardlink_to(tree / "text-70000")
    (tree / "link").symlink_to("../" + "x/" * 150)
    (tree / "odd name\t\xff").write_text("odd")
    (tree / "secret").write_text("x")
    (tree / "secret").chmod(0o640)
    with (tree / "hole").open("wb") as file:
        file.truncate(3_000_000)
    for path in tree.rglob("*"):
        if not path.is_symlink():
            os.utime(path, ns=(TIME_NS, TIME_NS))


def same(unpacked: Path, tree: Path, unit: int = 1) -> None:
    """Assert that a tree was unpacked whole: types, modes, contents, links; times in units of so many ns."""
    assert scan(unpacked) == scan(tree)
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            found = (unpacked / path.relative_to(tree)).stat().st_mtime_ns
            assert found == path.stat().st_mtime_ns // unit * unit, path
