# SPDX-License-Identifier: Apache-2.0
"""dm-verity devices, by the kernel's own interface (linux/dm-ioctl.h).

Not by veritysetup(8): that is a package which compute nodes rarely have, it waits for udev where there is
one, and its devices stay until somebody removes them.  Those here remove themselves: once open, a device is
marked for deferred removal, so that it goes with its last user, which the mount becomes.  A kill before that
leaves a device that nobody has open, which sweep() removes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress

from hpcpod.images.stores.tools import module_there

CONTROL = "/dev/mapper/control"
PREFIX = "hpcpod-"
_LIST_DEVICES, _CREATE, _REMOVE, _SUSPEND, _LOAD, _STATUS, _VERSIONS = 2, 3, 4, 6, 9, 12, 13
_READ_ONLY, _BUFFER_FULL, _DEFERRED = 1 << 0, 1 << 8, 1 << 17
_HEADER = struct.Struct("=3IIIIiIIIQ128s129s7x")
"""struct dm_ioctl: version, data_size, data_start, target_count, open_count, flags, event_nr, padding, dev,
name, uuid."""
_SPEC = struct.Struct("=QQiI16s")
"""struct dm_target_spec: first sector, length, status, offset of the next, type."""
_NAME = struct.Struct("=QI")
"""struct dm_name_list: device, offset of the next; the name follows."""
_ROOM = 1 << 14
_LARGEST = 1 << 22
_TRIES = 8
_SWEPT = (errno.ENXIO, errno.ENODEV, errno.ENOENT)
"""What a device answers that another command's sweep() took for a leftover before it was open."""


def _command(number: int, name: str = "", flags: int = 0, data: bytes = b"", uuid: str = "") -> bytes:
    """One ioctl on the control device; what the kernel wrote into it.  Raises OSError."""
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        room = _ROOM
        while True:
            header = _HEADER.pack(
                4, 0, 0, _HEADER.size + room, _HEADER.size, bool(data), 0, flags, 0, 0, 0,
                name.encode(), uuid.encode(),
            )  # fmt: skip
            buffer = bytearray(header + data.ljust(room, b"\0"))
            fcntl.ioctl(control, 0xC000FD00 | _HEADER.size << 16 | number, buffer)
            if not _HEADER.unpack_from(buffer)[7] & _BUFFER_FULL:
                return bytes(buffer)
            if room >= _LARGEST:
                raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
            room *= 4
    finally:
        os.close(control)


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace")


def _data(answer: bytes) -> bytes:
    """What follows the header."""
    return answer[_HEADER.unpack_from(answer)[4] :]


def obstacle() -> str:
    """Why no dm-verity device can be made here; empty where one can, as root."""
    if not os.path.exists(CONTROL):
        return "this kernel has no device mapper"
    return "" if module_there("dm-verity") or "verity" in _targets() else "this kernel has no dm-verity"


def _targets() -> list[str]:
    """Types of targets that are loaded; none for who may not ask."""
    names, position = [], 0
    with suppress(OSError):
        data = _data(_command(_VERSIONS))
        while True:  # struct dm_target_versions: offset of the next, three numbers, the name
            (following,) = struct.unpack_from("=I", data, position)
            names.append(_text(data[position + 16 :]))
            if not following:
                break
            position += following
    return names


def open_verity(entry: str, length: int, parameters: str) -> tuple[str, int]:
    """A read-only dm-verity device; its path, and a descriptor to hold until it is mounted.

    length: in sectors of 512 bytes; parameters: of its one target (merkle.table).  entry: named in the
    device's name.  Raises OSError.
    """
    for attempt in range(_TRIES):
        name = f"{PREFIX}{entry[:80]}-{os.urandom(8).hex()}"
        try:
            return _open_new(name, length, parameters)
        except OSError as error:
            _remove(name)
            if error.errno not in _SWEPT or attempt == _TRIES - 1:
                raise
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), CONTROL)


def _open_new(name: str, length: int, parameters: str) -> tuple[str, int]:
    _command(_CREATE, name, _READ_ONLY, uuid=f"HPCPOD-{name.rpartition('-')[2]}")
    words = parameters.encode() + b"\0"
    words += bytes(-len(words) % 8)
    spec = _SPEC.pack(0, length, 0, _SPEC.size + len(words), b"verity")
    _command(_LOAD, name, _READ_ONLY, spec + words)
    answer = _command(_SUSPEND, name, _READ_ONLY)  # without the flag for it: resume
    number = _HEADER.unpack_from(answer)[10]
    minor = (number & 0xFF) | (number >> 12 & ~0xFF)
    path = f"/dev/dm-{minor}"
    device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _command(_REMOVE, name, _DEFERRED)
    except BaseException:
        os.close(device)
        raise
    return path, device


def _remove(name: str) -> bool:
    """Remove a device that nobody has open; whether it is gone by this."""
    try:
        _command(_REMOVE, name)
    except OSError:
        return False
    return True


def sweep() -> int:
    """Remove devices that a killed command left; how many."""
    if not os.path.exists(CONTROL):
        return 0
    try:
        names = _devices()
    except OSError:
        return 0
    return sum(_remove(name) for name in names if name.startswith(PREFIX))


def _devices() -> list[str]:
    """Names of all devices of the device mapper.  Raises OSError."""
    data = _data(_command(_LIST_DEVICES))
    names, position = [], 0
    while True:
        number, following = _NAME.unpack_from(data, position)
        if number:
            names.append(_text(data[position + _NAME.size :]))
        if not following:
            return names
        position += following


def is_corrupted(name: str) -> bool:
    """Whether a dm-verity device met a block that was not what was hashed since it was made.

    Raises OSError.
    """
    return _text(_data(_command(_STATUS, name))[_SPEC.size :]).startswith("C")


def name_at(device: int) -> str:
    """Name of the device mapper's device with this st_dev, empty for any other kind of device."""
    try:
        with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/dm/name") as file:
            return file.read().strip()
    except OSError:
        return ""
