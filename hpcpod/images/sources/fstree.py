# SPDX-License-Identifier: Apache-2.0
"""A file system image as entries of a lowest layer, for the applier that writes those of tar archives.

So the same rules and limits hold for both: names, depth, sizes, entries; devices and FIFOs are left out.
What a reader of one file system offers is :class:`FileSystem`; squashfs.py and erofs.py have one each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import Limits
from hpcpod.images.unpacking.names import WHITEOUT
from hpcpod.images.unpacking.tarstream import ByteStream, Entry, Kind, TarReader
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Any, Protocol
else:
    Protocol = object

MAX_LINKS = 40
"""Links followed in one path, as the kernel does (path_resolution(7))."""


class FileSystem(Protocol):
    """A file system image, opened.  Its methods raise ImageInvalid.

    Its inodes, of a sort of its own, have: kind, a Kind.  mode: permissions and the bits above them.
    mtime_ns.  number: the same for all names of one file.  links: how many names it has.  size: of a file's
    data, in bytes.  target: of a link.
    """

    @property
    def name(self) -> str:
        """Of the format, for messages."""

    @property
    def root(self) -> Any:
        """The inode of the top directory."""

    def entries(self, directory: Any) -> Iterator[tuple[bytes, Hashable]]:
        """Of each entry its name and the place of its inode; names ascend."""

    def inode(self, place: Any) -> Any:
        """The inode at a place."""

    def data(self, file: Any) -> Iterator[bytes | int]:
        """A file's data in order: bytes, or how many zeros."""


class FsTree(TarReader):
    """Iterates over entries, parents before children; the data of a FILE is taken with copy_data.

    spend: told of the bytes of each file before they are read; advance: after.
    """

    def __init__(
        self,
        image: FileSystem,
        limits: Limits,
        spend: Callable[[int], None],
        advance: Callable[[int], None],
    ) -> None:
        super().__init__(ByteStream(iter(())), limits)
        self._image = image
        self._bounds = limits
        self._spend = spend
        self._advance = advance
        self._file: Any | None = None
        self._linked: dict[int, bytes] = {}
        self._seen: set[Hashable] = set()

    def __iter__(self) -> Iterator[Entry]:
        """Entries of the whole tree."""
        root = self._image.root
        yield _entry(b".", root)
        stack = [(b"", self._image.entries(root))]
        while stack:
            above, entries = stack[-1]
            found = next(entries, None)
            if found is None:
                stack.pop()
                continue
            name, place = found
            path = above + name
            if name.startswith(WHITEOUT):
                raise ImageInvalid(f"{self._image.name}: {shown(path)} is named as layers name whiteouts")
            inode = self._image.inode(place)
            yield self._made(path, inode)
            if inode.kind is Kind.DIRECTORY:
                self._enter(place, path, len(stack))
                stack.append((path + b"/", self._image.entries(inode)))

    def _enter(self, place: Hashable, path: bytes, depth: int) -> None:
        """A directory is in one place: another way to it could go round for ever."""
        if place in self._seen:
            raise ImageInvalid(f"{self._image.name}: {shown(path)}: a directory in two places")
        if depth >= self._bounds.path_depth:
            raise ImageLimitExceeded(
                f"{self._image.name}: {shown(path)}: limit path_depth {self._bounds.path_depth}"
            )
        self._seen.add(place)

    def _made(self, path: bytes, inode: Any) -> Entry:
        self._file = None
        if inode.kind not in (Kind.FILE, Kind.SYMLINK):
            return _entry(path, inode)
        if inode.links > 1:
            first = self._linked.setdefault(inode.number, path)
            if first != path:
                return _entry(path, inode)._replace(kind=Kind.HARDLINK, size=0, link=first)
            if len(self._linked) > self._bounds.directories:
                raise ImageLimitExceeded(
                    f"{self._image.name}: files with several names, "
                    f"limit directories {self._bounds.directories}"
                )
        if inode.kind is Kind.FILE:
            if inode.size > self._bounds.file_bytes:
                raise ImageLimitExceeded(
                    f"{self._image.name}: {shown(path)}: {inode.size} bytes, "
                    f"limit file_bytes {self._bounds.file_bytes}"
                )
            self._spend(inode.size)
            self._file = inode
        return _entry(path, inode)

    def copy_data(self, fd: int) -> None:
        """Write the data of the present file to fd, holes as holes.  Raises OSError as write(2)."""
        file, self._file = self._file, None
        if file is None:
            return
        for block in self._image.data(file):
            if isinstance(block, int):
                os.lseek(fd, block, os.SEEK_CUR)
                self._advance(block)
                continue
            view = memoryview(block)
            while view:
                view = view[os.write(fd, view) :]
            self._advance(len(block))
        os.ftruncate(fd, file.size)


def _entry(path: bytes, inode: Any) -> Entry:
    size = inode.size if inode.kind is Kind.FILE else 0
    return Entry(path, inode.kind, inode.mode, size, inode.mtime_ns, inode.target)
