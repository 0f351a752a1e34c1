# SPDX-License-Identifier: Apache-2.0
"""Making root's own what the site store's account has made, so that nobody else can change it any more.

The account is not trusted: it may have hung links, may still run, may still have a file open.  A directory
becomes root's before what is in it, after which its names stay; a file that somebody has open for writing is
refused.  Nothing is followed, and nothing is opened that is not the account's or root's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Collection
from itertools import islice

from hpcpod.errors import StoreUnusable
from hpcpod.log import shown

_DEEPEST = 400
"""Directories in one another: twice what limit path_depth lets an image have, and what Python can walk."""
_PERMISSIONS, _READ = 0o755, 0o444
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def take_over(directory: int, names: Collection[str], uid: int) -> None:
    """Make an entry root's: an open directory of the account's (`uid`) with exactly these names.

    Users may then read all of it, and write nothing: the bits that let group and others write go.  Raises
    StoreUnusable for anything that an entry has not, and for what was root's before; OSError.
    """
    _own_directory(directory, (uid,))
    with os.scandir(directory) as entries:
        found = {entry.name for entry in islice(entries, len(names) + 3)}
    if found != set(names):
        odd = ", ".join(shown(name) for name in sorted(found ^ set(names))[:3])
        raise StoreUnusable(f"site store: an entry in the making: {odd}: more or less than it should have")
    _take_children(directory, uid, set())
    for name in names:
        _let_all_read(directory, name)
    os.fchmod(directory, _PERMISSIONS)


def own_tree(path: str, uid: int) -> None:
    """Make a directory root's with those below it, so that root can remove it; one that is not there is none.

    What lies deeper than images do is moved up.  Raises StoreUnusable, OSError.
    """
    try:
        top = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        _own_directory(top, (0, uid))
        serial = 0
        while deep := _take_directories(top, uid, 0):
            for parent, name in deep:
                serial += 1
                os.rename(name, f"deep-{os.getpid()}-{serial}", src_dir_fd=parent, dst_dir_fd=top)
                os.close(parent)
    finally:
        os.close(top)


def _take_directories(directory: int, uid: int, depth: int) -> list[tuple[int, str]]:
    """Make the directories below one root's; those that are too deep, as the parent's descriptor and name."""
    found: list[tuple[int, str]] = []
    for name in _directories_in(directory, lambda name, is_link: None):
        if depth == _DEEPEST:
            found.append((os.dup(directory), name))
            break  # one at a time: descriptors are few
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            _own_directory(fd, (0, uid))
            found = _take_directories(fd, uid, depth + 1)
        finally:
            os.close(fd)
        if found:
            break
    return found


def _directories_in(directory: int, take: Callable[[str, bool], None]) -> list[str]:
    """Names of the directories in a directory; take is told name and whether it is a link of all else.

    An image may have millions of files in one directory: their names are not held together.
    """
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found.append(entry.name)
            else:
                take(entry.name, entry.is_symlink())
    return found


def _take_children(directory: int, uid: int, taken: set[tuple[int, int]], depth: int = 0) -> None:
    """taken: files that have become root's here, and may come again by other names."""
    if depth > _DEEPEST:
        raise StoreUnusable(f"site store: an entry in the making: deeper than {_DEEPEST} directories")

    def take(name: str, is_link: bool) -> None:
        if is_link:
            os.chown(name, 0, 0, dir_fd=directory, follow_symlinks=False)
        else:
            _own_file(directory, name, uid, taken, only_name=depth == 0)

    for name in _directories_in(directory, take):
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            _own_directory(fd, (uid,))
            _take_children(fd, uid, taken, depth + 1)
        finally:
            os.close(fd)


def _own_directory(fd: int, owners: tuple[int, ...]) -> None:
    status = os.fstat(fd)
    if status.st_uid not in owners:
        raise StoreUnusable(f"site store: a directory in the making belongs to uid {status.st_uid}")
    _give_root(fd, status.st_mode)


def _give_root(fd: int, mode: int) -> None:
    """Root's first: only an owner changes bits, so that those set after it stay."""
    os.fchown(fd, 0, 0)
    os.fchmod(fd, mode & _PERMISSIONS)


def _own_file(directory: int, name: str, uid: int, taken: set[tuple[int, int]], *, only_name: bool) -> None:
    """only_name: the file must have no other, as documents and packed files have none."""
    try:
        fd = os.open(name, _FILE, dir_fd=directory)
    except OSError as error:  # a socket
        raise StoreUnusable(f"site store: {shown(name)}: {os.strerror(error.errno or 0).lower()}") from None
    try:
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino)
        # What was root's before is somebody's secret, or in use: the account may have hung a link to it.
        mine = status.st_uid == 0 and identity in taken
        if not stat.S_ISREG(status.st_mode) or not (mine or status.st_uid == uid):
            raise StoreUnusable(f"site store: {shown(name)}: not a file of the account's own")
        if only_name and status.st_nlink != 1:
            raise StoreUnusable(f"site store: {shown(name)}: has {status.st_nlink} names")
        if mine:
            return
        _give_root(fd, status.st_mode)
        if status.st_nlink > 1:
            taken.add(identity)
        _refuse_written(fd, name)
    finally:
        os.close(fd)


def _let_all_read(directory: int, name: str) -> None:
    fd = os.open(name, _FILE, dir_fd=directory)
    try:
        os.fchmod(fd, _PERMISSIONS if stat.S_ISDIR(os.fstat(fd).st_mode) else _READ)
    finally:
        os.close(fd)


def _refuse_written(fd: int, name: str) -> None:
    """Raise StoreUnusable where somebody has the file open for writing: no read lease then (fcntl(2))."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise StoreUnusable(f"site store: {shown(name)}: a process has it open for writing") from None
        code = errno.errorcode.get(error.errno or 0, "error")
        raise StoreUnusable(
            f"site store: {shown(name)}: its file system cannot say whether it is open for writing ({code})",
            hint="[site] store in hpcpod.toml belongs on a disk of the node",
        ) from None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
