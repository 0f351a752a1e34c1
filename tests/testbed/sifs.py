# SPDX-License-Identifier: Apache-2.0
"""SIF files: a writer after the published format, and strategies for random valid ones.

No package of Debian 12 writes SIF files.  The writer follows github.com/sylabs/sif (pkg/sif/create.go); a
file that this library made itself is in sif_sample.py.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

HEADER = 128
DESCRIPTOR = 585
TABLE = 4096
"""Offset of the table of descriptors, as in files of the format's own library."""
ARCHITECTURES = {"": b"00", "386": b"01", "amd64": b"02", "arm64": b"04", "riscv64": b"12"}
DEFFILE, ENVIRONMENT, LABELS, PARTITION, SIGNATURE, JSON = range(0x4001, 0x4007)
GROUP = 0xF0000000
TIME = 1_600_000_000


@dataclass
class Object:
    """One object.  Fields that are given as None are what they have to be."""

    kind: int
    data: bytes = b""
    name: bytes = b""
    extra: bytes = b""
    number: int | None = None
    offset: int | None = None
    size: int | None = None
    padded: int | None = None
    link: int = 0
    used: int = 1


def partition(data: bytes, *, file_system: int = 1, use: int = 2, arch: str = "amd64", **more: Any) -> Object:
    extra = struct.pack("<ii3s", file_system, use, ARCHITECTURES[arch])
    return Object(PARTITION, data, extra=extra, **more)


def sif(objects: Sequence[Object], *, arch: str = "amd64", total: int = 48, **header: Any) -> bytes:
    """A file with these objects in a table of so many.  header: fields of it that are to be wrong."""
    start = TABLE + total * DESCRIPTOR
    data = table = b""
    for number, found in enumerate(objects, 1):
        padding = -(start + len(data)) % 4096 if found.kind == PARTITION else 0
        table += _descriptor(found, number, start + len(data) + padding, padding)
        data += bytes(padding) + found.data
    fields = {
        "launch": b"#!/usr/bin/env run-singularity\n",
        "magic": b"SIF_MAGIC",
        "version": b"01",
        "arch": ARCHITECTURES.get(arch, arch.encode()),
        "identity": bytes(range(16)),
        "created": TIME,
        "modified": TIME,
        "free": total - len(objects),
        "total": total,
        "table": TABLE,
        "table_size": total * DESCRIPTOR,
        "data": start,
        "data_size": len(data),
    } | header
    head = struct.pack("<32s10s3s3s16s8q", *fields.values())
    return head.ljust(TABLE, b"\0") + table.ljust(total * DESCRIPTOR, b"\0") + data


def _descriptor(found: Object, number: int, offset: int, padding: int) -> bytes:
    size = len(found.data)
    return struct.pack(
        "<iBIIIqqqqqqq128s384s",
        found.kind,
        found.used,
        number if found.number is None else found.number,
        GROUP | 1,
        found.link,
        offset if found.offset is None else found.offset,
        size if found.size is None else found.size,
        size + padding if found.padded is None else found.padded,
        *(TIME, TIME),
        *(0, 0),
        found.name,
        found.extra,
    )


# --------------------------------------------------------------------------- random valid files

names = st.text(
    st.characters(categories=["L", "N", "P", "Zs"], exclude_characters="\xa0"), max_size=20
).filter(lambda name: name.isprintable() and len(name.encode()) <= 128)
_others = st.builds(
    Object,
    st.sampled_from([DEFFILE, ENVIRONMENT, SIGNATURE, 0x4007, 0x400B, 0x4123]),
    data=st.binary(max_size=300),
    name=names.map(str.encode),
    link=st.sampled_from([0, 1, GROUP | 1]),
)


@st.composite
def objects(draw: st.DrawFn) -> list[Object]:
    """Some objects, of which at most one is a primary partition."""
    found = draw(st.lists(_others, max_size=5))
    data = draw(st.lists(st.binary(max_size=600), max_size=3))
    parts = [partition(each, use=2 if number == 0 else 3) for number, each in enumerate(data)]
    return draw(st.permutations([*found, *parts]))
