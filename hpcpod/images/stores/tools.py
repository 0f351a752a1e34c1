# SPDX-License-Identifier: Apache-2.0
"""What this node offers for packed images: programs, kernel file systems, the store's own file system."""

from __future__ import annotations

import os

from hpcpod.images.stores.forms import FormFacts

DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Programs are looked for here and not on PATH: what root starts must not depend on its environment."""
_NETWORK = frozenset(
    ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "9p", "afs", "orangefs")
)
_MODULES = "/lib/modules/{release}/{file}"
_DEVICE, _SEPARATOR = 2, "-"


def program(name: str) -> str:
    """Absolute path of a program; empty where it is not installed."""
    paths = (f"{directory}/{name}" for directory in DIRECTORIES)
    return next((path for path in paths if os.access(path, os.X_OK)), "")


def squashfuse() -> str:
    """The FUSE server for squashfs; the low-level one, the other is an order of magnitude slower."""
    return program("squashfuse_ll")


def kernel_knows(filesystem: str) -> bool:
    """Whether the kernel has this file system, built in, loaded, or as a module that mount(2) loads."""
    try:
        with open("/proc/filesystems", encoding="ascii") as file:
            if any(line.split()[-1:] == [filesystem] for line in file):
                return True
    except OSError:
        return False
    return module_there(filesystem)


def module_there(name: str) -> bool:
    """Whether the running kernel has this module on the disk, or built in."""
    release = os.uname().release
    for listing in ("modules.dep", "modules.builtin"):
        try:
            with open(_MODULES.format(release=release, file=listing), encoding="utf-8") as file:
                if any(f"/{name}.ko" in line.partition(":")[0] for line in file):
                    return True
        except OSError:
            continue
    return False


def filesystem_of(path: str) -> str:
    """Type of the file system that path is on (proc(5), mountinfo); empty where that cannot be told."""
    status = os.stat(path)
    number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            if fields[_DEVICE] == number:
                return fields[fields.index(_SEPARATOR, 6) + 1]
    return ""


def form_facts(directory: str, *, site: bool) -> FormFacts:
    """What the choice of a form in the store at directory depends on.  Raises OSError."""
    status = os.statvfs(directory)
    return FormFacts(
        site=site,
        erofs=kernel_knows("erofs"),
        squashfs=kernel_knows("squashfs"),
        mkfs_erofs=program("mkfs.erofs"),
        mksquashfs=program("mksquashfs"),
        squashfuse=squashfuse(),
        shared=filesystem_of(directory) in _NETWORK,
        inodes=status.f_favail if status.f_files else None,
    )
