# SPDX-License-Identifier: Apache-2.0
"""The files of a cluster: configuration that all nodes share, people who exist on the nodes only, disks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.network import CONTROLLER_ADDRESS, address


@dataclass(frozen=True)
class Person:
    """A plain user of the cluster, with a group of the same name and number."""

    name: str
    uid: int

    @property
    def home(self) -> str:
        """Shared by all nodes."""
        return f"/home/{self.name}"


ALICE = Person("alice", 1001)
BOB = Person("bob", 1002)
PEOPLE = (ALICE, BOB)
PROJECT = ("project", 2001)
"""A supplementary group, whose only member is alice."""

CORES = 2
"""Cores of each node, the same physical ones on all (Slurm maps its core 0 to CPU 0 whatever the cpuset)."""

SLURM_CONF = """\
ClusterName=tb
SlurmctldHost=ctl
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup,task/affinity
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
KillWait=5
SlurmctldTimeout=30
SlurmdTimeout=30
{extra}NodeName={nodes} CPUs={cores} Sockets=1 CoresPerSocket={cores} ThreadsPerCore=1 RealMemory=2000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""

CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainCores=yes
ConstrainRAMSpace=no
ConstrainSwapSpace=no
ConstrainDevices=no
"""


def slurm_conf(nodes: tuple[str, ...], extra: str) -> str:
    """slurm.conf(5) for these nodes; extra: further lines, such as hooks."""
    lines = "".join(f"{line}\n" for line in extra.splitlines())
    return SLURM_CONF.format(extra=lines, nodes=",".join(nodes), cores=CORES)


def hosts(nodes: tuple[str, ...]) -> str:
    """hosts(5): the nodes know each other by this file alone."""
    rows = [("127.0.0.1", "localhost"), (CONTROLLER_ADDRESS, "ctl")]
    rows += [(address(index), node) for index, node in enumerate(nodes)]
    return "".join(f"{ip} {name}\n" for ip, name in rows)


def _without(text: str, names: set[str], numbers: set[str]) -> list[str]:
    """The lines of passwd(5) or group(5) that collide with no one of ours."""
    rows = [line.split(":") for line in text.splitlines() if line.count(":") > 1]
    return [":".join(row) for row in rows if row[0] not in names and row[2] not in numbers]


def passwd(machine: str) -> str:
    """The machine's passwd(5) text with our people in it."""
    lines = _without(machine, {p.name for p in PEOPLE}, {str(p.uid) for p in PEOPLE})
    lines += [f"{p.name}:x:{p.uid}:{p.uid}:{p.name.title()},,,:{p.home}:/bin/bash" for p in PEOPLE]
    return "\n".join(lines) + "\n"


def group(machine: str) -> str:
    """The machine's group(5) text with our people's groups in it."""
    ours = [(p.name, p.uid, "") for p in PEOPLE] + [(*PROJECT, ALICE.name)]
    lines = _without(machine, {name for name, _, _ in ours}, {str(gid) for _, gid, _ in ours})
    return "\n".join([*lines, *(f"{name}:x:{gid}:{members}" for name, gid, members in ours)]) + "\n"


def _folder(path: Path, owner: tuple[int, int], mode: int) -> None:
    path.mkdir(parents=True)
    os.chown(path, *owner)
    path.chmod(mode)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


def write_etc(etc: Path, nodes: tuple[str, ...], extra: str, plugstack: str, munge: tuple[int, int]) -> None:
    """Make the ``etc`` folder that every node binds over its own (node.ETC)."""
    _folder(etc / "slurm", (0, 0), 0o755)
    texts = {
        "hosts": hosts(nodes),
        "passwd": passwd(Path("/etc/passwd").read_text()),
        "group": group(Path("/etc/group").read_text()),
        "slurm/slurm.conf": slurm_conf(nodes, extra),
        "slurm/cgroup.conf": CGROUP_CONF,
        "slurm/plugstack.conf": plugstack,
    }
    for name, text in texts.items():
        _write(etc / name, text)
    _folder(etc / "munge", munge, 0o700)
    key = etc / "munge" / "munge.key"
    key.write_bytes(os.urandom(128))
    os.chown(key, *munge)
    key.chmod(0o400)


def write_disks(state: Path, nodes: Iterable[str], slurm: tuple[int, int], munge: tuple[int, int]) -> None:
    """Make each node's own disk (node.DISK) and the homes that all share."""
    for node in nodes:
        disk = state / "nodes" / node
        _folder(disk / "tmp", (0, 0), 0o1777)
        _folder(disk / "var-tmp", (0, 0), 0o1777)
        _folder(disk / "log-slurm", slurm, 0o755)
        _folder(disk / "log-munge", munge, 0o755)
    for person in PEOPLE:
        _folder(state / "home" / person.name, (person.uid, person.uid), 0o700)
