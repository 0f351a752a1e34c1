# SPDX-License-Identifier: Apache-2.0
"""Unpack an image to a directory of the user's choice, outside the store."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hpcpod.errors import HpcpodError, StoreFull, StoreUnusable, UsageError
from hpcpod.images.limits import Limits
from hpcpod.images.sources.access import Access
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.source import open_source
from hpcpod.images.stores.admission import Terms, admit
from hpcpod.images.stores.embryo import Beating, Embryo, is_at, is_dead, make_embryo, sweep, unique_name
from hpcpod.images.unpacking.layers import Unpacked
from hpcpod.kernel import rename_new, syncfs
from hpcpod.log import Progress, shown
from hpcpod.model import Platform

_SPACE = "free space where the destination is, or name one on another disk"
PREFIX = ".hpcpod-unpack-"
"""Beginning of the name of a directory in the making, beside its final place."""


def unpack_to(  # noqa: PLR0913 - each is a fact of its own
    reference: Reference,
    destination: str,
    platform: Platform,
    limits: Limits,
    progress: Progress,
    *,
    access: Access | None = None,
    terms: Terms | None = None,
) -> tuple[str, Unpacked]:
    """Make `destination` the tree of an image, whole or not at all; returns its digest and what came out.

    The tree grows beside its final place under a temporary name, and is renamed when every byte of the image
    was verified and is on the disk.  terms: None where everything may be unpacked.  Raises UsageError when
    destination exists, ImageUntrusted.
    """
    target = os.path.abspath(destination)
    parent = os.path.dirname(target)
    _check_free(target)
    with open_source(reference, limits, access) as source:
        described = source.describe(platform)
        if terms:
            admit(terms, source.subject(platform), lambda: source.signatures(platform))
        with _growing(parent, target) as embryo:
            # By descriptor: who may write in the parent could put another directory in its place meanwhile.
            unpacked = source.unpack(f"/proc/self/fd/{embryo.fd}/.", Beating(progress, embryo))
    return described.digest, unpacked


@contextmanager
def announced(directory: str, destination: str) -> Iterator[None]:
    """While the body runs, a link in directory names the place where destination grows.

    A killed unpacking is then found by sweep_announced(), wherever it was.  It is only a service: where the
    link cannot be made, the next unpacking to the same place clears up.  directory: empty for no link.
    """
    if not directory:
        yield
        return
    link = f"{directory}/{unique_name()}"
    with suppress(OSError):
        os.makedirs(directory, 0o700, exist_ok=True)
        os.symlink(os.path.dirname(os.path.abspath(destination)), link)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(link)


def sweep_announced(directory: str) -> int:
    """Remove what killed processes left where they had announced to unpack; returns how many trees."""
    removed = 0
    with suppress(FileNotFoundError):
        for name in os.listdir(directory):
            link = f"{directory}/{name}"
            with suppress(OSError):  # the place may be gone, or not be ours any more
                if is_dead(link):
                    with suppress(OSError):
                        removed += sweep(os.readlink(link), PREFIX)
                    os.unlink(link)
    return removed


@contextmanager
def _growing(parent: str, target: str) -> Iterator[Embryo]:
    """A temporary directory that becomes target if the body ends well, and is removed if not."""
    try:
        sweep(parent, PREFIX)
        embryo = make_embryo(parent, PREFIX)
    except OSError as error:
        raise _refused(error, target) from None
    try:
        yield embryo
        syncfs(embryo.fd)
        _publish(embryo, parent, target)
    except OSError as error:
        embryo.discard()
        raise _refused(error, target) from None
    except (StoreFull, StoreUnusable) as error:
        place = f"/proc/self/fd/{embryo.fd}/."
        embryo.discard()
        raise _at(error, place, target) from None
    except BaseException:
        embryo.discard()
        raise
    embryo.release()


def _check_free(target: str) -> None:
    """Raise UsageError unless target is a name that something can be given, and nothing has.

    That is found before the work, which may be long.
    """
    try:
        os.lstat(target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refused(error, target) from None
    raise _exists(target)


def _refused(error: OSError, target: str) -> HpcpodError:
    """The error for a destination that cannot be made, written or named: never the image's fault."""
    reason = os.strerror(error.errno or 0).lower()
    code = errno.errorcode.get(error.errno or 0, "error")
    if error.errno == errno.EEXIST:
        return _exists(target)
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not os.path.isdir(os.path.dirname(target)):
        return UsageError(f"destination {shown(target)}: {shown(os.path.dirname(target))} is not a directory")
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return UsageError(f"destination {shown(target)}: {reason} ({code})")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"destination {shown(target)}: file system is full ({code})", hint=_SPACE)
    if error.errno == errno.ESTALE:
        reason = "somebody else put another thing in the place where it grows, or has removed it"
    return StoreUnusable(f"destination {shown(target)}: {reason} ({code})")


def _at(error: HpcpodError, place: str, target: str) -> HpcpodError:
    """What was said of the place where the tree grew, said of the destination: the user knows no other."""
    message = error.message.replace(place, f"destination {shown(target)}")
    return type(error)(message, hint=_SPACE if isinstance(error, StoreFull) else error.hint)


def _exists(target: str) -> UsageError:
    return UsageError(f"destination {shown(target)}: exists", hint="name a directory that does not exist yet")


def _publish(embryo: Embryo, parent: str, target: str) -> None:
    """Give the finished tree its name, for good; else it keeps its temporary one.  Raises OSError.

    The rename is by name, so what has the name afterwards is compared with what was written: who may write in
    the parent can exchange them.  ESTALE where it is another; that is not ours, and stays.
    """
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not embryo.is_there():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), target)
        rename_new(embryo.path, target)
        if not is_at(target, embryo.fd):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), target)
        try:
            os.fsync(fd)
        except OSError:
            os.rename(target, embryo.path)
            raise
    finally:
        os.close(fd)
