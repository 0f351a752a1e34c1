# SPDX-License-Identifier: Apache-2.0
"""SIF files, whole: header and descriptors are parsed, the primary partition is unpacked beside canaries."""

from __future__ import annotations

import functools
import hashlib
import os
import struct

from hpcpod.errors import HpcpodError
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.sif import parse_sif
from hpcpod.images.sources.sif_source import SifSource
from hpcpod.log import Silent
from hpcpod.model import Platform
from tests.fuzz.scratch import Scratch
from tests.fuzz.target import SMALL, Broken, Target, refused
from tests.testbed.sifs import (
    ARCHITECTURES,
    GROUP,
    JSON,
    LABELS,
    PARTITION,
    SIGNATURE,
    Object,
    partition,
    sif,
)
from tests.testbed.squashes import directory, file, squash, symlink

AMD64 = Platform("linux", "amd64")
scratch = functools.cache(Scratch)


def check(data: bytes, path: str) -> None:
    """Parse and unpack; objects lie within the file and apart from one another.  Raises HpcpodError."""
    found = parse_sif(lambda at, count: data[at : at + count], len(data), SMALL)
    end = 0
    for each in sorted(found.objects, key=lambda each: (each.offset, each.size)):
        if not end <= each.offset <= each.offset + each.size <= len(data) or not each.name.isprintable():
            raise Broken(repr(each))
        end = each.offset + each.size
    with SifSource(Reference("sif", path), SMALL) as source:
        described = source.describe(AMD64)
        if described.digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
            raise Broken(f"{described.digest} is not the digest of the file")
        source.unpack(scratch().make(), Silent())
    scratch().check_tree(SMALL)


def run(data: bytes) -> None:
    """A file."""
    fd = os.memfd_create("image")
    try:
        os.write(fd, data)
        check(data, f"/proc/self/fd/{fd}")
    except HpcpodError as error:
        refused(error)
    finally:
        os.close(fd)
    scratch().check_outside()


ROOT = squash(directory({b"a": file(b"x" * 5000), b"l": symlink(b"/a")}))
METADATA = b'{"data": {"attributes": {"labels": {"a": "b"}}}}'

TARGET = Target(
    run=run,
    seeds={
        "root": sif([partition(ROOT)], total=1),
        "any architecture": sif([partition(ROOT, arch="")], arch="", total=1),
        "labels": sif([Object(LABELS, b'{"a": "b"}'), partition(ROOT)], total=3),
        "metadata": sif([Object(JSON, METADATA, b"inspect-metadata.json"), partition(ROOT)], total=2),
        "signature": sif(
            [partition(ROOT), Object(SIGNATURE, b"s", b"part-signature", link=GROUP | 1)], total=2
        ),
        "other partition": sif([partition(ROOT, use=3), partition(b"", file_system=2, use=4)], total=2),
        "nothing": sif([], total=1),
    },
    longest=16384,
    words=(
        b"SIF_MAGIC",
        b"inspect-metadata.json",
        *(struct.pack("<i", kind) for kind in range(LABELS, 0x400C)),
        *ARCHITECTURES.values(),
        struct.pack("<ii", 1, 2),
        struct.pack("<i", PARTITION),
    ),
)
