# SPDX-License-Identifier: Apache-2.0
"""A squashfs image as entries of a lowest layer, for the applier that writes those of tar archives.

So the same rules and limits hold for both: names, depth, sizes, entries; devices and FIFOs are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import Limits
from hpcpod.images.sources import squashfs
from hpcpod.images.sources.squashfs import Inode, Squashfs
from hpcpod.images.unpacking.names import WHITEOUT
from hpcpod.images.unpacking.tarheader import NANOSECONDS
from hpcpod.images.unpacking.tarstream import ByteStream, Entry, Kind, TarReader
from hpcpod.log import shown

_KINDS = {
    squashfs.DIRECTORY: Kind.DIRECTORY,
    squashfs.FILE: Kind.FILE,
    squashfs.SYMLINK: Kind.SYMLINK,
    squashfs.BLOCK_DEVICE: Kind.DEVICE,
    squashfs.CHARACTER_DEVICE: Kind.DEVICE,
    squashfs.FIFO: Kind.FIFO,
    squashfs.SOCKET: Kind.FIFO,
}


class SquashTree(TarReader):
    """Iterates over entries, parents before children; the data of a FILE is taken with copy_data.

    spend: told of the bytes of each file before they are read; advance: after.
    """

    def __init__(
        self,
        image: Squashfs,
        limits: Limits,
        spend: Callable[[int], None],
        advance: Callable[[int], None],
    ) -> None:
        super().__init__(ByteStream(iter(())), limits)
        self._image = image
        self._bounds = limits
        self._spend = spend
        self._advance = advance
        self._file: Inode | None = None
        self._linked: dict[int, bytes] = {}
        self._seen: set[tuple[int, int]] = set()

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
            name, block, offset = found
            path = above + name
            if name.startswith(WHITEOUT):
                raise ImageInvalid(f"squashfs: {shown(path)} is named as layers name whiteouts")
            inode = self._image.inode(block, offset)
            yield self._made(path, inode)
            if inode.kind == squashfs.DIRECTORY:
                self._enter((block, offset), path, len(stack))
                stack.append((path + b"/", self._image.entries(inode)))

    def _enter(self, place: tuple[int, int], path: bytes, depth: int) -> None:
        """A directory is in one place: another way to it could go round for ever."""
        if place in self._seen:
            raise ImageInvalid(f"squashfs: {shown(path)}: a directory in two places")
        if depth >= self._bounds.path_depth:
            raise ImageLimitExceeded(f"squashfs: {shown(path)}: limit path_depth {self._bounds.path_depth}")
        self._seen.add(place)

    def _made(self, path: bytes, inode: Inode) -> Entry:
        self._file = None
        if inode.kind not in (squashfs.FILE, squashfs.SYMLINK):
            return _entry(path, inode)
        if inode.links > 1:
            first = self._linked.setdefault(inode.number, path)
            if first != path:
                return _entry(path, inode)._replace(kind=Kind.HARDLINK, size=0, link=first)
            if len(self._linked) > self._bounds.directories:
                raise ImageLimitExceeded(
                    f"squashfs: files with several names, limit directories {self._bounds.directories}"
                )
        if inode.kind == squashfs.FILE:
            if inode.size > self._bounds.file_bytes:
                raise ImageLimitExceeded(
                    f"squashfs: {shown(path)}: {inode.size} bytes, limit file_bytes {self._bounds.file_bytes}"
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


def _entry(path: bytes, inode: Inode) -> Entry:
    kind = _KINDS[inode.kind]
    size = inode.size if kind is Kind.FILE else 0
    return Entry(path, kind, inode.mode, size, inode.mtime * NANOSECONDS, inode.target)
