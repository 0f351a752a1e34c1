# SPDX-License-Identifier: Apache-2.0
"""A private mount namespace in which every contender can run, the same for all.

crun refuses the hybrid layout of cgroups, and newuidmap refuses a user without an entry in passwd.  Root can
give them what they want without changing the machine: in a mount namespace of the benchmark's own, a plain
cgroup2 over /sys/fs/cgroup, and passwd and group with the entry.  A plain user measures the machine as it is.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

from bench.account import Account
from bench.machine import file_system_of

CLONE_NEWNS = 0x00020000
CGROUPS = Path("/sys/fs/cgroup")


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def _with_entry(table: str, entry: str, number: int, directory: Path) -> None:
    lines = Path(table).read_text().splitlines()
    if any(line.split(":")[2:3] == [str(number)] for line in lines):
        return
    copy = directory / Path(table).name
    copy.write_text("\n".join([*lines, entry, ""]))
    copy.chmod(0o644)
    _mount("--bind", copy, table)


def enter_room(account: Account, scratch: Path) -> list[str]:
    """Move this process into such a namespace; returns what is different there, for the result's head."""
    if os.geteuid() != 0:
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare mount namespace")
    _mount("--make-rprivate", "/")
    changes = []
    if file_system_of(CGROUPS) != "cgroup2fs":
        _mount("-t", "cgroup2", "none", CGROUPS)
        changes.append(f"cgroup2 over {CGROUPS}, for crun, which refuses this machine's hybrid layout")
    name, uid, gid = account.environment["USER"], account.uid, account.gid
    directory = scratch / "etc"
    directory.mkdir()
    _with_entry("/etc/passwd", f"{name}:x:{uid}:{gid}::/home:/bin/sh", uid, directory)
    _with_entry("/etc/group", f"{name}:x:{gid}:", gid, directory)
    changes.append(f"passwd and group have uid {uid}, for newuidmap")
    return changes
