# SPDX-License-Identifier: Apache-2.0
"""OCI image layouts (image-spec, image-layout.md): a directory, or a tar file of one.

Every file is opened without following a symlink and without blocking, and must be a regular one: a FIFO,
device or link in a layout is somebody's trap.  Blobs are read from the descriptor that was checked.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from hpcpod.errors import HpcpodError, ImageDigestMismatch, ImageInvalid, ImageNotFound, SystemRefused
from hpcpod.images.dockername import parse_name
from hpcpod.images.limits import Limits
from hpcpod.images.sources.manifest import Descriptor
from hpcpod.images.sources.reference import Reference
from hpcpod.images.strictjson import Fields, parse_object
from hpcpod.log import shown
from hpcpod.model import FileStamp

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Protocol, Self
else:
    Protocol = object

INDEX = "index.json"
MARK = "oci-layout"
MARK_MAX = 4096
LAYOUT_VERSION = "1.0.0"
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_READ = 64 * 1024
_NODE = (errno.EIO, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
"""Why a file cannot be opened through no fault of the image."""


class Blob:
    """Bytes of a regular file from offset on, read by position; owns the descriptor.  name: for messages."""

    def __init__(self, fd: int, offset: int, size: int, name: str = "blob") -> None:
        self.size = size
        self.name = name
        self._fd = fd
        self._offset = offset

    def chunks(self, longest: int) -> Iterator[bytes]:
        """The content in pieces.

        Raises ImageDigestMismatch when the file has become shorter, SystemRefused when it cannot be read.
        """
        position = 0
        while position < self.size:
            count = min(longest, self.size - position)
            chunk = read_at(self._fd, count, self._offset + position, self.name)
            if not chunk:
                raise ImageDigestMismatch(
                    f"{shown(self.name)}: file ends after {position} of {self.size} bytes"
                )
            position += len(chunk)
            yield chunk

    def interrupt(self) -> None:
        """Nothing to do: a file never makes its reader wait."""

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


def read_at(fd: int, count: int, offset: int, name: str) -> bytes:
    """pread(2).  Raises SystemRefused with the file's name: what fails here is its disk, not the image."""
    try:
        return os.pread(fd, count, offset)
    except OSError as error:
        raise read_error(error, name) from None


def read_error(error: OSError, name: str) -> SystemRefused:
    """The error for a file of an image that its disk or server does not give."""
    code = errno.errorcode.get(error.errno or 0, "error")
    return SystemRefused(
        f"{shown(name)}: cannot be read: {os.strerror(error.errno or 0).lower()} ({code})",
        hint="the disk or server that this file lies on failed; the image may be sound",
    )


class Layout(Protocol):
    """Where the files of an image layout come from."""

    @property
    def stamp(self) -> FileStamp:
        """Identity of the file that a reference to this layout depends on."""

    def open_file(self, name: str) -> Blob:
        """A file of the layout.  Raises ImageNotFound, ImageInvalid."""

    def close(self) -> None:
        """Release descriptors."""


