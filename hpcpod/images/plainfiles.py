# SPDX-License-Identifier: Apache-2.0
"""The commonest entries of a layer, in the fewest steps: small regular files in a directory that is open.

Most of what an image costs is what each of its files costs.  An entry is taken here only if every part of
its header is of the plainest form and nothing about it has to be decided: ustar or GNU header, octal
fields, all of its data in the chunk at hand, a parent that another entry of the same spelling went to, a
name that nothing has yet.  Whatever is not so, and whatever is wrong, is left where it is for TarReader and
Applier, which know all the rules and say what is wrong.
"""

from __future__ import annotations

import os
from typing import TypeVar
from zlib import adler32

from hpcpod.errors import ImageInvalid
from hpcpod.images.limits import NAME_COST, Limits
from hpcpod.images.parents import Parents
from hpcpod.images.tarheader import (
    BLANKS_SUM,
    BLOCK,
    CHECKSUM_AT,
    CHECKSUM_END,
    GNU,
    NAME_FIELD,
    NANOSECONDS,
    NO_PAD,
    POSIX,
    parse_number,
    parse_time,
)
from hpcpod.images.tarstream import MTIME_END, ByteStream, write_all

CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
DISK_BLOCK = 4096
FILE_MODE = 0o777
_MAGIC, _PREFIX, _PAD = slice(101, 109), slice(189, 344), slice(344, 356)
"""Fields of a header's tail, which is all that follows the checksum."""
_TAIL_BYTES = BLOCK - CHECKSUM_END
_LONGEST = 256
"""Bytes of a path that fits into a header: prefix, slash, name."""
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
"""Parent (descriptor, path with a slash), name, size, mode, times."""


class PlainFiles:
    """Takes plain files off a stream.

    files, disk: how many so far, and their sizes in blocks of 4 KiB.  names_bytes: what `made` was given.
    """

    def __init__(self, parents: Parents, modes: FileModes, limits: Limits) -> None:
        self.files = 0
        self.disk = 0
        self.names_bytes = 0
        self._spellings = parents.spellings
        self._file_modes = modes
        self._most = limits.file_bytes
        self._usable = limits.path_bytes >= _LONGEST and limits.name_bytes >= NAME_FIELD
        self._tails: dict[bytes, tuple[int, bytes]] = {}
        self._modes: dict[bytes, tuple[int, bool]] = {}
        self._times: dict[bytes, tuple[int, int]] = {}

    def take(self, stream: ByteStream, made: set[bytes] | None, most: int) -> None:
        """Write files until an entry is not plain, or `most` are written; `made` gets their paths.

        Raises OSError as the system calls that write.
        """
        if not self._usable:
            return
        chunk, position = stream.at_hand()
        disk = files = 0
        try:
            while files < most and (plain := self._plain(chunk, position)):
                folder, name, size, mode, times = plain
                fd = os.open(name, CREATE, mode[0], dir_fd=folder[0])
                try:
                    position += BLOCK
                    if size:
                        _write(fd, chunk, position, size)
                    if mode[1]:
                        os.fchmod(fd, mode[0])
                    os.utime(fd, ns=times)
                finally:
                    os.close(fd)
                if made is not None:
                    made.add(folder[1] + name)
                    self.names_bytes += len(folder[1]) + len(name) + NAME_COST
                position += size + 511 & -BLOCK
                disk += size + 4095 & -DISK_BLOCK
                files += 1
        except FileExistsError:
            pass
        finally:
            stream.went_to(position)
            self.files += files
            self.disk += disk

    def _plain(self, chunk: bytes, position: int) -> _Plain | None:
        """What the header there says, if it is one of a plain file."""
        block = chunk[position : position + BLOCK]
        tail = block[CHECKSUM_END:]
        total, prefix = self._tails.get(tail) or self._tail(tail)
        checksum, octal = block[CHECKSUM_AT : CHECKSUM_AT + 6], block[124:135]
        if not total or not checksum.isdigit() or not octal.isdigit() or block[154:156] != b"\0 ":
            return None
        try:
            size = int(octal, 8)
            # The low half of adler32 is the sum of the bytes and one; so few of them cannot overflow it.
            if (adler32(block[:CHECKSUM_AT]) & 0xFFFF) + total != int(checksum, 8):
                return None
        except ValueError:
            return None
        end = block.find(0, 0, NAME_FIELD)
        head, _, name = (prefix + (block[:end] if end >= 0 else block[:NAME_FIELD])).rpartition(b"/")
        folder = self._spellings.get(head)
        if folder is None or name[:1] in b"." or block[135] not in b"\0 ":
            return None
        if size > self._most or position + BLOCK + (size + 511 & -BLOCK) > len(chunk):
            return None
        mode = self._modes.get(block[100:108]) or self._mode(block[100:108])
        times = self._times.get(block[136:148]) or self._time(block[136:148])
        return (folder, name, size, mode, times) if mode and times else None

    def _tail(self, tail: bytes) -> tuple[int, bytes]:
        """What to add for the checksum, and the prefix with its slash; (0, b"") if not a plain file's."""
        if len(tail) != _TAIL_BYTES or tail[:1] not in (b"0", b"\0"):
            return 0, b""
        prefix = b""
        if tail[_MAGIC] in POSIX and tail[_PAD] == NO_PAD:
            if tail[_PREFIX][0]:
                prefix = tail[_PREFIX].partition(b"\0")[0] + b"/"
        elif tail[_MAGIC] != GNU:
            return 0, b""
        return _keep(self._tails, tail, (sum(tail) + BLANKS_SUM - 1, prefix))

    def _mode(self, field: bytes) -> tuple[int, bool] | None:
        try:
            return _keep(self._modes, field, self._file_modes.of(parse_number(field, "mode")))
        except ImageInvalid:
            return None

    def _time(self, field: bytes) -> tuple[int, int] | None:
        try:
            seconds = parse_time(field)
        except ImageInvalid:
            return None
        if abs(seconds) >= MTIME_END:
            return None
        return _keep(self._times, field, (seconds * NANOSECONDS, seconds * NANOSECONDS))


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
