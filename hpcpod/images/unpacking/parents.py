# SPDX-License-Identifier: Apache-2.0
"""Directories that entries go into: found inside the root, made where missing, kept open for a while."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import Limits
from hpcpod.images.unpacking.names import WHITEOUT
from hpcpod.kernel import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from hpcpod.log import shown

CACHED = 128
_SPELLINGS = 4 * CACHED
_PATH_FD = os.O_PATH | os.O_DIRECTORY
_EXACT = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_TOP = (b"", b".")
_DOT = ord(".")
_NO_WAY = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


class Parents:
    """Descriptors of directories by the path that an archive uses for them.

    A path may run through symlinks of the image; its canonical form is the one without.
    on_make is told the canonical path of each directory made.  spellings: the same by what an archive
    wrote before an entry's name, as long as it leads there.
    """

    def __init__(self, root: int, limits: Limits, on_make: Callable[[bytes], None]) -> None:
        self._root = root
        self._limits = limits
        self._on_make = on_make
        self._open: dict[bytes, tuple[int, bytes]] = {}
        self._stale: list[int] = []
        self.spellings: dict[bytes, tuple[int, bytes]] = dict.fromkeys(_TOP, (root, b""))

    def make(self, path: bytes) -> tuple[int, bytes]:
        """Descriptor and canonical path of a directory; it and its parents are made where missing.

        The descriptor is good until the next call.  Raises ImageInvalid, OSError.
        """
        found = self._open.get(path)
        if found is not None:
            return found
        return self._remember(path, self._lookup(path) or self._make(path))

    def find(self, path: bytes) -> tuple[int, bytes] | None:
        """As make(), but None where there is no such directory."""
        found = self._open.get(path)
        if found is not None:
            return found
        try:
            looked_up = self._lookup(path)
        except OSError as error:
            if error.errno not in _NO_WAY:
                raise
            return None
        return None if looked_up is None else self._remember(path, looked_up)

    def below(self, spelling: bytes) -> tuple[int, bytes] | None:
        """A directory that is there, and no symlink on the way from one in spellings; it is added to them.

        The plainest spellings only: None says nothing.  The descriptor is good until the next call.
        """
        above, _, name = spelling.rpartition(b"/")
        if not name or name[0] == _DOT or WHITEOUT in name:
            return None
        parent = self.spellings.get(above) or self.below(above)
        if parent is None:
            return None
        canonical = parent[1] + b"/" + name if parent[1] else name
        found = self._open.get(canonical)
        if found is None:
            self._check_depth(canonical)
            try:
                fd = os.open(name, _PATH_FD | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent[0])
            except OSError:
                return None
            found = self._remember(canonical, (fd, canonical))
        self.spelled(spelling, found)
        return found

    def spelled(self, spelling: bytes, found: tuple[int, bytes]) -> None:
        """Remember what an archive wrote before an entry's name; there are as many spellings as one likes."""
        if len(self.spellings) >= _SPELLINGS:
            self._forget_spellings()
        self.spellings[spelling] = found

    def open_exact(self, path: bytes) -> int | None:
        """A read-only descriptor of the directory at a canonical path; None if another thing is there now."""
        try:
            return openat2(self._root, path or b".", os.O_RDONLY | os.O_DIRECTORY, _EXACT)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise

    def outdated(self) -> None:
        """A directory or symlink was removed: paths may lead elsewhere now.

        Descriptors handed out by the last call stay open until the next one.
        """
        self._stale.extend(fd for fd, _ in self._open.values())
        self._open.clear()
        self._forget_spellings()

    def _forget_spellings(self) -> None:
        self.spellings.clear()
        self.spellings.update(dict.fromkeys(_TOP, (self._root, b"")))

    def forget(self) -> None:
        """Close all."""
        self.outdated()
        self._close_stale()

    def _close_stale(self) -> None:
        for fd in self._stale:
            os.close(fd)
        self._stale.clear()

    def _remember(self, path: bytes, found: tuple[int, bytes]) -> tuple[int, bytes]:
        self._close_stale()
        if len(self._open) >= CACHED:
            self.forget()
        self._open[path] = found
        return found

    def _lookup(self, path: bytes) -> tuple[int, bytes] | None:
        try:
            return openat2(self._root, path or b".", _PATH_FD, _EXACT), path
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        try:
            fd = openat2(self._root, path, _PATH_FD, _IN_ROOT)
        except FileNotFoundError:
            return None
        try:
            return fd, self._canonical(fd, path)
        except BaseException:
            os.close(fd)
            raise

    def _canonical(self, fd: int, path: bytes) -> bytes:
        root = os.readlink(b"/proc/self/fd/%d" % self._root)
        real = os.readlink(b"/proc/self/fd/%d" % fd)
        if real == root:
            return b""
        if not real.startswith(root + b"/"):
            raise ImageInvalid(f"tar entry below {shown(path)}: leads outside the image")
        inner = real[len(root) + 1 :]
        self._check_depth(inner)
        return inner

    def _check_depth(self, canonical: bytes) -> None:
        """Symlinks may point into deep directories again and again: bound what they add up to."""
        limits = self._limits
        if canonical.count(b"/") >= limits.path_depth:
            raise ImageLimitExceeded(
                f"tar entry below {shown(canonical)}: limit path_depth {limits.path_depth}"
            )
        if len(canonical) > limits.path_bytes:
            raise ImageLimitExceeded(
                f"tar entry below {shown(canonical)}: limit path_bytes {limits.path_bytes}"
            )

    def _make(self, path: bytes) -> tuple[int, bytes]:
        head, _, name = path.rpartition(b"/")
        parent, canonical = self.make(head)
        made = canonical + b"/" + name if canonical else name
        self._check_depth(made)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            raise ImageInvalid(f"tar entry below {shown(path)}: a symbolic link that leads nowhere") from None
        self._on_make(made)
        return openat2(parent, name, _PATH_FD, _EXACT), made
