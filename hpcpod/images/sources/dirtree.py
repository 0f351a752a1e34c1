# SPDX-License-Identifier: Apache-2.0
"""A directory on this machine as entries of a lowest layer, with the digest that names it.

The digest is the sha256 of a listing, which docs/reference/images.md defines: depth first, names in the order
of their bytes, of each what a store keeps of it, and the sha256 of its content.  The listing of a tree and
its copy come from one walk, so a copy is what was listed or an error.

Nothing is followed, nothing but regular files is opened, and what is mounted in the tree is an empty
directory: that of debootstrap may still have its /proc.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator

from hpcpod.errors import (
    HpcpodError,
    ImageDigestMismatch,
    ImageInvalid,
    ImageLimitExceeded,
    ImageNotFound,
    SystemRefused,
)
from hpcpod.frozen import frozen
from hpcpod.images.limits import NAME_COST, Limits
from hpcpod.images.unpacking.names import WHITEOUT
from hpcpod.images.unpacking.tarstream import ByteStream, Entry, Kind, TarReader, write_all
from hpcpod.log import shown

_CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.FIFO,
}
_NODE = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
SETTLED_NS = 2_000_000_000
"""What changes within this time of a look may change again without a newer time: clocks of file systems tick,
some once in a second."""

Found = tuple[bytes, os.stat_result]


@frozen
class Fingerprint:
    """What lstat(2) says of a whole tree.

    digest: of names, inode numbers, sizes, modes and times of all entries.  settled: whether the newest of
    their times is so long ago that any later change will show.  entries: how many, the top
    included.
    """

    digest: str
    settled: bool
    entries: int


def open_tree(path: str) -> int:
    """A descriptor of the directory.  Raises ImageNotFound, ImageInvalid, SystemRefused."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise ImageNotFound(f"{shown(path)}: not a directory (ENOTDIR)") from None
    except OSError as error:
        raise _failed(os.fsencode(path), error) from None


def fingerprint(root: int, limits: Limits) -> Fingerprint:
    """Walk the tree of a descriptor without opening files.

    Two that are equal, the first of which was settled, are of a tree that nobody changed.  Raises
    ImageInvalid, ImageLimitExceeded, SystemRefused.
    """
    now, newest, entries = time.time_ns(), 0, 0
    digest = hashlib.sha256()
    for above, found in _directories(root, limits):
        entries += len(found)
        digest.update(b"%s\0%d\n" % (above, len(found)))
        for name, status in found:
            newest = max(newest, status.st_ctime_ns, status.st_mtime_ns)
            digest.update(
                b"%s\0%d %d %d %d %d\n"
                % (
                    name,
                    status.st_ino,
                    status.st_size,
                    status.st_mode,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                )
            )
    return Fingerprint(f"sha256:{digest.hexdigest()}", now - newest > SETTLED_NS, entries)


def _directories(root: int, limits: Limits) -> Iterator[tuple[bytes, list[Found]]]:
    """Each directory of the tree by its path, with its entries; parents before children."""
    top, count = os.fstat(root), 0
    yield b"", [(b".", top)]
    pending = [b""]
    while pending:
        above = pending.pop()
        fd = _opened(root, above or b".", _DIRECTORY)
        try:
            found = _listed(fd, above, limits)
        finally:
            os.close(fd)
        count += len(found)
        if count > limits.entries:
            raise ImageLimitExceeded(f"more entries than limit entries {limits.entries}")
        yield above, found
        for name, status in found:
            if stat.S_ISDIR(status.st_mode) and status.st_dev == top.st_dev:
                pending.append(above + b"/" + name if above else name)


def _listed(fd: int, above: bytes, limits: Limits) -> list[Found]:
    """The entries of a directory in the order of their names' bytes."""
    if above.count(b"/") >= limits.path_depth:
        raise ImageLimitExceeded(f"{shown(above)}: limit path_depth {limits.path_depth}")
    found, size = [], 0
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                size += len(name) + NAME_COST
                if size > limits.names_bytes:
                    raise ImageLimitExceeded(f"{shown(above)}: limit names_bytes {limits.names_bytes}")
                found.append((name, entry.stat(follow_symlinks=False)))
    except OSError as error:
        raise _failed(above, error) from None
    return sorted(found)


