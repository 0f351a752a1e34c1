# SPDX-License-Identifier: Apache-2.0
"""Proof that a cluster left nothing behind: no process, namespace, mount, control group, interface, file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.testbed import cgroups
from tests.testbed.node import COVERED, ETC
from tests.testbed.state import KINDS, Record


@dataclass(frozen=True)
class Before:
    """The machine before a cluster came: lines of its mount table, names of its network interfaces."""

    mounts: frozenset[str]
    interfaces: frozenset[str]


def _mounts() -> frozenset[str]:
    return frozenset(Path("/proc/self/mountinfo").read_text().splitlines())


def look() -> Before:
    """Read what `leftovers` compares with."""
    return Before(_mounts(), frozenset(os.listdir("/sys/class/net")))


def hold(record: Record) -> list[int]:
    """Descriptors of the nodes' namespaces: as long as they are open, no other gets the same number."""
    return [
        os.open(f"/proc/{node.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        for node in record.nodes
        if node.alive()
        for kind in KINDS
    ]


def inhabitants(held: list[int]) -> list[str]:
    """Processes that are in one of these namespaces, one line each."""
    known = {os.fstat(descriptor).st_ino for descriptor in held}
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            shared = [kind for kind in KINDS if (entry / "ns" / kind).stat().st_ino in known]
            if shared:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(
                    f"process {entry.name} ({command.strip()}) in the {shared[0]} namespace of a node"
                )
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked, or is another user's where we are not root
    return found


def _new_mounts(before: Before, record: Record) -> list[str]:
    """Mounts that came since and are ours: they show the cluster's folder, or lie where nodes mount."""
    places = {*COVERED, *ETC, "/sys/fs/cgroup"}
    found: list[str] = []
    for line in sorted(_mounts() - before.mounts):
        place = line.split(" ")[4]
        if place in places or record.state in line or record.top in line:
            found.append(f"mount {line}")
    return found


def leftovers(before: Before, record: Record) -> list[str]:
    """What is still there of a cluster that was torn down, one line each; empty when all is gone."""
    interfaces = set(os.listdir("/sys/class/net")) - before.interfaces
    ours = {"br0", *(f"v-{node.name}" for node in record.nodes)}
    return [
        *(f"process {pid}" for pid in cgroups.processes(record.top)),
        *_new_mounts(before, record),
        *(f"control group {path}" for path in cgroups.groups(record.top)),
        *(f"network interface {name}" for name in sorted(interfaces & ours)),
        *([f"folder {record.state}"] if Path(record.state).exists() else []),
    ]
