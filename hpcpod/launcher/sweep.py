# SPDX-License-Identifier: Apache-2.0
"""Removing from the run-time directory what its makers can no longer remove: they were killed.

Everything here lies in the user's own directory on this node, and is told apart by a sign of life that the
kernel takes away with the process: a FIFO without a reader (pods), a pid that is gone (half-made pods), a
lock that can be had (locks).  Another job's live pod therefore never goes.
"""

from __future__ import annotations

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


def _has_reader(fifo: str) -> bool:
    """Whether somebody reads this FIFO: opening it for writing fails with ENXIO otherwise (fifo(7))."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW))
    except OSError as error:
        return error.errno not in (errno.ENXIO, errno.ENOENT)
    return True


def _process_lives(pid: str) -> bool:
    return pid.isdigit() and os.path.exists(f"/proc/{pid}")


def _remove_pod(path: str) -> None:
    """Rename first, so that nobody enters it any more; then remove what a pod's directory can hold."""
    hidden = os.path.join(os.path.dirname(path), f".dead-{os.getpid()}-{os.path.basename(path).lstrip('.')}")
    try:
        os.rename(path, hidden)
        for entry in _entries(hidden):
            os.unlink(entry.path)
        os.rmdir(hidden)
    except FileNotFoundError:  # another sweep was faster
        return


def sweep_pods(runtime: str) -> int:
    """Remove pods whose holder is dead, and half-made ones whose maker is; how many there were."""
    removed = 0
    for entry in _entries(os.path.join(runtime, "pods")):
        if entry.name.startswith("."):
            dead = not _process_lives(entry.name[1:])
        else:
            dead = not _has_reader(os.path.join(entry.path, "members"))
        if dead:
            _remove_pod(entry.path)
            removed += 1
    return removed


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
    for name, seconds in (("events", EVENTS_KEPT), ("plans", PLANS_KEPT), ("locks", LOCKS_KEPT)):
        for entry in _entries(os.path.join(runtime, name)):
            if _old(entry, seconds) and (name != "locks" or _lock_is_free(entry.path)):
                os.unlink(entry.path)
                removed += 1
    return removed


def sweep(runtime: str) -> int:
    """Everything above; the number of things removed."""
    return sweep_pods(runtime) + sweep_files(runtime)
