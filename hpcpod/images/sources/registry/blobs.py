# SPDX-License-Identifier: Apache-2.0
"""Files of blobs that arrive: a reader may follow the writer, and what is left can be gone on with.

In the directory a complete blob is called ALGORITHM-HEX, one in the making ALGORITHM-HEX.part-MAKER
(makers.py).  What a dead maker left is taken over by renaming it, which only one can do; no lock is needed.
Nothing here is trusted: whoever reads a blob hashes it.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from hpcpod.errors import HpcpodError
from hpcpod.images.makers import NAME, is_alive, unique_name
from hpcpod.images.sources.manifest import Descriptor

KEEP_SECONDS = 7 * 86400
"""How long blobs wait for the pull that failed to be tried again."""
TICK_SECONDS = 0.2
"""How often somebody who waits for bytes says so."""
_BLOB = re.compile(r"((?:sha256|sha512)-[0-9a-f]{64,128})(?:\.part-(.+))?")
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def file_name(digest: str) -> str:
    """Of a complete blob."""
    return digest.replace(":", "-", 1)


class Arriving:
    """A blob that is being written, or is there.  Written by one thread, read by others.

    fresh: this process fetched all of it.
    """

    def __init__(self, descriptor: Descriptor, directory: str) -> None:
        self.descriptor = descriptor
        self.fresh = True
        self.complete = False
        self._directory = directory
        self._path = ""
        self._fd = -1
        self._have = 0
        self._failure: BaseException | None = None
        self._condition = threading.Condition()

    @property
    def have(self) -> int:
        """Bytes that are there, from the beginning."""
        return self._have

    @property
    def opened(self) -> bool:
        """Whether its file is open."""
        return self._fd >= 0

    def open(self) -> None:
        """Find what is there of it, or begin it.  Raises OSError."""
        whole = f"{self._directory}/{file_name(self.descriptor.digest)}"
        fd, size = _open_kept(whole)
        if fd >= 0 and size == self.descriptor.size:
            self._opened(fd, whole, size)
            self.finish()
            return
        if fd >= 0:
            os.close(fd)
            _remove(whole)
        path = f"{whole}.part-{unique_name()}"
        for left in abandoned(self._directory, self.descriptor.digest):
            with suppress(FileNotFoundError):
                os.rename(left, path)
                fd, size = _open_kept(path)
                if fd >= 0 and size <= self.descriptor.size:
                    self._opened(fd, path, size)
                    return
                _close(fd)
                _remove(path)
        self._opened(os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600), path, 0)

    def _opened(self, fd: int, path: str, size: int) -> None:
        with self._condition:
            self._fd, self._path, self._have = fd, path, size
            self.fresh = size == 0
            self._condition.notify_all()

    def restart(self) -> None:
        """Forget what is there of it: it was wrong.  Nobody reads it.  Raises OSError."""
        self.discard()
        self.complete = False
        self._failure = None
        path = f"{self._directory}/{file_name(self.descriptor.digest)}.part-{unique_name()}"
        self._opened(os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600), path, 0)

    def write(self, data: bytes) -> None:
        """Append.  Raises OSError."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._fd, rest, self._have)
            rest = rest[written:]
            with self._condition:
                self._have += written
                self._condition.notify_all()

    def finish(self) -> None:
        """All bytes are there: give it its name.  Raises OSError."""
        whole = f"{self._directory}/{file_name(self.descriptor.digest)}"
        if self._path != whole:
            os.rename(self._path, whole)
            self._path = whole
        with self._condition:
            self.complete = True
            self._condition.notify_all()

    def fail(self, error: BaseException) -> None:
        """Nothing more will come."""
        with self._condition:
            self._failure = error
            self._condition.notify_all()

    def reader(self, tick: Callable[[], None]) -> ArrivingContent:
        """What follows the writer."""
        return ArrivingContent(self, tick)

    def wait(self, position: int, seconds: float) -> int:
        """Bytes that can be read behind a position; 0 when there are none after so many seconds.

        Raises what fail() was told.
        """
        with self._condition:
            if self._have <= position and self._failure is None:
                self._condition.wait(seconds)
            if self._have > position:
                return self._have - position
            if self._failure is not None:
                raise _again(self._failure)
            return 0

    def wake(self) -> None:
        """Let readers look whether they are still wanted."""
        with self._condition:
            self._condition.notify_all()

    def read(self, count: int, position: int) -> bytes:
        """Bytes that are there.  Raises OSError."""
        return os.pread(self._fd, count, position)

    def found_digest(self) -> str:
        """The digest of what is there, by the algorithm of what was promised.  Raises OSError."""
        import hashlib

        algorithm = self.descriptor.digest.partition(":")[0]
        digest = hashlib.new(algorithm)
        position = 0
        while chunk := os.pread(self._fd, 1 << 20, position):
            digest.update(chunk)
            position += len(chunk)
        return f"{algorithm}:{digest.hexdigest()}"

    def discard(self) -> None:
        """Remove it."""
        if self._path:
            _remove(self._path)
        self.close()

    def close(self) -> None:
        """Release its descriptor."""
        with self._condition:
            fd, self._fd = self._fd, -1
        _close(fd)


