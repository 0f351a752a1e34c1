# SPDX-License-Identifier: Apache-2.0
"""What the C front runs when PMI served and MPI of the image do not meet: is the program an MPI program?

``python3 -I -m hpcpod.launcher.mpi_check ROOTFS MODE PATH PROGRAM…``; status 0 lets the rank start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from hpcpod.errors import HpcpodError, MpiMismatch
from hpcpod.images.contents.inside import Inside
from hpcpod.images.contents.mpi_scan import find_mpi, program_may_use_mpi
from hpcpod.launcher import mpi
from hpcpod.launcher.environment import DEFAULT_PATH
from hpcpod.model import StepContext
from hpcpod.scheduler_plugins import recognise


def find_program(inside: Inside, name: str, path: str) -> str:
    """Absolute path of the program inside the image; the name itself when it is not there."""
    if "/" in name:
        return name
    candidates = (f"{directory}/{name}" for directory in path.split(":") if directory.startswith("/"))
    return next((found for found in candidates if inside.resolve(found)), name)


def check(context: StepContext, rootfs: str, mode: str, program: Sequence[str], path: str) -> None:
    """Raise MpiMismatch when the step's ranks would fall apart into worlds of size one."""
    search = tuple(directory for directory in path.split(":") if directory.startswith("/"))
    libraries = find_mpi(rootfs, search)
    where = find_program(Inside(rootfs), program[0], path) if program else ""
    mpi.check(context, libraries, mode, program_may_use_mpi(rootfs, where, libraries, search))


def main(arguments: Sequence[str]) -> int:
    """The exit status.  One rank of a node asks (native/mpi.c); the first node's says what is wrong."""
    rootfs, mode, path, *program = arguments
    try:
        context = recognise(os.environ, cwd="/", node=os.uname().nodename)
        check(context, rootfs, mode, program, path or DEFAULT_PATH)
    except MpiMismatch as error:
        if os.environ.get("SLURM_NODEID", "0") == "0":
            sys.stderr.write(error.lines())
        return error.exit_code
    except HpcpodError as error:
        sys.stderr.write(error.lines())
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
