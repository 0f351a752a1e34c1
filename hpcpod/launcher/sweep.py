# SPDX-License-Identifier: Apache-2.0
"""Removing from the run-time directory what its makers can no longer remove: they were killed.

Everything here lies in the user's own directory on this node, and is told apart by a sign of life that the
kernel takes away with the process: a FIFO without a reader (pods, mounts of images), a pid that is gone
(half-made ones), a lock that can be had (locks).  Another job's live pod therefore never goes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

DAY = 86400.0
EVENTS_KEPT = 14 * DAY
PLANS_KEPT = 30 * DAY
LOCKS_KEPT = DAY


def _entries(directory: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            yield from list(entries)
    except FileNotFoundError:
        return


def _has_reader(directory: int) -> bool:
    """Whether somebody reads the FIFO in here: else opening it for writing fails with ENXIO (fifo(7))."""
    try:
        os.close(os.open("members", os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=directory))
    except OSError as error:
        return error.errno not in (errno.ENXIO, errno.ENOENT)
    return True


def _process_lives(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return pid.isdigit() and state not in "ZX"  # a dead one whose parent has not looked yet


def _remove_if_dead(path: str) -> bool:
    """Remove the directory of a pod or a mount whose holder, or maker, is dead; whether it was.

    By descriptor: a new one that takes the name meanwhile keeps its files, and is no empty directory.  What
    is no directory was made by nobody here, and goes.
    """
    name = os.path.basename(path)
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # another sweep was faster
        return False
    except NotADirectoryError:  # also a link: open(2), O_DIRECTORY and O_NOFOLLOW
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(path)
        return True
    try:
        if _process_lives(name[1:]) if name.startswith(".") else _has_reader(directory):
            return False
        for entry in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry, dir_fd=directory)
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise
    finally:
        os.close(directory)
    return True


def sweep_pods(runtime: str) -> int:
    """Remove pods and images' mounts whose holder is dead, half-made ones whose maker is; how many."""
    rooms = (os.path.join(runtime, name) for name in ("pods", "mounts"))
    return sum(_remove_if_dead(entry.path) for room in rooms for entry in _entries(room))


def _old(entry: os.DirEntry[str], seconds: float) -> bool:
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > seconds
    except FileNotFoundError:
        return False


def _lock_is_free(path: str) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def sweep_files(runtime: str) -> int:
    """Remove events, plans and locks that nobody has touched for long; how many."""
    removed = 0
    rooms = ("plans", "verified", "trust")
    kept = (("events", EVENTS_KEPT), ("locks", LOCKS_KEPT), *((room, PLANS_KEPT) for room in rooms))
    for name, seconds in kept:
        for entry in _entries(os.path.join(runtime, name)):
            if _old(entry, seconds) and (name != "locks" or _lock_is_free(entry.path)):
                os.unlink(entry.path)
                removed += 1
    return removed


def sweep(runtime: str) -> int:
    """Everything above; the number of things removed."""
    return sweep_pods(runtime) + sweep_files(runtime)
