# SPDX-License-Identifier: Apache-2.0
"""Apply the entries of layers to a directory, lowest layer first (image-spec, layer.md).

Nothing is ever written outside the root: the parent of each entry is resolved by openat2(2) with the
root as ``/``, and the last component is made exclusively, never followed.  The files belong to whoever
unpacks; set-user-ID and set-group-ID bits, extended attributes, devices and FIFOs are left out.
Directories are kept searchable and writable until finish() gives them their own mode and time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import Limits
from hpcpod.images.unpacking.marks import DirectoryModes, Marks
from hpcpod.images.unpacking.names import OPAQUE, in_aufs_directory, normal_name, whiteout_target
from hpcpod.images.unpacking.parents import Parents
from hpcpod.images.unpacking.plainfiles import CREATE, FileModes, PlainFiles
from hpcpod.images.unpacking.tarstream import Entry, Kind, TarReader
from hpcpod.images.unpacking.tree import names_in, remove_below
from hpcpod.log import Silent, shown

BLOCK = 4096
_OF_NAMES = (
    errno.EILSEQ,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMLINK,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
)
"""What names and links of an image can cause.  All else is the disk's or the node's: ENOENT, say, comes of a
directory that somebody removed meanwhile."""
DIRECTORY_MODE = 0o1777
ROOT_MODE = 0o755


class Applier:
    """Writes entries below an empty directory given by an O_PATH or read-only descriptor.

    entries, skipped: counts so far.  disk: bytes of it in blocks of 4 KiB.  readable: bits of
    0o444 that every file is given beside its own; those that may execute it, and search directories,
    likewise: who shares a tree, or packs it, must be able to read it.  took: told of the bytes of the disk
    before they are written, answers how many more may come (Progress.took).  Raises ImageInvalid,
    ImageLimitExceeded, what took raises, and OSError for what is not the image's fault.
    """

    def __init__(
        self, root: int, limits: Limits, readable: int = 0, took: Callable[[int], int] | None = None
    ) -> None:
        self.entries = 0
        self.skipped = 0
        self.disk = BLOCK
        self._readable = readable
        self._took = took or Silent().took
        self._room = BLOCK
        self._root = root
        self._limits = limits
        self._parents = Parents(root, limits, self._implicit)
        self._directories = 0
        self._directory_modes = DirectoryModes(root, limits)
        self._directory_modes.keep(b"", ROOT_MODE, 0)
        self._made: Marks | None = None
        self._marked = b""
        self._modes = FileModes(readable)
        self._plain = PlainFiles(self._parents, self._modes, limits, self._named, self._mark)

    def layer(self, entries: TarReader, *, lowest: bool) -> None:
        """Apply one layer.  The lowest has nothing below it that a whiteout could hide."""
        self._made = None if lowest else Marks(self._limits)
        self._marked = b""
        self._take_plain(entries)
        for entry in entries:
            self.entries += 1
            if self.entries > self._limits.entries:
                raise ImageLimitExceeded(f"image: more entries than limit entries {self._limits.entries}")
            try:
                self._apply(entry, entries)
            except OSError as error:
                raise self._of_entry(error, entry.name) from None
            self._take_plain(entries)

    def _take_plain(self, entries: TarReader) -> None:
        stream = entries.at_header()
        if stream is None:
            return
        plain = self._plain
        before, disk = plain.entries, plain.disk
        most = min(self._limits.entries - self.entries, self._room // BLOCK + 1)
        try:
            plain.take(stream, most, marked=self._made is not None)
        except OSError as error:
            raise self._of_entry(error, plain.last) from None
        self.entries += plain.entries - before
        self.hold(plain.disk - disk)

    def hold(self, size: int) -> None:
        """Count bytes of the disk, in whole blocks, before they are taken; negative: given back."""
        blocks = (abs(size) + BLOCK - 1) // BLOCK * BLOCK
        self.disk += blocks if size > 0 else -blocks
        self._room = self._took(self.disk)

    def _freed(self, status: os.stat_result) -> None:
        """Something was removed."""
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            self.hold(-status.st_size)

    @staticmethod
    def _of_entry(error: OSError, name: bytes) -> Exception:
        """What went wrong with an entry: the image's fault if its names can be the cause."""
        if error.errno not in _OF_NAMES:
            return error
        what = f"{os.strerror(error.errno).lower()} ({errno.errorcode[error.errno]})"
        return ImageInvalid(f"tar entry {shown(name)}: cannot be made: {what}")

    def close(self) -> None:
        """Release descriptors."""
        self._parents.forget()
        self._directory_modes.close()

    def finish(self) -> None:
        """Give directories their modes and times, children before parents."""
        self._parents.forget()
        for path, mode, mtime_ns in self._directory_modes.deepest_first():
            fd = self._parents.open_exact(path)
            if fd is None:
                continue
            try:
                os.fchmod(fd, mode & DIRECTORY_MODE | self._readable | self._readable >> 2)
                # One without an entry gets 1970: the time of unpacking would make every tree another.
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)

    def _apply(self, entry: Entry, data: TarReader) -> None:
        path = normal_name(entry.name, self._limits)
        if not path:
            self._apply_root(entry)
            return
        head, _, name = path.rpartition(b"/")
        if b".wh." in path:
            if in_aufs_directory(head):
                return
            target = whiteout_target(name, path)
            if target is not None:
                self._whiteout(entry, head, name, target)
                return
        if entry.kind is Kind.HARDLINK:
            # The target comes first: it must exist before the parent of the link is made.
            self._hardlink(entry, head, name)
            return
        parent, canonical = self._parents.make(head)
        self._mark(canonical, name)
        if entry.kind is Kind.FILE:
            spelling, _, last = entry.name.rpartition(b"/")
            if last == name:  # not of "file/.", whose beginning is the file
                self._parents.spelled(spelling, (parent, canonical))
            self._file(entry, data, parent, name)
        elif entry.kind is Kind.DIRECTORY:
            self._directory(entry, parent, canonical, name)
        elif entry.kind is Kind.SYMLINK:
            self._symlink(entry, parent, name)
        else:
            # A device or FIFO: what lies below it is hidden all the same.
            self._clear(parent, name)
            self.skipped += 1

    def _apply_root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise ImageInvalid(f"tar entry {shown(entry.name)}: the root of an image must be a directory")
        self._directory_modes.keep(b"", entry.mode & DIRECTORY_MODE, entry.mtime_ns)

    def _implicit(self, path: bytes) -> None:
        """A parent was made that has no entry (yet)."""
        self._named(path, ROOT_MODE, 0)

    def _named(self, path: bytes, mode: int, mtime_ns: int) -> None:
        """A directory was made; one that is removed again counts too."""
        self._directories += 1
        self.hold(BLOCK)
        if self._directories > self._limits.directories:
            raise ImageLimitExceeded(
                f"image: more directories than limit directories {self._limits.directories}"
            )
        self._directory_modes.keep(path, mode & DIRECTORY_MODE, mtime_ns)

    def _mark(self, canonical: bytes, name: bytes) -> None:
        """Remember that this layer made canonical/name, which keeps it from this layer's whiteouts."""
        made = self._made
        if made is None:
            return
        if canonical != self._marked:
            self._marked = above = canonical
            while above and made.add(above):  # those above one that is marked are marked
                above = above.rpartition(b"/")[0]
        made.add(canonical + b"/" + name if canonical else name)

    def _file(self, entry: Entry, data: TarReader, parent: int, name: bytes) -> None:
        mode, masked = self._modes.of(entry.mode)
        try:
            fd = os.open(name, CREATE, mode, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, name)
            fd = os.open(name, CREATE, mode, dir_fd=parent)
        try:
            if entry.size:
                self.hold(entry.size)
                data.copy_data(fd)
            if masked:
                os.fchmod(fd, mode)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _directory(self, entry: Entry, parent: int, canonical: bytes, name: bytes) -> None:
        path = canonical + b"/" + name if canonical else name
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                self._directory_modes.keep(path, entry.mode & DIRECTORY_MODE, entry.mtime_ns)
                return
            self._clear(parent, name)
            os.mkdir(name, 0o700, dir_fd=parent)
        self._named(path, entry.mode, entry.mtime_ns)

    def _symlink(self, entry: Entry, parent: int, name: bytes) -> None:
        target = entry.link
        if not target or b"\0" in target:
            raise ImageInvalid(
                f"tar entry {shown(entry.name)}: a symbolic link to {shown(target) or 'nothing'}"
            )
        if len(target) > self._limits.link_bytes:
            raise ImageLimitExceeded(
                f"tar entry {shown(entry.name)}: a symbolic link to {len(target)} bytes, "
                f"limit link_bytes {self._limits.link_bytes}"
            )
        try:
            os.symlink(target, name, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, name)
            os.symlink(target, name, dir_fd=parent)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _hardlink(self, entry: Entry, head: bytes, name: bytes) -> None:
        target = normal_name(entry.link, self._limits)
        source_head, _, source_name = target.rpartition(b"/")
        found = self._parents.find(source_head) if target else None
        source = _lstat(source_name, found[0]) if found else None
        if found is None or source is None or stat.S_ISDIR(source.st_mode):
            reason = "is a directory" if source or not target else "is not there"
            raise ImageInvalid(
                f"tar entry {shown(entry.name)}: hard link to {shown(entry.link)}, which {reason}"
            )
        # Making the link's parent may drop cached descriptors; the target's must outlive that.
        source_fd = os.dup(found[0])
        try:
            parent, canonical = self._parents.make(head)
            self._mark(canonical, name)
            present = _lstat(name, parent)
            if present is not None:
                if os.path.samestat(present, source):
                    return
                self._clear(parent, name)
            os.link(source_name, name, src_dir_fd=source_fd, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise ImageInvalid(
                f"tar entry {shown(entry.name)}: hard link to {shown(entry.link)}, which it replaces"
            ) from None
        finally:
            os.close(source_fd)

    def _whiteout(self, entry: Entry, head: bytes, name: bytes, target: bytes) -> None:
        if not target and name != OPAQUE:
            return
        if entry.kind not in (Kind.FILE, Kind.HARDLINK):
            raise ImageInvalid(f"tar entry {shown(entry.name)}: a whiteout that is a {entry.kind.value}")
        found = self._parents.find(head) if self._made is not None else None
        if found is None:
            return
        if name == OPAQUE:
            self._empty(*found)
        else:
            self._hide(found[0], found[1], target)

    def _hide(self, parent: int, canonical: bytes, name: bytes) -> None:
        """Remove parent/name as far as lower layers made it."""
        path = canonical + b"/" + name if canonical else name
        if self._made is None or path not in self._made:
            self._clear(parent, name)
            return
        status = _lstat(name, parent)
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._empty(parent, path, name)

    def _empty(self, parent: int, path: bytes, name: bytes = b".") -> None:
        """Remove what lower layers made inside a directory: once in a layer, for nothing of it can come back.

        Whiteouts that are repeated would cost a walk over the directory each.
        """
        if self._made is None or not self._made.add(b"\0" + path):  # no path begins with NUL
            return
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            for child in names_in(fd):
                self._hide(fd, path, child)
        finally:
            os.close(fd)

    def _clear(self, parent: int, name: bytes) -> None:
        """Remove whatever parent/name is, if anything."""
        status = _lstat(name, parent)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=parent)
            self._freed(status)
        else:
            remove_below(parent, name, self._freed)
        if stat.S_ISREG(status.st_mode):
            return
        # Directories that were reached through this one must be looked up again.
        self._parents.outdated()


def _lstat(name: bytes, parent: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
