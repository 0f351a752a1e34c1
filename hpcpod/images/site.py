# SPDX-License-Identifier: Apache-2.0
"""Filling the site's store, as root: who parses is another account, root publishes what that one made.

    STORE/, STORE/images/      root's, everybody reads
    STORE/tmp/, STORE/garbage/ the account's alone
    RUN/locks/                 root's; RUN is on memory, so that locks hold and end with the node's boot

An entry belongs to root before it has its name, its packed file too: the kernel mounts nothing that somebody
could still write.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from hpcpod.errors import StoreUnusable
from hpcpod.frozen import replace
from hpcpod.images.account import Account, as_account, find_account
from hpcpod.images.embryo import Embryo
from hpcpod.images.fetch import Order, appear, fill, locked, open_lock
from hpcpod.images.forms import choose, entry_name, parse_form
from hpcpod.images.reference import is_digest, parse_reference
from hpcpod.images.source import open_source
from hpcpod.images.store import (
    CONFIG,
    FACTS,
    MANIFEST,
    META,
    ROOTFS,
    Store,
    StoredImage,
    check_version,
    make_store,
)
from hpcpod.images.tools import form_facts
from hpcpod.images.tree import remove_tree
from hpcpod.images.unpack import write_error
from hpcpod.images.usage import is_root_of_pod
from hpcpod.model import Form
from hpcpod.settings import Settings

_EMBRYO = re.compile(r"[A-Za-z0-9_.-]+")


class SiteStore(Store):
    """The site's store as root sees it.  account: who works in it."""

    def __init__(self, settings: Settings, account: Account) -> None:
        super().__init__(settings.site, settings.site_run)
        self.account = account

    @property
    def locks(self) -> str:
        """Directory of its locks."""
        return f"{self.run}/locks"

    def tidy(self) -> None:
        """Remove what killed processes left, as the account."""
        with _alone(self):
            for directory in (self.tmp, self.garbage):
                for name in os.listdir(directory):
                    path = f"{directory}/{name}"
                    if is_root_of_pod(path):  # the account cannot see that it is in use
                        os.chown(path, 0, 0, follow_symlinks=False)
                    else:
                        _hand_back(path, self.account)
            with as_account(self.account, Store(self.directory).tidy):
                pass

    def dispose(self, path: str) -> None:
        """Delete a directory that was moved to the garbage, as the account."""
        _hand_back(path, self.account)
        with as_account(self.account, lambda: remove_tree(path)):
            pass


def open_for_root(settings: Settings) -> SiteStore:
    """The site's store, made where missing.  Raises StoreUnusable where this is not root, and otherwise."""
    if os.geteuid() != 0:
        raise StoreUnusable("site store: only root fills it", hint="without --site an image goes to your own")
    if not settings.site:
        raise StoreUnusable("site store: none, by [site] store in hpcpod.toml")
    store = SiteStore(settings, find_account(settings.account))
    try:
        _make_directories(store)
    except OSError as error:
        raise StoreUnusable(
            f"site store {store.directory}: {os.strerror(error.errno or 0).lower()}"
        ) from None
    if not check_version(store):
        make_store(store, 0o755)
    return store


def _make_directories(store: SiteStore) -> None:
    for path in (store.directory, store.images, store.run, f"{store.run}/mounts", f"{store.run}/leases"):
        os.makedirs(path, 0o755, exist_ok=True)
        _own(path, 0, 0o755)
    for path in (store.locks, f"{store.run}/verified"):
        os.makedirs(path, 0o700, exist_ok=True)
        _own(path, 0, 0o700)
    for path in (store.tmp, store.garbage):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
            os.chown(path, store.account.uid, store.account.gid, follow_symlinks=False)
        _own(path, store.account.uid, 0o700)


def _own(path: str, uid: int, mode: int) -> None:
    """Refuse a directory that is a link, somebody else's, or open to writing by others."""
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid:
        raise StoreUnusable(f"site store: {path}: not a directory of uid {uid}")
    if status.st_mode & 0o777 != mode:
        os.chmod(path, mode)


