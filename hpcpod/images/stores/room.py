# SPDX-License-Identifier: Apache-2.0
"""What an image in the making may take of the disk: its quota holds while it is made, not only after."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from hpcpod.errors import StoreFull, StoreUnusable
from hpcpod.frozen import frozen
from hpcpod.log import UNBOUNDED, Progress, size

_PACKER_STOPPED = (f"exit status {-signal.SIGXFSZ}", os.strerror(errno.EFBIG))


@frozen
class Room:
    """Bytes that one image may take, its tree and its packed form together; None for no bound.

    quota: of the store.  kept: bytes of it that must stay.  where: the store, for messages.
    """

    where: str
    quota: int | None = None
    kept: int = 0

    @property
    def most(self) -> int | None:
        """Bytes that the quota leaves for it."""
        return None if self.quota is None else max(self.quota - self.kept, 0)

    def left(self, taken: int) -> int:
        """Bytes that may still come when so many are taken.  Raises StoreFull when these are too many."""
        most = self.most
        if most is None:
            return UNBOUNDED
        if taken > most:
            raise self.full(taken)
        return most - taken

    def full(self, taken: int) -> StoreFull:
        """The error for an image that takes so many bytes, or more."""
        kept = f", of which {size(self.kept)} are pinned or in use" if self.kept else ""
        return StoreFull(
            f"image store {self.where}: the image takes {size(taken)} or more, "
            f"quota {size(self.quota or 0)}{kept}",
            hint="hpcpod image df shows by what" if self.kept else "the site sets the quota in hpcpod.toml",
        )


class Bounded:
    """A Progress that stops the work when it takes more of the disk than there is room."""

    def __init__(self, progress: Progress, room: Room) -> None:
        self.begin, self.advance = progress.begin, progress.advance
        self.note, self.end = progress.note, progress.end
        self.took = room.left


@contextmanager
def packing(room: Room, tree: int) -> Iterator[None]:
    """While the body runs, files written by this process and its children are no larger than the room left.

    tree: bytes that the unpacked tree takes beside the packed file until that is finished.  setrlimit(2),
    RLIMIT_FSIZE.  Raises StoreFull where the body ended because of it.
    """
    if room.most is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    left = max(room.left(tree), 1)
    bound = left if soft == resource.RLIM_INFINITY else min(left, soft)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bound, hard))
    try:
        yield
    except (StoreUnusable, OSError) as error:
        said = error.message if isinstance(error, StoreUnusable) else os.strerror(error.errno or 0)
        if bound == left and any(sign in said for sign in _PACKER_STOPPED):
            raise room.full(tree + left) from None
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
