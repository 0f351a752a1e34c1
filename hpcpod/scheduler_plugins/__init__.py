# SPDX-License-Identifier: Apache-2.0
"""What each scheduler tells a process about its place in a job: environments in, facts out.

Everything here is pure; native/step.c follows the same rules on the path of a rank, and both are held to
the captured environments in tests/unit/scheduler/goldens.
"""

from __future__ import annotations

from collections.abc import Mapping

from hpcpod.model import StepContext
from hpcpod.scheduler_plugins.local import environment as local
from hpcpod.scheduler_plugins.slurm import environment as slurm


def recognise(environment: Mapping[str, str], *, cwd: str, node: str) -> StepContext:
    """The place of the process that has this environment.

    cwd: its working directory.  node: this node's name, for when the scheduler gives none.
    Raises UsageError naming the variable whose value makes no sense.
    """
    return slurm.step_context(environment, cwd=cwd, node=node) or local.step_context(
        environment, cwd=cwd, node=node
    )
