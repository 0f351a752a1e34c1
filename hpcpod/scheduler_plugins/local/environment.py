# SPDX-License-Identifier: Apache-2.0
"""A process that no scheduler started."""

from __future__ import annotations

from collections.abc import Mapping

from hpcpod.model import StepContext
from hpcpod.scheduler_plugins.pmi import Numbering, mpiexec_numbering, served

_ALONE = Numbering(rank=0, local_rank=0, ntasks=1, local_ntasks=1)


def step_context(environment: Mapping[str, str], *, cwd: str, node: str) -> StepContext:
    """The context of a lone run, or of a rank of an mpiexec on the host, which numbers it.

    The scope is empty either way: nothing in hydra's environment names the set of its ranks.  The front,
    a child of hydra's proxy or of Open MPI's daemon, names it by its parent (native/step.c).
    Raises UsageError naming the variable that makes no sense.
    """
    numbering = mpiexec_numbering(environment) or _ALONE
    return StepContext(
        launcher="local",
        scope="",
        job_id="",
        step_id="",
        node=node,
        rank=numbering.rank,
        local_rank=numbering.local_rank,
        ntasks=numbering.ntasks,
        local_ntasks=numbering.local_ntasks,
        served=served(environment),
        environment=environment,
        cwd=cwd,
    )
