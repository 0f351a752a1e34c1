# SPDX-License-Identifier: Apache-2.0
"""Filling the site's store, as root: who parses is another account, root publishes what that one made.

    STORE/, STORE/images/      root's, everybody reads
    STORE/tmp/                 the account's alone
    STORE/garbage/             root's alone: what becomes an entry, or was one
    RUN/locks/                 root's; RUN is on memory, so that locks hold and end with the node's boot

What the account has made is moved to where it cannot reach, becomes root's to the last file, and only then
gets its name (supply.py): nobody else can change what users start, or what the kernel mounts.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hpcpod.errors import StoreUnusable
from hpcpod.images.limits import Limits
from hpcpod.images.sources.reference import is_digest
from hpcpod.images.stores.account import Account, as_account, count_of, find_account
from hpcpod.images.stores.embryo import is_at, is_dead, sweep
from hpcpod.images.stores.fetch import POLL_SECONDS, open_lock
from hpcpod.images.stores.store import (
    Store,
    check_version,
    make_store,
)
from hpcpod.images.stores.takeover import own_tree
from hpcpod.images.stores.tools import filesystem_of
from hpcpod.images.stores.usage import is_root_of_pod
from hpcpod.images.unpacking.tree import remove_tree
from hpcpod.log import shown
from hpcpod.model import Platform
from hpcpod.settings import Settings

HELD_SECONDS = 30.0
"""How long a command waits for another that mounts, unmounts or removes an entry; a mount waits longer."""
_IN_MEMORY = frozenset(("tmpfs", "ramfs"))
_EMBRYO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class EntryBusy(StoreUnusable):
    """Another process mounts, unmounts or removes this entry."""


class SiteStore(Store):
    """The site's store as root sees it.  account: who works in it, and reads what users wrote."""

    def __init__(self, settings: Settings, account: Account) -> None:
        super().__init__(settings.site, settings.site_run)
        self.account = account

    @property
    def locks(self) -> str:
        """Directory of its locks."""
        return f"{self.run}/locks"

    def tidy(self) -> int:
        """Remove what killed processes left, and mounts that nobody asks for any more; how many things.

        What is the account's goes as the account, what is root's as root.
        """
        from hpcpod.images.stores import mounts

        removed = len(mounts.sweep(self))
        with as_account(self.account, lambda: sweep(self.tmp)) as answer:
            removed += count_of(answer)
        for name in os.listdir(self.garbage):
            path = f"{self.garbage}/{name}"
            with suppress(FileNotFoundError):  # another command was faster
                if is_dead(path) and not is_root_of_pod(path):
                    self.dispose(path)
                    removed += 1
        return removed

    def forget(self) -> None:
        """Remove comparisons and locks of entries that are gone."""
        from hpcpod.images.stores import mounts

        mounts.forget(self)

    def dispose(self, path: str) -> None:
        """Delete a directory of the garbage.  Raises OSError."""
        own_tree(path, self.account.uid)  # a killed process may have got half-way: removing wants one owner
        remove_tree(path)

    def identify(self, reference: str, platform: Platform, limits: Limits) -> str | None:
        """As Store.identify(), by the account: it reads what users wrote."""
        plain = Store(self.directory, self.run)
        with as_account(self.account, lambda: plain.identify(reference, platform, limits)) as answer:
            return None if answer is None else checked_digest(answer)

    def is_whole(self, name: str, limits: Limits) -> bool:
        """As Store.is_whole(), by the account: an image's documents are the image's."""
        plain = Store(self.directory, self.run)
        with as_account(self.account, lambda: plain.is_whole(name, limits)) as answer:
            return answer is True

    @contextmanager
    def held(self, name: str, seconds: float = HELD_SECONDS) -> Iterator[None]:
        """While the body runs nobody else mounts, unmounts or removes the entry of this name.

        seconds: how long to wait for whoever does.  Raises EntryBusy after that, StoreUnusable, OSError.
        """
        while True:
            fd = open_lock(self.locks, f"entry-{name}")
            try:
                _lock(fd, name, seconds)
                if is_at(f"{self.locks}/entry-{name}", fd):  # else a collection removed it meanwhile
                    yield
                    return
            finally:
                os.close(fd)


def _lock(fd: int, name: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    pause, longest = POLL_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise EntryBusy(
                    f"site store: {shown(name)}: another process mounts, unmounts or removes it,"
                    f" for {seconds:.0f} s now",
                    hint="try again; the first mount reads a packed image once, which takes its time",
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, longest)
        else:
            return


def checked_digest(answer: object) -> str:
    """A digest that the account answered.  Raises StoreUnusable."""
    if not is_digest(str(answer)):
        raise StoreUnusable(f"site store: {str(answer)!r} is no digest")
    return str(answer)


def open_for_root(settings: Settings) -> SiteStore:
    """The site's store, made where missing.  Raises StoreUnusable where this is not root, and otherwise."""
    if os.geteuid() != 0:
        raise StoreUnusable(
            "site store: only root changes it",
            hint="run it as root; your own store needs neither --site nor mounts",
        )
    if not settings.site:
        raise StoreUnusable("site store: none, by [site] store in hpcpod.toml")
    store = SiteStore(settings, find_account(settings.account))
    os.umask(0o022)  # users read what is made from here on, whatever root's umask is
    try:
        _own_directory(store.run, 0, 0o755)
        _refuse_disk(store.run)
        _own_directory(store.locks, 0, 0o700)
        with store.held("store"):
            _make_directories(store)
            if not check_version(store):
                make_store(store, 0o755, store.garbage)
    except OSError as error:
        what = error.filename or store.directory
        raise StoreUnusable(f"site store: {what}: {os.strerror(error.errno or 0).lower()}") from None
    return store


def disk_of(path: str) -> str:
    """Type of the file system that path is on; empty where that is memory.  Raises OSError."""
    kind = filesystem_of(path) or "unknown"
    return "" if kind in _IN_MEMORY else kind


def _refuse_disk(run: str) -> None:
    """Leases, locks and what was compared would outlive the boot for which they hold."""
    if disk := disk_of(run):
        raise StoreUnusable(
            f"site store: run-time directory {shown(run)}: on {shown(disk)}, not in memory",
            hint="set [site] run in hpcpod.toml to a directory on tmpfs",
        )


def _make_directories(store: SiteStore) -> None:
    for path in (store.directory, store.images, f"{store.run}/mounts", f"{store.run}/leases"):
        _own_directory(path, 0, 0o755)
    for path in (store.garbage, f"{store.run}/verified"):
        _own_directory(path, 0, 0o700)
    _own_directory(store.tmp, store.account.uid, 0o700)


def _own_directory(path: str, uid: int, mode: int) -> None:
    """Make a directory of this owner where there is none; nobody but its owner writes there.

    Raises StoreUnusable for a link and for somebody else's, OSError.
    """
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(path, mode)
    status = os.lstat(path)
    owner = status.st_uid if stat.S_ISDIR(status.st_mode) else -1
    if owner == 0 != uid:  # made just now, or by one that was killed before it gave it away
        os.chown(path, uid, uid, follow_symlinks=False)
    elif owner != uid:
        raise StoreUnusable(
            f"site store: {path}: not a directory of uid {uid}",
            hint="somebody else made it, or [site] account in hpcpod.toml was another; remove it",
        )
    if status.st_mode & 0o7777 != mode:
        os.chmod(path, mode)
