# SPDX-License-Identifier: Apache-2.0
"""Real MPIs: this machine's own root directory is read as an image's, and its mpiexecs start ranks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hpcpod.images.contents.mpi_scan import find_mpi, find_mpiexec, program_may_use_mpi
from hpcpod.launcher.mpi import accepted, local_launch
from hpcpod.model import EnvSet, EnvUnset, MpiFamily, MpiUse, PmiKind, ProgramMpi
from tests.conftest import Account

PROGRAM = r"""
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv)
{
	int rank, size, sum;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
	printf("%d of %d, sum %d\n", rank, size, sum);
	return MPI_Finalize();
}
"""

# An allocation of two nodes around the launch: what makes an mpiexec reach for srun and for other nodes.
ALLOCATION = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOBID": "7",
    "SLURM_JOB_NODELIST": "elsewhere[0-1]",
    "SLURM_NODELIST": "elsewhere[0-1]",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_CPUS_PER_NODE": "2(x2)",
    "PMI_FD": "99",
    "PMI_RANK": "5",
    "PMI_SIZE": "6",
}

FAMILIES = [
    pytest.param(MpiFamily.MPICH, "mpicc.mpich", PmiKind.PMI2, marks=pytest.mark.needs("mpich")),
    pytest.param(MpiFamily.OPENMPI, "mpicc.openmpi", PmiKind.PMIX, marks=pytest.mark.needs("openmpi")),
]


def compiled(compiler: str, directory: Path) -> Path:
    source, program = directory / "program.c", directory / "program"
    source.write_text(PROGRAM)
    subprocess.run([compiler, str(source), "-o", str(program)], check=True, timeout=60)
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(("family", "compiler", "kind"), FAMILIES)
def test_a_program_is_told_by_the_library_it_is_linked_with(
    tmp_path: Path, family: MpiFamily, compiler: str, kind: PmiKind
) -> None:
    libraries = find_mpi("/")
    assert family in {library.family for library in libraries}
    found = program_may_use_mpi("/", str(compiled(compiler, tmp_path)), libraries)
    assert found.use is MpiUse.YES
    assert {library.family for library in found.libraries} == {family}
    assert kind in (accepted(libraries, "auto", found) or ())


@pytest.mark.parametrize("program", ["/bin/ls", "/bin/mount"])
def test_the_systems_own_programs_use_no_mpi(program: str) -> None:
    assert program_may_use_mpi("/", program, find_mpi("/")) == ProgramMpi(MpiUse.NO)


def launch(account: Account, family: MpiFamily, program: Path, ranks: int) -> list[str]:
    mpiexec = next(found for found in find_mpiexec("/", find_mpi("/")) if found.family is family)
    how = local_launch(mpiexec, ranks, account.uid)
    environment = account.environment(ALLOCATION)
    for op in how.environment:
        match op:
            case EnvSet(name, value):
                environment[name] = value
            case EnvUnset(pattern):
                environment = {
                    name: value
                    for name, value in environment.items()
                    if not (name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern)
                }
    # A host name that nobody resolves, as in a pod whose /etc/hosts is the image's.
    words = ["unshare", "--uts", "sh", "-c", 'echo nowhere > /proc/sys/kernel/hostname && exec "$@"', "sh"]
    command = [*words, *account.command([*how.words, str(program)])]
    done = subprocess.run(
        command, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


@pytest.mark.needs("root")
@pytest.mark.parametrize(("family", "compiler", "kind"), FAMILIES)
@pytest.mark.parametrize("who", ["user", "root_user"])
def test_an_images_mpiexec_starts_the_ranks_on_this_node_alone(
    request: pytest.FixtureRequest, family: MpiFamily, compiler: str, kind: PmiKind, who: str
) -> None:
    account: Account = request.getfixturevalue(who)
    program = compiled(compiler, account.home)
    cpus = len(os.sched_getaffinity(0))
    ranks = cpus + 1
    expected = sorted(f"{rank} of {ranks}, sum {cpus * ranks // 2}" for rank in range(ranks))
    assert launch(account, family, program, ranks) == expected
