# SPDX-License-Identifier: Apache-2.0
"""A directory in memory to unpack into, with canaries beside it."""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
from collections import Counter

from hpcpod.images.limits import Limits
from hpcpod.images.unpacking.tree import remove_tree
from tests.fuzz.target import BASE, Broken

Node = tuple[str, int, bytes, int]
"""Kind (``-``, ``d``, ``l``), mode, content or target, number of links."""


def look(top: str) -> dict[str, Node]:
    """What is below a directory.  Nothing is followed or opened but regular files."""
    found: dict[str, Node] = {}
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        for entry in os.scandir(f"{top}/{inner}"):
            path = f"{inner}/{entry.name}" if inner else entry.name
            status = entry.stat(follow_symlinks=False)
            kind = stat.filemode(status.st_mode)[0]
            content = b""
            if kind == "d":
                waiting.append(path)
            elif kind == "l":
                content = os.fsencode(os.readlink(f"{top}/{path}"))
            elif kind == "-":
                with open(f"{top}/{path}", "rb") as file:
                    content = file.read()
            found[path] = (kind, stat.S_IMODE(status.st_mode), content, status.st_nlink)
    return found


class Scratch:
    """``target`` is made anew for each input; what is beside it must never change."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="hpcpod-fuzz-", dir=os.environ.get(BASE, "/dev/shm"))
        self.target = f"{self.path}/target"
        atexit.register(shutil.rmtree, self.path, ignore_errors=True)
        for directory in ("canary", "canary/a", "a", "b"):
            os.mkdir(f"{self.path}/{directory}")
            with open(f"{self.path}/{directory}/file", "wb") as file:
                file.write(b"alive")
            os.symlink("file", f"{self.path}/{directory}/link")
        self._before = look(self.path)

    def make(self) -> str:
        """An empty target."""
        if os.path.lexists(self.target):
            remove_tree(self.target)
        os.mkdir(self.target, 0o700)
        return self.target

    def check_outside(self) -> None:
        """Nothing beside the target has changed.  Raises Broken."""
        found = {path: node for path, node in look(self.path).items() if path.partition("/")[0] != "target"}
        if found != self._before:
            raise Broken(f"written outside: {sorted(found.items() ^ self._before.items())}")

    def check_tree(self, limits: Limits) -> dict[str, Node]:
        """The target holds only what images may make; returns it.  Raises Broken."""
        found = look(self.target)
        files = 0
        inodes: Counter[int] = Counter()
        for path, (kind, mode, content, _) in found.items():
            status = os.lstat(f"{self.target}/{path}")
            if kind not in "-dl" or mode & 0o6000 or (kind == "-" and mode & 0o1000):
                raise Broken(f"{path}: {kind} {mode:o}")
            if os.listxattr(f"{self.target}/{path}", follow_symlinks=False):
                raise Broken(f"{path}: has extended attributes")
            inodes[status.st_ino] += kind != "d"
            files += len(content) if kind == "-" and inodes[status.st_ino] == 1 else 0
        for path, (kind, _, _, links) in found.items():
            if kind != "d" and inodes[os.lstat(f"{self.target}/{path}").st_ino] != links:
                raise Broken(f"{path}: has a link outside the tree")
        if files > limits.bytes_out or len(found) > limits.entries + limits.directories:
            raise Broken(f"{files} bytes in {len(found)} entries")
        return found
