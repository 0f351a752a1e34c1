# SPDX-License-Identifier: Apache-2.0
"""Which names a layer made, and what directories are to become, in memory that no image makes grow.

An archive of some megabytes can hold gigabytes of names.
"""

from __future__ import annotations

import errno
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from hashlib import blake2b
from heapq import merge
from struct import Struct

from hpcpod.errors import ImageLimitExceeded
from hpcpod.images.limits import MARK_COST, NAME_COST, Limits

_DIGEST_BYTES, _WHICH_BYTES = 10, 2
_KEPT = 8 << 20
"""Bytes of directories' names that are held in memory before they go to a file."""
_READ = 64 * 1024
_RECORD = Struct("<HHqI")
"""Bytes of the path, mode, seconds, nanoseconds; the path follows."""
_NANOSECONDS = 1_000_000_000
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
"""open(2), O_TMPFILE, of file systems without it and of kernels that know no such flag."""


class Marks:
    """A set of paths that forgets what they are called: 80 bits of a keyed hash for each.

    The key is random, so no image can aim at two names that are taken for one; by chance that happens to the
    largest image that limits let in with a probability of 1e-10.  A mark takes 14 to 22 bytes.
    """

    def __init__(self, limits: Limits) -> None:
        self._key = os.urandom(16)
        self._buckets: dict[bytes, array[int]] = {}
        self._left = limits.names_bytes // MARK_COST
        self._bytes = limits.names_bytes

    def add(self, path: bytes) -> bool:
        """Mark a path; whether it was not marked before.  Raises ImageLimitExceeded."""
        digest = blake2b(path, digest_size=_DIGEST_BYTES, key=self._key).digest()
        mark = int.from_bytes(digest[_WHICH_BYTES:], "little")
        bucket = self._buckets.get(digest[:_WHICH_BYTES])
        if bucket is None:
            bucket = self._buckets[digest[:_WHICH_BYTES]] = array("Q")
        at = bisect_left(bucket, mark)
        if at < len(bucket) and bucket[at] == mark:
            return False
        bucket.insert(at, mark)
        self._left -= 1
        if self._left < 0:
            raise ImageLimitExceeded(f"image: names take more memory than limit names_bytes {self._bytes}")
        return True

    def __contains__(self, path: bytes) -> bool:
        """Whether a path is marked."""
        digest = blake2b(path, digest_size=_DIGEST_BYTES, key=self._key).digest()
        bucket = self._buckets.get(digest[:_WHICH_BYTES])
        if bucket is None:
            return False
        mark = int.from_bytes(digest[_WHICH_BYTES:], "little")
        at = bisect_left(bucket, mark)
        return at < len(bucket) and bucket[at] == mark


class DirectoryModes:
    """Mode and time of each directory of a tree, kept until the tree is finished.

    A few megabytes of them in memory; those beyond, in runs sorted by path, in a file without a name on the
    tree's own disk.  root: descriptor of the tree's top.
    """

    def __init__(self, root: int, limits: Limits) -> None:
        self._root = root
        self._limit = limits.names_disk
        self._recent: dict[bytes, tuple[int, int]] = {}
        self._recent_bytes = 0
        self._file = -1
        self._runs: list[tuple[int, int]] = []
        self._end = 0

    def keep(self, path: bytes, mode: int, mtime_ns: int) -> None:
        """What a directory is to get; the last word counts.  Raises ImageLimitExceeded, OSError."""
        if path not in self._recent:
            self._recent_bytes += len(path) + NAME_COST
        self._recent[path] = mode, mtime_ns
        if self._recent_bytes > _KEPT:
            self._spill()

    def deepest_first(self) -> Iterator[tuple[bytes, int, int]]:
        """Path, mode and time of each directory, once, children before their parents.  Raises OSError."""
        recent = (
            (path, len(self._runs), *found) for path, found in sorted(self._recent.items(), reverse=True)
        )
        runs = [self._run(number, *place) for number, place in enumerate(self._runs)]
        last = None
        # Of what was said several times about one path the latest comes first.
        for path, _, mode, mtime_ns in merge(*runs, recent, reverse=True):
            if path != last:
                yield path, mode, mtime_ns
            last = path

    def close(self) -> None:
        """Give the file back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _spill(self) -> None:
        if self._file < 0:
            self._file = _private_file(self._root)
        start = self._end
        pieces: list[bytes] = []
        for path, (mode, mtime_ns) in sorted(self._recent.items(), reverse=True):
            seconds, nanoseconds = divmod(mtime_ns, _NANOSECONDS)
            pieces += (_RECORD.pack(len(path), mode, seconds, nanoseconds), path)
        data = memoryview(b"".join(pieces))
        self._end += len(data)
        if self._end > self._limit:
            raise ImageLimitExceeded(
                f"image: names of directories take more of the disk than limit names_disk {self._limit}"
            )
        while data:
            data = data[os.write(self._file, data) :]
        self._runs.append((start, self._end))
        self._recent.clear()
        self._recent_bytes = 0

    def _run(self, number: int, start: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
        held = b""
        while start < end or held:
            if start < end:
                chunk = os.pread(self._file, min(_READ, end - start), start)
                if not chunk:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                start += len(chunk)
                held += chunk
            at = 0
            while at + _RECORD.size <= len(held):
                length, mode, seconds, nanoseconds = _RECORD.unpack_from(held, at)
                after = at + _RECORD.size + length
                if after > len(held):
                    break
                yield held[at + _RECORD.size : after], number, mode, seconds * _NANOSECONDS + nanoseconds
                at = after
            held = held[at:]


def _private_file(directory: int) -> int:
    """A file without a name on the file system of an open directory."""
    try:
        return os.open(b".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:  # NFS and overlays of old kernels have none
        if error.errno not in _NO_TMPFILE:
            raise
    name = b".hpcpod-%s" % os.urandom(8).hex().encode()
    fd = os.open(
        name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
    )
    os.unlink(name, dir_fd=directory)
    return fd
