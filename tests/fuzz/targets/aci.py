# SPDX-License-Identifier: Apache-2.0
"""App Container Images, whole files: scanned, described, and unpacked beside canaries."""

from __future__ import annotations

import bz2
import functools
import hashlib
import json
import lzma
import os

from hpcpod.errors import HpcpodError
from hpcpod.images.sources.aci_source import AciSource
from hpcpod.images.sources.reference import Reference
from hpcpod.log import Silent
from hpcpod.model import Platform
from tests.fuzz.scratch import Scratch
from tests.fuzz.target import SMALL, Broken, Target, refused
from tests.fuzz.tars import mended
from tests.testbed.acis import MANIFEST, aci
from tests.testbed.layouts import directory, file, gz, hardlink, long_name, pax, symlink

AMD64 = Platform("linux", "amd64")
scratch = functools.cache(Scratch)
PACK = (bytes, gz, bz2.compress, functools.partial(lzma.compress, preset=0))


def check(path: str, plain: bytes | None) -> None:
    """Unpack the file; what is accepted has its ID, and gives nothing but a tree.  Raises HpcpodError."""
    place = scratch()
    with AciSource(Reference("aci", path), SMALL) as source:
        described = source.describe(AMD64)
        if plain is not None and described.digest != f"sha512:{hashlib.sha512(plain).hexdigest()}":
            raise Broken(f"{described.digest} is not the image ID")
        if source.find(AMD64) != described.digest:
            raise Broken("find() and describe() differ")
        source.unpack(place.make(), Silent())
    place.check_tree(SMALL)


def run(data: bytes) -> None:
    """The first byte: whether checksums are mended, and how the tar is packed afterwards, if it is."""
    head, body = data[:1] or b"\0", data[1:]
    plain = mended(body) if head < b"\x80" else body
    packed = PACK[head[0] & 3](plain)
    fd = os.memfd_create("image")
    try:
        os.write(fd, packed)
        check(f"/proc/self/fd/{fd}", plain if head[0] & 3 else None)
    except HpcpodError as error:
        refused(error)
    finally:
        os.close(fd)
    scratch().check_outside()


ROOTFS = directory(b"rootfs")
FILES = file(b"rootfs/a", b"x" * 600) + hardlink(b"rootfs/h", b"rootfs/a")
TREE = ROOTFS + FILES + symlink(b"rootfs/l", b"/a")
LISTED = MANIFEST | {"pathWhitelist": ["/a", "/d/b"]}
NAMED = (
    ROOTFS + long_name(b"rootfs/" + b"n" * 120) + file(b"rootfs/n") + pax({b"path": b"rootfs/p"}) + file(b"q")
)

TARGET = Target(
    run=run,
    seeds={
        "none": b"\0" + aci(TREE),
        "gzip": b"\1" + aci(TREE, last=False),
        "bzip2": b"\2" + aci(TREE),
        "xz": b"\3" + aci(TREE),
        "whitelist": b"\0" + aci(TREE + directory(b"rootfs/d") + file(b"rootfs/d/b"), LISTED),
        "names": b"\0" + aci(NAMED),
        "dependency": b"\0" + aci(ROOTFS, MANIFEST | {"dependencies": [{"imageName": "a"}]}),
        "small manifest": b"\0" + aci(ROOTFS, {"acKind": "ImageManifest", "acVersion": "1.0.0", "name": "a"}),
        "packed": b"\x84" + gz(aci(TREE)),
        "packed by bzip2": b"\x84" + bz2.compress(aci(TREE)),
        "packed by xz": b"\x84" + lzma.compress(aci(TREE)),
    },
    longest=8192,
    words=(
        b"rootfs/",
        b"manifest",
        b"../",
        b".wh.",
        *(json.dumps(key).encode() for key in (*MANIFEST, *MANIFEST["app"], "pathWhitelist")),
    ),
)
