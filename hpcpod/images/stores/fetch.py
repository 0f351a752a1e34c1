# SPDX-License-Identifier: Apache-2.0
"""Bring an image into a store: one process works, the others wait, the image appears by one rename."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hpcpod.errors import HpcpodError, StoreFull, StoreUnusable
from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.images.sources.access import Access
from hpcpod.images.sources.platforms import check_fits
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.source import Described, Source
from hpcpod.images.stores.embryo import Beating, Embryo, is_at, make_embryo, unique_name
from hpcpod.images.stores.forms import choose, entry_name, parse_form
from hpcpod.images.stores.pack import Packed, pack
from hpcpod.images.stores.room import Bounded, Room, packing
from hpcpod.images.stores.seal import digest_of, sealed
from hpcpod.images.stores.store import CONFIG, FACTS, MANIFEST, META, ROOTFS, Store, StoredImage
from hpcpod.images.stores.summary import summarise, to_json
from hpcpod.images.stores.tools import form_facts
from hpcpod.images.unpacking.layers import FREE_SPACE, write_error
from hpcpod.kernel import syncfs
from hpcpod.log import Progress, shown
from hpcpod.model import Form, Phase, Platform, Pull, VerifiedImage
from hpcpod.settings import Settings

LOCK_SECONDS = 900.0
"""How long to wait for another process before doing the work as well; the result is the same."""
POLL_SECONDS = (0.002, 0.02)
"""First and longest pause between two looks at a lock."""
OWNER_READS, EVERYBODY_READS = 0o400, 0o444
"""What files of a packed image, and of the site's store, must permit: who packs or uses them reads them."""
_OWNER = 0, 0
"""Of files in packed images: root for the kernel; where a user mounts one, the user is 0 (native/fuse.c)."""
_EXISTS = (errno.EEXIST, errno.ENOTEMPTY)


@frozen
class Order:
    """What is wanted, and how.

    locks: directory of lock files.  form: None for what fits here best.  access: how registries are reached.
    pinned: the reference to follow, where that was narrowed down to a digest.
    """

    reference: str
    platform: Platform
    limits: Limits
    progress: Progress
    locks: str
    settings: Settings
    form: Form | None = None
    access: Access = Access({})
    pull: Pull = Pull.MISSING
    pinned: Reference | None = None


def fetch(store: Store, source: Source, digest: str, order: Order) -> tuple[VerifiedImage, tuple[Phase, ...]]:
    """Make an image present.  Of several processes of a node one does the work, the others wait for it.

    Returns the image and the phases: ``wait`` where there was something to wait for, ``verify`` (the
    documents), ``unpack`` (the layers, verified while they are written, to the rename).
    """
    before = time.time_ns()
    facts = form_facts(store.directory, site=store.site)
    form, why = choose(order.form, facts, parse_form(order.settings.rootfs, "rootfs"))
    with locked(store, entry_name(digest, form), order) as waited:
        start = time.time_ns()
        phases = (Phase("wait", before, start),) if waited else ()
        image = store.find(digest, order.reference, order.limits, form)
        if image is not None:
            check_fits(image.platform, order.platform, source.name)
            return image, (*phases, Phase("verify", start, time.time_ns()))
        store.tidy()
        described = source.describe(order.platform)
        verified = time.time_ns()
        _make(store, source, described, (form, why), order)
        image = store.find(digest, order.reference, order.limits, form)
        if image is None:
            raise StoreUnusable(f"image store {store.directory}: {digest} vanished again")
        done = time.time_ns()
    return image, (*phases, Phase("verify", start, verified), Phase("unpack", verified, done))


@contextmanager
def locked(store: Store, name: str, order: Order) -> Iterator[bool]:
    """Hold the lock of an entry; yields whether another process had it first."""
    while True:
        fd = open_lock(order.locks, f"image-{name}")
        try:
            waited = _wait(fd, store, name, order.progress)
            if is_at(f"{order.locks}/image-{name}", fd):  # else a collection removed it meanwhile
                yield waited
                return
        finally:
            os.close(fd)


def open_lock(directory: str, name: str) -> int:
    """A lock file in the run-time directory, opened; never in the store, where locks may not hold."""
    path = f"{directory}/{name}"
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnusable(f"lock {path}: {os.strerror(error.errno or 0).lower()}") from None


