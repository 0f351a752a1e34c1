# SPDX-License-Identifier: Apache-2.0
"""Single layers: what hpcpod and bsdtar, or GNU tar, both accept, they make the same tree of.

Differences that are meant, all of them taken out of the comparison:

- devices and FIFOs are left out by hpcpod (the generator makes none here), as are whiteouts' files;
- an entry whose parent is a symlink: bsdtar removes the link and makes a directory, GNU tar writes through a
  relative link and refuses others; hpcpod follows it inside the image, as image-spec's readers do;
- a directory where a symlink is: hpcpod replaces the link; GNU tar keeps one that leads to a directory;
- modes: directories that no entry names have 0755 with hpcpod, and the umask's with others.
"""

from __future__ import annotations

import functools
import subprocess

from hpcpod.errors import HpcpodError
from tests.fuzz.items import LAYER, decode, encode
from tests.fuzz.model import Item, components
from tests.fuzz.scratch import Scratch, look
from tests.fuzz.target import SMALL, Broken, Target, refused
from tests.fuzz.targets.layer import apply, scratch
from tests.testbed.layouts import END

NAMES = ("a", "b", "c", "d", ".", "ab")
"""No ``..``: the peers run without a root of their own."""
READERS = {
    "bsdtar": ["bsdtar", "-x", "-f", "-"],
    "GNU tar": ["tar", "--extract", "--file=-", "--no-same-owner"],
}

theirs = functools.cache(Scratch)


def comparable(items: list[Item]) -> bool:
    """Whether none of the meant differences is in it."""
    links: set[str] = set()
    for item in items:
        if item.kind == "p" or item.name.startswith("/") or item.link.startswith("/"):
            return False
        parts = components(item.name) if item.name else []
        if not parts:
            return False
        paths = {"/".join(parts[: end + 1]) for end in range(len(parts))}
        targets = components(item.link) if item.kind == "h" else []
        paths |= {"/".join(targets[: end + 1]) for end in range(len(targets))}
        if paths & links:
            return False
        if item.kind == "l":
            links.add("/".join(parts))
    return True


def run(data: bytes) -> None:
    """The first byte chooses the other reader."""
    (items,) = decode(data[1:].translate(None, bytes(range(LAYER, 256))), 40, NAMES)
    if not items or not comparable(items):
        return
    tar = encode(items) + END
    try:
        apply([iter([tar])], SMALL)
    except HpcpodError as error:
        refused(error)
        return
    mine = {path: (node[0], node[2]) for path, node in scratch().check_tree(SMALL).items()}
    reader = sorted(READERS)[data[0] % 2]
    target = theirs().make()
    done = subprocess.run(READERS[reader], input=tar, cwd=target, capture_output=True, check=False)
    theirs().check_outside()
    if done.returncode:
        return
    other = {path: (node[0], node[2]) for path, node in look(target).items()}
    if mine != other:
        raise Broken(f"{reader}: {sorted(mine.items() ^ other.items())}: {items}")


def seed(reader: int, *parts: int) -> bytes:
    return bytes((reader, *parts))


TARGET = Target(
    run=run,
    seeds={
        "bsdtar": seed(0, 1, 0, 0, 0, 1, 0, 1, 2, 0, 2, 0, 1, 3, 0, 3, 0, 2),
        "GNU tar": seed(1, 1, 0, 0, 0, 1, 0, 1, 2, 0, 2, 0, 1, 3, 0, 3, 0, 2),
        "again": seed(0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 3, 0, 2, 0, 0),
    },
    longest=128,
    runs=300,
    tools=("bsdtar",),
)
