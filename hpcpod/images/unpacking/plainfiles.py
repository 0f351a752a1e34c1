# SPDX-License-Identifier: Apache-2.0
"""The commonest entries of a layer, in the fewest steps: small regular files, and directories.

Most of what an image costs is what each of its files costs.  An entry is taken here only if every part of
its header is of the plainest form and nothing about it has to be decided: ustar or GNU header, octal
fields, all of its data in the chunk at hand, a parent that is there and either reached without a symlink
or by a spelling that led there before, a name without a dot in front, and nothing of that name yet.
Whatever is not so, and whatever is wrong, is left where it is for TarReader and Applier, which know all
the rules and say what is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from struct import Struct
from typing import TypeVar
from zlib import adler32

from hpcpod.errors import ImageInvalid
from hpcpod.images.limits import Limits
from hpcpod.images.unpacking.parents import Parents
from hpcpod.images.unpacking.tarheader import (
    BLANKS_SUM,
    BLOCK,
    CHECKSUM_AT,
    GNU,
    NAME_FIELD,
    NANOSECONDS,
    NO_PAD,
    POSIX,
    parse_number,
    parse_time,
)
from hpcpod.images.unpacking.tarstream import MTIME_END, ByteStream, write_all

CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
DISK_BLOCK = 4096
FILE_MODE = 0o777
_MAGIC, _PREFIX, _PAD = slice(101, 109), slice(189, 344), slice(344, 356)
"""Fields of a header's tail, which is all that follows the checksum."""
_FIELDS = Struct("100s24s11sc12s8s356s")
"""Name, mode and owner, size, what ends it, time, checksum, tail."""
_LONGEST = 256
"""Bytes of a path that fits into a header: prefix, slash, name."""
_DOT = ord(".")
_NOT_PLAIN = 1 << 40, b"", False
"""The first is more than the sum of any header."""
_ENDS = (b"\0", b" ")
_COPIED = 1 << 15
"""Up to this size a copy of the data is cheaper than a view of it."""
_REMEMBERED = 4096
"""Values of one field that are kept, so that memory stays bounded."""


class FileModes:
    """What files get for a mode in an archive.

    readable: bits of 0o444 that every file is given beside its own, and as execute bits where it has any.
    """

    def __init__(self, readable: int) -> None:
        self._readable = readable
        self._umask = os.umask(0o077)
        os.umask(self._umask)

    def of(self, mode: int) -> tuple[int, bool]:
        """Permissions, and whether the umask keeps open(2) from giving them."""
        mode = mode & FILE_MODE | self._readable
        if mode & 0o111:
            mode |= self._readable >> 2
        return mode, bool(mode & self._umask)


_V = TypeVar("_V")
_Plain = tuple[tuple[int, bytes], bytes, int, tuple[int, bool], tuple[int, int]]
"""Parent (descriptor, path), name, size or -1 for a directory, mode, times."""


