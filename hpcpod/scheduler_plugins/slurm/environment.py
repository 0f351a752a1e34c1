# SPDX-License-Identifier: Apache-2.0
"""A task of a Slurm step, from the environment that slurmstepd gave it: srun(1), output environment."""

from __future__ import annotations

from collections.abc import Mapping

from hpcpod.errors import UsageError
from hpcpod.model import StepContext
from hpcpod.scheduler_plugins.numbers import first_number, malformed, number, parse_number, tasks_on_node
from hpcpod.scheduler_plugins.pmi import Numbering, mpiexec_numbering, served

JOB = ("SLURM_JOB_ID", "SLURM_JOBID")
STEP = ("SLURM_STEP_ID", "SLURM_STEPID")
TASKS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
RESERVED_STEP = 0xFFFFFFF0
"""Step ids from here on are no steps of tasks: SLURM_PENDING_STEP, SLURM_EXTERN_CONT, SLURM_BATCH_SCRIPT,
SLURM_INTERACTIVE_STEP (slurm.h); newer versions spell them ``batch``, ``extern``, ``interactive``."""
BATCH = "batch"
RESERVED_NAMES = (BATCH, "extern", "interactive", "TBD")


def _first_set(environment: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if environment.get(name)), None)


def _step(environment: Mapping[str, str]) -> str | None:
    """Id of the step, None outside one: a batch script, a shell of salloc, a login node."""
    name = _first_set(environment, STEP)
    if name is None or environment[name] in RESERVED_NAMES:
        return None
    value = parse_number(environment[name])
    if value is None:
        raise malformed(name, environment[name], "the number of a step")
    return str(value) if value < RESERVED_STEP else None


def _required(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, int]:
    found = first_number(environment, names)
    if found is None:
        raise UsageError(
            f"environment variable {names[0]}: not set, although {STEP[0]} is",
            hint="start hpcpod with srun and leave the SLURM_ variables as they are",
        )
    return found


def _local_tasks(environment: Mapping[str, str], local_rank: int) -> int:
    """Tasks on this node.

    The components of a heterogeneous job have a list each but number their nodes through, so an index
    past the list's end means nothing there; then only the tasks up to this one are known.
    """
    name = "SLURM_STEP_TASKS_PER_NODE"
    text = environment.get(name)
    index = number(environment, "SLURM_NODEID")
    if text is None or index is None:
        return local_rank + 1
    try:
        tasks = tasks_on_node(text, index)
    except ValueError:
        raise malformed(name, text, "a list of numbers such as 2(x3),1") from None
    if environment.get("SLURM_HET_SIZE") and (tasks is None or local_rank >= tasks):
        return local_rank + 1
    if tasks is None:
        raise malformed("SLURM_NODEID", environment["SLURM_NODEID"], f"a node of {name}={text[:60]}")
    if local_rank >= tasks:
        raise malformed("SLURM_LOCALID", environment["SLURM_LOCALID"], f"less than {tasks}, from {name}")
    return tasks


def _numbering(environment: Mapping[str, str]) -> Numbering:
    tasks_name, ntasks = _required(environment, TASKS)
    rank_name, rank = _required(environment, ("SLURM_PROCID",))
    _, local_rank = _required(environment, ("SLURM_LOCALID",))
    if rank >= ntasks and not environment.get("SLURM_HET_SIZE"):
        raise malformed(rank_name, environment[rank_name], f"less than {tasks_name}={ntasks}")
    return Numbering(rank, local_rank, ntasks, _local_tasks(environment, local_rank))


def _mpiexec_step(
    environment: Mapping[str, str], step: str | None, node: str
) -> tuple[str, str, Numbering] | None:
    """(step, node, numbers) of a rank that an mpiexec started, else None.

    Open MPI forks the ranks of the batch script's own node and uses srun for the others, so a rank may
    have no step.  hydra gives all ranks mpiexec's own SLURMD_NODENAME, so that is not believed here.
    """
    numbering = mpiexec_numbering(environment)
    return None if numbering is None else (step or BATCH, node, numbering)


def step_context(environment: Mapping[str, str], *, cwd: str, node: str) -> StepContext | None:
    """The context of a task of a Slurm step, None outside one.

    cwd: the task's working directory.  node: this node's name by uname(2), for where Slurm's cannot be
    had.  A rank that an mpiexec started inside a job has mpiexec's numbers; its scope is the step that it
    runs in, or the job's batch script.  Raises UsageError naming the variable that makes no sense.
    """
    job_name = _first_set(environment, JOB)
    if job_name is None:
        return None
    step = _step(environment)
    found = _mpiexec_step(environment, step, node)
    if found is None:
        if step is None:
            return None
        found = step, environment.get("SLURMD_NODENAME") or node, _numbering(environment)
    step, node, numbering = found
    job = number(environment, job_name)
    return StepContext(
        launcher="slurm",
        scope=f"slurm-{job}.{step}",
        job_id=str(job),
        step_id=step,
        node=node,
        rank=numbering.rank,
        local_rank=numbering.local_rank,
        ntasks=numbering.ntasks,
        local_ntasks=numbering.local_ntasks,
        served=served(environment),
        environment=environment,
        cwd=cwd,
    )
