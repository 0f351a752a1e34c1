# SPDX-License-Identifier: Apache-2.0
"""Layers: decompressor, tar reader and applier, into a directory with canaries beside it."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterator

from hpcpod.errors import HpcpodError
from hpcpod.images.limits import Limits
from hpcpod.images.sources.manifest import Compression
from hpcpod.images.unpacking.apply import Applier
from hpcpod.images.unpacking.decompress import decompress
from hpcpod.images.unpacking.layers import write_error
from hpcpod.images.unpacking.tarstream import ByteStream, TarReader
from tests.fuzz.scratch import Scratch
from tests.fuzz.target import SMALL, Broken, Target, refused
from tests.fuzz.tars import mended
from tests.testbed.layouts import (
    END,
    base256,
    directory,
    file,
    gz,
    hardlink,
    header,
    long_name,
    pax,
    symlink,
    zst,
)

MARK = b"\xff--next layer--\xff"
"""Between two layers of an input."""
FORMS = (Compression.NONE, Compression.GZIP, Compression.ZSTD)
STEPS = (1 << 20, 1000, 97)
OF_THE_IMAGE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
"""What a system call may say about an entry; all else is trouble that no image may make."""

scratch = functools.cache(Scratch)


def apply(layers: list[Iterator[bytes]], limits: Limits) -> Applier:
    """Unpack streams of plain bytes into the scratch target.  Raises HpcpodError, Broken."""
    place = scratch()
    root = os.open(place.make(), os.O_RDONLY | os.O_DIRECTORY)
    applier = Applier(root, limits)
    try:
        for number, chunks in enumerate(layers):
            applier.layer(TarReader(ByteStream(chunks), limits), lowest=number == 0)
        applier.finish()
    except OSError as error:
        if error.errno not in OF_THE_IMAGE:
            raise
        raise write_error(error, place.target) from error
    finally:
        applier.close()
        os.close(root)
        place.check_outside()
    return applier


def pieces(data: bytes, step: int) -> Iterator[bytes]:
    """The bytes in pieces."""
    return (data[at : at + step] for at in range(0, len(data), step))


def run(data: bytes) -> None:
    """The first byte: how the others are compressed, cut into pieces, and whether checksums are mended."""
    how, body = data[:1] or b"\0", data[1:]
    form, step, mend = FORMS[how[0] % 3], STEPS[how[0] // 3 % 3], how[0] < 128
    layers = body.split(MARK)
    if mend:
        layers = [mended(layer) for layer in layers]
    if form is Compression.GZIP and mend:
        layers = [gz(layer) for layer in layers]
    if form is Compression.ZSTD and mend:
        layers = [zst(layer) for layer in layers]
    place = scratch()
    try:
        applier = apply([decompress(form, pieces(layer, step), SMALL) for layer in layers], SMALL)
    except HpcpodError as error:
        refused(error)
        return
    tree = place.check_tree(SMALL)
    if applier.entries < len([path for path in tree if not any(p.startswith(f"{path}/") for p in tree)]):
        raise Broken("more came out than went in")


TREE = directory(b"d") + file(b"d/f", b"1") + symlink(b"s", b"d") + hardlink(b"h", b"d/f")
CHANGES = file(b"s/n", b"2") + file(b"d/.wh.f") + file(b".wh.h") + symlink(b"d/u", b"../../a")
ODD = (
    long_name(b"d/" + b"x" * 120)
    + file(b"short", b"3")
    + pax({b"path": b"p/q", b"mtime": b"1.5", b"SCHILY.xattr.user.overlay.opaque": b"y"})
    + file(b"short", b"4")
    + header(b"fifo", b"6")
    + header(b"device", b"3")
    + file(b"n", b"5", size=base256(1, 12), mode=0o6755)
    + file(b"/../canary/file", b"6")
)
LINKS = (
    symlink(b"up", b"../canary")
    + symlink(b"abs", b"/")
    + file(b"up/file", b"7")
    + hardlink(b"steal", b"up/file")
    + file(b"abs/x", b"8")
    + file(b"d/.wh..wh..opq")
)

TARGET = Target(
    run=run,
    seeds={
        "one layer": b"\0" + TREE + END,
        "two layers": b"\0" + TREE + END + MARK + CHANGES + END,
        "odd": b"\0" + ODD + END,
        "links": b"\0" + LINKS + END + MARK + LINKS + END,
        "gzip": b"\1" + TREE + END + MARK + CHANGES + END,
        "zstd": b"\2" + TREE + END + MARK + ODD,
        "packed gzip": b"\xff"[:0] + bytes((130,)) + gz(TREE + END),
        "packed zstd": bytes((131,)) + zst(TREE + END),
        "small pieces": bytes((6,)) + TREE + ODD + END,
    },
    longest=16384,
    words=(
        MARK,
        b".wh.",
        b".wh..wh..opq",
        b"../",
        b"ustar\x0000",
        b"ustar  \x00",
        b"path=",
        b"linkpath=",
        b"size=",
    ),
    runs=1500,
)
