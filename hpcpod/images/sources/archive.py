# SPDX-License-Identifier: Apache-2.0
"""An ``oci-archive:`` file: the members of a tar file, read in place."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hpcpod.errors import ImageInvalid, ImageLimitExceeded, ImageNotFound
from hpcpod.images.limits import Limits
from hpcpod.images.sources.layout import INDEX, MARK, Blob, open_regular, read_at, stamp_of
from hpcpod.images.unpacking.names import normal_name
from hpcpod.images.unpacking.tarstream import ByteStream, Kind, TarReader
from hpcpod.log import shown
from hpcpod.model import FileStamp

_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_LONGEST = len("blobs/sha512/") + 128
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd", b"BZ": "bzip2", b"\xfd7": "xz"}


class SeekingStream(ByteStream):
    """Reads headers of a file by position and passes over data without reading it."""

    def __init__(self, fd: int, size: int, name: str) -> None:
        super().__init__(iter(()))
        self._fd = fd
        self._name = name
        self._size = size
        self.offset = 0

    def take(self, count: int) -> bytes:
        """The next count bytes; fewer only at the end of the file."""
        data = read_at(self._fd, count, self.offset, self._name)
        self.offset += len(data)
        return data

    def copy(self, count: int, fd: int | None) -> int:
        """Pass over the next count bytes; returns how many there were."""
        step = min(count, self._size - self.offset)
        self.offset += step
        return step

    def drain_zeros(self) -> bool:
        """Whether all that is left is zero."""
        while data := self.take(1 << 20):
            if data.strip(b"\0"):
                return False
        return True


def hint_for(fd: int, name: str) -> str | None:
    """What to do with a file that is no tar, from its first bytes.

    Layers are read where they lie in the archive, in the order that its documents say; in a compressed one
    they would be reached only by decompressing all that is before them, again for each.
    """
    kind = _COMPRESSED.get(read_at(fd, 2, 0, name))
    return f"the file is compressed: unpack it with {kind} -d first" if kind else None


class ArchiveLayout:
    """The layout in a tar file.  Members are found by a walk over the headers, once."""

    def __init__(self, path: str, limits: Limits) -> None:
        self._path = os.path.abspath(path)
        self._fd, status = open_regular(f"image archive {self._path}", self._path, None, _OPEN)
        self._stamp = stamp_of(self._path, status)
        try:
            self._members = dict(self._walk(status.st_size, limits))
        except ImageInvalid as error:
            hint = hint_for(self._fd, self._path) or error.hint
            os.close(self._fd)
            raise type(error)(f"image archive {shown(self._path)}: {error.message}", hint=hint) from None

    def _walk(self, size: int, limits: Limits) -> Iterator[tuple[str, tuple[int, int]]]:
        stream = SeekingStream(self._fd, size, self._path)
        seen: set[str] = set()
        for count, entry in enumerate(TarReader(stream, limits)):
            if count >= limits.archive_members:
                raise ImageLimitExceeded(f"limit archive_members {limits.archive_members}")
            if entry.kind is not Kind.FILE:
                continue
            name = os.fsdecode(normal_name(entry.name, limits))
            if name not in (MARK, INDEX) and not (name.startswith("blobs/") and len(name) <= _LONGEST):
                continue  # nobody can ask for it: it takes no memory
            if name in seen:
                raise ImageInvalid(f"{shown(name)} occurs twice")
            seen.add(name)
            yield name, (stream.offset, entry.size)

    @property
    def stamp(self) -> FileStamp:
        """That of the archive file."""
        return self._stamp

    def open_file(self, name: str) -> Blob:
        """A member.  Raises ImageNotFound."""
        found = self._members.get(name)
        if found is None:
            raise ImageNotFound(f"image archive {shown(self._path)}: no file {name} in it")
        # A descriptor of the same open file: whatever happens to the path, these are the bytes indexed.
        return Blob(os.dup(self._fd), *found, f"{self._path}: {name}")

    def close(self) -> None:
        """Close the archive."""
        os.close(self._fd)