def pull(store: SiteStore, order: Order) -> tuple[StoredImage, bool]:
    """The image in the site's store, and whether it had to be made.  Raises HpcpodError of many kinds.

    Of several at once, one process does the work and the others wait for it.
    """
    order = replace(order, locks=store.locks)
    with as_account(store.account, lambda: _identify(order)) as answer:
        digest = str(answer)
    if not is_digest(digest):
        raise StoreUnusable(f"site store: {digest!r} is no digest")
    wanted = order.form or parse_form(order.settings.rootfs, "rootfs")
    choice = choose(wanted, form_facts(store.directory, site=True))
    name = entry_name(digest, choice[0])
    with locked(store, name, order):
        if not store.is_whole(name, order.limits):
            store.tidy()
            _produce(store, digest, choice, order)
            found = store.stored(digest, choice[0])
            if found is not None:
                return found, True
    image = store.stored(digest, choice[0])
    if image is None:
        raise StoreUnusable(f"site store {store.directory}: {digest} vanished again")
    return image, False


def _identify(order: Order) -> str:
    with open_source(parse_reference(order.reference), order.limits) as source:
        return source.find(order.platform)


def _produce(store: SiteStore, digest: str, choice: tuple[Form, str], order: Order) -> None:
    from hpcpod.images.collect import enforce, make_room

    with as_account(store.account, lambda: _compressed(order)) as answer:
        make_room(store, int(str(answer)), order.settings, order.progress)
    with as_account(store.account, lambda: _fill(store, digest, choice, order)) as made:
        _publish(store, str(made), digest, choice[0], order)
    enforce(store, order.settings, order.progress, keep=entry_name(digest, choice[0]))


def _compressed(order: Order) -> int:
    with open_source(parse_reference(order.reference), order.limits) as source:
        return source.describe(order.platform).size


def _fill(store: Store, digest: str, choice: tuple[Form, str], order: Order) -> str:
    """The name of the finished embryo, which belongs to the account until root has published it."""
    with open_source(parse_reference(order.reference), order.limits) as source:
        described = source.describe(order.platform)
        if described.digest != digest:
            raise StoreUnusable(f"image {order.reference}: changed from {digest} to {described.digest}")
        return os.path.basename(fill(store, source, described, choice, order).path)


def _publish(store: SiteStore, made: str, digest: str, form: Form, order: Order) -> None:
    """Make the entry root's own, then give it its name."""
    if not _EMBRYO.fullmatch(made):
        raise StoreUnusable(f"site store: {made!r} is no name of a directory in the making")
    path = f"{store.tmp}/{made}"
    files = [MANIFEST, CONFIG, FACTS, META]
    files += [] if form is Form.DIRECTORY else [f"{ROOTFS}.{form.value}"]
    with _alone(store):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        embryo = Embryo(path, fd)
        try:
            for name in files:
                _take_over(fd, name, store.account)
            os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o755)
            appear(store, embryo, entry_name(digest, form), order.limits)
        except OSError as error:
            raise write_error(error, store.directory) from None
        finally:
            embryo.release()


def _take_over(directory: int, name: str, account: Account) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=directory)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != account.uid:
            raise StoreUnusable(f"site store: {name}: not a file of the account's own")
        os.fchown(fd, 0, 0)
        os.fchmod(fd, 0o444)
    finally:
        os.close(fd)


@contextmanager
def _alone(store: SiteStore) -> Iterator[None]:
    """Publishing and sweeping exclude each other: what root has taken over is not handed back meanwhile."""
    fd = open_lock(store.locks, "publish")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _hand_back(path: str, account: Account) -> None:
    """Give a directory that root had taken over to the account, who removes it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if os.fstat(fd).st_uid == 0:
            os.fchown(fd, account.uid, account.gid)
    finally:
        os.close(fd)
