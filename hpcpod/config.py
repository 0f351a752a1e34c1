# SPDX-License-Identifier: Apache-2.0
"""Where things lie on a node: the store of images on its disk, the run-time directory in its memory.

Both are the user's own (mode 0700).  Neither is ever below ``$HOME``: home directories are on shared file
systems with quotas, and locks do not hold there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from hpcpod.errors import HpcpodError, StoreFull, StoreUnusable

ATTEMPTS = 10
"""Names tried where another user might have taken the first (a sticky world-writable directory)."""


def _own_directory(path: str, uid: int, *, create: bool) -> bool:
    """Whether path is a directory of ours that nobody else can enter; made first if `create` says so."""
    if create:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError:
            return False
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid and not status.st_mode & 0o077


def _why_not_made(path: str) -> str:
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "error")
        return f"cannot be made: {os.strerror(error.errno or 0).lower()} ({code})"
    return "was not there a moment ago"


def _trouble(path: str, uid: int) -> str:
    """Why path is no directory of ours that nobody else can enter."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return _why_not_made(path)
    except OSError as error:
        return f"cannot be looked at: {os.strerror(error.errno or 0).lower()}"
    if not stat.S_ISDIR(status.st_mode):
        return "a symbolic link, not a directory" if stat.S_ISLNK(status.st_mode) else "not a directory"
    if status.st_uid != uid:
        return f"of uid {status.st_uid}, expected {uid}, who runs this"
    return f"mode {status.st_mode & 0o7777:04o}, expected 0700: others could enter"


def _first_own(base: str, uid: int, *, create: bool) -> str | None:
    names = [base, *(f"{base}.{n}" for n in range(1, ATTEMPTS))]
    return next((name for name in names if _own_directory(name, uid, create=create)), None)


def runtime_directory(environment: Mapping[str, str], uid: int) -> str:
    """Directory of pods, plans, locks and events: node-local memory, gone with a reboot.

    ``$HPCPOD_RUNTIME``, else ``/run/hpcpod/UID`` where the site's boot made it, else
    ``/dev/shm/hpcpod-UID``.  native/paths.c follows the same rule.  Raises StoreUnusable.
    """
    given = environment.get("HPCPOD_RUNTIME")
    if given:
        if _own_directory(given, uid, create=True):
            return given
        raise StoreUnusable(
            f"run-time directory {given}: {_trouble(given, uid)}",
            hint="choose another with HPCPOD_RUNTIME, on tmpfs",
        )
    site = f"/run/hpcpod/{uid}"
    if _own_directory(site, uid, create=False):
        return site
    found = _first_own(f"/dev/shm/hpcpod-{uid}", uid, create=True)
    if found is None:
        raise StoreUnusable(
            f"run-time directory /dev/shm/hpcpod-{uid}: cannot be made, and no name beside it",
            hint="have the site make /run/hpcpod/UID at boot, or set HPCPOD_RUNTIME to a directory on tmpfs",
        )
    return found


def _no_store(path: str, uid: int) -> HpcpodError:
    """Why a directory that was to be made is not there, or not this user's alone."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        reason = _trouble(path, uid)
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "error")
        reason = f"cannot be made: {os.strerror(error.errno or 0).lower()} ({code})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFull(
                f"image store {path}: {reason}",
                hint="no space or no inodes are left there; HPCPOD_STORE chooses another disk",
            )
    else:
        reason = "could not be made at first; try again"
    return StoreUnusable(
        f"image store {path}: {reason}", hint="choose another with HPCPOD_STORE, on a disk of this node"
    )


def store_directory(environment: Mapping[str, str], uid: int) -> str:
    """Directory of unpacked images on node-local disk.

    ``$HPCPOD_STORE`` (absolute, made if its parent exists), else ``/var/tmp/hpcpod-UID``.  Raises
    StoreUnusable.
    """
    given = environment.get("HPCPOD_STORE")
    if given:
        # A relative one would be another store in each directory, with images that nobody finds again.
        if not os.path.isabs(given):
            raise StoreUnusable(
                f"image store {given}: not an absolute path", hint="write HPCPOD_STORE from / on"
            )
        if _own_directory(os.path.abspath(given), uid, create=True):
            return os.path.abspath(given)
        raise _no_store(os.path.abspath(given), uid)
    found = _first_own(f"/var/tmp/hpcpod-{uid}", uid, create=True)
    if found is None:
        if isinstance(why := _no_store(f"/var/tmp/hpcpod-{uid}", uid), StoreFull):
            raise why
        raise StoreUnusable(
            f"image store /var/tmp/hpcpod-{uid}: cannot be made, and no name beside it",
            hint="set HPCPOD_STORE to a directory on a disk of this node",
        )
    return found
