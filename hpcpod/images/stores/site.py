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

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hpcpod.errors import StoreUnusable
from hpcpod.frozen import replace
from hpcpod.images.limits import Limits
from hpcpod.images.sources.reference import is_digest, parse_reference
from hpcpod.images.sources.source import open_source
from hpcpod.images.stores.account import Account, as_account, count_of, find_account
from hpcpod.images.stores.embryo import Embryo, is_dead, sweep, unique_name
from hpcpod.images.stores.fetch import POLL_SECONDS, Order, appear, fill, locked, open_lock
from hpcpod.images.stores.forms import choose, entry_name, parse_form
from hpcpod.images.stores.store import (
    CONFIG,
    FACTS,
    MANIFEST,
    META,
    Store,
    StoredImage,
    check_version,
    content_names,
    make_store,
)
from hpcpod.images.stores.takeover import own_tree, take_over
from hpcpod.images.stores.tools import filesystem_of, form_facts
from hpcpod.images.stores.usage import is_root_of_pod
from hpcpod.images.unpacking.layers import write_error
from hpcpod.images.unpacking.tree import remove_tree
from hpcpod.log import shown
from hpcpod.model import Form, Platform
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

    def dispose(self, path: str) -> None:
        """Delete a directory of the garbage.  Raises OSError."""
        own_tree(path, self.account.uid)  # a killed process may have got half-way: removing wants one owner
        remove_tree(path)

    def identify(self, reference: str, platform: Platform, limits: Limits) -> str | None:
        """As Store.identify(), by the account: it reads what users wrote."""
        plain = Store(self.directory, self.run)
        with as_account(self.account, lambda: plain.identify(reference, platform, limits)) as answer:
            return None if answer is None else _checked_digest(answer)

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
        fd = open_lock(self.locks, f"entry-{name}")
        try:
            _lock(fd, name, seconds)
            yield
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


def _checked_digest(answer: object) -> str:
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


def pull(store: SiteStore, order: Order) -> tuple[StoredImage, bool]:
    """The image in the site's store, and whether it had to be made.  Raises HpcpodError of many kinds.

    Of several at once, one process does the work and the others wait for it.
    """
    order = replace(order, locks=store.locks)
    forms = (order.form,) if order.form else (Form.EROFS, Form.SQUASHFS, Form.DIRECTORY)
    digest, present = _identify(store, order, forms)
    if present is not None:
        return present, False
    preferred = parse_form(order.settings.rootfs, "rootfs")
    choice = choose(order.form, form_facts(store.directory, site=True), preferred)
    with locked(store, entry_name(digest, choice[0]), order):
        _, image = _identify(store, order, forms)  # another process may have been faster
        if image is not None:
            return image, False
        store.tidy()
        _produce(store, digest, choice, order)
        image = store.stored(digest, choice[0])
    if image is None:
        raise StoreUnusable(f"site store {store.directory}: {digest} vanished again")
    return image, True


def _identify(store: SiteStore, order: Order, forms: tuple[Form, ...]) -> tuple[str, StoredImage | None]:
    """Digest of the image, and its entry in the store: of these forms the first that is there and whole."""
    plain = Store(store.directory, store.run)

    def work() -> tuple[str, str]:
        with open_source(parse_reference(order.reference), order.limits) as source:
            digest = source.find(order.platform)
        whole = (form for form in forms if plain.is_whole(entry_name(digest, form), order.limits))
        return digest, next((form.value for form in whole), "")

    with as_account(store.account, work) as answer:
        if not isinstance(answer, list) or len(answer) != 2:
            raise StoreUnusable(f"site store: {answer!r} is no answer")
        digest, form = _checked_digest(answer[0]), parse_form(answer[1] or "auto", "site store: form")
    return digest, store.stored(digest, form) if form else None


def _produce(store: SiteStore, digest: str, choice: tuple[Form, str], order: Order) -> None:
    from hpcpod.images.stores.collect import enforce, make_room

    with as_account(store.account, lambda: _compressed(order)) as answer:
        make_room(store, count_of(answer), order.settings, order.progress)
    with as_account(store.account, lambda: _fill(store, digest, choice, order)) as made:
        _publish(store, str(made), digest, choice[0], order)
    store.tidy()
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
        embryo = Embryo(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        raise write_error(error, store.directory) from None
    try:
        names = {MANIFEST, CONFIG, FACTS, META, *content_names(form)}
        take_over(embryo.fd, names, store.account.uid)
        appear(store, embryo, entry_name(digest, form), order.limits)
    except OSError as error:
        raise write_error(error, store.directory) from None
    finally:
        embryo.release()
        store.dispose(path)  # nothing, if it has its name
