# SPDX-License-Identifier: Apache-2.0
"""What this machine lacks to hold a cluster, in plain words."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
from pathlib import Path

from tests.testbed import cgroups

SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "sinfo": "slurm-client",
    "munged": "munge",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
"""Program -> Debian package."""


def _cgroup_gaps() -> list[str]:
    absent = cgroups.missing_controllers()
    if not absent:
        return []
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return ["control groups: version 2 only on this machine; the test cluster needs version 1"]
    return [f"control groups: no version 1 hierarchy with {', '.join(absent)}"]


def missing() -> list[str]:
    """One line for each thing that a cluster needs and this machine or process has not; empty: go on."""
    gaps: list[str] = []
    if os.geteuid() != 0:
        gaps.append("root: namespaces, mounts and control groups of nodes are made by uid 0")
    packages = sorted({pkg for name, pkg in PROGRAMS.items() if shutil.which(name, path=SEARCH) is None})
    gaps += [f"package {package}" for package in packages]
    for name in ("slurm", "munge"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            gaps.append(f"user {name} (made by Debian's packages)")
    gaps += [f"directory {path}" for path in ("/etc/slurm", "/etc/munge") if not Path(path).is_dir()]
    if importlib.util.find_spec("pyroute2") is None:
        gaps.append("Python package pyroute2")
    return gaps + _cgroup_gaps()
