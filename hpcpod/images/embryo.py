# SPDX-License-Identifier: Apache-2.0
"""Directories in the making: theirs is a name that says who makes them, and a lock that says they are alive.

The name is NODE-BOOT-PID-RANDOM.  The lock is an flock on the directory itself, which the kernel drops with
its holder, so what a killed process left is known and removed by whoever comes next.  Two nodes that share a
store see each other's names; where their locks do not reach, age decides.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time

from hpcpod.frozen import frozen
from hpcpod.images.tree import empty_directory

FOREIGN_SECONDS = 24 * 3600
"""Age from which another node's directory is taken for dead."""
YOUNG_SECONDS = 60
"""A directory of a living process that is not locked: it is just being made, if it is no older than this."""
_NODE_MAX = 64
_NAME = re.compile(r"([A-Za-z0-9_.]+)-([0-9a-f]+)-([0-9]+)-([0-9a-f]+)")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@frozen
class Embryo:
    """A directory of this process, locked while the descriptor is open.  Private: mode 0700."""

    path: str
    fd: int

    def release(self) -> None:
        """Drop the lock; the directory has its final name."""
        os.close(self.fd)

    def discard(self) -> None:
        """Remove it, unless it has its final name already."""
        try:
            if _is_at(self.path, self.fd):
                empty_directory(self.fd)
                os.rmdir(self.path)
        finally:
            os.close(self.fd)


def _is_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def unique_name() -> str:
    """A name that no other process on any node takes."""
    return f"{_node()}-{_boot()}-{os.getpid()}-{os.urandom(6).hex()}"


def _node() -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", os.uname().nodename)[:_NODE_MAX] or "node"


def _boot() -> str:
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip().replace("-", "")[:12]
    finally:
        os.close(fd)


def make_embryo(parent: str, prefix: str = "") -> Embryo:
    """Make a locked directory below parent.  Raises OSError."""
    while True:
        path = f"{parent}/{prefix}{unique_name()}"
        os.mkdir(path, 0o700)
        fd = os.open(path, _DIRECTORY)
        if _lock(fd) and os.fstat(fd).st_nlink:
            return Embryo(path, fd)
        # Somebody swept it between the making and the locking.
        os.close(fd)


def _lock(fd: int) -> bool:
    """Take the lock; also true where the file system has none.  False: another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN)
    return True


def sweep(parent: str, prefix: str = "") -> int:
    """Remove this user's directories below parent whose makers are dead; returns how many.

    parent may be /tmp: what other users made there, whatever its name, is left alone.
    """
    names = [name for name in os.listdir(parent) if name.startswith(prefix)]
    return sum(_sweep_one(f"{parent}/{name}", name[len(prefix) :]) for name in names)


def _sweep_one(path: str, name: str) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and _remove_unlocked(path, match)


def _remove_unlocked(path: str, maker: re.Match[str] | None) -> bool:
    """Remove a directory of this user that no process has locked, and whose maker is dead if it matters."""
    try:
        fd = os.open(path, _DIRECTORY)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or not _lock(fd):
            return False
        if maker is not None and not _maker_dead(maker, status):
            return False
        # Its maker may have given it the final name before the lock was free.
        if not _is_at(path, fd):
            return False
        empty_directory(fd)
        os.rmdir(path)
    except (FileNotFoundError, PermissionError):
        # Another sweep was faster, or another user's directory is inside: no reason to end this command.
        return False
    finally:
        os.close(fd)
    return True


def _maker_dead(match: re.Match[str], status: os.stat_result) -> bool:
    node, boot, pid = match.group(1), match.group(2), int(match.group(3))
    age = time.time() - status.st_mtime
    if boot == _boot():
        return age > YOUNG_SECONDS or not _alive(pid)
    return node == _node() or age > FOREIGN_SECONDS


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def sweep_garbage(directory: str) -> int:
    """Remove what this user threw away and no living process is removing; returns how many."""
    return sum(_remove_unlocked(f"{directory}/{name}", None) for name in os.listdir(directory))
