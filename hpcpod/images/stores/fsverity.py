# SPDX-License-Identifier: Apache-2.0
"""fs-verity: files that the kernel checks at each read (Linux, Documentation/filesystems/fsverity.rst).

ext4 made or tuned with ``-O verity``, f2fs likewise, btrfs as it is.  No privilege is needed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from hpcpod.images.stores.merkle import BLOCK, DIGEST

_ENABLE, _MEASURE = 0x40806685, 0xC0046686
"""_IOW('f', 133, struct fsverity_enable_arg), _IOWR('f', 134, struct fsverity_digest)."""
_SHA256 = 1
_ARGUMENT = struct.Struct("=IIIIQIIQ88x")
"""struct fsverity_enable_arg: version, algorithm, block size, salt, signature (none of both), reserved."""
_ANSWER = struct.Struct("=HH32s")
"""struct fsverity_digest: algorithm, length, digest."""
_NOT_HERE = (
    errno.ENOTTY,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EPERM,
    errno.EACCES,
    errno.EROFS,
)
"""The file system or the kernel has none, or not with blocks of 4 KiB; or a security module refuses."""


def enable(fd: int) -> bool:
    """Have the kernel check the open file from now on; nobody can write it any more.  Whether it does.

    The kernel reads all of it.  fd: open for reading only, and nobody has it open for writing.  Raises
    OSError for what says nothing about the kernel or the file system (EIO, ENOSPC, ETXTBSY).
    """
    try:
        fcntl.ioctl(fd, _ENABLE, _ARGUMENT.pack(1, _SHA256, BLOCK, 0, 0, 0, 0, 0))
    except OSError as error:
        if error.errno in _NOT_HERE:
            return False
        if error.errno != errno.EEXIST:  # it does so already
            raise
    return True


def measure(fd: int) -> str:
    """The digest that the kernel checks the open file against, hexadecimal; empty where it checks nothing.

    Nothing of the file is read.  Raises OSError (EIO).
    """
    answer = bytearray(_ANSWER.pack(0, DIGEST, b""))
    try:
        fcntl.ioctl(fd, _MEASURE, answer)
    except OSError as error:
        # ENODATA: a file without; EOVERFLOW: a digest of another algorithm, which nothing here made
        if error.errno in (*_NOT_HERE, errno.ENODATA, errno.EOVERFLOW):
            return ""
        raise
    algorithm, length, digest = _ANSWER.unpack(answer)
    return digest.hex() if (algorithm, length) == (_SHA256, DIGEST) else ""


def offers(directory: str) -> bool | None:
    """Whether files in this directory can be protected so; None where that cannot be tried (read-only, say).

    Tried with a file that never has a name.
    """
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        os.write(fd, b"\0")
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    finally:
        os.close(fd)
    try:
        return enable(reader) and bool(measure(reader))
    except OSError:
        return False
    finally:
        os.close(reader)
