# SPDX-License-Identifier: Apache-2.0
"""Whether the MPI of an image and the process manager fit, and what their wiring needs.  Pure rules.

Why a check at all: with a process manager that it does not understand, most MPI libraries start every rank
as a world of size one, and the job ends with status 0 and a wrong result.
"""

from __future__ import annotations

from collections.abc import Mapping

from hpcpod.errors import MpiMismatch, UsageError
from hpcpod.frozen import frozen
from hpcpod.log import shown
from hpcpod.model import (
    EnvOp,
    EnvSet,
    EnvUnset,
    Mpiexec,
    MpiFamily,
    MpiLibrary,
    MpiUse,
    PmiKind,
    ProgramMpi,
    StepContext,
)

MODES = ("auto", "pmi2", "pmix", "none")
"""``--mpi``: check by what the image holds, demand one kind, or leave MPI alone."""

_DEMANDED = {
    "pmi2": frozenset({PmiKind.PMI1, PmiKind.PMI2}),  # one descriptor serves both wire protocols
    "pmix": frozenset({PmiKind.PMIX}),
}

_WITHOUT = "if the program does not use MPI, hpcpod run --mpi=none"

NAMES = {MpiFamily.MPICH: "MPICH", MpiFamily.OPENMPI: "Open MPI"}


def accepted(libraries: tuple[MpiLibrary, ...], mode: str, program: ProgramMpi) -> frozenset[PmiKind] | None:
    """The PMI kinds that the program's MPI understands; None where no check is wanted.

    mode: one of MODES.  None for ``--mpi=none``, for a program without MPI, and where the image holds no
    MPI library.  Of a program that may use MPI, any of the image's libraries may be the one, so their
    kinds are joined.  A kind that is demanded stands for what the image does not tell; none at all where
    the program's MPI is known to speak others.  Raises UsageError for an unknown mode.
    """
    speakers = () if program.use is MpiUse.NO else program.libraries or libraries
    kinds = frozenset[PmiKind]().union(*(library.pmi for library in speakers))
    if mode in _DEMANDED:
        return _DEMANDED[mode] if not kinds or kinds & _DEMANDED[mode] else frozenset()
    if mode not in MODES:
        raise UsageError(f"--mpi: got {shown(mode)}, expected one of {', '.join(MODES)}")
    if mode == "none" or program.use is MpiUse.NO:
        return None
    return kinds or None


def check(context: StepContext, libraries: tuple[MpiLibrary, ...], mode: str, program: ProgramMpi) -> None:
    """Raise MpiMismatch where the step's ranks would start as worlds of size one, or of a wrong size."""
    kinds = accepted(libraries, mode, program)
    if kinds is not None and not kinds:
        speakers = program.libraries or libraries
        spoken = frozenset[PmiKind]().union(*(library.pmi for library in speakers))
        raise MpiMismatch(
            f"MPI of the image: {_described(speakers, spoken)}; --mpi={mode} asks for what it does not speak",
            hint=f"leave --mpi out, or use an image with another MPI; {_WITHOUT}",
        )
    if kinds is None or context.ntasks <= 1:
        return
    if not kinds & context.served:
        count = context.ntasks
        speakers = () if mode in _DEMANDED else program.libraries or libraries
        raise MpiMismatch(
            f"MPI of the image: {_described(speakers, kinds)}; {_place(context)} "
            f"serves {_kinds(context.served)}: {count} ranks would run as {count} worlds of size 1",
            hint=_hint(context, kinds),
        )
    size = context.environment.get("PMI_SIZE")
    if PmiKind.PMIX not in context.served and size is not None and size != str(context.ntasks):
        raise MpiMismatch(
            f"environment variable PMI_SIZE: got {shown(size[:20])}, expected {context.ntasks}, "
            f"the ranks of {_place(context)}",
            hint="unset PMI_SIZE and PMI_FD if they are left from another launcher",
        )


def _kinds(kinds: frozenset[PmiKind]) -> str:
    return " and ".join(sorted(kind.value for kind in kinds)) or "no PMI"


def _described(libraries: tuple[MpiLibrary, ...], kinds: frozenset[PmiKind]) -> str:
    """``MPICH (/usr/lib/libmpich.so.12) speaks pmi1 and pmi2``: one library of each family is named."""
    first = {library.family: library for library in reversed(libraries)}
    names = [f"{NAMES[family]} ({shown(library.path)})" for family, library in first.items()]
    return f"{' and '.join(names) or 'by --mpi'} {'speak' if len(names) > 1 else 'speaks'} {_kinds(kinds)}"


def _by_mpiexec(context: StepContext) -> bool:
    """Whether an mpiexec of the node started the rank, and not srun (scheduler_plugins.pmi)."""
    return any(name in context.environment for name in ("OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"))


