# SPDX-License-Identifier: Apache-2.0
"""Trees: the applier and a model of image-spec's rules accept the same layers and make the same tree."""

from __future__ import annotations

import os

from hpcpod.errors import HpcpodError, ImageLimitExceeded
from tests.fuzz.items import LAYER, decode, encode
from tests.fuzz.model import Model, Refused
from tests.fuzz.target import SMALL, Broken, Target, refused
from tests.fuzz.targets.layer import apply, pieces, scratch
from tests.testbed.layouts import END

STEPS = (1 << 20, 700)
"""Bytes of a chunk: entries that lie in one whole are taken another way than others."""
MTIME = 1_000_000_000
"""Of all that tests.testbed.layouts writes."""


def run(data: bytes) -> None:
    """Apply to a directory and to the model, and compare."""
    layers = decode(data, SMALL.entries - 4)
    model = Model()
    why = ""
    try:
        for items in layers:
            model.layer(items)
    except Refused as error:
        why = str(error)
    try:
        apply([pieces(encode(items) + END, STEPS[len(data) % len(STEPS)]) for items in layers], SMALL)
    except ImageLimitExceeded as error:
        refused(error)
        return
    except HpcpodError as error:
        refused(error)
        if not why:
            raise Broken(f"refused: {error.message}: {layers}") from error
        return
    if why:
        raise Broken(f"accepted, in spite of {why}: {layers}")
    tree = scratch().check_tree(SMALL)
    found = {path: node[:3] for path, node in tree.items()}
    for path, node in found.items():
        if node[0] != "d" and os.lstat(f"{scratch().target}/{path}").st_mtime != MTIME:
            raise Broken(f"{path}: another time")
    expected = model.tree()
    if found != expected:
        raise Broken(f"{sorted(found.items() ^ expected.items())}: {layers}")


NEXT = bytes((LAYER,))


def name(*parts: int) -> bytes:
    return bytes((len(parts) - 1, *parts))


FILE, DIRECTORY, SYMLINK, HARD = bytes((0,)), bytes((1,)), bytes((2,)), bytes((3,))
LOWER = DIRECTORY + name(0) + FILE + name(0, 1) + SYMLINK + name(2) + name(0) + HARD + name(3) + name(0, 1)

TARGET = Target(
    run=run,
    seeds={
        "one": LOWER,
        "whiteout": LOWER + NEXT + FILE + name(0, 11) + FILE + name(10),
        "opaque": LOWER + NEXT + FILE + name(2, 7) + FILE + name(0, 12),
        "replaced": LOWER + NEXT + SYMLINK + name(0) + name(2) + FILE + name(2) + DIRECTORY + name(3),
        "up": SYMLINK + name(0) + name(13, 13, 1) + FILE + name(0, 1, 2) + FILE + name(1, 0),
    },
    known={
        "below a file named with a dot": FILE + name(0, 9) + FILE + name(0, 1),
    },
    longest=256,
    words=(NEXT, NEXT + FILE + name(0, 12), FILE + name(10), SYMLINK + name(0) + name(13)),
    runs=2000,
)
