# SPDX-License-Identifier: Apache-2.0
"""Frozen facts and plans: what planning reads and what it makes.

Nothing here touches the operating system.  Facts are read once at the edge (``scheduler_plugins``,
``images``, ``launcher.facts``); planning turns them into a :class:`NodePlan`; ``launcher.record`` writes
that down as the words which the native executor applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from hpcpod.frozen import frozen

# --------------------------------------------------------------------------- images


@frozen
class Platform:
    """What an image was built for: image-spec, image-index.md, ``platform``."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@frozen
class ImageConfig:
    """The part of an image's configuration that starting it needs (image-spec, config.md)."""

    env: tuple[tuple[str, str], ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    volumes: tuple[str, ...] = ()


class Form(Enum):
    """How an image lies in a store: an unpacked tree, or a file system in one file."""

    DIRECTORY = "dir"
    SQUASHFS = "squashfs"
    EROFS = "erofs"


class Pull(Enum):
    """When a registry is asked: each time, where no store has what the name meant, or not at all."""

    ALWAYS = "always"
    MISSING = "missing"
    NEVER = "never"


@frozen
class Tree:
    """A directory of the node: an unpacked tree, or where the kernel has mounted a packed one."""

    path: str


@frozen
class FuseImage:
    """A squashfs file that one FUSE server per user and node shows to all pods of that user.

    file: its absolute path.  name: of the store's entry, and so of the mount.  server: path of squashfuse_ll.
    """

    file: str
    name: str
    server: str


Rootfs = Tree | FuseImage


@frozen
class FileStamp:
    """Identity of a file at one moment (stat(2)); equal stamps mean that nothing was written since.

    All numbers 0: there was no such file.  All but a size of 1: this user may not see whether there is one.
    """

    path: str
    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int


@frozen
class Phase:
    """One timed phase of a preparation, CLOCK_REALTIME nanoseconds."""

    name: str
    start_ns: int
    end_ns: int


# --------------------------------------------------------------------------- scheduler


class PmiKind(Enum):
    """How a process manager talks to the ranks' MPI library."""

    PMI1 = "pmi1"
    PMI2 = "pmi2"
    PMIX = "pmix"


class MpiFamily(Enum):
    """Which MPI library an image holds; decides the PMI kinds that it understands."""

    MPICH = "mpich"
    OPENMPI = "openmpi"


@frozen
class MpiLibrary:
    """An MPI library found in an image.

    path: inside the image.  pmi: the kinds that this build speaks.
    """

    family: MpiFamily
    path: str
    pmi: frozenset[PmiKind]


class MpiUse(Enum):
    """Whether a program uses MPI, as far as its file tells."""

    NO = "no"
    MAYBE = "maybe"
    YES = "yes"


@frozen
class ProgramMpi:
    """What a program's file tells about its use of MPI.

    libraries: those of the image that it is linked with; empty unless use is YES, and then too where the
    library lies outside the image.
    """

    use: MpiUse
    libraries: tuple[MpiLibrary, ...] = ()


@frozen
class Mpiexec:
    """An mpiexec of an image.  path: inside the image.  family: whose it is."""

    family: MpiFamily
    path: str


@frozen
class ImageFacts:
    """What planning needs from inside an image.  passwd, group: text of those files, empty if absent."""

    passwd: str = ""
    group: str = ""
    mpi: tuple[MpiLibrary, ...] = ()
    mpiexec: tuple[Mpiexec, ...] = ()


@frozen
class VerifiedImage:
    """An image whose every byte had the digest that was asked for, in a store of this node.

    Only ``images.stores`` makes one.  Planning takes no other form of image, so an unverified one cannot
    reach a pod.

    digest: of the image manifest, ``sha256:…``.
    reference: as the user wrote it.
    place: which entry of which store it is, ``MAJOR:MINOR:INODE`` of its directory.
    """

    reference: str
    digest: str
    rootfs: Rootfs
    platform: Platform
    config: ImageConfig
    inside: ImageFacts = ImageFacts()
    place: str = ""


def mark_of(digest: str, place: str) -> str:
    """What mount tables say of an image's entry, where a mount has no path to be known by."""
    return f"{digest}@{place}"


@frozen
class StepContext:
    """This process's place in a parallel job, whatever the scheduler.

    launcher: ``slurm`` or ``local``.  scope: names the set of ranks on this node that share a pod
    (``slurm-JOB.STEP``), empty for a lone run.  ntasks: ranks of the whole step; local_ntasks: those on
    this node; rank and local_rank count from 0.  served: the PMI kinds that the process manager offers.
    """

    launcher: str
    scope: str
    job_id: str
    step_id: str
    node: str
    rank: int
    local_rank: int
    ntasks: int
    local_ntasks: int
    served: frozenset[PmiKind]
    environment: Mapping[str, str]
    cwd: str


# --------------------------------------------------------------------------- plan


@frozen
class Bind:
    """Bind source of the node onto target of the pod, with everything mounted below it.

    optional: a missing source is passed over.
    """

    source: str
    target: str
    read_only: bool = False
    optional: bool = False


@frozen
class BindFromEnv:
    """Bind the directory that an environment variable of the rank names, at its own path.

    For what changes with every step and so must not be in a plan that outlives the step, such as
    PMIX_SERVER_TMPDIR.  Passed over where the variable is unset or the directory is absent.
    """

    variable: str


@frozen
class Tmpfs:
    """A memory file system.  mode: permission bits; size: bytes, 0 for the kernel's default (half of RAM)."""

    target: str
    mode: int
    size: int = 0


@frozen
class GeneratedFile:
    """A read-only file with this text, bound over target."""

    target: str
    content: str


@frozen
class Shield:
    """No directory that a variable names is bound here: it would hide files of the image.

    whole: the directory alone; else all below it too.
    """

    target: str
    whole: bool


Mount = Bind | BindFromEnv | Tmpfs | GeneratedFile | Shield


@frozen
class EnvSet:
    """NAME=VALUE whatever the rank inherits."""

    name: str
    value: str


@frozen
class EnvDefault:
    """NAME=VALUE unless the rank inherits NAME."""

    name: str
    value: str


@frozen
class EnvUnset:
    """Remove NAME; a trailing ``*`` removes every name with that prefix."""

    pattern: str


@frozen
class EnvKeep:
    """Keep the inherited NAME against every EnvUnset pattern."""

    name: str


EnvOp = EnvSet | EnvDefault | EnvUnset | EnvKeep


@frozen
class PodPlan:
    """What makes a pod: its root, its mounts in order, its memory.

    writable: size in bytes of the memory layer over the image, or None for a read-only root.
    """

    rootfs: Rootfs
    writable: int | None
    mounts: tuple[Mount, ...]


@frozen
class RankPlan:
    """What every rank does after it joined the pod.

    workdirs: tried in order; ``.`` is the directory where the rank was started.
    command: argv for a rank that names no program.  launch: words put before the rank's argv
    (an mpiexec of the image).  seccomp: BPF program (struct sock_filter[]), empty for none.
    accepted: PMI kinds that the image's MPI understands, None when no check is wanted.
    preserve_fds: descriptors 3, 4, … that stay open beside stdio and PMI's.  mpi: the mode asked for, for
    the closer look that is taken when served and accepted kinds do not meet.
    """

    environment: tuple[EnvOp, ...]
    workdirs: tuple[str, ...]
    command: tuple[str, ...]
    launch: tuple[str, ...]
    seccomp: bytes
    accepted: frozenset[PmiKind] | None
    preserve_fds: int = 0
    mpi: str = "auto"


@frozen
class NodePlan:
    """All that the native executor needs on one node, and what must still be true for it to be used.

    guards: files that the plan was made from; one that changed makes the plan void.  until: seconds since
    1970 from which on it is void, 0 for never.  fresh_ns: CLOCK_REALTIME; where it is not 0, the plan is good
    only for starts that began before, and so waited for it.
    """

    image: VerifiedImage
    guards: tuple[FileStamp, ...]
    pod: PodPlan
    rank: RankPlan
    until: int = 0
    fresh_ns: int = 0
