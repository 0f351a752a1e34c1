# SPDX-License-Identifier: Apache-2.0
"""Keeping a store within its quota: the images that were not used for longest go first.

Two watermarks, in percent of the quota: collecting starts when the store holds more than `high`, and goes
on down to `low`, so that not every new image costs a collection.  An image that a process has mounted, that
is leased, or that is pinned never goes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from hpcpod.errors import HpcpodError, StoreFull
from hpcpod.frozen import frozen
from hpcpod.images.stores import usage
from hpcpod.images.stores.removal import remove_entry
from hpcpod.images.stores.room import Room
from hpcpod.images.stores.store import Store, StoredImage
from hpcpod.log import Progress, size
from hpcpod.settings import Quota, Settings

GROWTH = 3
"""A tree takes about so many times the bytes of its compressed layers: what a disk should have free."""


@frozen
class Candidate:
    """An image as the choice sees it.  used: seconds since 1970.  kept: why it must stay, or empty."""

    image: StoredImage
    used: float
    kept: str = ""


def quota_bytes(quota: Quota, filesystem: int) -> int | None:
    """The quota in bytes, on a file system of this many; None for none.  Pure."""
    if quota.percent is not None:
        return filesystem * quota.percent // 100
    return quota.bytes


def select(candidates: Sequence[Candidate], excess: int) -> list[StoredImage]:
    """The images to remove so that `excess` bytes go: least recently used first, none that is kept.  Pure.

    Fewer bytes go where too much is kept.
    """
    chosen = []
    for candidate in sorted(candidates, key=lambda c: (c.used, c.image.name)):
        if excess <= 0:
            break
        if not candidate.kept:
            chosen.append(candidate.image)
            excess -= candidate.image.disk
    return chosen


def candidates(store: Store) -> list[Candidate]:
    """All images of a store, with what keeps them."""
    mounted = usage.read_mounts()
    return [
        Candidate(image, usage.last_used(store, image), kept_because(store, image, mounted))
        for image in store.all()
    ]


def kept_because(store: Store, image: StoredImage, mounted: usage.Mounted) -> str:
    """Why an image must stay; empty where it need not."""
    reasons = ["pinned"] if usage.is_pinned(store, image) else []
    holders = usage.leases(store, image)
    if holders:
        reasons.append(f"leased by {', '.join(holders)}")
    user = None if reasons else usage.user_of(store, image, mounted)
    if user is not None:
        reasons.append(f"process {user} runs in it")
    return "; ".join(reasons)


def limit_of(store: Store, settings: Settings) -> int | None:
    """The quota of a store, bytes, or None."""
    status = os.statvfs(store.directory)
    quota = settings.site_quota if store.site else settings.user_quota
    return quota_bytes(quota, status.f_blocks * status.f_frsize)


def make_room(store: Store, compressed: int, settings: Settings, progress: Progress) -> Room:
    """Before an image is unpacked: what it may take.  Raises StoreFull for one that cannot fit in any case.

    compressed: the sum of the sizes in its manifest.  Collected is only what these prove to be necessary, and
    what a disk needs that is nearly full; how large the image is shows when it is unpacked (fit()).
    """
    limit = limit_of(store, settings)
    Room(store.directory, limit).left(compressed)
    status = os.statvfs(store.directory)
    free = status.f_bavail * status.f_frsize
    missing = compressed * GROWTH - free
    if limit is None and missing <= 0:
        return Room(store.directory)
    found = candidates(store)
    held = sum(candidate.image.disk for candidate in found)
    room = _room(store, found, limit)
    room.left(compressed)
    if free + held - room.kept < compressed:
        raise StoreFull(
            f"image store {store.directory}: the image takes {size(compressed)} or more, "
            f"{size(free + held - room.kept)} can be had",
            hint="HPCPOD_STORE chooses another disk; what is pinned or in use stays (hpcpod image df)",
        )
    if limit is not None:
        missing = max(missing, held + compressed - limit)
    if missing > 0:
        collect(store, missing, progress)
    return room


def room_in(store: Store, settings: Settings) -> Room:
    """What an image may take, as far as whoever asks can see what must stay."""
    limit = limit_of(store, settings)
    return Room(store.directory) if limit is None else _room(store, candidates(store), limit)


def _room(store: Store, found: Sequence[Candidate], limit: int | None) -> Room:
    return Room(store.directory, limit, sum(candidate.image.disk for candidate in found if candidate.kept))


def fit(store: Store, disk: int, settings: Settings, progress: Progress, name: str) -> None:
    """Before a finished image gets its name: collect for what it takes.  Raises StoreFull if it cannot fit.

    Then nothing was collected.  disk: bytes that it takes; name: of its entry, which replaces what has it.
    """
    limit = limit_of(store, settings)
    if limit is None:
        return
    found = [candidate for candidate in candidates(store) if candidate.image.name != name]
    room = _room(store, found, limit)
    room.left(disk)
    held = sum(candidate.image.disk for candidate in found)
    if held + disk > limit * settings.high // 100:
        removed = collect(store, held + disk - limit * settings.low // 100, progress, name)
        held -= sum(image.disk for image in removed)
        if held + disk > limit:  # came into use meanwhile
            raise Room(store.directory, limit, held).full(disk)


def enforce(store: Store, settings: Settings, progress: Progress, keep: str = "") -> list[StoredImage]:
    """Bring a store below its low watermark if it is above the high one; what was removed.

    keep: name of an entry that stays, because somebody is about to use it.
    """
    limit = limit_of(store, settings)
    if limit is None:
        return []
    held = sum(image.disk for image in store.all())
    if held <= limit * settings.high // 100:
        return []
    return collect(store, held - limit * settings.low // 100, progress, keep)


def collect(store: Store, excess: int, progress: Progress, keep: str = "") -> list[StoredImage]:
    """Remove the least recently used images until `excess` bytes have gone; what was removed."""
    removed = []
    chosen = select([c for c in candidates(store) if c.image.name != keep], excess)
    for image in chosen:
        try:
            remove_entry(store, image)
        except (HpcpodError, OSError):
            continue  # came into use meanwhile, or another collection was faster
        progress.note(f"collected {image.digest[:19]} ({image.form}, {size(image.disk)}), {image.reference}")
        removed.append(image)
    return removed