class PlainFiles:
    """Takes plain entries off a stream.

    entries: how many so far.  disk: what the files among them take in blocks of 4 KiB.  last: path of the
    one that could not be made.  on_directory is told path, mode and time of each directory, mark the parent's
    path and the name of each entry.
    """

    def __init__(
        self,
        parents: Parents,
        modes: FileModes,
        limits: Limits,
        on_directory: Callable[[bytes, int, int], None],
        mark: Callable[[bytes, bytes], None],
    ) -> None:
        self.entries = 0
        self.disk = 0
        self.last = b""
        self._parents = parents
        self._file_modes = modes
        self._on_directory = on_directory
        self._mark = mark
        self._most = limits.file_bytes
        self._usable = (
            limits.path_bytes >= _LONGEST
            and limits.name_bytes >= NAME_FIELD
            and limits.path_depth >= _LONGEST // 2
        )
        self._tails: dict[bytes, tuple[int, bytes, bool]] = {}
        self._last_tail = b""
        self._tail = _NOT_PLAIN
        self._sums: dict[bytes, int] = {}
        self._modes: dict[bytes, tuple[int, bool]] = {}
        self._times: dict[bytes, tuple[int, int]] = {}

    def take(self, stream: ByteStream, most: int, *, marked: bool) -> None:
        """Make entries until one is not plain, or `most` are made.  Raises OSError as mkdir(2), write(2)."""
        if not self._usable:
            return
        chunk, position = stream.at_hand()
        last = len(chunk) - BLOCK
        mark = self._mark if marked else None
        entries = disk = 0
        try:
            while position <= last and entries < most and (plain := self._plain(chunk, position)):
                folder, name, size, mode, times = plain
                position += BLOCK
                if size < 0:
                    os.mkdir(name, 0o700, dir_fd=folder[0])
                    path = folder[1] + b"/" + name if folder[1] else name
                    self._on_directory(path, mode[0], times[0] * NANOSECONDS)
                else:
                    fd = os.open(name, CREATE, mode[0], dir_fd=folder[0])
                    try:
                        if size:
                            _write(fd, chunk, position, size)
                        if mode[1]:
                            os.fchmod(fd, mode[0])
                        os.utime(fd, times)
                    finally:
                        os.close(fd)
                    disk += size + 4095 & -DISK_BLOCK
                    position += size + 511 & -BLOCK
                if mark:
                    mark(folder[1], name)
                entries += 1
        except FileExistsError:
            position -= BLOCK
        except OSError:
            self.last = folder[1] + b"/" + name if folder[1] else name
            raise
        finally:
            stream.went_to(position)
            self.entries += entries
            self.disk += disk

    def _plain(self, chunk: bytes, position: int) -> _Plain | None:
        """What the header there says, if it is one of a plain entry."""
        field, owner, octal, end, time, checksum, tail = _FIELDS.unpack_from(chunk, position)
        total, prefix, directory = self._tail if tail == self._last_tail else self._take_tail(tail)
        # The low half of adler32 is the sum of the bytes and one; so few of them cannot overflow it.
        total += adler32(chunk[position : position + CHECKSUM_AT]) & 0xFFFF
        times = self._times.get(time) or self._time(time)
        known = self._sums.get(checksum) or self._sum(checksum)
        if total != known or not times or not octal.isdigit() or end not in _ENDS:
            return None
        path = prefix + field.rstrip(b"\0")
        if 0 in path:
            return None
        if directory:
            return None if octal.strip(b"0") else self._directory(path, owner, times)
        head, _, name = path.rpartition(b"/")
        folder = self._parents.spellings.get(head) or self._parents.below(head)
        permissions = self._modes.get(owner) or self._permissions(owner)
        if not folder or not permissions or not name or name[0] == _DOT:
            return None
        try:
            size = int(octal, 8)
        except ValueError:
            return None
        fits = size <= self._most and position + BLOCK + (size + 511 & -BLOCK) <= len(chunk)
        return (folder, name, size, permissions, times) if fits else None

    def _directory(self, path: bytes, owner: bytes, times: tuple[int, int]) -> _Plain | None:
        head, _, name = path.removesuffix(b"/").rpartition(b"/")
        folder = self._parents.spellings.get(head) or self._parents.below(head)
        mode = self._number(owner[:8], "mode")
        if folder and mode is not None and name and name[0] != _DOT:
            return folder, name, -1, (mode, False), times
        return None

    def _take_tail(self, tail: bytes) -> tuple[int, bytes, bool]:
        """What it adds to the checksum, the ustar prefix with its slash, whether it is a directory's."""
        self._tail = self._tails.get(tail) or self._read_tail(tail)
        self._last_tail = tail
        return self._tail

    def _read_tail(self, tail: bytes) -> tuple[int, bytes, bool]:
        if tail[:1] not in (b"0", b"\0", b"5"):
            return _NOT_PLAIN
        prefix = b""
        if tail[_MAGIC] in POSIX and tail[_PAD] == NO_PAD:
            if tail[_PREFIX][0]:
                prefix = tail[_PREFIX].partition(b"\0")[0] + b"/"
        elif tail[_MAGIC] != GNU:
            return _NOT_PLAIN
        return _keep(self._tails, tail, (sum(tail) + BLANKS_SUM - 1, prefix, tail[:1] == b"5"))

    @staticmethod
    def _number(field: bytes, what: str) -> int | None:
        try:
            return parse_number(field, what)
        except ImageInvalid:
            return None

    def _sum(self, field: bytes) -> int | None:
        number = self._number(field, "checksum")
        return number and _keep(self._sums, field, number)

    def _permissions(self, owner: bytes) -> tuple[int, bool] | None:
        """From a header's fields of mode, user and group; the last two do not matter."""
        mode = self._number(owner[:8], "mode")
        return None if mode is None else _keep(self._modes, owner, self._file_modes.of(mode))

    def _time(self, field: bytes) -> tuple[int, int] | None:
        try:
            seconds = parse_time(field)
        except ImageInvalid:
            return None
        if abs(seconds) >= MTIME_END:
            return None
        return _keep(self._times, field, (seconds, seconds))


def _keep(values: dict[bytes, _V], field: bytes, value: _V) -> _V:
    if len(values) >= _REMEMBERED:
        values.clear()
    values[field] = value
    return value


def _write(fd: int, chunk: bytes, start: int, size: int) -> None:
    if size > _COPIED:
        write_all(fd, memoryview(chunk)[start : start + size])
        return
    data = chunk[start : start + size]
    written = os.write(fd, data)
    if written != size:
        write_all(fd, memoryview(data)[written:])
