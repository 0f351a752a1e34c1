# SPDX-License-Identifier: Apache-2.0
"""Taking an image out of its store: by one rename, and only while nobody runs from it."""

from __future__ import annotations

import os
from contextlib import suppress

from hpcpod.errors import HpcpodError, ImageInUse, StoreUnusable
from hpcpod.images.stores import usage
from hpcpod.images.stores.fetch import throw_away
from hpcpod.images.stores.forms import parse_entry
from hpcpod.images.stores.store import Store, StoredImage
from hpcpod.log import shown
from hpcpod.model import Form


def remove_damaged(store: Store) -> list[str]:
    """Remove entries whose documents or content are gone, which no start would take; their names.

    One that a process still has mounted stays.
    """
    removed = []
    for name in sorted(os.listdir(store.images)):
        parsed = parse_entry(name)
        if parsed is None or not store.is_damaged(*parsed):
            continue
        image = StoredImage(parsed[0], "", "", 0, 0, 0, 0, parsed[1].value)
        with suppress(HpcpodError, OSError):
            remove_entry(store, image)
            removed.append(name)
    return removed


def remove_entry(store: Store, image: StoredImage) -> None:
    """Take one form of an image out of the store and delete it.  Raises ImageInUse, StoreUnusable, OSError.

    Killed in the middle, it leaves garbage in this process's name, which any later command removes.
    """
    store.tidy()
    with store.held(image.name):
        _refuse_if_leased(store, image)
        _refuse_if_used(image, usage.user_of(store, image, usage.read_mounts()))
        gone = take_out(store, image)
    try:
        store.dispose(gone)
    except OSError as error:
        raise StoreUnusable(
            f"{shown(gone)}: cannot be removed: {os.strerror(error.errno or 0).lower()}",
            hint="the image is out of the store; hpcpod image gc tries again to remove what is left of it",
        ) from None
    store.forget()


def _refuse_if_leased(store: Store, image: StoredImage) -> None:
    holders = usage.leases(store, image)
    if holders:
        raise ImageInUse(
            f"image {image.digest}: leased by {', '.join(holders)}",
            hint=f"hpcpod image umount --lease {holders[0]} {image.digest} releases it",
        )


def take_out(store: Store, image: StoredImage) -> str:
    """Move an image to the garbage; returns where it is now.  Raises ImageInUse, StoreUnusable.

    Only when it has gone from its place can no further pod start in it: then one that did is looked for,
    and the image put back where there is one.
    """
    path = store.path(image.digest, Form(image.form))
    target = throw_away(store, path)
    user = usage.user_of(store, image, usage.read_mounts(), target)
    if user is not None:
        # Fails where the image was fetched again meanwhile: then the pod keeps what it has mounted until
        # the garbage is swept.
        with suppress(OSError):
            os.rename(target, path)
    _refuse_if_used(image, user)
    return target


def _refuse_if_used(image: StoredImage, user: int | None) -> None:
    if user is not None:
        raise ImageInUse(
            f"image {image.digest}: process {user} runs in it",
            hint="end the job or pod that uses it; hpcpod image rm then removes it",
        )
