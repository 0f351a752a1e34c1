# SPDX-License-Identifier: Apache-2.0
"""Where Slurm's PMIx plugin lets its clients keep files: a directory of the node that no variable names.

For every step slurmstepd makes ``BASE/spmix_appdir_UID_JOB.STEP`` and tells the ranks through PMIx itself to
put their session directories there; Open MPI does, and dies where the pod lacks BASE (version 5 with a
segmentation fault).  BASE is PMIxCliTmpDirBase of mpi.conf(5), else TmpFS of slurm.conf(5), else /tmp.
"""

from __future__ import annotations

from collections.abc import Mapping
from posixpath import dirname, normpath

DEFAULT = "/tmp"
CONF = "/etc/slurm/slurm.conf"


def configuration(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Paths of mpi.conf and slurm.conf on this node, None outside a step that Slurm serves PMIx."""
    if not environment.get("PMIX_NAMESPACE", "").startswith("slurm."):
        return None
    conf = environment.get("SLURM_CONF") or CONF
    return f"{dirname(conf)}/mpi.conf", conf


def setting(text: str, name: str) -> str | None:
    """The last value of a setting in a Slurm configuration file; names are of any case (slurm.conf(5))."""
    found = None
    for line in text.splitlines():
        key, equals, value = line.partition("#")[0].partition("=")
        if equals and key.strip().lower() == name.lower():
            found = value.strip().strip('"')
    return found


def client_directory(mpi_conf: str, slurm_conf: str, node: str) -> str:
    """BASE, from the text of both files; %n and %h of TmpFS mean this node's name."""
    base = setting(mpi_conf, "PMIxCliTmpDirBase") or setting(slurm_conf, "TmpFS") or DEFAULT
    base = base.replace("%n", node).replace("%h", node)
    return normpath(base) if base.startswith("/") else DEFAULT
