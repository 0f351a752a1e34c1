# SPDX-License-Identifier: Apache-2.0
"""An initial RAM file system: a cpio archive of the "newc" format (cpio(5), Linux's buffer-format.rst)."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    raw = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def archive(directories: Sequence[str], files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """The archive of these directories, and of these files: permission bits and content by name."""
    parts = [_entry(number, name, stat.S_IFDIR | 0o755, b"") for number, name in enumerate(directories, 1)]
    start = len(parts) + 1
    parts += [
        _entry(number, name, stat.S_IFREG | mode, content)
        for number, (name, (mode, content)) in enumerate(files.items(), start)
    ]
    return b"".join([*parts, _entry(0, "TRAILER!!!", 0, b"")])
