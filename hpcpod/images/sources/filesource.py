# SPDX-License-Identifier: Apache-2.0
"""What sources have in common whose image is one file: aci:, sif:, sqsh:, erofs: (source.py)."""

from __future__ import annotations

import os
import time

from hpcpod.errors import HpcpodError, ImageDigestMismatch
from hpcpod.images.limits import Limits
from hpcpod.images.sources.layout import Blob, open_regular, read_error, stamp_of
from hpcpod.images.sources.reference import Reference
from hpcpod.images.trust.facts import Signature, Subject, path_scopes
from hpcpod.log import shown
from hpcpod.model import FileStamp, Platform

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

SETTLED_NS = 2_000_000_000
"""The coarsest time of a file system that is in use: two changes within it may look like one."""
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class FileSource:
    """A regular file, opened once: whatever happens to its path, this is the file.  A context manager."""

    def __init__(self, reference: Reference, limits: Limits) -> None:
        path = os.path.abspath(reference.path)
        self._limits = limits
        self._pin = reference.digest
        self._transport = reference.transport
        self._known = ""
        self._name = f"{reference.transport}:{shown(path)}"
        self._fd, status = open_regular(f"{reference.transport}:{path}", path, None, _OPEN)
        self._size = status.st_size
        self._stamp = stamp_of(path, status)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    @property
    def name(self) -> str:
        """For messages, printable."""
        return self._name

    @property
    def stamp(self) -> FileStamp:
        """Identity of the file."""
        return self._stamp

    def identity(self) -> str:
        """Tells this content from any other that the file may have; empty where it was written just now."""
        return identity_of(self._stamp)

    def assume(self, digest: str) -> None:
        """Let find() answer a digest that was found for this identity, without reading the file."""
        self._known = self._check_pin(digest)

    def signatures(self, platform: Platform) -> tuple[Signature, ...]:
        """None, unless the format has a place for them."""
        return ()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _subject(self, digest: str) -> Subject:
        """Scopes: the file, and the directories above it."""
        path = os.path.realpath(self._stamp.path)
        return Subject(self._transport, path_scopes(path), identity="", digest=digest, file=path)

    def _check_pin(self, digest: str) -> str:
        """The digest, if the reference pins no other.  Raises ImageDigestMismatch."""
        if self._known not in ("", digest):
            raise ImageDigestMismatch(
                f"had {self._known} when it was read last, has {digest} now, and its times are the same",
                hint="somebody wrote to it behind the file system's back; touch it to have it read anew",
            )
        if self._pin not in ("", digest):
            raise ImageDigestMismatch(
                f"pinned to {self._pin}, but has {digest}",
                hint="the image was changed since its digest was noted, or the digest is of another image",
            )
        return digest

    def _named(self, error: HpcpodError | OSError) -> HpcpodError:
        """The error with the image's name before it; what its disk refuses is not the image's fault."""
        if isinstance(error, OSError):
            return read_error(error, self._name)
        return type(error)(f"image {self._name}: {error.message}", hint=error.hint)


def identity_of(stamp: FileStamp) -> str:
    """What stat(2) says of a file that has rested so long that any later change will show, else nothing."""
    newest = max(stamp.mtime_ns, stamp.ctime_ns)
    if time.time_ns() - newest < SETTLED_NS:
        return ""
    return " ".join(map(str, (stamp.dev, stamp.ino, stamp.size, stamp.mtime_ns, stamp.ctime_ns)))


class OwnBlob(Blob):
    """A file's content by a descriptor of its own.  A context manager."""

    def __init__(self, fd: int, size: int, name: str) -> None:
        super().__init__(os.dup(fd), 0, size, name)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its descriptor."""
        self.close()
