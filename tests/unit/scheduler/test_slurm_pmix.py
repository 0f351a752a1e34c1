# SPDX-License-Identifier: Apache-2.0
"""The directory of Slurm's PMIx clients, as configuration files name it."""

from __future__ import annotations

import pytest

from hpcpod.scheduler_plugins.slurm.pmix import client_directory, configuration, setting


@pytest.mark.parametrize(
    ("mpi_conf", "slurm_conf", "expected"),
    [
        ("", "", "/tmp"),
        ("PMIxCliTmpDirBase=/var/spool/pmix\n", "TmpFS=/scratch\n", "/var/spool/pmix"),
        ("# PMIxCliTmpDirBase=/no\n", "tmpfs = /scratch/%n # local\n", "/scratch/n7"),
        ("pmixclitmpdirbase=/a\nPMIxCliTmpDirBase=/b/\n", "", "/b"),
        ("PMIxCliTmpDirBase=relative\n", "", "/tmp"),
        ("PMIxDebug=1", "NodeName=n[0-1] CPUs=2\n", "/tmp"),
    ],
)
def test_the_setting_that_holds(mpi_conf: str, slurm_conf: str, expected: str) -> None:
    assert client_directory(mpi_conf, slurm_conf, "n7") == expected


def test_values_may_be_quoted() -> None:
    assert setting('A="x y"\n', "a") == "x y"
    assert setting("A\n", "a") is None


def test_files_lie_together_and_matter_only_where_slurm_serves_pmix() -> None:
    slurm = {"PMIX_NAMESPACE": "slurm.pmix.3.0"}
    assert configuration(slurm) == ("/etc/slurm/mpi.conf", "/etc/slurm/slurm.conf")
    configless = slurm | {"SLURM_CONF": "/run/slurm/conf/slurm.conf"}
    assert configuration(configless) == ("/run/slurm/conf/mpi.conf", "/run/slurm/conf/slurm.conf")
    assert configuration({"PMIX_NAMESPACE": "prterun-n0-1@1"}) is None
    assert configuration({}) is None
