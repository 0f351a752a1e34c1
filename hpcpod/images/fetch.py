# SPDX-License-Identifier: Apache-2.0
"""Bring an image into the store: verify its documents, unpack its layers, make it appear by one rename."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hpcpod.errors import StoreUnusable
from hpcpod.frozen import frozen
from hpcpod.images.embryo import Embryo, make_embryo, sweep, sweep_garbage, unique_name
from hpcpod.images.layout import OpenLayout
from hpcpod.images.limits import Limits
from hpcpod.images.manifest import Descriptor
from hpcpod.images.resolve import Documents, check_platform, read_documents
from hpcpod.images.store import CONFIG, MANIFEST, META, ROOTFS, Store, StoredImage
from hpcpod.images.unpack import Unpacked, unpack_layers, write_error
from hpcpod.kernel import syncfs
from hpcpod.log import Progress, shown
from hpcpod.model import Phase, Platform, VerifiedImage

LOCK_SECONDS = 900.0
"""How long to wait for another process before doing the work as well; the result is the same."""
POLL_SECONDS = (0.002, 0.02)
"""First and longest pause between two looks at a lock."""
_EXISTS = (errno.EEXIST, errno.ENOTEMPTY)


@frozen
class Order:
    """What is wanted, and how.  locks: directory of lock files."""

    reference: str
    platform: Platform
    limits: Limits
    progress: Progress
    locks: str


def fetch(
    store: Store, layout: OpenLayout, descriptor: Descriptor, order: Order
) -> tuple[VerifiedImage, tuple[Phase, ...]]:
    """Make an image present.  Of several processes of a node one does the work, the others wait for it.

    Returns the image and the phases: ``wait`` where there was something to wait for, ``verify`` (the
    documents), ``unpack`` (the layers, verified while they are written, to the rename).
    """
    before = time.time_ns()
    with _locked(store, descriptor.digest, order) as waited:
        start = time.time_ns()
        phases = (Phase("wait", before, start),) if waited else ()
        image = store.find(descriptor.digest, order.reference, order.limits)
        if image is not None:
            check_platform(layout, image.platform, order.platform)
            return image, (*phases, Phase("verify", start, time.time_ns()))
        tidy(store)
        documents = read_documents(layout, descriptor, order.platform, order.limits)
        verified = time.time_ns()
        _unpack(store, layout, documents, order)
        image = store.find(descriptor.digest, order.reference, order.limits)
        if image is None:
            raise StoreUnusable(f"image store {store.directory}: {descriptor.digest} vanished again")
        done = time.time_ns()
    return image, (*phases, Phase("verify", start, verified), Phase("unpack", verified, done))


def tidy(store: Store) -> None:
    """Remove what killed processes left.  Trouble with it is not this command's: the next one tries again."""
    for work, directory in ((sweep, store.tmp), (sweep_garbage, store.garbage)):
        try:
            work(directory)
        except OSError:
            continue


@contextmanager
def _locked(store: Store, digest: str, order: Order) -> Iterator[bool]:
    """Hold the lock of an image; yields whether another process had it first."""
    fd = _open_lock(order.locks, digest)
    try:
        yield _wait(fd, store, digest, order.progress)
    finally:
        os.close(fd)


def _open_lock(directory: str, digest: str) -> int:
    path = f"{directory}/image-{digest.replace(':', '-', 1)}"
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnusable(f"lock {path}: {os.strerror(error.errno or 0).lower()}") from None


def _wait(fd: int, store: Store, digest: str, progress: Progress) -> bool:
    """Take the lock, or stop waiting because the image has come or the deadline has; whether it waited."""
    deadline = time.monotonic() + LOCK_SECONDS
    pause, longest = POLL_SECONDS
    waited = False
    while not _try_lock(fd):
        if not waited:
            waited = True
            progress.begin("waiting for another process that unpacks this image", 0)
        if time.monotonic() > deadline or store.stored(digest):
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


def _unpack(store: Store, layout: OpenLayout, documents: Documents, order: Order) -> None:
    try:
        embryo = make_embryo(store.tmp)
    except OSError as error:
        raise write_error(error, store.tmp) from None
    try:
        rootfs = f"{embryo.path}/{ROOTFS}"
        os.mkdir(rootfs, 0o700)
        unpacked = unpack_layers(layout, documents, rootfs, order.limits, order.progress)
        _write_documents(embryo, documents, unpacked, order)
        syncfs(embryo.fd)
        _appear(store, embryo, documents.descriptor.digest, order)
    except OSError as error:
        embryo.discard()
        raise write_error(error, store.directory) from None
    except BaseException:
        embryo.discard()
        raise
    embryo.release()
    tidy(store)


def _write_documents(embryo: Embryo, documents: Documents, unpacked: Unpacked, order: Order) -> None:
    meta = StoredImage(
        digest=documents.descriptor.digest,
        reference=order.reference,
        platform=str(documents.config.platform),
        size=unpacked.size,
        entries=unpacked.entries,
        skipped=unpacked.skipped,
        when=int(time.time()),
    )
    _write(embryo, MANIFEST, documents.manifest_bytes)
    _write(embryo, CONFIG, documents.config_bytes)
    _write(embryo, META, json.dumps(vars(meta), indent=1).encode() + b"\n")


def _write(embryo: Embryo, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=embryo.fd)
    try:
        while content:
            content = content[os.write(fd, content) :]
    finally:
        os.close(fd)


def _appear(store: Store, embryo: Embryo, digest: str, order: Order) -> None:
    """Give the finished image its name; where there is one already, ours was for nothing."""
    path = store.path(digest)
    for _ in range(2):
        try:
            os.rename(embryo.path, path)
            break
        except OSError as error:
            if error.errno not in _EXISTS:
                raise
        if store.find(digest, order.reference, order.limits) is not None:
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
