# SPDX-License-Identifier: Apache-2.0
"""From facts to a plan.  Pure: all it needs to know of node, user and image is handed in."""

from __future__ import annotations

from hpcpod.errors import MpiMismatch
from hpcpod.frozen import frozen
from hpcpod.launcher import binds, mpi
from hpcpod.launcher.environment import environment_ops
from hpcpod.launcher.request import RunRequest
from hpcpod.model import (
    Bind,
    EnvOp,
    EnvSet,
    FileStamp,
    GeneratedFile,
    ImageFacts,
    Mount,
    MpiUse,
    NodePlan,
    PodPlan,
    ProgramMpi,
    RankPlan,
    StepContext,
    VerifiedImage,
)

STUB = "/run/hpcpod/hpcpod"
"""Where a local launch finds the front in the pod; native/stub.c is what it runs there."""
STUB_EVENTS = "/run/hpcpod/events"


@frozen
class UserFacts:
    """The user as the node knows it.  home: an existing directory, or None.  groups: id and name."""

    uid: int
    gid: int
    name: str
    home: str | None
    shell: str
    groups: tuple[tuple[int, str], ...]


@frozen
class NodePaths:
    """Paths of this installation and node: the front executable, the directory of events.

    pmix: where Slurm's PMIx clients keep files, None outside a step that has any.
    """

    front: str
    events: str
    pmix: str | None = None


@frozen
class Facts:
    """All that was read for one plan.  guards: files that the plan stands on; seccomp: the BPF program."""

    user: UserFacts
    inside: ImageFacts
    context: StepContext
    paths: NodePaths
    guards: tuple[FileStamp, ...]
    seccomp: bytes


def merge_passwd(image: str, user: UserFacts) -> str:
    """The image's passwd with the user's own line (passwd(5)); lines of the same name or id give way."""
    kept = [
        line
        for line in image.split("\n")
        if line.count(":") == 6 and line.split(":")[0] != user.name and line.split(":")[2] != str(user.uid)
    ]
    home = user.home if user.home and not set(":\n") & set(user.home) else "/"
    mine = f"{user.name}:x:{user.uid}:{user.gid}:{user.name}:{home}:{user.shell}"
    return "\n".join([*kept, mine, ""])


def merge_group(image: str, user: UserFacts) -> str:
    """The image's group file with the user's groups (group(5)); lines of the same name or id give way."""
    names = {name for _, name in user.groups}
    numbers = {str(gid) for gid, _ in user.groups}
    kept = [
        line
        for line in image.split("\n")
        if line.count(":") == 3 and line.split(":")[0] not in names and line.split(":")[2] not in numbers
    ]
    return "\n".join([*kept, *(f"{name}:x:{gid}:{user.name}" for gid, name in user.groups), ""])


def _local_launch(
    request: RunRequest, image: VerifiedImage, facts: ImageFacts, uid: int
) -> tuple[tuple[str, ...], tuple[EnvOp, ...]]:
    """Words before the program's argv and their environment, for ``-n N`` without a scheduler."""
    if request.ntasks is None:
        return (), ()
    if not facts.mpiexec:
        raise MpiMismatch(
            f"image {image.reference}: has no mpiexec to start {request.ntasks} ranks with",
            hint="without a scheduler the ranks are started by the image's own MPI (mpich or openmpi)",
        )
    mpi.check_local(request.mpi, facts.mpiexec[0], facts.mpi)
    launch = mpi.local_launch(facts.mpiexec[0], request.ntasks, uid)
    ntasks = EnvSet("HPCPOD_NTASKS", str(request.ntasks))
    return (*launch.words, STUB, "--rank"), (*launch.environment, ntasks)


def _mounts(request: RunRequest, facts: Facts) -> list[Mount]:
    home = facts.user.home if request.home else None
    mounts = binds.fixed_mounts(request.shm_size)
    mounts += binds.shields()
    mounts += binds.step_mounts(facts.paths.pmix)
    mounts += binds.user_mounts(home, facts.context.cwd, request.binds)
    mounts += [
        GeneratedFile("/etc/passwd", merge_passwd(facts.inside.passwd, facts.user)),
        GeneratedFile("/etc/group", merge_group(facts.inside.group, facts.user)),
    ]
    if request.ntasks is not None:
        mounts += [Bind(facts.paths.front, STUB, read_only=True), Bind(facts.paths.events, STUB_EVENTS)]
    return mounts


def _workdirs(request: RunRequest, image: VerifiedImage) -> tuple[str, ...]:
    """Where the program starts: what was asked for and nothing else, or the first of these that exists."""
    if request.workdir is not None:
        return (request.workdir,)
    return (".", image.config.workdir, "/") if image.config.workdir else (".", "/")


def make_plan(request: RunRequest, image: VerifiedImage, facts: Facts) -> NodePlan:
    """The plan of this request on this node.  Raises UsageError, MpiMismatch."""
    words, launch_env = _local_launch(request, image, facts.inside, facts.user.uid)
    wiring = mpi.wiring(facts.context.environment)
    accepted = mpi.accepted(facts.inside.mpi, request.mpi, ProgramMpi(MpiUse.MAYBE))
    return NodePlan(
        image=image,
        guards=facts.guards,
        pod=PodPlan(image.rootfs, request.writable, tuple(_mounts(request, facts))),
        rank=RankPlan(
            environment=environment_ops(image, (*wiring, *launch_env), request.env),
            workdirs=_workdirs(request, image),
            command=(*image.config.entrypoint, *image.config.cmd),
            launch=words,
            seccomp=facts.seccomp,
            accepted=None if request.ntasks is not None else accepted,
            preserve_fds=request.preserve_fds,
            mpi=request.mpi,
        ),
    )
