# SPDX-License-Identifier: Apache-2.0
"""Small ELF files with the dynamic sections that tests need, written byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

X86_64 = 62
AARCH64 = 183


def _strings(named: Sequence[tuple[int, str]]) -> tuple[bytes, list[tuple[int, int]]]:
    """The string table, and the dynamic entries that point into it."""
    table, entries = b"\0", []
    for tag, text in named:
        entries.append((tag, len(table)))
        table += text.encode() + b"\0"
    return table, entries


def elf(
    *,
    needed: Sequence[str] = (),
    soname: str = "",
    interpreter: str = "",
    runpath: str = "",
    machine: int = X86_64,
    static: bool = False,
) -> bytes:
    """A shared object or a program that needs these libraries; static: without a dynamic section."""
    named = [
        *((1, name) for name in needed),
        *((14, soname),) * bool(soname),
        *((29, runpath),) * bool(runpath),
    ]
    strings, entries = _strings(named)
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
    magic = b"\x7fELF\x02\x01\x01"
    counts = (64, 56, len(segments), 64, 0, 0)
    head = struct.pack("<16sHHIQQQIHHHHHH", magic, 3, machine, 1, 0, 64, 0, 0, *counts)
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
