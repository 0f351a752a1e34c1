# SPDX-License-Identifier: Apache-2.0
"""Reading files of an unpacked image by their paths inside it: no link leads out of the tree.

A path is walked one component at a time with O_NOFOLLOW and links are followed by hand, as
path_resolution(7) would after a chroot.  That costs a system call per component, and no import: openat2(2)
would need ctypes, on the path of a rank that waits.
"""

from __future__ import annotations

import os
import stat
from types import TracebackType

MAX_LINKS = 40
"""Links followed in one path, as the kernel does (path_resolution(7))."""


class Inside:
    """The tree below an image's root directory, opened once.  A context manager."""

    def __init__(self, rootfs: str) -> None:
        """Open the directory rootfs.  Raises OSError."""
        self._root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Inside:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the root directory."""
        os.close(self._root)

    def resolve(self, path: str) -> str | None:
        """The path of what path names, free of links, from the image's root; None if nothing is there."""
        walked = self._walk(path, os.O_PATH)
        if walked is None:
            return None
        os.close(walked[0])
        return walked[1]

    def open_file(self, path: str) -> tuple[int, str] | None:
        """(descriptor, resolved path) of a regular file opened for reading; None for anything else."""
        walked = self._walk(path, os.O_RDONLY | os.O_NONBLOCK)
        if walked is None:
            return None
        if not stat.S_ISREG(os.fstat(walked[0]).st_mode):
            os.close(walked[0])
            return None
        return walked

    def read(self, path: str, limit: int) -> bytes | None:
        """The first limit bytes of a regular file; None where there is none."""
        opened = self.open_file(path)
        if opened is None:
            return None
        try:
            return os.pread(opened[0], limit, 0)
        finally:
            os.close(opened[0])

    def names(self, path: str, prefix: str = "") -> list[str]:
        """Names in the directory that start with prefix, sorted; none where it is no readable directory."""
        walked = self._walk(path, os.O_RDONLY | os.O_NONBLOCK)
        if walked is None:
            return []
        try:
            return sorted(name for name in os.listdir(walked[0]) if name.startswith(prefix))
        except OSError:  # no directory, or one that the user may not read: nothing to find there
            return []
        finally:
            os.close(walked[0])

    def _walk(self, path: str, flags: int) -> tuple[int, str] | None:
        """Open what path names, within the tree; None where nothing, or nothing readable, is there."""
        parents = [(os.dup(self._root), "")]
        try:
            return self._descend(parents, path, flags)
        except (OSError, ValueError):  # absent or unreadable; ValueError: a NUL in the name
            return None
        finally:
            for fd, _ in parents:
                os.close(fd)

    def _descend(self, parents: list[tuple[int, str]], path: str, flags: int) -> tuple[int, str] | None:
        pending = path.split("/")[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if len(parents) > 1:
                    os.close(parents.pop()[0])
                continue
            fd = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parents[-1][0])
            parents.append((fd, part))
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                continue
            links += 1
            if links > MAX_LINKS:
                return None
            target = os.readlink("", dir_fd=fd)
            os.close(parents.pop()[0])
            if target.startswith("/"):
                while len(parents) > 1:
                    os.close(parents.pop()[0])
            pending.extend(target.split("/")[::-1])
        resolved = "/" + "/".join(name for _, name in parents[1:])
        if len(parents) == 1:
            return os.open(".", flags | os.O_CLOEXEC, dir_fd=parents[0][0]), resolved
        name = parents[-1][1]
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parents[-2][0]), resolved