def forget_lock(path: str) -> None:
    """Remove a lock file that nobody holds.  Whoever has it open finds, with the lock, that it is gone."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(path, fd):
                os.unlink(path)
        finally:
            os.close(fd)


def _wait(fd: int, store: Store, name: str, progress: Progress) -> bool:
    """Take the lock, or stop waiting because the image has come or the deadline has; whether it waited."""
    deadline = time.monotonic() + LOCK_SECONDS
    pause, longest = POLL_SECONDS
    waited = False
    while not _try_lock(fd):
        if not waited:
            waited = True
            progress.begin("waiting for another process that unpacks this image", 0)
        if time.monotonic() > deadline or os.path.exists(f"{store.images}/{name}"):
            break
        time.sleep(pause)
        progress.advance(0)
        pause = min(2 * pause, longest)
    if waited:
        progress.end()
    return waited


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Anything else than "taken": there are no locks here, and none are needed for correctness.
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN)
    return True


def _make(store: Store, source: Source, described: Described, form: tuple[Form, str], order: Order) -> None:
    from hpcpod.images.stores.collect import enforce, fit, make_room

    name = entry_name(described.digest, form[0])
    room = make_room(store, described.size, order.settings, order.progress)
    embryo = fill(store, source, described, form, order, room)
    try:
        fit(store, embryo.disk, order.settings, order.progress, name)
        appear(store, embryo, name, order.limits)
    except OSError as error:
        embryo.discard()
        raise write_error(error, store.directory) from None
    except BaseException:
        embryo.discard()
        raise
    embryo.release()
    store.tidy()
    enforce(store, order.settings, order.progress, keep=name)


def fill(  # noqa: PLR0913, PLR0917 - the pieces of one entry
    store: Store,
    source: Source,
    described: Described,
    form: tuple[Form, str],
    order: Order,
    room: Room | None = None,
) -> Embryo:
    """Make the whole content of an entry, on the disk, in a directory that waits for its name.

    room: what it may take meanwhile (collect.make_room); None for what this process finds out itself, which
    cannot see what others' processes have mounted.  Raises HpcpodError; then nothing is left.
    """
    from hpcpod.images.stores.collect import room_in

    try:
        embryo = make_embryo(store.tmp)
    except OSError as error:
        raise write_error(error, store.tmp) from None
    try:
        _fill(embryo, store, source, described, form, order, room or room_in(store, order.settings))
        syncfs(embryo.fd)
    except OSError as error:
        embryo.discard()
        raise _of_store(write_error(error, store.directory), embryo, store) from None
    except (StoreFull, StoreUnusable) as error:
        embryo.discard()
        raise _of_store(error, embryo, store) from None
    except BaseException:
        embryo.discard()
        raise
    return embryo


def _of_store(error: HpcpodError, embryo: Embryo, store: Store) -> HpcpodError:
    """What was said of the temporary place, said of the store; HPCPOD_STORE does not choose the site's."""
    message = error.message.replace(f"{embryo.path}/{ROOTFS}", f"image store {store.directory}")
    hint = "hpcpod image gc --site frees space" if store.site and error.hint == FREE_SPACE else error.hint
    return type(error)(message, hint=hint)


def _fill(  # noqa: PLR0913, PLR0917 - the pieces of one entry
    embryo: Embryo,
    store: Store,
    source: Source,
    described: Described,
    choice: tuple[Form, str],
    order: Order,
    room: Room,
) -> None:
    started = time.monotonic()
    form, why = choice
    rootfs = f"{embryo.path}/{ROOTFS}"
    os.mkdir(rootfs, 0o700)
    readable = EVERYBODY_READS if store.site else 0 if form is Form.DIRECTORY else OWNER_READS
    unpacked = source.unpack(rootfs, Beating(Bounded(order.progress, room), embryo), readable)
    facts = summarise(rootfs, described.config.config)
    packed = Packed(unpacked.disk)
    if form is not Form.DIRECTORY:
        packer = form_facts(store.directory, site=store.site)
        with packing(room, unpacked.disk):
            packed = pack(form, packer, rootfs, _OWNER, embryo.beat)
    embryo.disk = packed.disk
    documents = {MANIFEST: described.manifest_bytes, CONFIG: described.config_bytes, FACTS: to_json(facts)}
    meta = StoredImage(
        digest=described.digest,
        reference=order.reference,
        platform=str(described.config.platform),
        size=unpacked.size,
        entries=unpacked.entries,
        skipped=unpacked.skipped,
        when=int(time.time()),
        form=form.value,
        why=why,
        seconds=round(time.monotonic() - started, 3),
        documents=digest_of(documents[CONFIG], documents[FACTS]),
        manifest=digest_of(documents[MANIFEST]),
        **vars(packed),
    )
    for name, content in {**documents, META: sealed(vars(meta))}.items():
        _write(embryo, name, content)


def _write(embryo: Embryo, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=embryo.fd)
    try:
        while content:
            content = content[os.write(fd, content) :]
    finally:
        os.close(fd)


def appear(store: Store, embryo: Embryo, name: str, limits: Limits) -> None:
    """Give the finished image its name; where there is one already, ours was for nothing.  Raises OSError."""
    path = f"{store.images}/{name}"
    for _ in range(2):
        try:
            os.rename(embryo.path, path)
            break
        except OSError as error:
            if error.errno not in _EXISTS:
                raise
        if store.is_whole(name, limits):
            os.rename(embryo.path, f"{store.garbage}/{unique_name()}")
            return
        throw_away(store, path)
    fd = os.open(store.images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def throw_away(store: Store, path: str) -> str:
    """Take an image or a damaged one out of the store by one rename; returns where it is now."""
    target = f"{store.garbage}/{unique_name()}"
    try:
        os.rename(path, target)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StoreUnusable(f"{shown(path)}: {os.strerror(error.errno or 0).lower()}") from None
    return target
