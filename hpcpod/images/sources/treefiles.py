# SPDX-License-Identifier: Apache-2.0
"""Files of a file system image by their paths, links followed within it.  Pure."""

from __future__ import annotations

from hpcpod.errors import ImageInvalid
from hpcpod.images.sources.fstree import MAX_LINKS, FileSystem
from hpcpod.images.unpacking.tarstream import Kind

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import Any

_LISTED = 4096
"""Names of one directory that are looked at: makers of images put a handful there."""


class TreeFiles:
    """What a configuration is read from (treeconfig.py).  Its methods raise ImageInvalid."""

    def __init__(self, image: FileSystem) -> None:
        self._image = image

    def read(self, path: str, limit: int) -> bytes | None:
        """The first limit bytes of a regular file; None where there is none."""
        found = self._find(path)
        if found is None or found.kind is not Kind.FILE:
            return None
        pieces, missing = [], limit
        for piece in self._image.data(found):
            data = bytes(min(piece, missing)) if isinstance(piece, int) else piece[:missing]
            pieces.append(data)
            missing -= len(data)
            if not missing:
                break
        return b"".join(pieces)

    def names(self, path: str) -> list[str]:
        """Names in a directory, sorted; none where there is no directory."""
        found = self._find(path)
        if found is None or found.kind is not Kind.DIRECTORY:
            return []
        names: list[str] = []
        for name, _ in self._image.entries(found):
            if len(names) >= _LISTED:
                raise ImageInvalid(f"{self._image.name}: {path}: more than {_LISTED} names")
            names.append(name.decode(errors="surrogateescape"))
        return names

    def _find(self, path: str) -> Any | None:
        """The inode that a path names, links followed as path_resolution(7) does in a root of its own."""
        above: list[Any] = [self._image.root]
        pending = path.encode(errors="surrogateescape").split(b"/")[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                above = above[:-1] or above
            if part in (b"", b".", b".."):
                continue
            if above[-1].kind is not Kind.DIRECTORY:
                return None
            place = next((place for name, place in self._image.entries(above[-1]) if name == part), None)
            if place is None:
                return None
            found = self._image.inode(place)
            if found.kind is not Kind.SYMLINK:
                above.append(found)
                continue
            links += 1
            if links > MAX_LINKS:
                return None
            above = above[:1] if found.target.startswith(b"/") else above
            pending += found.target.split(b"/")[::-1]
        return above[-1]
