# SPDX-License-Identifier: Apache-2.0
"""Version 1 control groups of the nodes: one group per node below one of the cluster's own.

The memory controller is left alone on purpose: Slurm does without it here, and a machine that runs tests
often keeps the testers themselves in it.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = ("cpuset", "freezer", "cpuacct", "cpu", "devices", "pids")
"""What Slurm 22.05's cgroup/v1 plugin and its task plugins mount or write."""

REMOVE_SECONDS = 2.0
"""A group that was just emptied can stay busy for a moment."""


@dataclass(frozen=True)
class Hierarchy:
    """One version 1 hierarchy; several controllers may share it (``cpu,cpuacct``)."""

    controllers: tuple[str, ...]
    path: str

    @property
    def name(self) -> str:
        """Option of mount(8) and name of the folder below /sys/fs/cgroup."""
        return ",".join(self.controllers)


def hierarchies() -> tuple[Hierarchy, ...]:
    """The mounted version 1 hierarchies that have a controller which a node needs (proc_pid_mountinfo(5))."""
    found: dict[tuple[str, ...], str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind != "cgroup":
            continue
        words = set(options.split(","))
        controllers = tuple(name for name in CONTROLLERS if name in words)
        if controllers:
            found.setdefault(controllers, before.split(" ")[4])
    return tuple(Hierarchy(controllers, path) for controllers, path in found.items())


def missing_controllers() -> list[str]:
    """Controllers of CONTROLLERS that no mounted version 1 hierarchy has."""
    have = {name for hierarchy in hierarchies() for name in hierarchy.controllers}
    return [name for name in CONTROLLERS if name not in have]


def _make(hierarchy: Hierarchy, path: Path) -> None:
    path.mkdir()
    if "cpuset" in hierarchy.controllers:
        for name in ("cpuset.cpus", "cpuset.mems"):  # a new version 1 cpuset is empty and takes no process
            (path / name).write_text((path.parent / name).read_text())


def create(top: str, nodes: tuple[str, ...]) -> None:
    """Make the group `top` in every hierarchy, and one below it for each node.  Raises OSError."""
    for hierarchy in hierarchies():
        base = Path(hierarchy.path) / top
        _make(hierarchy, base)
        for node in nodes:
            _make(hierarchy, base / node)


def process_files(top: str, node: str) -> list[str]:
    """The files that a process writes "0" to, to be of that node."""
    return [f"{hierarchy.path}/{top}/{node}/cgroup.procs" for hierarchy in hierarchies()]


def groups(top: str) -> list[Path]:
    """All groups at and below `top`, the innermost first."""
    return [
        Path(folder)
        for hierarchy in hierarchies()
        for folder, _, _ in os.walk(f"{hierarchy.path}/{top}", topdown=False)
    ]


def processes(top: str) -> list[int]:
    """Processes that are in a group at or below `top`."""
    found: set[int] = set()
    for group in groups(top):
        try:
            found.update(int(word) for word in (group / "cgroup.procs").read_text().split())
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # it went before the look, or during it
                raise
    return sorted(found)


def remove(top: str) -> list[str]:
    """Remove the group `top` and all below it; returns those that stay busy, with their processes."""
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        busy: list[str] = []
        for group in groups(top):
            try:
                group.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                busy.append(f"{group}: {error.strerror}, processes {processes(top) or 'none'}")
        if not busy or time.monotonic() > deadline:
            return busy
        time.sleep(0.01)
