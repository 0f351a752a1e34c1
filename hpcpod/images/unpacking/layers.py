# SPDX-License-Identifier: Apache-2.0
"""Unpack a verified image's layers into an empty directory."""

from __future__ import annotations

import errno
import os

from hpcpod.errors import HpcpodError, ImageInvalid, StoreFull, StoreUnusable
from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.images.sources.walk import Documents, Origin
from hpcpod.images.unpacking.apply import Applier
from hpcpod.images.unpacking.pipeline import Budget, Pipeline
from hpcpod.images.unpacking.tarstream import ByteStream, TarReader
from hpcpod.log import Progress, size

_FULL = (errno.ENOSPC, errno.EDQUOT)
FREE_SPACE = "hpcpod image rm frees space; HPCPOD_STORE chooses another disk"


@frozen
class Unpacked:
    """What came out.  size: bytes of all layers, uncompressed.  skipped: devices and FIFOs left out.

    disk: bytes that the tree takes on a disk of 4-KiB blocks, at most.
    """

    size: int
    entries: int
    skipped: int
    disk: int = 0


def unpack_layers(  # noqa: PLR0913, PLR0917 - what, where, and how
    origin: Origin,
    image: Documents,
    directory: str,
    limits: Limits,
    progress: Progress,
    readable: int = 0,
) -> Unpacked:
    """Fill the empty directory with the image's tree; every byte is verified when this returns.

    readable: permission to read that every file gets, 0o444 for everybody's (apply.py).  On an error the
    directory holds part of a tree: the caller removes it.  Raises ImageInvalid and its kinds, StoreFull,
    StoreUnusable.
    """
    total = sum(layer.blob.size for layer in image.layers)
    check_space(directory, total)
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    applier = Applier(root, limits, readable, progress.took)
    budget = Budget(limits)
    progress.begin("unpacking", total)
    try:
        pipeline = Pipeline(
            image.layers, lambda layer: origin.open_blob(layer.blob), limits, budget, progress.advance
        )
        try:
            for number in range(len(image.layers)):
                _unpack_layer(pipeline, applier, limits, number, (origin.name, len(image.layers)))
        finally:
            pipeline.close()
        applier.finish()
    except OSError as error:
        raise write_error(error, directory) from error
    finally:
        progress.end()
        applier.close()
        os.close(root)
    return Unpacked(budget.used, applier.entries, applier.skipped, applier.disk)


def _unpack_layer(
    pipeline: Pipeline, applier: Applier, limits: Limits, number: int, image: tuple[str, int]
) -> None:
    """Apply the next layer.  image: its name and how many layers it has, for messages."""
    try:
        try:
            applier.layer(TarReader(ByteStream(pipeline.chunks()), limits), lowest=number == 0)
            pipeline.finish()
        except (HpcpodError, OSError) as error:
            raise pipeline.failed(error) from None
    except ImageInvalid as error:
        message = f"{image[0]}: layer {number + 1} of {image[1]}: {error.message}"
        raise type(error)(message, hint=error.hint) from None


def check_space(directory: str, needed: int) -> None:
    """Refuse to start what cannot end: a tree is no smaller than its compressed layers.  Raises StoreFull."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise StoreFull(
            f"{directory}: {size(free)} free, the image needs more than {size(needed)} (ENOSPC)",
            hint=FREE_SPACE,
        )


def write_error(error: OSError, directory: str) -> HpcpodError:
    """The error of this program for one of the operating system's while unpacking below directory.

    The disk's or the node's fault: what an image's names cause has become an ImageInvalid before (apply.py).
    """
    code = errno.errorcode.get(error.errno or 0, "error")
    if error.errno in _FULL:
        try:
            status = os.statvfs(directory)
            left = f"{size(status.f_bavail * status.f_frsize)} and {status.f_favail} inodes left"
        except OSError:
            left = "nothing left"
        return StoreFull(
            f"{directory}: file system is full while unpacking ({code}), {left}",
            hint=FREE_SPACE,
        )
    return StoreUnusable(f"{directory}: {os.strerror(error.errno or 0).lower()} while unpacking ({code})")
