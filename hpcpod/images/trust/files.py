# SPDX-License-Identifier: Apache-2.0
"""Reading the files that trust hangs on: whose they are, and what must still be true of them later."""

from __future__ import annotations

import os
import stat

from hpcpod.errors import TrustUnusable
from hpcpod.images.trust.keys import DATA_MAX
from hpcpod.log import shown
from hpcpod.model import FileStamp
from hpcpod.settings import is_roots

NAMES_MAX = 4096
"""Entries of a trust directory."""
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Files:
    """Reads files, and remembers all that was read and all that was not there.

    strict: nobody but the owners may be able to replace a file by another one either.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict
        self._stamps: dict[str, FileStamp] = {}
        self._seen: list[bytes] = []

    @property
    def stamps(self) -> tuple[FileStamp, ...]:
        """Of everything that was read, directories included; all zero for what must stay absent."""
        return tuple(self._stamps.values())

    @property
    def fingerprint(self) -> str:
        """A hash of all names and bytes so far."""
        import hashlib  # not where there is nothing to judge by

        return hashlib.sha256(b"".join(self._seen)).hexdigest()

    def note(self, *words: str | bytes) -> None:
        """Let words, other than a file's, count in the fingerprint."""
        for word in words:
            raw = os.fsencode(word)
            self._seen.append(len(raw).to_bytes(8) + raw)

    def read(self, path: str, owners: frozenset[int]) -> bytes | None:
        """A file's content; None where there is none.

        owners: who may own it; nobody else may be able to write it.  Raises TrustUnusable.
        """
        fd = self._open(path, _OPEN)
        if fd is None:
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise TrustUnusable(f"{shown(path)}: expected a regular file")
            _check_owner(path, status, owners)
            if self.strict:
                check_parents(path, owners)
            raw = b""
            while len(raw) <= DATA_MAX and (piece := os.read(fd, DATA_MAX + 1 - len(raw))):
                raw += piece
        except OSError as error:
            raise _unreadable(path, error) from None
        finally:
            os.close(fd)
        if len(raw) > DATA_MAX:
            raise TrustUnusable(f"{shown(path)}: longer than {DATA_MAX} bytes")
        self._stamps[path] = _stamp(path, status)
        self.note(path, raw)
        return raw

    def is_there(self, path: str) -> bool:
        """Whether there is such a directory; where there is none, none may come."""
        fd = self._open(path, _OPEN | os.O_DIRECTORY)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def names(self, path: str, owners: frozenset[int]) -> tuple[str, ...]:
        """What is in a directory, sorted, without what begins with a dot; empty where there is none."""
        fd = self._open(path, _OPEN | os.O_DIRECTORY)
        if fd is None:
            return ()
        try:
            status = os.fstat(fd)
            _check_owner(path, status, owners)
            if self.strict:
                check_parents(path, owners)
            names = sorted(name for name in os.listdir(fd) if not name.startswith("."))
        except OSError as error:
            raise _unreadable(path, error) from None
        finally:
            os.close(fd)
        if len(names) > NAMES_MAX:
            raise TrustUnusable(f"{shown(path)}: more than {NAMES_MAX} entries")
        self._stamps[path] = _stamp(path, status)
        self.note(path, *names)
        return tuple(names)

    def _open(self, path: str, flags: int) -> int | None:
        try:
            return os.open(path, flags)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:  # a home may be /dev/null
            if isinstance(error, PermissionError) and (self.strict or _is_reached(path)):
                raise _unreadable(path, error) from None
            # A link that leads nowhere is there: somebody wanted a file.
            if os.path.islink(path):
                raise TrustUnusable(f"{shown(path)}: a link to something that is not there") from None
            unseen = isinstance(error, PermissionError)
            self._stamps[path] = FileStamp(path, 0, 0, int(unseen), 0, 0)
            self.note(path)
            return None
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from None


def _is_reached(path: str) -> bool:
    """Whether the directories on the way let this user see it: a home may be somebody else's."""
    try:
        os.lstat(path)
    except OSError:
        return False
    return True


def _unreadable(path: str, error: OSError | ValueError) -> TrustUnusable:
    what = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else "not a path"
    return TrustUnusable(f"{shown(path)}: {what}", hint="all who start images must be able to read it")


def _stamp(path: str, status: os.stat_result) -> FileStamp:
    return FileStamp(
        path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def _check_owner(path: str, status: os.stat_result, owners: frozenset[int]) -> None:
    trusted = status.st_uid in owners or (0 in owners and is_roots(status.st_uid))
    if not trusted or status.st_mode & 0o022:
        raise TrustUnusable(
            f"{shown(path)}: owner {status.st_uid}, mode {status.st_mode & 0o7777:04o}: "
            "others could change it",
            hint=f"chown {'root' if owners == {0} else 'it to you'}, chmod go-w",
        )


def check_parents(path: str, owners: frozenset[int]) -> None:
    """Raise TrustUnusable where somebody else could put another file in the place of this one.

    In a directory with the sticky bit, such as /tmp, only a file's owner can.
    """
    directory = os.path.dirname(os.path.realpath(path))
    while True:
        status = os.stat(directory)
        open_to_others = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if not (status.st_uid in owners or is_roots(status.st_uid)) or open_to_others:
            raise TrustUnusable(
                f"{shown(path)}: directory {shown(directory)} has owner {status.st_uid}, mode "
                f"{status.st_mode & 0o7777:04o}: others could replace it",
                hint="chown and chmod go-w the directory, or keep the file elsewhere",
            )
        if directory == "/":
            return
        directory = os.path.dirname(directory)
