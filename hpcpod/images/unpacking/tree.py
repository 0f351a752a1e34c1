# SPDX-License-Identifier: Apache-2.0
"""Removing trees: entries of one that is being unpacked, and whole ones."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from itertools import islice

_ACCESS = 0o700
_AT_ONCE = 4096
"""Names of a directory that are held in memory: an image may have millions in one."""


def names_in(directory: int) -> Iterator[bytes]:
    """Names in an open directory, some thousands in memory at a time.

    Whoever takes them may remove what they name: the others come all the same (readdir(3)).  Raises OSError.
    """
    with os.scandir(directory) as entries:
        while names := [os.fsencode(entry.name) for entry in islice(entries, _AT_ONCE)]:
            yield from names


def remove_below(directory: int, name: bytes, freed: Callable[[os.stat_result], None]) -> None:
    """Remove a file or a whole tree, never following a symlink.  Raises OSError.

    freed: told what each file was, after it was removed.  Uses one descriptor per level, and one more where a
    directory is large; the trees that images make are no deeper than Limits.path_depth.
    """
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=directory)
        freed(status)
        return
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        for child in names_in(fd):
            remove_below(fd, child, freed)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)


def remove_tree(path: str) -> None:
    """Remove a directory of this process's own making, of any depth; what is not there is no error.

    Raises what empty_directory() raises.
    """
    try:
        top = _open_directory(os.fsencode(path), None, None)
    except FileNotFoundError:
        return
    try:
        empty_directory(top)
    finally:
        os.close(top)
    _ignore_absent(os.rmdir, path)


def empty_directory(top: int) -> None:
    """Remove what is below an open directory, with three descriptors at most.

    Each directory found is moved up to the top before it is emptied, so neither recursion nor path
    lengths grow.  Directories without write or search permission are given it first.  Another process that
    removes the same tree does no harm.  Directories of another owner than the top's, which that owner may
    exchange while they are walked, are left: PermissionError.  Raises OSError other than ENOENT.
    """
    status = os.fstat(top)
    if status.st_mode & _ACCESS != _ACCESS:
        os.fchmod(top, _ACCESS)
    serial = 0
    found = True
    while found:  # what was moved up comes in the next round, if not in this one
        found = False
        for name in names_in(top):
            found = True
            serial = _flatten(top, name, serial, status.st_uid)


def _flatten(top: int, name: bytes, serial: int, owner: int) -> int:
    """Unlink top/name, or move its sub-directories up to top and remove it."""
    if _ignore_absent(os.unlink, name, dir_fd=top):
        return serial
    try:
        fd = _open_directory(name, top, owner)
    except FileNotFoundError:
        return serial
    try:
        for raw in names_in(fd):
            if not _ignore_absent(os.unlink, raw, dir_fd=fd):
                serial = _move_up(fd, raw, top, serial, owner)
    finally:
        os.close(fd)
    _ignore_absent(os.rmdir, name, dir_fd=top)
    return serial


def _move_up(fd: int, name: bytes, top: int, serial: int, owner: int) -> int:
    try:
        # Moving a directory changes its "..", for which it must be writable.
        os.close(_open_directory(name, fd, owner))
    except FileNotFoundError:
        return serial
    while True:
        serial += 1
        try:
            os.rename(name, b"%d-%d" % (os.getpid(), serial), src_dir_fd=fd, dst_dir_fd=top)
        except FileNotFoundError:
            return serial
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        else:
            return serial


def _open_directory(name: bytes, parent: int | None, owner: int | None) -> int:
    """Open a directory for reading, with permission to change it; owner: None for anybody's.

    The mode is changed through a descriptor that was opened without following a link and then looked at:
    chmod(2) by name follows links, and whoever may write in the parent could put one there meanwhile.
    """
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        status = os.fstat(fd)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
        if owner is not None and status.st_uid != owner:
            raise PermissionError(errno.EPERM, f"a directory of uid {status.st_uid}", name)
        path = f"/proc/self/fd/{fd}"
        if status.st_mode & _ACCESS != _ACCESS:
            os.chmod(path, _ACCESS)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(fd)


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
