# SPDX-License-Identifier: Apache-2.0
"""Removing trees: entries of one that is being unpacked, and whole ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable


def remove_below(directory: int, name: bytes) -> None:
    """Remove a file or a whole tree, never following a symlink.  Raises OSError.

    Uses one descriptor per level; the trees that images make are no deeper than Limits.path_depth.
    """
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        pass
    else:
        return
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        for child in os.listdir(fd):
            remove_below(fd, os.fsencode(child))
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)


def remove_tree(path: str) -> None:
    """Remove a directory of this process's own making, of any depth, with three descriptors at most.

    Each directory found is moved up to the top before it is emptied, so neither recursion nor path
    lengths grow.  Directories without write or search permission are given it first.  Another process that
    removes the same tree does no harm.  Raises OSError other than ENOENT.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except PermissionError:
        os.chmod(path, 0o700)
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(top, 0o700)
        serial = 0
        while names := os.listdir(top):
            for name in names:
                serial = _flatten(top, os.fsencode(name), serial)
    finally:
        os.close(top)
    _ignore_absent(os.rmdir, path)


def _flatten(top: int, name: bytes, serial: int) -> int:
    """Unlink top/name, or move its sub-directories up to top and remove it."""
    if _ignore_absent(os.unlink, name, dir_fd=top):
        return serial
    try:
        fd = _open_own(name, top)
    except FileNotFoundError:
        return serial
    try:
        for child in os.listdir(fd):
            raw = os.fsencode(child)
            if not _ignore_absent(os.unlink, raw, dir_fd=fd):
                serial = _move_up(fd, raw, top, serial)
    finally:
        os.close(fd)
    _ignore_absent(os.rmdir, name, dir_fd=top)
    return serial


def _move_up(fd: int, name: bytes, top: int, serial: int) -> int:
    while True:
        serial += 1
        try:
            # Moving a directory changes its "..", for which it must be writable.
            os.chmod(name, 0o700, dir_fd=fd)
            os.rename(name, b"%d-%d" % (os.getpid(), serial), src_dir_fd=fd, dst_dir_fd=top)
        except FileNotFoundError:
            return serial
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        else:
            return serial


def _open_own(name: bytes, top: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    os.chmod(name, 0o700, dir_fd=top)
    return os.open(name, flags, dir_fd=top)


def _ignore_absent(call: Callable[..., None], name: str | bytes, **kwargs: int) -> bool:
    """Whether name is gone after call(name); False when it is a directory that unlink(2) does not take."""
    try:
        call(name, **kwargs)
    except FileNotFoundError:
        return True
    except (IsADirectoryError, PermissionError):
        # unlink(2) of a directory: EISDIR on Linux file systems, EPERM by POSIX.
        return False
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            return False
        raise
    return True
