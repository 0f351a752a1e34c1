# SPDX-License-Identifier: Apache-2.0
"""Whether a packed image is still what was packed: every byte is compared once per boot of the node.

The identity of a file that was compared is kept in memory (tmpfs), so that a disk that lost or changed bytes
over a crash, or since, is noticed before the image is used again, and a start does not read it all.
"""

from __future__ import annotations

import os

from hpcpod.errors import ImageDigestMismatch

_CHUNK = 1 << 20


def sha256_of(fd: int) -> str:
    """The SHA-256 of a file's content, hexadecimal."""
    import hashlib

    digest = hashlib.sha256()
    position = 0
    while chunk := os.pread(fd, _CHUNK, position):
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()


def check_intact(fd: int, sha256: str, directory: str, name: str, hint: str) -> None:
    """Raise ImageDigestMismatch unless the open file has this digest.

    directory: where the identities of files are kept that were compared since the node was booted.  name:
    of the store's entry.  Raises OSError.
    """
    status = os.fstat(fd)
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    identity = " ".join(map(str, numbers))
    stamp = f"{directory}/{name}"
    try:
        with open(stamp, encoding="ascii") as known:
            if known.read() == identity:
                return
    except FileNotFoundError:
        pass
    found = sha256_of(fd)
    if found != sha256:
        raise ImageDigestMismatch(f"image {name}: its file has SHA-256 {found}, expected {sha256}", hint=hint)
    os.makedirs(directory, 0o700, exist_ok=True)
    temporary = f"{stamp}.{os.getpid()}"
    with open(temporary, "w", encoding="ascii") as new:
        new.write(identity)
    os.rename(temporary, stamp)
