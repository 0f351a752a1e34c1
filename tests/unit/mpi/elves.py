# SPDX-License-Identifier: Apache-2.0
"""Small ELF files with the dynamic sections that tests need, written byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

X86_64 = 62
AARCH64 = 183


def elf(  # noqa: PLR0913 - the parts of a dynamic section
    *,
    needed: Sequence[str] = (),
    soname: str = "",
    interpreter: str = "",
    runpath: str = "",
    machine: int = X86_64,
    static: bool = False,
) -> bytes:
    """A shared object or a program that needs these libraries; static: without a dynamic section."""
    strings = b"\0"
    entries: list[tuple[int, int]] = []

    def add(tag: int, text: str) -> None:
        nonlocal strings
        entries.append((tag, len(strings)))
        strings += text.encode() + b"\0"

    for name in needed:
        add(1, name)
    if soname:
        add(14, soname)
    if runpath:
        add(29, runpath)
    base = 64 + 3 * 56
    interp = interpreter.encode() + b"\0" if interpreter else b""
    table = base + len(interp)
    dynamic = table + len(strings)
    entries += [(5, table), (10, len(strings)), (0, 0)]
    body = interp + strings + b"".join(struct.pack("<qQ", *entry) for entry in entries)
    size = base + len(body)
    segments = [(1, 0, 0, size)]
    if interpreter:
        segments.append((3, base, base, len(interp)))
    if not static:
        segments.append((2, dynamic, dynamic, 16 * len(entries)))
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(3, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 64, 0, 0),
    )
    heads = b"".join(
        struct.pack("<IIQQQQQQ", kind, 4, offset, address, address, length, length, 8)
        for kind, offset, address, length in segments
    )
    return (head + heads).ljust(base, b"\0") + body


def put(root: Path, path: str, data: bytes) -> str:
    """Write the file into the tree at root; returns path."""
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return path
