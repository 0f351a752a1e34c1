# SPDX-License-Identifier: Apache-2.0
"""Which PMI a process manager serves, and how an mpiexec numbers its ranks: read from the environment."""

from __future__ import annotations

from collections.abc import Mapping

from hpcpod.frozen import frozen
from hpcpod.model import PmiKind
from hpcpod.scheduler_plugins.numbers import malformed, number


def served(environment: Mapping[str, str]) -> frozenset[PmiKind]:
    """The PMI kinds that the process manager offers this process.

    An inherited descriptor (PMI_FD) or a port (PMI_PORT) is served with both wire protocols by Slurm's
    mpi/pmi2 plugin and by MPICH's hydra.  PMIx is served where PMIX_RANK, PMIX_NAMESPACE and an address
    of the server (PMIX_SERVER_URI…) are all set.  Raises UsageError where PMI_FD is no descriptor.
    """
    kinds: set[PmiKind] = set()
    if number(environment, "PMI_FD") is not None or environment.get("PMI_PORT"):
        kinds |= {PmiKind.PMI1, PmiKind.PMI2}
    if (
        environment.get("PMIX_RANK")
        and environment.get("PMIX_NAMESPACE")
        and any(name.startswith("PMIX_SERVER_URI") for name in environment)
    ):
        kinds.add(PmiKind.PMIX)
    return frozenset(kinds)


@frozen
class Numbering:
    """A rank's numbers as its mpiexec gives them."""

    rank: int
    local_rank: int
    ntasks: int
    local_ntasks: int


_HYDRA = ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS")
_OPEN_MPI = (
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)


def mpiexec_numbering(environment: Mapping[str, str]) -> Numbering | None:
    """The numbers of a rank that an mpiexec (MPICH's hydra, Open MPI's) started, else None.

    Under Slurm they are the true ones: mpiexec starts one agent per node with srun, so SLURM_PROCID and
    SLURM_NTASKS count agents.  Raises UsageError naming the variable that makes no sense.
    """
    for names in (_HYDRA, _OPEN_MPI):
        values = [number(environment, name) for name in names]
        rank, local_rank, ntasks, local_ntasks = values
        if rank is None or local_rank is None or ntasks is None or local_ntasks is None:
            continue
        if rank >= ntasks:
            raise malformed(names[0], environment[names[0]], f"less than {names[2]}={ntasks}")
        if local_rank >= local_ntasks:
            raise malformed(names[1], environment[names[1]], f"less than {names[3]}={local_ntasks}")
        return Numbering(rank, local_rank, ntasks, local_ntasks)
    return None
