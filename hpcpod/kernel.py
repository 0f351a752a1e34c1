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
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_FROM, _TRIM_FROM = 32 << 20, 256 << 20


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


def keep_freed_memory() -> None:
    """Have malloc(3) give freed memory out again instead of back to the kernel, from now on.

    Memory that comes from the kernel is cleared page by page at its first use, which costs as much as hashing
    it.  mallopt(3) is glibc's; another libc stays as it is.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(ctypes.c_int(_M_MMAP_THRESHOLD), ctypes.c_int(_MMAP_FROM))
        mallopt(ctypes.c_int(_M_TRIM_THRESHOLD), ctypes.c_int(_TRIM_FROM))


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


def die_with_parent() -> None:
    """prctl(2), PR_SET_PDEATHSIG: have the kernel kill this process when the thread that made it ends."""
    _libc.prctl(ctypes.c_int(1), ctypes.c_ulong(9), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


# --------------------------------------------------------------------------- mounts, as root

_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 429, 430, 431, 432
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
_MNT_DETACH = 2
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_LOOP_TRIES = 64


def _call(number: int, *words: int | bytes | None) -> int:
    """A system call of the new mount interface.  Raises OSError."""
    plain = [ctypes.c_char_p(word) if isinstance(word, bytes) else ctypes.c_long(word or 0) for word in words]
    result = _mount_syscall(ctypes.c_long(number), *plain)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


_mount_syscall = ctypes.CDLL(None, use_errno=True).syscall
_mount_syscall.restype = ctypes.c_long


def mount_read_only(filesystem: str, source: str, directory: int) -> None:
    """Mount a file system on the directory that is open as `directory`: read-only, nosuid, nodev.

    source: a block device or, where the file system takes one (erofs since Linux 6.12), a plain file.
    fsopen(2) and its like, as root.  Raises OSError: ENOTBLK where it has to be a block device.
    """
    context = _call(_SYS_FSOPEN, filesystem.encode(), 1)
    try:
        _call(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, b"source", os.fsencode(source), 0)
        _call(_SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, b"ro", None, 0)
        _call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        attributes = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
        mounted = _call(_SYS_FSMOUNT, context, 1, attributes)
    finally:
        os.close(context)
    try:
        flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
        _call(_SYS_MOVE_MOUNT, mounted, b"", directory, b"", flags)
    finally:
        os.close(mounted)


def detach_mount(path: str) -> None:
    """umount2(2) with MNT_DETACH: gone now, from the kernel with its last user.  Raises OSError."""
    if _libc.umount2(ctypes.c_char_p(os.fsencode(path)), ctypes.c_int(_MNT_DETACH)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def loop_device(backing: int) -> tuple[str, int]:
    """A free loop device over the open file, read-only; its path, and a descriptor to hold until then.

    It frees itself with its last user (LO_FLAGS_AUTOCLEAR), which the mount becomes.  loop(4),
    LOOP_CONFIGURE, Linux 5.8.  Raises OSError.
    """
    import fcntl
    import struct

    # struct loop_config: fd, block_size, struct loop_info64 (flags at offset 52 of it), 8 reserved words
    config = bytearray(struct.pack("=II", backing, 0) + bytes(232) + bytes(64))
    struct.pack_into("=I", config, 8 + 52, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_LOOP_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, bytes(config))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else took it first
                    raise
            else:
                return path, device
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), "/dev/loop-control")


def no_new_privileges() -> None:
    """prctl(2), PR_SET_NO_NEW_PRIVS."""
    _libc.prctl(ctypes.c_int(38), ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
