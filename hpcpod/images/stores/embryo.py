# SPDX-License-Identifier: Apache-2.0
"""Directories in the making, or being removed: the name says who does it, and so whether they still do.

The name is NODE-BOOT-PIDNS-PID-START-RANDOM, START being the process's time of start (proc(5), stat, field
22): a pid that was used again is told apart.  No lock is needed, so the directory may lie on a file system
that has none.  Where the maker cannot be asked after, because it is on another node or in another pid
namespace, the time of change decides: a maker sets it again every BEAT_SECONDS.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress

from hpcpod.images.unpacking.tree import empty_directory
from hpcpod.log import Progress

BEAT_SECONDS = 20.0
"""How often a maker says that it is alive."""
FOREIGN_SECONDS = 3600
"""Age from which a directory whose maker cannot be asked after is taken for dead: 180 missed beats."""
_NODE_MAX = 64
_ID_DIGITS = 12
_NAME = re.compile(r"([A-Za-z0-9_.]+)-([0-9a-f]+)-([0-9]+)-([0-9]+)-([0-9]+)-([0-9a-f]+)")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_START = 19
"""Where the time of start is in /proc/PID/stat, counted behind the command's closing parenthesis."""


class Embryo:
    """A directory of this process.  Private: mode 0700.  path: where it is; fd: it, open.

    disk: bytes that its finished content takes, for who gives it a name.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.disk = 0
        self._next = time.monotonic() + BEAT_SECONDS

    def beat(self) -> None:
        """Say that its maker is alive, if it is time to; called while the work goes on."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + BEAT_SECONDS
            os.utime(self.fd)

    def release(self) -> None:
        """Let go of it; the directory has its final name."""
        os.close(self.fd)

    def discard(self) -> None:
        """Remove it, unless it has its final name already.

        Where that cannot be, the next sweep tries again: what went wrong before is what there is to say.
        """
        try:
            with suppress(OSError):
                if self.is_there():
                    empty_directory(self.fd)
                    os.rmdir(self.path)
        finally:
            os.close(self.fd)

    def is_there(self) -> bool:
        """Whether its path still leads to it: who may write in the parent can exchange what is there."""
        return is_at(self.path, self.fd)


class Beating:
    """A Progress that also keeps the sign of life of an embryo fresh."""

    def __init__(self, progress: Progress, embryo: Embryo) -> None:
        self.begin, self.note, self.end = progress.begin, progress.note, progress.end
        self.took = progress.took
        self._progress = progress
        self._embryo = embryo

    def advance(self, count: int) -> None:
        """Count more bytes are done."""
        self._embryo.beat()
        self._progress.advance(count)


def is_at(path: str, fd: int) -> bool:
    """Whether path leads to what is open, and is no link to it.  Raises OSError other than ENOENT."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def unique_name() -> str:
    """A name that no other process on any node takes."""
    pid = os.getpid()
    return f"{_node()}-{_boot()}-{_pid_namespace()}-{pid}-{_started(pid)}-{os.urandom(6).hex()}"


def _node() -> str:
    """The node's name and, as several may have the same, the beginning of its machine-id(5)."""
    name = re.sub(r"[^A-Za-z0-9_.]", "_", os.uname().nodename)[:_NODE_MAX] or "node"
    try:
        with open("/etc/machine-id", encoding="ascii", errors="replace") as file:
            return f"{name}.{re.sub('[^0-9a-f]', '', file.read(_ID_DIGITS))}"
    except OSError:
        return name


def _boot() -> str:
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip().replace("-", "")[:12]
    finally:
        os.close(fd)


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _started(pid: int) -> int | None:
    """When a process started, in ticks since boot; None for one that is not there, or dead."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[_START])


def make_embryo(parent: str, prefix: str = "") -> Embryo:
    """Make a directory below parent.  Raises OSError."""
    path = f"{parent}/{prefix}{unique_name()}"
    os.mkdir(path, 0o700)
    fd = os.open(path, _DIRECTORY)
    try:
        # Whoever may write in the parent could have put another there, of whatever owner, meanwhile.
        if os.fstat(fd).st_uid != os.geteuid() or os.listdir(fd):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
    except OSError:
        os.close(fd)
        raise
    return Embryo(path, fd)


def sweep(
    parent: str, prefix: str = "", *, own: bool = False, keep: Callable[[str], bool] | None = None
) -> int:
    """Remove this user's directories below parent whose makers are dead; returns how many.

    parent may be /tmp: what other users made there, whatever its name, is left alone.  own: those of this
    process too, as of one that has finished with them.  keep: asked about each; True leaves it.
    """
    removed = 0
    try:
        names = os.listdir(parent)
    except FileNotFoundError:  # a store that somebody is just making, or was killed while making
        return 0
    for name in names:
        match = _NAME.fullmatch(name[len(prefix) :]) if name.startswith(prefix) else None
        if match is not None:
            removed += _remove_dead(f"{parent}/{name}", match, own, keep)
    return removed


def _remove_dead(path: str, maker: re.Match[str], own: bool, keep: Callable[[str], bool] | None) -> bool:
    try:
        fd = os.open(path, _DIRECTORY)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or _alive(maker, status, own):
            return False
        # Its maker may have given it the final name while it still lived.
        if not is_at(path, fd) or (keep is not None and keep(path)):
            return False
        empty_directory(fd)
        os.rmdir(path)
    except (FileNotFoundError, PermissionError):
        # Another sweep was faster, or another user's directory is inside: no reason to end this command.
        return False
    finally:
        os.close(fd)
    return True


def is_dead(path: str) -> bool:
    """Whether path has a name as unique_name() makes them, and the process that made it is gone."""
    match = _NAME.fullmatch(os.path.basename(path))
    return match is not None and not _alive(match, os.lstat(path), own=False)


def _alive(maker: re.Match[str], status: os.stat_result, own: bool) -> bool:
    node, boot, namespace, pid, started = maker.group(1, 2, 3, 4, 5)
    if boot != _boot() and node == _node():
        return False  # this node, before it was booted again
    if boot == _boot() and int(namespace) == _pid_namespace():
        mine = int(pid) == os.getpid()
        return not (own and mine) and _started(int(pid)) == int(started)
    return time.time() - status.st_mtime < FOREIGN_SECONDS
