# SPDX-License-Identifier: Apache-2.0
"""Packed images of the site's store, mounted by root: once per node and image, for all users and ranks.

    RUN/mounts/NAME/          where the image NAME (an entry of the store) is mounted
    RUN/leases/NAME/LEASE     somebody, a job say, needs it; with the last lease it is unmounted
    RUN/verified/NAME         identity of the file whose every byte was compared since the node was booted

The lease is written first and removed first: a kill between the steps leaves a lease without a mount, which
the next mount repairs, or a mount without a lease, which the next release or collection takes away.  Pods
hold their own copy of the mount: unmounting here disturbs none of them.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress

from hpcpod.errors import StoreUnusable, UsageError
from hpcpod.images.stores import devmapper
from hpcpod.images.stores.attach import attach, no_verity
from hpcpod.images.stores.fetch import LOCK_SECONDS, Order, forget_lock
from hpcpod.images.stores.forms import parse_entry
from hpcpod.images.stores.guards import Guard
from hpcpod.images.stores.intact import SITES_HINT, Use, compare, guard
from hpcpod.images.stores.site import HELD_SECONDS, EntryBusy, SiteStore
from hpcpod.images.stores.store import TREE, StoredImage, is_mounted
from hpcpod.images.stores.supply import pull
from hpcpod.kernel import detach_mount
from hpcpod.log import shown
from hpcpod.model import Form

_LEASE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_TRIES = 3


class _CollectedMeanwhile(Exception):
    """The image left the store between the look for it and the lease on it."""


def check_lease(lease: str) -> None:
    """Raise UsageError for what is no name of a lease."""
    if not _LEASE.fullmatch(lease):
        raise UsageError(
            f"lease {shown(lease)}: not a name", hint="letters, digits, _ . - and at most 128 of them"
        )


def mount(store: SiteStore, image: StoredImage, lease: str) -> str:
    """Have an image mounted for a lease; where.  Raises UsageError, ImageDigestMismatch, StoreUnusable.

    A directory needs no mount: then its tree's path is the answer, and the lease keeps it from collection.
    """
    form = Form(image.form)
    check_lease(lease)
    packed = form is not Form.DIRECTORY
    place = store.mount_point(image.digest, form) if packed else store.content(image.digest, form)
    with store.held(image.name, LOCK_SECONDS):
        new = _add_lease(store, image.name, lease)
        try:
            if store.stored(image.digest, form) is None:
                raise _CollectedMeanwhile
            with suppress(OSError):  # read-only, say: then it counts as used when it was before
                os.utime(store.path(image.digest, form))  # used now (usage.last_used)
            if packed and is_mounted(place):
                _check_mounted(store, image, form, place)
            elif packed:
                _mount(store, image, form, place)
        except BaseException as error:
            if new:  # one that was there before has its mount, or is somebody's to repair
                _drop_lease(store, image.name, lease)
            _release_unused(store, image.name)
            if isinstance(error, OSError):
                raise _refused(image.name, error) from None
            raise
    return place


def _refused(name: str, error: OSError) -> StoreUnusable:
    code = errno.errorcode.get(error.errno or 0, "error")
    return StoreUnusable(f"mount of {name}: {os.strerror(error.errno or 0).lower()} ({code})")


def pull_and_mount(store: SiteStore, order: Order, lease: str) -> str:
    """Have an image in the site's store and mounted for a lease; where.  Raises as pull() and mount()."""
    for _ in range(_TRIES):
        image, _ = pull(store, order)
        with suppress(_CollectedMeanwhile):
            return mount(store, image, lease)
    raise StoreUnusable(f"site store {store.directory}: {image.digest} was removed {_TRIES} times meanwhile")


def release(store: SiteStore, lease: str, name: str = "") -> list[str]:
    """Give up a lease, of one entry or of all; the names of what was unmounted because it was the last.

    Raises EntryBusy where another process works on such an entry for long.
    """
    released, busy = [], None
    for entry in [name] if name else _entries(f"{store.run}/leases"):
        mine = bool(name) or os.path.lexists(f"{store.run}/leases/{entry}/{lease}")
        try:
            with store.held(entry, HELD_SECONDS if mine else 0.0):
                _drop_lease(store, entry, lease)
                released += _release_unused(store, entry)
        except EntryBusy as error:
            busy = error if mine else busy  # first the others; what is not ours is whose it is
    if busy:
        raise busy
    return released