def stamp_of(path: str, status: os.stat_result) -> FileStamp:
    """The identity of a file, from its status."""
    return FileStamp(
        path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def open_regular(
    path: str, name: str, directory: int | None, flags: int = _OPEN
) -> tuple[int, os.stat_result]:
    """Open a regular file; `path` names it in errors.  Raises ImageNotFound, ImageInvalid."""
    try:
        fd = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _link(path, directory is not None) from None
        raise _unreadable(path, error) from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise ImageInvalid(f"{shown(path)}: not a regular file")
    return fd, status


def _link(path: str, inside: bool) -> ImageInvalid:
    hint = "skopeo copy makes a layout without links" if inside else "give the path that it leads to"
    return ImageInvalid(f"{shown(path)}: is a symbolic link", hint=hint)


def _is_link(name: str, directory: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _unreadable(path: str, error: OSError) -> HpcpodError:
    code = errno.errorcode.get(error.errno or 0, "error")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ImageNotFound(f"{shown(path)}: not there ({code})")
    if error.errno in (errno.EACCES, errno.EPERM):
        return ImageNotFound(f"{shown(path)}: may not be read ({code})", hint=_how_to_open(path))
    if error.errno == errno.ENXIO:
        return ImageInvalid(f"{shown(path)}: not a regular file ({code})")
    if error.errno in _NODE:
        return SystemRefused(f"{shown(path)}: cannot be read ({code})")
    return ImageInvalid(f"{shown(path)}: cannot be read ({code})")


def _how_to_open(path: str) -> str | None:
    """What its owner does, so that others may read it: umoci, run by root, lets nobody else."""
    where = path[path.find("/") :] if "/" in path else ""
    while where and where != "/":
        try:
            owner = os.stat(where).st_uid
        except OSError:  # behind what is closed
            where = os.path.dirname(where)
        else:
            closed = where if os.path.isdir(where) else os.path.dirname(where)
            return f"its owner, uid {owner}, opens it to others: chmod -R a+rX {shown(closed)}"
    return None


class DirectoryLayout:
    """An ``oci:`` directory."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        try:
            self._directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except NotADirectoryError:
            raise ImageNotFound(f"image layout {shown(self._path)}: not a directory (ENOTDIR)") from None
        except OSError as error:
            raise _unreadable(f"image layout {self._path}", error) from None
        self._stamp: FileStamp | None = None

    @property
    def stamp(self) -> FileStamp:
        """That of index.json."""
        if self._stamp is None:
            self.open_file(INDEX).close()
        if self._stamp is None:
            raise AssertionError("open_file stamps the index")
        return self._stamp

    def open_file(self, name: str) -> Blob:
        """A file of the layout.  Raises ImageNotFound, ImageInvalid."""
        *parents, last = name.split("/")
        path = self._path
        directory = self._directory
        opened = []
        try:
            for parent in parents:
                path = f"{path}/{parent}"
                directory = self._step(directory, parent, path)
                opened.append(directory)
            path = f"{path}/{last}"
            fd, status = open_regular(path, last, directory)
        except ImageNotFound:
            if name == MARK and not os.path.lexists(path):
                raise self._no_layout() from None
            raise
        finally:
            for descriptor in opened:
                os.close(descriptor)
        if name == INDEX:
            self._stamp = stamp_of(path, status)
        return Blob(fd, 0, status.st_size, path)

    def _no_layout(self) -> ImageNotFound:
        return ImageNotFound(
            f"{shown(self._path)} is not an OCI layout (no {MARK} file)",
            hint=f"name the directory that {MARK} and {INDEX} lie in",
        )

    @staticmethod
    def _step(directory: int, name: str, path: str) -> int:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(name, flags, dir_fd=directory)
        except OSError as error:
            if _is_link(name, directory):
                raise _link(path, inside=True) from None
            raise _unreadable(path, error) from None

    def close(self) -> None:
        """Release the directory."""
        os.close(self._directory)


class OpenLayout:
    """A layout in use: ``with open_layout(reference, limits) as layout``."""

    def __init__(self, files: Layout, name: str, limits: Limits) -> None:
        self.name = name
        self._files = files
        self._limits = limits

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release descriptors."""
        self.close()

    def close(self) -> None:
        """Release descriptors."""
        self._files.close()

    @property
    def stamp(self) -> FileStamp:
        """Identity of the file that a reference to this layout depends on."""
        return self._files.stamp

    def check_mark(self) -> None:
        """Check the oci-layout file.  Raises ImageNotFound, ImageInvalid."""
        what = f"{self.name}: {MARK}"
        fields = Fields(parse_object(self._whole(MARK, MARK_MAX), what, self._limits), what)
        if fields.text("imageLayoutVersion") != LAYOUT_VERSION:
            fields.fail("imageLayoutVersion", LAYOUT_VERSION)

    def read_index(self) -> bytes:
        """The bytes of index.json.  Raises ImageNotFound, ImageInvalid."""
        return self._whole(INDEX, self._limits.json_bytes)

    def _whole(self, name: str, longest: int) -> bytes:
        blob = self._files.open_file(name)
        try:
            if blob.size > longest:
                raise ImageInvalid(f"{self.name}: {name}: {blob.size} bytes, limit {longest}")
            return b"".join(blob.chunks(_READ))
        finally:
            blob.close()

    def open_blob(self, descriptor: Descriptor) -> Blob:
        """The blob of a descriptor; its size is checked, its digest not yet.  Raises ImageDigestMismatch."""
        algorithm, _, encoded = descriptor.digest.partition(":")
        blob = self._files.open_file(f"blobs/{algorithm}/{encoded}")
        if blob.size != descriptor.size:
            blob.close()
            raise ImageDigestMismatch(
                f"blob {descriptor.digest}: has {blob.size} bytes, expected {descriptor.size}",
                hint="the layout was not copied whole, or its manifest was changed",
            )
        return blob

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """A small blob, whole and verified.  Raises ImageDigestMismatch and what open_blob() raises."""
        import hashlib

        blob = self.open_blob(descriptor)
        try:
            raw = b"".join(blob.chunks(_READ))
        finally:
            blob.close()
        algorithm, _, encoded = descriptor.digest.partition(":")
        found = hashlib.new(algorithm, raw).hexdigest()
        if found != encoded:
            raise ImageDigestMismatch(f"blob {descriptor.digest}: has digest {algorithm}:{found}")
        return raw


def open_layout(reference: Reference, limits: Limits) -> OpenLayout:
    """Open what a reference names.  Raises ImageNotFound, ImageInvalid."""
    name = f"{reference.transport}:{shown(reference.path)}"
    try:
        return OpenLayout(_files_of(reference, limits), name, limits)
    except (ImageNotFound, ImageInvalid) as error:
        error.hint = error.hint or _likelier(reference)
        raise


def _files_of(reference: Reference, limits: Limits) -> Layout:
    if reference.transport == "oci":
        return DirectoryLayout(reference.path)
    from hpcpod.images.sources.archive import ArchiveLayout

    return ArchiveLayout(reference.path, limits)


def _likelier(reference: Reference) -> str | None:
    """What was probably meant by a reference that could not be opened."""
    path = reference.path
    rest = shown(str(reference).removeprefix(f"{reference.transport}:"))
    if reference.transport == "oci":
        if os.path.isfile(path):
            return f"that is a file; oci-archive:{rest} names a layout in a tar file"
        if "/" not in path and not os.path.lexists(path) and (name := parse_name(rest, short=False)):
            return f"oci: takes a directory; docker://{name} names an image of a registry"
    elif os.path.isdir(path):
        return f"that is a directory; oci:{rest} names a layout in one"
    return None
