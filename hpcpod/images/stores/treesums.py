# SPDX-License-Identifier: Apache-2.0
"""What an unpacked tree holds, a line for each of its files: to see later whether it still does.

The first line is the SHA-256 of the others, so that a list that changed itself accuses nobody.  Times are not
in it but those of files: a directory's changes when a pod needs a mount point in it, and is of no use.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator

from hpcpod.errors import ImageDigestMismatch, StoreUnusable
from hpcpod.log import shown

_CHUNK = 1 << 20
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_SHOWN = 3


def sums_of(tree: str) -> bytes:
    """The list of a tree.  Raises StoreUnusable where a part of it cannot be read."""
    import hashlib

    lines = [json.dumps(os.fsdecode(name)) + " " + what for name, what in _entries(tree)]
    text = "".join(f"{line}\n" for line in sorted(lines)).encode()
    return f"{hashlib.sha256(text).hexdigest()}\n".encode() + text


def _entries(tree: str) -> Iterator[tuple[str, str]]:
    """Relative name of each entry below the tree, and what it is."""

    def fail(error: OSError) -> None:
        raise _unreadable(str(error.filename), error)

    for where, directories, files, fd in os.fwalk(tree, onerror=fail):
        yield os.path.relpath(where, tree), f"d {os.fstat(fd).st_mode & 0o7777:o}"
        for name in (*files, *directories):  # links to directories are among these
            path = os.path.relpath(f"{where}/{name}", tree)
            try:
                what = _what(name, fd)
            except OSError as error:
                raise _unreadable(path, error) from None
            if what:
                yield path, what


def _what(name: str, directory: int) -> str:
    """A line's end; empty for a directory, which has its own turn."""
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        return f"l {json.dumps(os.fsdecode(os.readlink(name, dir_fd=directory)))}"
    if stat.S_ISDIR(status.st_mode):
        return ""
    if not stat.S_ISREG(status.st_mode):
        return f"? {status.st_mode:o}"
    fd = os.open(name, _FILE, dir_fd=directory)
    try:
        digest, size = _hash(fd)
    finally:
        os.close(fd)
    return f"f {status.st_mode & 0o7777:o} {status.st_mtime_ns} {size} {digest}"


def _hash(fd: int) -> tuple[str, int]:
    from hashlib import sha256

    digest, size = sha256(), 0
    while chunk := os.read(fd, _CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _unreadable(path: str, error: OSError) -> StoreUnusable:
    code = errno.errorcode.get(error.errno or 0, "error")
    return StoreUnusable(f"{shown(path)}: cannot be read: {os.strerror(error.errno or 0).lower()} ({code})")


def compare_sums(name: str, known: bytes, found: bytes, hint: str) -> None:
    """Raise ImageDigestMismatch where two lists of a tree differ, with the names of some files that do.

    name: of the store's entry.  known: the older list.
    """
    from hashlib import sha256

    seal, _, text = known.partition(b"\n")
    if seal.decode(errors="replace") != sha256(text).hexdigest():
        raise ImageDigestMismatch(f"image {name}: the list of its files is not what was written", hint=hint)
    if known == found:
        return
    before, now = _by_name(known), _by_name(found)
    changed = sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    listed = ", ".join(f"{shown(json.loads(path))} ({_how(path, before, now)})" for path in changed[:_SHOWN])
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    raise ImageDigestMismatch(f"image {name}: its tree changed: {listed}{more}", hint=hint)


def _by_name(raw: bytes) -> dict[str, str]:
    """What each entry is, by its name as JSON."""
    entries = {}
    decoder = json.JSONDecoder()
    for line in raw.decode().splitlines()[1:]:
        _, end = decoder.raw_decode(line)
        entries[line[:end]] = line[end + 1 :]
    return entries


def _how(path: str, before: dict[str, str], now: dict[str, str]) -> str:
    if path not in now:
        return "gone"
    return "changed" if path in before else "new"
