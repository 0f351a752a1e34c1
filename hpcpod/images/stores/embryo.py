# SPDX-License-Identifier: Apache-2.0
"""Directories in the making, or being removed: the name says who does it, and so whether they still do.

makers.py says how.  No lock is needed, so the directory may lie on a file system that has none.  A maker sets
the time of change again every BEAT_SECONDS, for those who cannot ask after it.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress

from hpcpod.images.makers import FOREIGN_SECONDS, NAME, is_alive, unique_name
from hpcpod.images.unpacking.tree import empty_directory
from hpcpod.log import Progress

__all__ = ["FOREIGN_SECONDS", "Beating", "Embryo", "is_dead", "make_embryo", "sweep", "unique_name"]

BEAT_SECONDS = 20.0
"""How often a maker says that it is alive."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
        match = NAME.fullmatch(name[len(prefix) :]) if name.startswith(prefix) else None
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
        if status.st_uid != os.geteuid() or is_alive(maker, status, own=own):
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
    match = NAME.fullmatch(os.path.basename(path))
    return match is not None and not is_alive(match, os.lstat(path), own=False)
