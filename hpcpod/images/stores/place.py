# SPDX-License-Identifier: Apache-2.0
"""Where a directory is, by whatever path it is reached: by its inode, and as mount tables say it."""

from __future__ import annotations

import os

DEVICE, ROOT, POINT = 2, 3, 4
"""Fields of a line of a mount table (proc(5), mountinfo)."""


def place_of(path: str) -> str:
    """Which directory this is, by whatever path, also when it was moved.  Raises OSError."""
    status = os.lstat(path)
    return f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}:{status.st_ino}"


def within(path: str) -> tuple[str, str]:
    """Where a directory lies as mount tables say it: device, and path within that file system.

    Directories of two stores may end in the same names, and links and mounts may lead to one by many paths.
    Raises OSError.
    """
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        seen = os.readlink(f"/proc/self/fd/{fd}")
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            number = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(fd)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            if fields[0] == number:
                root, point = plain(fields[ROOT]), plain(fields[POINT])
                below = seen.removeprefix(point.rstrip("/"))
                return fields[DEVICE], f"{root.rstrip('/')}{below}"
    return "", path  # unmounted this moment


def plain(field: str) -> str:
    r"""A field of a mount table without its escapes, ``\040`` for a space (proc(5))."""
    if "\\" not in field:
        return field
    import re  # a start needs place_of() alone

    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)
