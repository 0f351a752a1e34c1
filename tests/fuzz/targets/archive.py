# SPDX-License-Identifier: Apache-2.0
"""Files for oci-archive: members are found where Python's tarfile finds them, then the documents are read."""

from __future__ import annotations

import functools
import io
import os
import tarfile

from hpcpod.errors import HpcpodError
from hpcpod.images.sources.archive import ArchiveLayout
from hpcpod.images.sources.layout import OpenLayout
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.resolve import find_manifest
from hpcpod.images.sources.walk import read_documents
from hpcpod.images.unpacking.names import normal_name
from hpcpod.model import Platform
from tests.fuzz.scratch import Scratch
from tests.fuzz.target import SMALL, Broken, Target, refused
from tests.fuzz.tars import mended
from tests.testbed.layouts import END, directory, file, image, long_name, pax, symlink

scratch = functools.cache(Scratch)


def others(data: bytes) -> dict[str, bytes] | None:
    """Regular files by name as tarfile sees them; None where it does not read the archive."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errorlevel=2) as tar:
            found = {}
            for member in tar:
                if member.isreg():
                    name = os.fsdecode(normal_name(os.fsencode(member.name), SMALL))
                    found[name] = data[member.offset_data : member.offset_data + member.size]
            return found
    except (tarfile.TarError, HpcpodError, ValueError, OverflowError, OSError):
        return None


def compare(layout: ArchiveLayout, size: int, data: bytes) -> None:
    """The members, by both readers.  Raises Broken."""
    for name, (offset, length) in layout._members.items():
        if name.startswith("/") or ".." in name.split("/") or offset + length > size:
            raise Broken(f"member {name!r} at {offset}, {length} of {size} bytes")
    theirs = others(data)
    if theirs is None:
        return
    for name, content in theirs.items():
        # tarfile stops in silence at a header it cannot read, so it may see less; and pax's "path" with a
        # trailing slash, or bytes behind a NUL, it spells in its own way: those names are not in ours.
        mine = layout._members.get(name)
        if mine is not None and data[mine[0] : mine[0] + mine[1]] != content:
            raise Broken(f"member {name!r}: other bytes than tarfile's")


def run(data: bytes) -> None:
    """The first byte: whether checksums are mended."""
    body = mended(data[1:]) if data[:1] < b"\x80" else data[1:]
    path = f"{scratch().path}/target"
    with open(path, "wb") as out:
        out.write(body)
    try:
        layout = ArchiveLayout(path, SMALL)
        with OpenLayout(layout, "oci-archive:x", SMALL) as opened:
            compare(layout, len(body), body)
            wanted = Platform("linux", "amd64")
            found = find_manifest(opened, Reference("oci-archive", "x"), wanted, SMALL)
            read_documents(opened, found, wanted, SMALL)
    except HpcpodError as error:
        refused(error)


def whole() -> bytes:
    """A small image as an archive."""
    manifest, blobs = image(file(b"a", b"1")).blobs()
    entries = [file(b"oci-layout", b'{"imageLayoutVersion": "1.0.0"}')]
    from tests.testbed.layouts import MANIFEST, as_json, descriptor

    index = {"schemaVersion": 2, "manifests": [descriptor(manifest, MANIFEST)]}
    entries.append(file(b"./index.json", as_json(index)))
    for name, blob in blobs.items():
        entries.append(file(f"blobs/{name.replace(':', '/')}".encode(), blob))
    return b"".join(entries) + END


TARGET = Target(
    run=run,
    seeds={
        "whole": b"\0" + whole(),
        "kinds": b"\0"
        + directory(b"blobs")
        + symlink(b"index.json", b"x")
        + file(b"oci-layout", b"{}")
        + END,
        "long": b"\0"
        + long_name(b"blobs/" + b"x" * 120)
        + file(b"x", b"1")
        + pax({b"path": b"y"})
        + file(b"x"),
        "twice": b"\0" + file(b"a", b"1") + file(b"./a", b"2"),
        "unmended": b"\xff" + whole(),
    },
    longest=16384,
    words=(
        b"index.json",
        b"oci-layout",
        b"blobs/sha256/",
        b"ustar\x0000",
        b"ustar  \x00",
        b"path=",
        b"size=",
    ),
    runs=3000,
)
