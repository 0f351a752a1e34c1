# SPDX-License-Identifier: Apache-2.0
"""System calls that Python 3.11's os module does not have, by ctypes.

Every function raises OSError as os does; those that take a path accept str or bytes.
"""

from __future__ import annotations

import ctypes
import errno
import os

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_SYS_OPENAT2 = 437
"""The same number on every architecture, as for all system calls since Linux 5.1 (asm-generic/unistd.h)."""
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_EAGAIN_TRIES = 128


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_HOW_SIZE = ctypes.sizeof(_OpenHow)
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_OpenHow),
    ctypes.c_size_t,
)


def openat2(directory: int, path: str | bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2): open path below the directory fd under RESOLVE_* rules; close-on-exec always.

    Raises OSError: ELOOP or EXDEV where a rule stands against it, ENOSYS before Linux 5.6.
    """
    raw = os.fsencode(path)
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_EAGAIN_TRIES):
        fd: int = _syscall(_SYS_OPENAT2, directory, raw, ctypes.byref(how), _HOW_SIZE)
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        # EAGAIN: a rename elsewhere on the system raced with the walk; openat2(2) says to try again.
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code), os.fsdecode(raw))


def syncfs(fd: int) -> None:
    """syncfs(2): write the whole file system of fd to its disk.  Raises OSError (EIO, ENOSPC, EDQUOT)."""
    if _libc.syncfs(ctypes.c_int(fd)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def rename_new(source: str | bytes, target: str | bytes) -> None:
    """Rename, refusing with EEXIST where target exists: renameat2(2) with RENAME_NOREPLACE.

    File systems without the flag (NFS among them) answer EINVAL; there a directory is moved onto an
    empty one made first, which is as exclusive because mkdir(2) is.
    """
    raw_source, raw_target = os.fsencode(source), os.fsencode(target)
    result = _libc.renameat2(
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(raw_source),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(raw_target),
        ctypes.c_uint(_RENAME_NOREPLACE),
    )
    if result == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), os.fsdecode(raw_target))
    os.mkdir(raw_target, 0o700)
    try:
        os.rename(raw_source, raw_target)
    except OSError:
        os.rmdir(raw_target)
        raise
