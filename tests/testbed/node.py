# SPDX-License-Identifier: Apache-2.0
"""One node: a process that is pid 1 of its own namespaces and waits for the end of its cluster.

Run as a program of its own (``python -m tests.testbed.node SPEC``), because a test runner that may have
threads must not fork and go on in Python.  The lifeline is a pipe whose other end the cluster's owner
holds: when the owner goes, however it goes, the node reads end of file and leaves, and the kernel takes
everything in its pid namespace with it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.testbed import cgroups
from tests.testbed.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    bind,
    detach,
    mount,
    unshare,
)

MEMORY = {"/run": 0o755, "/var/spool": 0o755, "/dev/shm": 0o1777, "/home": 0o755}
"""Directories that are each node's own memory, with their modes."""

DISK = {"/tmp": "tmp", "/var/tmp": "var-tmp", "/var/log/slurm": "log-slurm", "/var/log/munge": "log-munge"}
"""Directories that are each node's own disk: a folder of that name in the node's part of the state."""

ETC = {
    "/etc/hosts": "hosts",
    "/etc/passwd": "passwd",
    "/etc/group": "group",
    "/etc/slurm": "slurm",
    "/etc/munge": "munge",
}
"""Configuration that all nodes share: names in the cluster's ``etc`` folder."""

COVERED = (*MEMORY, *DISK)
"""What a node does not see of the machine; anything below that it must see is bound back."""


@dataclass(frozen=True)
class NodeSpec:
    """What makes a node.

    state: the cluster's folder; keep: absolute paths that the node must
    see even where a directory of its own covers them; slurm, munge: (uid, gid) of the daemons;
    disk_in_memory: /var/tmp is a memory file system;
    ready, lifeline: inherited descriptors, the first to write to, the second to read from.
    """

    name: str
    top: str
    state: str
    keep: tuple[str, ...]
    slurm: tuple[int, int]
    munge: tuple[int, int]
    disk_in_memory: bool = False
    ready: int = -1
    lifeline: int = -1

    def as_json(self) -> str:
        """For the command line of the holder."""
        return json.dumps(asdict(self))


def _own_directory(path: str, owner: tuple[int, int], mode: int) -> None:
    Path(path).mkdir(parents=True, exist_ok=True)
    os.chown(path, *owner)
    Path(path).chmod(mode)


def _cover(spec: NodeSpec, state: str) -> None:
    """Put the node's own directories over the machine's, and bind back what must stay visible."""
    kept = [
        (path, os.open(path, os.O_PATH | os.O_CLOEXEC))
        for path in spec.keep
        if any(path == cover or path.startswith(cover + "/") for cover in COVERED)
    ]
    for target, mode in MEMORY.items():
        mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode:o}")
    for target, name in DISK.items():
        bind(f"{state}/nodes/{spec.name}/{name}", target)
    if spec.disk_in_memory:
        mount("tmpfs", "/var/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    for path, descriptor in kept:
        Path(path).mkdir(parents=True, exist_ok=True)
        bind(f"/proc/self/fd/{descriptor}", path)
        os.close(descriptor)


def _fill(spec: NodeSpec, state: str) -> None:
    """The directories that daemons and users expect, and the shared configuration."""
    _own_directory("/run/munge", spec.munge, 0o755)
    _own_directory("/var/spool/slurmd", (0, 0), 0o755)
    _own_directory("/var/spool/slurmctld", spec.slurm, 0o755)
    for person in Path(state, "home").iterdir():
        Path("/home", person.name).mkdir(parents=True, exist_ok=True)
        bind(str(person), f"/home/{person.name}")
    for target, name in ETC.items():
        bind(f"{state}/etc/{name}", target)


def _mount_cgroups(found: tuple[cgroups.Hierarchy, ...]) -> None:
    """The node's own view of the hierarchies; its group is their root.

    Detached first, not hidden: programs that walk mountinfo would meet the hidden mounts.
    """
    detach("/sys/fs/cgroup")
    mount("tmpfs", "/sys/fs/cgroup", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755")
    for hierarchy in found:
        folder = Path("/sys/fs/cgroup", hierarchy.name)
        folder.mkdir()
        mount("cgroup", str(folder), "cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, hierarchy.name)
        for controller in hierarchy.controllers:
            link = Path("/sys/fs/cgroup", controller)
            if link != folder:
                link.symlink_to(hierarchy.name)


def _live(spec: NodeSpec) -> None:
    """The life of pid 1: set up, say so, and stay until the cluster's owner is gone."""
    os.setsid()
    socket.sethostname(spec.name)
    found = cgroups.hierarchies()
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # By descriptor: the folder itself may lie where the node's own directories cover it.
    descriptor = os.open(spec.state, os.O_PATH | os.O_CLOEXEC)
    state = f"/proc/self/fd/{descriptor}"
    _cover(spec, state)
    _fill(spec, state)
    os.close(descriptor)
    _mount_cgroups(found)
    os.chdir("/")
    os.umask(0o022)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps what is left to pid 1
    os.write(spec.ready, b"ready\n")
    os.close(spec.ready)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.read(spec.lifeline, 1)


def main() -> int:
    """Make the node that argv[1] describes; prints nothing, writes its pid and ``ready`` to spec.ready."""
    spec = NodeSpec(**json.loads(sys.argv[1]))
    for path in cgroups.process_files(spec.top, spec.name):
        Path(path).write_text("0")
    # After the move: the group of this moment becomes the root of the cgroup namespace.
    unshare(CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWCGROUP)
    child = os.fork()
    if child:
        os.write(spec.ready, f"{child}\n".encode())
        return 0
    _live(spec)
    return 0


if __name__ == "__main__":
    sys.exit(main())
