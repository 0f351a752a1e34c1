# SPDX-License-Identifier: Apache-2.0
"""The store of unpacked images: content-addressed, one per user, on a disk of the node.

    STORE/version                   format of the store
    STORE/images/sha256-HEX/        one image, whole or not there at all
        rootfs/                     the tree
        manifest.json config.json   the documents as they were verified
        meta.json                   what is known about it, written by this program
    STORE/tmp/                      images in the making (embryo.py)
    STORE/garbage/                  images being removed

An image appears by one rename, so readers need no lock and two nodes may share a store.  Locks, in the
run-time directory, only keep two processes of a node from doing the same work twice.

This module is what a start with the image present needs; making an image present is fetch.py's.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping

from hpcpod.config import runtime_directory, store_directory
from hpcpod.errors import ImageInvalid, StoreFull, StoreUnusable
from hpcpod.frozen import frozen
from hpcpod.images.layout import open_layout
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.manifest import parse_config
from hpcpod.images.platforms import platform_of
from hpcpod.images.reference import parse_reference
from hpcpod.images.resolve import check_platform, find_manifest
from hpcpod.log import Progress, Silent
from hpcpod.model import FileStamp, Phase, Platform, VerifiedImage

VERSION = 1
ROOTFS, CONFIG, MANIFEST, META = "rootfs", "config.json", "manifest.json", "meta.json"
_META_MAX = 1 << 20
_VERSION_MAX = 64


@frozen
class StoredImage:
    """What meta.json says about an image in the store.

    size: bytes of its layers, uncompressed.  when: seconds since 1970.  skipped: devices and FIFOs left out.
    """

    digest: str
    reference: str
    platform: str
    size: int
    entries: int
    skipped: int
    when: int


class Store:
    """The directories of one user's store.  Made by open_store()."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.images = f"{directory}/images"
        self.tmp = f"{directory}/tmp"
        self.garbage = f"{directory}/garbage"

    def path(self, digest: str) -> str:
        """Where the image of this manifest digest is, or would be."""
        return f"{self.images}/{digest.replace(':', '-', 1)}"

    def stored(self, digest: str) -> StoredImage | None:
        """What is known about an image; None when it is not there, or damaged."""
        path = self.path(digest)
        try:
            fields = json.loads(_read(f"{path}/{META}", _META_MAX))
            meta = StoredImage(**{name: fields[name] for name in StoredImage.__match_args__})
            os.stat(f"{path}/{ROOTFS}")
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return meta if meta.digest == digest else None

    def find(self, digest: str, reference: str, limits: Limits) -> VerifiedImage | None:
        """An image of the store; None when it is not there, or damaged."""
        path = self.path(digest)
        meta = self.stored(digest)
        if meta is None:
            return None
        try:
            raw = _read(f"{path}/{CONFIG}", limits.json_bytes + 1)
            document = parse_config(raw, f"{path}/{CONFIG}", limits)
        except (OSError, ImageInvalid):
            return None
        return VerifiedImage(
            reference=reference,
            digest=digest,
            rootfs=f"{path}/{ROOTFS}",
            platform=document.platform,
            config=document.config,
        )

    def all(self) -> tuple[StoredImage, ...]:
        """All whole images, newest first."""
        digests = (name.replace("-", ":", 1) for name in os.listdir(self.images))
        found = (self.stored(digest) for digest in digests)
        return tuple(sorted((meta for meta in found if meta), key=lambda meta: (-meta.when, meta.digest)))


def _read(path: str, longest: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.read(fd, longest)
    finally:
        os.close(fd)


def open_store(environment: Mapping[str, str], uid: int) -> Store:
    """The user's store, made where missing.  Raises StoreUnusable."""
    store = Store(store_directory(environment, uid))
    try:
        version = _read(f"{store.directory}/version", _VERSION_MAX)
    except FileNotFoundError:
        version = _make(store)
    except OSError as error:
        raise StoreUnusable(
            f"image store {store.directory}: {os.strerror(error.errno or 0).lower()}"
        ) from None
    if version.strip() != b"%d" % VERSION:
        raise StoreUnusable(
            f"image store {store.directory}: version {version[:20]!r}, this program reads {VERSION}",
            hint="a newer hpcpod made it; choose another with HPCPOD_STORE",
        )
    return store


def _make(store: Store) -> bytes:
    """Make the directories, then the version file, which says that they are there."""
    text = b"%d\n" % VERSION
    temporary = f"{store.directory}/version.{os.getpid()}-{os.urandom(6).hex()}"
    try:
        for path in (store.images, store.tmp, store.garbage):
            os.makedirs(path, 0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, text)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, f"{store.directory}/version")
    except OSError as error:
        kind = StoreFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreUnusable
        raise kind(
            f"image store {store.directory}: cannot be made: {os.strerror(error.errno or 0).lower()}",
            hint="choose another with HPCPOD_STORE, on a disk of this node",
        ) from None
    return text


def ensure(  # noqa: PLR0913 - each is a fact of its own, all but the first by name
    reference: str,
    *,
    environment: Mapping[str, str],
    uid: int,
    platform: Platform | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> tuple[VerifiedImage, tuple[Phase, ...], tuple[FileStamp, ...]]:
    """The image that a reference names, in the user's store; fetched, verified and unpacked if it is not yet.

    Returns the image, how long each phase took (``resolve``, ``verify``, and where they happened ``wait`` for
    another process that does the work, and ``unpack``), and the identity of the files that the answer
    depends on.  Raises HpcpodError of many kinds; whatever it raises, nothing half-made is left.
    """
    start = time.time_ns()
    parsed = parse_reference(reference)
    wanted = platform or platform_of(os.uname().machine)
    with open_layout(parsed, limits) as layout:
        descriptor = find_manifest(layout, parsed, wanted, limits)
        stamps = (layout.stamp,)
        store = open_store(environment, uid)
        resolved = time.time_ns()
        image = store.find(descriptor.digest, reference, limits)
        if image is not None:
            check_platform(layout, image.platform, wanted)
            phases = (Phase("resolve", start, resolved), Phase("verify", resolved, time.time_ns()))
            return image, phases, stamps
        from hpcpod.images.fetch import Order, fetch

        locks = f"{runtime_directory(environment, uid)}/locks"
        order = Order(reference, wanted, limits, progress or Silent(), locks)
        image, later = fetch(store, layout, descriptor, order)
    return image, (Phase("resolve", start, resolved), *later), stamps


def sweep(directory: str) -> int:
    """Remove what killed processes left in a store; returns how many things.  Raises OSError."""
    from hpcpod.images import embryo

    store = Store(directory)
    if not os.path.isdir(store.tmp):
        return 0
    return embryo.sweep(store.tmp) + embryo.sweep_garbage(store.garbage)