def _opened(root: int, path: bytes, flags: int) -> int:
    """Open a path below root, no component of which is a link: each is opened from the one before."""
    fd, parts = root, path.split(b"/")
    try:
        for number, part in enumerate(parts):
            last = number + 1 == len(parts)
            following = os.open(part, flags if last else _DIRECTORY, dir_fd=fd)
            if fd != root:
                os.close(fd)
            fd = following
    except OSError as error:
        if fd != root:
            os.close(fd)
        raise _failed(path, error) from None
    return fd


def _failed(path: bytes, error: OSError) -> HpcpodError:
    """What to say of a file that cannot be read."""
    code = errno.errorcode.get(error.errno or 0, "error")
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "an image's files are read by who runs it: make the tree as this user, or permit reading"
        return ImageInvalid(f"{shown(path)}: may not be read ({code})", hint=hint)
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        kind = ImageNotFound if path.startswith(b"/") else ImageDigestMismatch
        return kind(f"{shown(path)}: not there ({code})")
    if error.errno in _NODE:
        return SystemRefused(f"{shown(path)}: cannot be read ({code})")
    return ImageInvalid(f"{shown(path)}: cannot be read ({code})")


class DirTree(TarReader):
    """Iterates over entries, parents before children; the data of a FILE is taken with copy_data.

    spend: told of the bytes of each file before they are read; advance: after.  digest() is of all that was
    given, when the iteration has ended.
    """

    def __init__(
        self, root: int, limits: Limits, spend: Callable[[int], None], advance: Callable[[int], None]
    ) -> None:
        super().__init__(ByteStream(iter(())), limits)
        self._root = root
        self._bounds = limits
        self._spend = spend
        self._advance = advance
        self._device = os.fstat(root).st_dev
        self._linked: dict[tuple[int, int], bytes] = {}
        self._listing = hashlib.sha256()
        self._file: tuple[int, os.stat_result, bytes] | None = None
        self._entries = 0

    def digest(self) -> str:
        """``sha256:…`` of the listing."""
        return f"sha256:{self._listing.hexdigest()}"

    def hash(self) -> str:
        """The digest without a copy: read all of it."""
        for entry in self:
            if entry.kind is Kind.FILE:
                self._take(None)
        return self.digest()

    def __iter__(self) -> Iterator[Entry]:
        """Entries of the whole tree."""
        status = os.fstat(self._root)
        self._record(b"d", status.st_mode & 0o1777, b".")
        yield Entry(b".", Kind.DIRECTORY, status.st_mode & 0o7777, 0, status.st_mtime_ns, b"")
        stack = [(os.dup(self._root), b"", iter(_listed(self._root, b"", self._bounds)))]
        try:
            while stack:
                fd, above, entries = stack[-1]
                found = next(entries, None)
                if found is None:
                    os.close(stack.pop()[0])
                    continue
                entry = self._found(fd, above, *found)
                yield entry
                if self._file is not None and entry.kind is Kind.FILE:
                    self._take(None)  # who iterates did not want the data; the digest does
                if entry.kind is Kind.DIRECTORY and found[1].st_dev == self._device:
                    below = self._below(fd, found, entry.name)
                    stack.append((below, entry.name + b"/", iter(_listed(below, entry.name, self._bounds))))
        finally:
            for fd, _, _ in stack:
                os.close(fd)

    def _below(self, fd: int, found: Found, path: bytes) -> int:
        """The directory's descriptor.  Raises ImageDigestMismatch when it is another by now."""
        try:
            below = os.open(found[0], _DIRECTORY, dir_fd=fd)
        except OSError as error:
            raise _failed(path, error) from None
        if not os.path.samestat(os.fstat(below), found[1]):
            os.close(below)
            raise ImageDigestMismatch(f"{shown(path)}: changed while it was read")
        return below

    def _record(self, kind: bytes, mode: int, path: bytes, *rest: bytes) -> None:
        self._listing.update(b"%s %o %s\0" % (kind, mode, path) + b"".join(part + b"\0" for part in rest))

    def _found(self, fd: int, above: bytes, name: bytes, status: os.stat_result) -> Entry:
        path = above + name
        if name.startswith(WHITEOUT):
            raise ImageInvalid(f"{shown(path)} is named as layers name whiteouts")
        self._entries += 1
        if self._entries > self._bounds.entries:
            raise ImageLimitExceeded(f"more entries than limit entries {self._bounds.entries}")
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), Kind.DEVICE)
        mode, link, size = status.st_mode & 0o7777, b"", 0
        if kind is Kind.DIRECTORY:
            self._record(b"d", mode & 0o1777, path)
        elif kind in (Kind.FILE, Kind.SYMLINK) and status.st_nlink > 1 and self._known(path, status):
            kind, link = Kind.HARDLINK, self._linked[status.st_dev, status.st_ino]
            self._record(b"h", 0, path, link)
        elif kind is Kind.SYMLINK:
            try:
                link = os.fsencode(os.readlink(name, dir_fd=fd))
            except OSError as error:
                raise _failed(path, error) from None
            self._record(b"l", 0, path, link)
        elif kind is Kind.FILE:
            size = self._open(fd, name, path, status)
        return Entry(path, kind, mode, size, status.st_mtime_ns, link)

    def _known(self, path: bytes, status: os.stat_result) -> bool:
        """Whether the file was met under another name; remembers this one if not."""
        first = self._linked.setdefault((status.st_dev, status.st_ino), path)
        if len(self._linked) > self._bounds.directories:
            raise ImageLimitExceeded(
                f"files with several names, limit directories {self._bounds.directories}"
            )
        return first != path

    def _open(self, fd: int, name: bytes, path: bytes, status: os.stat_result) -> int:
        """Open the present file; its size."""
        if status.st_size > self._bounds.file_bytes:
            raise ImageLimitExceeded(
                f"{shown(path)}: {status.st_size} bytes, limit file_bytes {self._bounds.file_bytes}"
            )
        self._spend(status.st_size)
        try:
            file = os.open(name, _FILE, dir_fd=fd)
        except OSError as error:
            raise _failed(path, error) from None
        self._file = file, status, path
        return status.st_size

    def copy_data(self, fd: int) -> None:
        """Write the data of the present file to fd, holes as holes.  Raises OSError as write(2)."""
        self._take(fd)

    def _take(self, out: int | None) -> None:
        """Hash the present file, and write it where it is wanted.  Raises ImageDigestMismatch."""
        if self._file is None:
            return
        (file, status, path), self._file = self._file, None
        digest, size, at = hashlib.sha256(), status.st_size, 0
        try:
            _check_same(os.fstat(file), status, path)
            while at < size:
                step = _hole(file, at, size)
                if step:
                    for start in range(0, step, _CHUNK):
                        digest.update(bytes(min(_CHUNK, step - start)))
                else:
                    data = _pread(file, min(_CHUNK, size - at), at, path)
                    digest.update(data)
                    if out is not None:
                        os.lseek(out, at, os.SEEK_SET)
                        write_all(out, memoryview(data))
                    step = len(data)
                self._advance(step)
                at += step
            _check_same(os.fstat(file), status, path)
        finally:
            os.close(file)
        if out is not None:
            os.ftruncate(out, size)
        self._record(b"f", status.st_mode & 0o777, path, b"%d %s" % (size, digest.hexdigest().encode()))


def _check_same(now: os.stat_result, before: os.stat_result, path: bytes) -> None:
    same = os.path.samestat(now, before) and stat.S_ISREG(now.st_mode)
    if not same or (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise ImageDigestMismatch(f"{shown(path)}: changed while it was read")


def _hole(file: int, at: int, size: int) -> int:
    """How many bytes of hole begin there; 0 for data, also where the file system cannot say."""
    try:
        return min(os.lseek(file, at, os.SEEK_DATA), size) - at
    except OSError as error:
        return size - at if error.errno == errno.ENXIO else 0


def _pread(file: int, count: int, at: int, path: bytes) -> bytes:
    try:
        data = os.pread(file, count, at)
    except OSError as error:
        raise _failed(path, error) from None
    if not data:
        raise ImageDigestMismatch(f"{shown(path)}: has become shorter")
    return data
