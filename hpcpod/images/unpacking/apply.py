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

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import NAME_COST, Limits
from hpcpod.images.unpacking.names import OPAQUE, in_aufs_directory, normal_name, whiteout_target
from hpcpod.images.unpacking.parents import Parents
from hpcpod.images.unpacking.plainfiles import CREATE, FileModes, PlainFiles
from hpcpod.images.unpacking.tarstream import Entry, Kind, TarReader
from hpcpod.images.unpacking.tree import remove_below
from hpcpod.log import shown

BLOCK = 4096
DIRECTORY_MODE = 0o1777
ROOT_MODE = 0o755
_MODE_BITS = 12


class Applier:
    """Writes entries below an empty directory given by an O_PATH or read-only descriptor.

    entries, skipped: counts so far.  disk: bytes of it in blocks of 4 KiB.  readable: bits of
    0o444 that every file is given beside its own; those that may execute it, and search directories,
    likewise: who shares a tree, or packs it, must be able to read it.  Raises ImageInvalid,
    ImageLimitExceeded, and OSError from the system calls that write.
    """

    def __init__(self, root: int, limits: Limits, readable: int = 0) -> None:
        self.entries = 0
        self.skipped = 0
        self.disk = 0
        self._readable = readable
        self._root = root
        self._limits = limits
        self._parents = Parents(root, limits, self._implicit)
        self._directories: dict[bytes, int] = {b"": ROOT_MODE}
        self._made: set[bytes] | None = None
        self._emptied: set[bytes] = set()
        self._made_bytes = self._directory_bytes = 0
        self._modes = FileModes(readable)
        self._plain = PlainFiles(self._parents, self._modes, limits, self._named, self._mark)

    def layer(self, entries: TarReader, *, lowest: bool) -> None:
        """Apply one layer.  The lowest has nothing below it that a whiteout could hide."""
        self._made = None if lowest else set()
        self._emptied.clear()
        self._made_bytes = 0
        self._take_plain(entries)
        for entry in entries:
            self.entries += 1
            if self.entries > self._limits.entries:
                raise ImageLimitExceeded(f"image: more entries than limit entries {self._limits.entries}")
            self._apply(entry, entries)
            self._take_plain(entries)

    def _take_plain(self, entries: TarReader) -> None:
        stream = entries.at_header()
        if stream is not None:
            plain = self._plain
            before, disk = plain.entries, plain.disk
            plain.take(stream, self._limits.entries - self.entries, marked=self._made is not None)
            self.entries += plain.entries - before
            self.disk += plain.disk - disk

    def close(self) -> None:
        """Release descriptors."""
        self._parents.forget()

    def finish(self) -> None:
        """Give directories their modes and times, children before parents."""
        self._parents.forget()
        self.disk += BLOCK * len(self._directories)
        for path in sorted(self._directories, reverse=True):
            packed = self._directories[path]
            fd = self._parents.open_exact(path)
            if fd is None:
                continue
            try:
                os.fchmod(fd, packed & DIRECTORY_MODE | self._readable | self._readable >> 2)
                # One without an entry gets 1970: the time of unpacking would make every tree another.
                mtime_ns = packed >> _MODE_BITS
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
                self._parents.spellings[spelling] = parent, canonical
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
        self._directories[b""] = _packed(entry.mode, entry.mtime_ns)

    def _implicit(self, path: bytes) -> None:
        """A parent was made that has no entry (yet)."""
        self._keep_mode(path, ROOT_MODE)

    def _named(self, path: bytes, mode: int, mtime_ns: int) -> None:
        """A directory was made that has an entry."""
        self._keep_mode(path, _packed(mode, mtime_ns))

    def _keep_mode(self, path: bytes, packed: int) -> None:
        """Remember what finish() gives a directory; one that was removed since counts too."""
        if path not in self._directories:
            self._directory_bytes += len(path) + NAME_COST
            self._check_names()
        self._directories[path] = packed
        if len(self._directories) - 1 > self._limits.directories:  # the root is none of the image's making
            raise ImageLimitExceeded(
                f"image: more directories than limit directories {self._limits.directories}"
            )

    def _mark(self, canonical: bytes, name: bytes) -> None:
        """Remember that this layer made canonical/name, which keeps it from this layer's whiteouts."""
        made = self._made
        if made is None:
            return
        path = canonical + b"/" + name if canonical else name
        if path not in made:
            made.add(path)
            self._made_bytes += len(path) + NAME_COST
            while canonical and canonical not in made:
                made.add(canonical)
                self._made_bytes += len(canonical) + NAME_COST
                canonical = canonical.rpartition(b"/")[0]
            self._check_names()

    def _check_names(self) -> None:
        """An archive of some megabytes can hold gigabytes of names."""
        if self._made_bytes + self._directory_bytes > self._limits.names_bytes:
            raise ImageLimitExceeded(
                f"image: names take more memory than limit names_bytes {self._limits.names_bytes}"
            )

    def _file(self, entry: Entry, data: TarReader, parent: int, name: bytes) -> None:
        mode, masked = self._modes.of(entry.mode)
        self.disk += (entry.size + BLOCK - 1) // BLOCK * BLOCK
        try:
            fd = os.open(name, CREATE, mode, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, name)
            fd = os.open(name, CREATE, mode, dir_fd=parent)
        try:
            if entry.size:
                data.copy_data(fd)
            if masked:
                os.fchmod(fd, mode)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _directory(self, entry: Entry, parent: int, canonical: bytes, name: bytes) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                self._clear(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
        self._keep_mode(canonical + b"/" + name if canonical else name, _packed(entry.mode, entry.mtime_ns))

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
        if path in self._emptied:
            return
        self._emptied.add(path)
        self._made_bytes += len(path) + NAME_COST
        self._check_names()
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            for child in os.listdir(fd):
                self._hide(fd, path, os.fsencode(child))
        finally:
            os.close(fd)

    def _clear(self, parent: int, name: bytes) -> None:
        """Remove whatever parent/name is, if anything."""
        status = _lstat(name, parent)
        if status is None:
            return
        if stat.S_ISREG(status.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        remove_below(parent, name)
        # Directories that were reached through this one must be looked up again.
        self._parents.outdated()


def _packed(mode: int, mtime_ns: int) -> int:
    """Mode and time in one integer: an image may have a million directories."""
    return mtime_ns << _MODE_BITS | mode & DIRECTORY_MODE


def _lstat(name: bytes, parent: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
