# SPDX-License-Identifier: Apache-2.0
"""Archives made of few names, so that a fuzzer's entries meet each other; as items and as tar."""

from __future__ import annotations

from tests.fuzz.model import Item
from tests.testbed.layouts import directory, file, hardlink, header, symlink

NAMES = (
    "a",
    "b",
    "c",
    "d",
    "a",
    "b",
    "c",
    "e",
    "ab",
    ".",
    ".wh.a",
    ".wh.b",
    ".wh..wh..opq",
    "..",
    ".wh.",
    "",
)
KINDS = ("-", "d", "l", "h", "-", "d", "l", "p")
LAYER = 0xF8
"""First bytes of an item from here on begin a new layer instead."""
MODES = (0o644, 0o755, 0o700, 0o500)


class Bytes:
    """An input taken byte by byte."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def next(self) -> int:
        """The next byte; zero behind the end."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0


def _path(source: Bytes, names: tuple[str, ...]) -> str:
    how = source.next()
    parts = [names[source.next() % len(names)] for _ in range(1 + how % 4)]
    return ("/" if how & 0x40 else "") + "/".join(parts) + ("/" if how & 0x80 else "")


def decode(data: bytes, longest: int, names: tuple[str, ...] = NAMES) -> list[list[Item]]:
    """Layers of items; at most `longest` items."""
    source = Bytes(data)
    layers: list[list[Item]] = [[]]
    for number in range(longest):
        if not source:
            break
        first = source.next()
        if first >= LAYER:
            layers.append([])
            continue
        kind = KINDS[first % 8]
        name = _path(source, names)
        link = _path(source, names) if kind in "lh" else ""
        mode = MODES[first >> 3 & 3]
        layers[-1].append(Item(kind, name, link, b"%d" % number if kind == "-" else b"", mode))
    return layers


def encode(items: list[Item]) -> bytes:
    """Items as tar entries, without an end."""
    return b"".join(map(_entry, items))


def _entry(item: Item) -> bytes:
    name = item.name.encode()
    if item.kind == "d":
        return directory(name, item.mode)
    if item.kind == "l":
        return symlink(name, item.link.encode())
    if item.kind == "h":
        return hardlink(name, item.link.encode())
    if item.kind == "p":
        return header(name, b"6")
    return file(name, item.content, mode=item.mode)