def sweep(store: SiteStore) -> list[str]:
    """Unmount what no lease asks for: a killed command left it.  The names.

    What another process works on is left to it.
    """
    released = []
    for entry in sorted({*_entries(f"{store.run}/mounts"), *_entries(f"{store.run}/leases")}):
        with suppress(EntryBusy), store.held(entry, 0.0):
            released += _release_unused(store, entry)
    devmapper.sweep()
    forget(store)
    return released


def _forget_comparisons(store: SiteStore) -> None:
    """Remove identities of files that have left the store, and what a killed comparison left."""
    for name in os.listdir(f"{store.run}/verified"):
        entry = next((part for part in (name, name.rpartition(".")[0]) if parse_entry(part)), "")
        with suppress(EntryBusy, FileNotFoundError), store.held(entry, 0.0):
            if name != entry or not os.path.lexists(f"{store.images}/{entry}"):
                os.unlink(f"{store.run}/verified/{name}")


def forget(store: SiteStore) -> None:
    """Remove what is remembered of entries that have left the store: comparisons, then free locks.

    A lock is removed by who holds it, and taken by who then finds it at its path still (fetch.open_lock).
    """
    _forget_comparisons(store)
    for name in os.listdir(store.locks):
        kind, _, entry = name.partition("-")
        gone = not entry or (parse_entry(entry) and not os.path.lexists(f"{store.images}/{entry}"))
        if kind in ("image", "entry") and gone:
            forget_lock(f"{store.locks}/{name}")


def _entries(directory: str) -> list[str]:
    return sorted(name for name in os.listdir(directory) if parse_entry(name))


def _add_lease(store: SiteStore, name: str, lease: str) -> bool:
    """Have a lease; whether it is new.  Raises StoreUnusable."""
    directory = f"{store.run}/leases/{name}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.makedirs(directory, 0o755, exist_ok=True)
        os.close(os.open(f"{directory}/{lease}", flags, 0o644))
    except FileExistsError:
        return False
    except OSError as error:
        raise _refused(name, error) from None
    return True


def _drop_lease(store: SiteStore, name: str, lease: str) -> None:
    if _LEASE.fullmatch(lease):
        with suppress(FileNotFoundError):
            os.unlink(f"{store.run}/leases/{name}/{lease}")


def _release_unused(store: SiteStore, name: str) -> list[str]:
    """Unmount an entry that has no lease; its name if it was mounted."""
    place = f"{store.run}/mounts/{name}"
    with suppress(FileNotFoundError, OSError):
        os.rmdir(f"{store.run}/leases/{name}")
    if os.path.isdir(f"{store.run}/leases/{name}"):
        return []
    mounted = is_mounted(place)
    while is_mounted(place):
        detach_mount(place)
    with suppress(FileNotFoundError):
        os.rmdir(place)
    return [name] if mounted else []


def _mount(store: SiteStore, image: StoredImage, form: Form, place: str) -> None:
    """Have what is read compared with what was packed, now or whenever it is read, and mount it."""
    entry, compared = store.path(image.digest, form), f"{store.run}/verified"
    use = Use(image, entry, compared, SITES_HINT, no_verity(image, entry))
    file = os.open(store.content(image.digest, form), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        guarded = guard(file, use)
        with suppress(FileExistsError):
            os.mkdir(place, 0o755)
        directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            attach(image, guarded, entry, file, directory)
        except OSError:
            compare(file, use.tree, image, SITES_HINT)  # was it the disk?
            if guarded is not Guard.DM_VERITY:
                raise
            # no: this node cannot after all, in a container without rights to devices, say
            attach(image, Guard.COMPARED, entry, file, directory)
        finally:
            os.close(directory)
    finally:
        os.close(file)


def _check_mounted(store: SiteStore, image: StoredImage, form: Form, place: str) -> None:
    """Raise ImageDigestMismatch where the kernel met a changed block of a mounted image."""
    try:
        name = devmapper.name_at(os.stat(place).st_dev)
        if not name or not devmapper.is_corrupted(name):
            return
    except OSError:  # not even the root can be read, or the device is none of ours
        pass
    file = os.open(store.content(image.digest, form), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        compare(file, f"{store.path(image.digest, form)}/{TREE}", image, SITES_HINT)
    finally:
        os.close(file)
