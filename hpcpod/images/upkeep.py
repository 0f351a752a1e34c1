# SPDX-License-Identifier: Apache-2.0
"""Taking images out of the store, and knowing which are in use."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hpcpod.errors import ImageInUse, ImageNotFound, UsageError
from hpcpod.images.fetch import throw_away, tidy
from hpcpod.images.layout import open_layout
from hpcpod.images.limits import Limits
from hpcpod.images.platforms import platform_of
from hpcpod.images.reference import is_digest, parse_reference
from hpcpod.images.resolve import find_manifest
from hpcpod.images.store import ROOTFS, Store
from hpcpod.images.tree import remove_tree
from hpcpod.log import shown
from hpcpod.model import Platform

SHORTEST = 8
"""Hexadecimal digits that may stand for a digest."""
_HEX = frozenset("0123456789abcdef")
_MOUNTINFO_ROOT = 3
_MOUNTINFO_DEVICE = 2


def find_stored(store: Store, name: str, limits: Limits, platform: Platform | None = None) -> str:
    """The digest of the stored image that a digest, its beginning, or a reference means.

    Raises ImageNotFound, UsageError (ambiguous), ImageReferenceError.
    """
    digests = [meta.digest for meta in store.all()]
    if is_digest(name) or _is_short(name):
        short = name.removeprefix("sha256:").removeprefix("sha512:")
        found = [digest for digest in digests if digest.partition(":")[2].startswith(short)]
    else:
        found = _by_reference(store, name, limits, platform)
    if len(found) > 1:
        raise UsageError(
            f"image {shown(name)}: stands for {len(found)} images of the store: {', '.join(found)}"
        )
    if not found:
        raise ImageNotFound(
            f"image {shown(name)}: not in the store {store.directory}", hint="hpcpod image list shows what is"
        )
    return found[0]


def _is_short(name: str) -> bool:
    digits = name.removeprefix("sha256:")
    return len(digits) >= SHORTEST and _HEX.issuperset(digits)


def _by_reference(store: Store, name: str, limits: Limits, platform: Platform | None) -> list[str]:
    """What the reference means now, else what was stored under it: its layout may be gone."""
    reference = parse_reference(name)
    wanted = platform or platform_of(os.uname().machine)
    if os.path.exists(reference.path):
        with open_layout(reference, limits) as layout:
            digest = find_manifest(layout, reference, wanted, limits).digest
        if store.stored(digest):
            return [digest]
    return [meta.digest for meta in store.all() if meta.reference == name]


def remove(store: Store, digest: str) -> None:
    """Take an image out of the store and delete it.  Raises ImageInUse, StoreUnusable, OSError."""
    tidy(store)
    _refuse_if_used(digest, in_use(f"{store.path(digest)}/{ROOTFS}"))
    with _held(store.path(digest)):
        remove_tree(take_out(store, digest))


def _refuse_if_used(digest: str, user: int | None) -> None:
    if user is not None:
        raise ImageInUse(
            f"image {digest}: process {user} runs in it",
            hint="end the job or pod that uses it; hpcpod image rm then removes it",
        )


@contextmanager
def _held(path: str) -> Iterator[None]:
    """Hold the lock of an image's directory, which keeps sweeps off it when it is among the garbage."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # another command was faster
        yield
        return
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def take_out(store: Store, digest: str) -> str:
    """Move an image to the garbage; returns where it is now.  Raises ImageInUse, StoreUnusable.

    Only when it has gone from its place can no further pod start in it: then one that did is looked for,
    and the image put back where there is one.
    """
    path = store.path(digest)
    target = throw_away(store, path)
    user = in_use(f"{target}/{ROOTFS}", os.path.basename(path))
    if user is not None:
        # Fails where the image was fetched again meanwhile: then the pod keeps what it has mounted until
        # the garbage is swept.
        with suppress(OSError):
            os.rename(target, path)
    _refuse_if_used(digest, user)
    return target


def in_use(rootfs: str, former: str = "") -> int | None:
    """A process of this user that has the tree mounted, or None.

    Looks at each process's mounts (proc(5), mountinfo): the tree as root of a bind mount, or in an overlay
    its name among the options, or its digest as the source, which is what pods have.
    former: the name of the image's directory when it could be mounted, if it has another now; a bind mount
    shows the new one, an overlay the old.
    """
    try:
        device = os.stat(rootfs).st_dev
    except OSError:
        return None
    for name in os.listdir("/proc"):
        if name.isdigit() and _has_mounted(int(name), rootfs, device, former):
            return int(name)
    return None


def _has_mounted(pid: int, rootfs: str, device: int, former: str) -> bool:
    where, present, _ = rootfs.rsplit("/", 2)
    root = f"/{os.path.basename(where)}/{present}/{ROOTFS}"
    name = former or present
    digest = name.replace("-", ":", 1)
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                if name not in line and digest not in line and present not in line:
                    continue
                before, _, after = line.partition(" - ")
                fields = before.split(" ")
                bound = fields[_MOUNTINFO_DEVICE] == number and fields[_MOUNTINFO_ROOT].endswith(root)
                if bound or name in after or digest in after:
                    return True
    except OSError:
        # Ended meanwhile, or another user's: that one cannot run from a store of mode 0700.
        return False
    return False
