# SPDX-License-Identifier: Apache-2.0
"""Names that say which process made something, and so whether it still works on it.

The name is NODE-BOOT-PIDNS-PID-START-RANDOM, START being the process's time of start (proc(5), stat, field
22): a pid that was used again is told apart.  Where the maker cannot be asked after, because it is on another
node or in another pid namespace, the time of change decides: a maker sets it again while it works.
"""

from __future__ import annotations

import os
import re
import time

FOREIGN_SECONDS = 3600
"""Age from which what was made by somebody who cannot be asked after is taken for abandoned."""
_NODE_MAX = 64
_ID_DIGITS = 12
NAME = re.compile(r"([A-Za-z0-9_.]+)-([0-9a-f]+)-([0-9]+)-([0-9]+)-([0-9]+)-([0-9a-f]+)")
"""What unique_name() makes."""
_START = 19
"""Where the time of start is in /proc/PID/stat, counted behind the command's closing parenthesis."""


def unique_name() -> str:
    """A name that no other process on any node takes."""
    pid = os.getpid()
    return f"{_node()}-{_boot()}-{_pid_namespace()}-{pid}-{_started(pid)}-{os.urandom(6).hex()}"


def _node() -> str:
    """The node's name and, as several may have the same, the beginning of its machine-id(5)."""
    name = re.sub(r"[^A-Za-z0-9_.]", "_", os.uname().nodename)[:_NODE_MAX] or "node"
    try:
        with open("/etc/machine-id", encoding="ascii", errors="replace") as file:
            return f"{name}.{re.sub('[^0-9a-f]', '', file.read(_ID_DIGITS))}"
    except OSError:
        return name


def _boot() -> str:
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip().replace("-", "")[:12]
    finally:
        os.close(fd)


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _started(pid: int) -> int | None:
    """When a process started, in ticks since boot; None for one that is not there, or dead."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[_START])


def is_alive(maker: re.Match[str], status: os.stat_result, *, own: bool) -> bool:
    """Whether the maker of a thing with this name and status still works.

    own: this process counts as one that has finished.
    """
    node, boot, namespace, pid, started = maker.group(1, 2, 3, 4, 5)
    if boot != _boot() and node == _node():
        return False  # this node, before it was booted again
    if boot == _boot() and int(namespace) == _pid_namespace():
        mine = int(pid) == os.getpid()
        return not (own and mine) and _started(int(pid)) == int(started)
    return time.time() - status.st_mtime < FOREIGN_SECONDS