def _place(context: StepContext) -> str:
    if context.launcher == "slurm" and not _by_mpiexec(context):
        return f"Slurm step {context.job_id}.{context.step_id}"
    return "the mpiexec that started this rank"


def _hint(context: StepContext, kinds: frozenset[PmiKind]) -> str:
    if context.launcher != "slurm":
        return f"hpcpod run -n {context.ntasks} uses the image's own mpiexec; {_WITHOUT}"
    if _by_mpiexec(context):
        return f"start the ranks with srun, or with an mpiexec of the image's family; {_WITHOUT}"
    ways = [f"srun --mpi={kind.value}" for kind in (PmiKind.PMI2, PmiKind.PMIX) if kind in kinds]
    return f"{' or '.join(ways)} starts this image's MPI (srun --mpi=list shows what there is); {_WITHOUT}"


def wiring(environment: Mapping[str, str]) -> tuple[EnvOp, ...]:
    """What the ranks' environment needs beyond what they inherit.

    Slurm's PMIx server asks for ``PMIX_SECURITY_MODE=munge,native``; a PMIx in the image that was built
    without munge, or that finds no munge socket in the pod, stops there instead of trying the second.
    ``native`` (the peer's uid, from the socket) is taken alone wherever the server lists it.
    """
    modes = environment.get("PMIX_SECURITY_MODE", "").split(",")
    if len(modes) > 1 and "native" in modes:
        return (EnvSet("PMIX_SECURITY_MODE", "native"),)
    return ()


# --------------------------------------------------------------------------- ranks without a scheduler


@frozen
class LocalLaunch:
    """How the image's mpiexec starts ranks on this node alone.

    words: put before the ranks' argv.  environment: applied before mpiexec starts.
    """

    words: tuple[str, ...]
    environment: tuple[EnvOp, ...]


_FOREIGN_PMI = ("PMI_FD", "PMI_PORT", "PMI_RANK", "PMI_SIZE", "PMIX_RANK", "PMIX_NAMESPACE", "PMIX_SERVER_*")
"""Left from a process manager around us; mpiexec would take itself for one of its ranks."""

_OPEN_MPI_ALONE = (
    # Within an allocation Open MPI starts its daemons with srun or tm, which the image does not have.
    EnvSet("OMPI_MCA_plm", "^slurm,tm,lsf,alps"),
    EnvSet("OMPI_MCA_ras", "^slurm,tm,lsf,gridengine,alps"),
    EnvSet("PRTE_MCA_plm", "^slurm,pbs,tm,lsf"),
    EnvSet("PRTE_MCA_ras", "^slurm,pbs,tm,lsf,gridengine,flux"),
)
_OPEN_MPI_ROOT = tuple(
    EnvSet(f"{program}_ALLOW_RUN_AS_ROOT{suffix}", "1")
    for program in ("OMPI", "PRTE")
    for suffix in ("", "_CONFIRM")
)
"""Uid 0 of a pod is the user's own uid; both words are needed, Open MPI 4 and 5 read different ones."""


def check_local(mode: str, mpiexec: Mpiexec, libraries: tuple[MpiLibrary, ...]) -> None:
    """Raise MpiMismatch where the image's mpiexec serves its ranks another kind than is demanded."""
    spoken = frozenset[PmiKind]().union(*(each.pmi for each in libraries if each.family is mpiexec.family))
    if mode in _DEMANDED and spoken and not spoken & _DEMANDED[mode]:
        raise MpiMismatch(
            f"mpiexec of the image: {NAMES[mpiexec.family]} ({shown(mpiexec.path)}) serves {_kinds(spoken)}; "
            f"--mpi={mode} asks for what it does not serve",
            hint="leave --mpi out: without a scheduler the ranks get what the image's own mpiexec serves",
        )


def local_launch(mpiexec: Mpiexec, ranks: int, uid: int) -> LocalLaunch:
    """How mpiexec starts `ranks` ranks in the pod as user uid.

    hydra: forks its proxy, and takes no nodes from an allocation around it.  Open MPI: as many ranks as
    asked for, also where there are fewer cores, as hydra does.
    """
    foreign = tuple(EnvUnset(name) for name in _FOREIGN_PMI)
    if mpiexec.family is MpiFamily.MPICH:
        words = (mpiexec.path, "-launcher", "fork", "-hosts", "localhost", "-n", str(ranks))
        return LocalLaunch(words, foreign)
    as_root = _OPEN_MPI_ROOT if uid == 0 else ()
    return LocalLaunch(
        (mpiexec.path, "--oversubscribe", "-n", str(ranks)), (*foreign, *_OPEN_MPI_ALONE, *as_root)
    )