class ArrivingContent:
    """A blob's content in the order of its bytes, as they come: a Content (walk.py).

    tick: called now and then while nothing comes.
    """

    def __init__(self, arriving: Arriving, tick: Callable[[], None]) -> None:
        self.size = arriving.descriptor.size
        self._arriving = arriving
        self._tick = tick
        self._stopped = False

    def chunks(self, longest: int) -> Iterator[bytes]:
        """The content in pieces.  Raises what ended the fetching."""
        position = 0
        while position < self.size and not self._stopped:
            count = self._arriving.wait(position, TICK_SECONDS)
            if count == 0:
                self._tick()
                continue
            chunk = self._arriving.read(min(longest, count, self.size - position), position)
            position += len(chunk)
            yield chunk

    def interrupt(self) -> None:
        """End chunks(), whatever it waits for."""
        self._stopped = True
        self._arriving.wake()

    def close(self) -> None:
        """Nothing: the blob stays until its image is unpacked."""


def _again(error: BaseException) -> BaseException:
    """The same error for another thread: each raising changes an exception's traceback."""
    if isinstance(error, HpcpodError):
        return type(error)(error.message, hint=error.hint)
    return error


def _open_kept(path: str) -> tuple[int, int]:
    """A descriptor and the size; -1 for what is not there, or no regular file of this user."""
    try:
        fd = os.open(path, _FLAGS)
    except OSError:
        return -1, 0
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(fd)
        return -1, 0
    return fd, status.st_size


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def abandoned(directory: str, digest: str) -> list[str]:
    """Unfinished files of a blob whose makers are dead, the largest first."""
    found = []
    for path, name, maker, status in _files(directory):
        if name == file_name(digest) and maker and not _works(maker, status):
            found.append((status.st_size, path))
    return [path for _, path in sorted(found, reverse=True)]


def sweep_blobs(directory: str, older_than: float = KEEP_SECONDS) -> int:
    """Remove blobs that nobody came back for within so many seconds; returns how many.

    What a living process writes stays.
    """
    removed = 0
    now = time.time()
    for path, _, maker, status in _files(directory):
        if now - status.st_mtime >= older_than and not (maker and _works(maker, status)):
            _remove(path)
            removed += 1
    return removed


def _files(directory: str) -> Iterator[tuple[str, str, str, os.stat_result]]:
    """Path, name of the blob, maker (empty for a complete one) and status of this user's files."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for entry in names:
        match = _BLOB.fullmatch(entry)
        path = f"{directory}/{entry}"
        if match is None:
            continue
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            yield path, match[1], match[2] or "", status


def _works(maker: str, status: os.stat_result) -> bool:
    match = NAME.fullmatch(maker)
    return match is not None and is_alive(match, status, own=False)
