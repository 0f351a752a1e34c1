# SPDX-License-Identifier: Apache-2.0
"""Finding images of a store by what people call them, and pinning them."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from hpcpod.errors import ImageNotFound, StoreUnusable, UsageError
from hpcpod.images.limits import Limits
from hpcpod.images.sources.platforms import platform_of
from hpcpod.images.sources.reference import is_digest
from hpcpod.images.stores.store import PINNED, Store, StoredImage
from hpcpod.log import shown
from hpcpod.model import Form, Platform

SHORTEST = 8
"""Hexadecimal digits that may stand for a digest."""
_HEX = frozenset("0123456789abcdef")


def find_stored(
    store: Store, name: str, limits: Limits, platform: Platform | None = None
) -> tuple[StoredImage, ...]:
    """The stored image, in all its forms, that a digest, its beginning, or a reference means.

    Raises ImageNotFound, UsageError (ambiguous), ImageReferenceError.
    """
    images = store.all()
    short = name.removeprefix("sha256:").removeprefix("sha512:")
    _check_long_enough(name, short)
    if is_digest(name) or looks_like_digest(name):
        found = {image.digest for image in images if image.digest.partition(":")[2].startswith(short)}
    else:
        found = _by_reference(store, images, name, limits, platform)
    if len(found) > 1:
        listed = ", ".join(sorted(found))
        raise UsageError(f"image {shown(name)}: stands for {len(found)} images of the store: {listed}")
    if not found:
        raise ImageNotFound(
            f"image {shown(name)}: not in the store {store.directory}", hint="hpcpod image list shows what is"
        )
    return tuple(image for image in images if image.digest in found)


def _check_long_enough(name: str, digits: str) -> None:
    """Raise UsageError for what is the beginning of a digest, but of too many."""
    if digits and len(digits) < SHORTEST and _HEX.issuperset(digits):
        raise UsageError(
            f"image {shown(name)}: {len(digits)} digits of a digest, {SHORTEST} or more name an image",
            hint="hpcpod image list shows them; of an image called so: docker://NAME",
        )


def looks_like_digest(name: str) -> bool:
    """Whether it is the beginning of a digest, long enough to name an image of a store."""
    digits = name.removeprefix("sha256:").removeprefix("sha512:")
    return len(digits) >= SHORTEST and _HEX.issuperset(digits)


def _by_reference(
    store: Store, images: tuple[StoredImage, ...], name: str, limits: Limits, platform: Platform | None
) -> set[str]:
    """What the reference means now, else what was stored under it: its layout may be gone."""
    digest = store.identify(name, platform or platform_of(os.uname().machine), limits)
    if any(image.digest == digest for image in images):
        return {str(digest)}
    return {image.digest for image in images if image.reference == name}


def pin(store: Store, image: StoredImage) -> None:
    """Keep an image from ever being collected.  Raises StoreUnusable."""
    path = f"{store.path(image.digest, Form(image.form))}/{PINNED}"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _refused(path, error) from None


def unpin(store: Store, image: StoredImage) -> None:
    """Undo pin().  Raises StoreUnusable."""
    path = f"{store.path(image.digest, Form(image.form))}/{PINNED}"
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as error:
        raise _refused(path, error) from None


def _refused(path: str, error: OSError) -> StoreUnusable:
    code = errno.errorcode.get(error.errno or 0, "error")
    return StoreUnusable(f"{shown(path)}: {os.strerror(error.errno or 0).lower()} ({code})")


def forget_blobs(store: Store, older_than: float) -> int:
    """Remove layers that failed pulls have left and that are older, in seconds; how many.

    In the site's store they are its account's, which removes them.
    """
    from hpcpod.images.sources.registry.blobs import sweep_blobs
    from hpcpod.images.stores.account import as_account, count_of
    from hpcpod.images.stores.site import SiteStore

    place = f"{store.tmp}/blobs"
    if not isinstance(store, SiteStore):
        return sweep_blobs(place, older_than)
    with as_account(store.account, lambda: sweep_blobs(place, older_than)) as answer:
        return count_of(answer)
