# SPDX-License-Identifier: Apache-2.0
"""Filling the site's store, as root: who parses is another account, root publishes what that one made.

    STORE/, STORE/images/      root's, everybody reads
    STORE/tmp/                 the account's alone
    STORE/garbage/             root's alone: what becomes an entry, or was one
    RUN/locks/                 root's; RUN is on memory, so that locks hold and end with the node's boot

What the account has made is moved to where it cannot reach, becomes root's to the last file, and only then
gets its name: nobody else can change what users start, or what the kernel mounts.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress

from hpcpod.errors import StoreUnusable
from hpcpod.frozen import replace
from hpcpod.images.account import Account, as_account, find_account
from hpcpod.images.embryo import Embryo, is_dead, sweep, unique_name
from hpcpod.images.fetch import Order, appear, fill, locked
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

OTHERS_WRITE = 0o022
"""Permissions that nothing in the site's store has, whatever the image says: it is shared by all users."""
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
        """Remove what killed processes left: of the account as the account, of root as root."""
        with as_account(self.account, lambda: sweep(self.tmp)):
            pass
        for name in os.listdir(self.garbage):
            path = f"{self.garbage}/{name}"
            with suppress(FileNotFoundError):  # another command was faster
                if is_dead(path) and not is_root_of_pod(path):
                    self.dispose(path)

    def dispose(self, path: str) -> None:
        """Delete a directory of the garbage.  Raises OSError."""
        os.close(take_over(path))  # a killed process may have got half-way: removing wants one owner
        remove_tree(path)


def open_for_root(settings: Settings) -> SiteStore:
    """The site's store, made where missing.  Raises StoreUnusable where this is not root, and otherwise."""
    if os.geteuid() != 0:
        raise StoreUnusable("site store: only root changes it", hint="your own store needs no --site")
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
        make_store(store, 0o755, store.garbage)
    return store


def _make_directories(store: SiteStore) -> None:
    for path in (store.directory, store.images, store.run, f"{store.run}/mounts", f"{store.run}/leases"):
        os.makedirs(path, 0o755, exist_ok=True)
        _own(path, 0, 0o755)
    for path in (store.locks, f"{store.run}/verified"):
        os.makedirs(path, 0o700, exist_ok=True)
        _own(path, 0, 0o700)
    for path, uid in ((store.tmp, store.account.uid), (store.garbage, 0)):
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        if os.lstat(path).st_uid == 0 != uid:
            os.chown(path, store.account.uid, store.account.gid, follow_symlinks=False)
        _own(path, uid, 0o700)


def _own(path: str, uid: int, mode: int) -> None:
    """Refuse a directory that is a link, or somebody else's; nobody but its owner writes there."""
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
    present = _present(store, digest, order)
    if present is not None:
        return present, False
    preferred = parse_form(order.settings.rootfs, "rootfs")
    choice = choose(order.form, form_facts(store.directory, site=True), preferred)
    with locked(store, entry_name(digest, choice[0]), order):
        image = _present(store, digest, order)
        if image is not None:
            return image, False
        store.tidy()
        _produce(store, digest, choice, order)
        image = store.stored(digest, choice[0])
    if image is None:
        raise StoreUnusable(f"site store {store.directory}: {digest} vanished again")
    return image, True


def _present(store: SiteStore, digest: str, order: Order) -> StoredImage | None:
    """The image as it is in the store: in the form that was asked for, else in any, packed ones first."""
    forms = (Form.EROFS, Form.SQUASHFS, Form.DIRECTORY) if order.form is None else (order.form,)
    for form in forms:
        if store.is_whole(entry_name(digest, form), order.limits):
            return store.stored(digest, form)
    return None


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
    """Make the entry root's own where the account cannot reach it, then give it its name."""
    if not _EMBRYO.fullmatch(made):
        raise StoreUnusable(f"site store: {made!r} is no name of a directory in the making")
    path = f"{store.garbage}/{unique_name()}"
    try:
        os.rename(f"{store.tmp}/{made}", path)
        fd = take_over(path, store.account.uid)
        embryo = Embryo(path, fd)
    except OSError as error:
        raise write_error(error, store.directory) from None
    try:
        for name in _files_of(form):
            _check_file(fd, name)
        os.fchmod(fd, 0o755)
        appear(store, embryo, entry_name(digest, form), order.limits)
    except OSError as error:
        raise write_error(error, store.directory) from None
    finally:
        embryo.discard()  # nothing, if it has its name


def _files_of(form: Form) -> list[str]:
    documents = [MANIFEST, CONFIG, FACTS, META]
    return documents if form is Form.DIRECTORY else [*documents, f"{ROOTFS}.{form.value}"]


def _check_file(directory: int, name: str) -> None:
    """Everybody may read it, and nobody has another name for it."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise StoreUnusable(f"site store: {name}: not a plain file of its own")
        os.fchmod(fd, 0o444)
    finally:
        os.close(fd)


def take_over(path: str, owner: int | None = None) -> int:
    """Make a tree root's, a directory before what is in it; the directory, open.  Raises OSError.

    owner: whose it must be.  Links are not followed, and what has another owner is taken too: the account
    could make no hard link to what it cannot write (proc(5), protected_hardlinks).
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if owner is not None and os.fstat(fd).st_uid != owner:
        os.close(fd)
        raise StoreUnusable(f"site store: {path}: not a directory of uid {owner}")
    _take_over(fd)
    return fd


def _take_over(directory: int) -> None:
    os.fchown(directory, 0, 0)
    os.fchmod(directory, os.fstat(directory).st_mode & 0o7777 & ~OTHERS_WRITE)
    with os.scandir(directory) as entries:
        for entry in entries:
            is_directory = entry.is_dir(follow_symlinks=False)
            if not is_directory:
                os.chown(entry.name, 0, 0, dir_fd=directory, follow_symlinks=False)
                if not entry.stat(follow_symlinks=False).st_mode & OTHERS_WRITE or entry.is_symlink():
                    continue
            flags = os.O_RDONLY | os.O_DIRECTORY if is_directory else os.O_PATH
            fd = os.open(entry.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                if is_directory:
                    _take_over(fd)
                else:
                    os.chmod(f"/proc/self/fd/{fd}", os.fstat(fd).st_mode & 0o7777 & ~OTHERS_WRITE)
            finally:
                os.close(fd)
