# SPDX-License-Identifier: Apache-2.0
"""From a reference to a verified image of this node: found in a store, or fetched into the user's."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from hpcpod.config import runtime_directory
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.sources.layout import stamp_of
from hpcpod.images.sources.platforms import platform_of
from hpcpod.images.sources.reference import parse_reference
from hpcpod.images.sources.source import open_source
from hpcpod.images.stores.store import Store, open_site, open_store
from hpcpod.log import Progress, Silent
from hpcpod.model import FileStamp, Form, FuseImage, Phase, Platform, VerifiedImage
from hpcpod.settings import Settings, read_settings


def ensure(  # noqa: PLR0913 - each is a fact of its own, all but the first by name
    reference: str,
    *,
    environment: Mapping[str, str],
    uid: int,
    platform: Platform | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
    settings: Settings | None = None,
    form: Form | None = None,
) -> tuple[VerifiedImage, tuple[Phase, ...], tuple[FileStamp, ...]]:
    """The image that a reference names, from the site's store or the user's own.

    One that is in neither is fetched, verified and unpacked into the user's.  form: the only one to take.

    Returns the image, how long each phase took (``resolve``, ``verify``, and where they happened ``wait`` for
    another process that does the work, and ``unpack``), and the identity of the files that the answer
    depends on.  Raises HpcpodError of many kinds; whatever it raises, nothing half-made is left.
    """
    start = time.time_ns()
    parsed = parse_reference(reference)
    wanted = platform or platform_of(os.uname().machine)
    settings = settings or read_settings(environment)
    with open_source(parsed, limits) as source:
        digest = source.find(wanted)
        stamps = tuple(stamp for stamp in (source.stamp, settings.stamp) if stamp)
        site = open_site(settings)
        resolved = time.time_ns()
        image = site.find(digest, reference, limits, form) if site else None
        if image is None:
            store = open_store(environment, uid)
            image = store.find(digest, reference, limits, form)
        if image is not None:
            source.check_platform(image.platform, wanted)
            stamps += (*_what_root_mounts(site, image), *_what_fuse_shows(image))
            _check_packed(image, f"{runtime_directory(environment, uid)}/verified")
            phases = (Phase("resolve", start, resolved), Phase("verify", resolved, time.time_ns()))
            return image, phases, stamps
        from hpcpod.images.stores.fetch import Order, fetch

        locks = f"{runtime_directory(environment, uid)}/locks"
        order = Order(reference, wanted, limits, progress or Silent(), locks, settings, form)
        image, later = fetch(store, source, digest, order)
    return image, (Phase("resolve", start, resolved), *later), (*stamps, *_what_fuse_shows(image))


def _what_root_mounts(site: Store | None, image: VerifiedImage) -> tuple[FileStamp, ...]:
    """What changes when root mounts an image of the site's store, of which FUSE was the second choice."""
    if site is None or not isinstance(image.rootfs, FuseImage):
        return ()
    path = f"{site.run}/mounts"
    try:
        return (stamp_of(path, os.stat(path)),)
    except OSError:  # since the node was booted nothing was mounted
        return ()


def _what_fuse_shows(image: VerifiedImage) -> tuple[FileStamp, ...]:
    """The packed file, which is compared again when it changed."""
    if not isinstance(image.rootfs, FuseImage):
        return ()
    return (stamp_of(image.rootfs.file, os.stat(image.rootfs.file)),)


def _check_packed(image: VerifiedImage, verified: str) -> None:
    """Compare a file that FUSE will show with what was packed; root does that for what the kernel mounts."""
    if not isinstance(image.rootfs, FuseImage):
        return
    from hpcpod.images.stores.intact import check_used

    check_used(image.rootfs.file, image.rootfs.name, verified)
