# SPDX-License-Identifier: Apache-2.0
"""The rule that refuses N worlds of size one, and the wiring of what it lets through."""

from __future__ import annotations

import pytest

from hpcpod.errors import EXIT_HPCPOD, Fault, MpiMismatch, UsageError
from hpcpod.launcher.mpi import accepted, check, check_local, local_launch, wiring
from hpcpod.model import (
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

BY_FD = frozenset({PmiKind.PMI1, PmiKind.PMI2})
PMIX = frozenset({PmiKind.PMIX})
MPICH = MpiLibrary(MpiFamily.MPICH, "/usr/lib/libmpich.so.12", BY_FD)
OPEN_MPI = MpiLibrary(MpiFamily.OPENMPI, "/usr/lib/libmpi.so.40", PMIX)
MAYBE = ProgramMpi(MpiUse.MAYBE)


def step(
    served: frozenset[PmiKind], ntasks: int = 4, launcher: str = "slurm", **environment: str
) -> StepContext:
    return StepContext(
        launcher=launcher,
        scope="slurm-12.0",
        job_id="12",
        step_id="0",
        node="n0",
        rank=0,
        local_rank=0,
        ntasks=ntasks,
        local_ntasks=2,
        served=served,
        environment=environment,
        cwd="/",
    )


@pytest.mark.parametrize(("library", "served"), [(MPICH, BY_FD), (OPEN_MPI, PMIX), (MPICH, BY_FD | PMIX)])
def test_what_fits_passes(library: MpiLibrary, served: frozenset[PmiKind]) -> None:
    check(step(served), (library,), "auto", MAYBE)
    check(step(served), (library,), "auto", ProgramMpi(MpiUse.YES, (library,)))


@pytest.mark.parametrize(
    ("library", "served", "way"),
    [
        (MPICH, frozenset[PmiKind](), "srun --mpi=pmi2"),
        (MPICH, PMIX, "srun --mpi=pmi2"),
        (OPEN_MPI, frozenset[PmiKind](), "srun --mpi=pmix"),
        (OPEN_MPI, BY_FD, "srun --mpi=pmix"),
    ],
)
def test_singletons_are_refused_with_the_way_out(
    library: MpiLibrary, served: frozenset[PmiKind], way: str
) -> None:
    with pytest.raises(MpiMismatch, match="4 worlds of size 1") as caught:
        check(step(served), (library,), "auto", MAYBE)
    error = caught.value
    assert error.hint is not None
    assert way in error.hint
    assert "hpcpod run --mpi=none" in error.hint
    assert library.path in error.message
    assert "12.0" in error.message
    assert (error.exit_code, error.fault, error.slug) == (EXIT_HPCPOD, Fault.USER, "mpi-mismatch")


def test_what_is_not_checked() -> None:
    nothing = frozenset[PmiKind]()
    check(step(nothing), (MPICH,), "none", MAYBE)
    check(step(nothing), (MPICH,), "auto", ProgramMpi(MpiUse.NO))
    check(step(nothing), (), "auto", MAYBE)
    check(step(nothing, ntasks=1), (MPICH,), "auto", MAYBE)


def test_the_library_that_the_program_is_linked_with_decides() -> None:
    both = (MPICH, OPEN_MPI)
    check(step(BY_FD), both, "auto", MAYBE)
    check(step(BY_FD), both, "auto", ProgramMpi(MpiUse.YES, (MPICH,)))
    with pytest.raises(MpiMismatch):
        check(step(BY_FD), both, "auto", ProgramMpi(MpiUse.YES, (OPEN_MPI,)))


def test_a_demanded_kind_is_checked_whatever_the_image_holds() -> None:
    check(step(PMIX), (), "pmix", ProgramMpi(MpiUse.NO))
    with pytest.raises(MpiMismatch, match="by --mpi"):
        check(step(frozenset()), (), "pmi2", ProgramMpi(MpiUse.NO))
    with pytest.raises(UsageError, match="--mpi"):
        accepted((), "pmi3", MAYBE)


@pytest.mark.parametrize("ntasks", [1, 4])
@pytest.mark.parametrize("served", [PMIX, frozenset[PmiKind]()])
def test_a_demand_that_the_programs_mpi_cannot_meet_is_refused(
    ntasks: int, served: frozenset[PmiKind]
) -> None:
    """Whatever is served, and for one rank too: it would be a world of size 1 where more were meant."""
    for program in (MAYBE, ProgramMpi(MpiUse.YES), ProgramMpi(MpiUse.YES, (MPICH,))):
        assert accepted((MPICH,), "pmix", program) == frozenset()
        with pytest.raises(MpiMismatch, match=r"speaks pmi1 and pmi2; --mpi=pmix asks for") as caught:
            check(step(served, ntasks=ntasks), (MPICH,), "pmix", program)
        assert "--mpi=none" in str(caught.value.hint)
    with pytest.raises(MpiMismatch, match="asks for what it does not speak"):
        check(step(BY_FD), (MPICH, OPEN_MPI), "pmix", ProgramMpi(MpiUse.YES, (MPICH,)))
    check(step(PMIX), (MPICH, OPEN_MPI), "pmix", MAYBE)
    check(step(PMIX, ntasks=ntasks), (MPICH,), "pmix", ProgramMpi(MpiUse.NO))


def test_a_demand_that_the_images_mpiexec_cannot_meet_is_refused() -> None:
    hydra = Mpiexec(MpiFamily.MPICH, "/usr/bin/mpiexec.hydra")
    with pytest.raises(MpiMismatch, match="serves pmi1 and pmi2; --mpi=pmix asks"):
        check_local("pmix", hydra, (OPEN_MPI, MPICH))
    for mode in ("auto", "none", "pmi2"):
        check_local(mode, hydra, (MPICH,))
    check_local("pmix", hydra, ())


def test_a_served_size_that_is_not_the_steps_is_refused() -> None:
    check(step(BY_FD, PMI_SIZE="4"), (MPICH,), "auto", MAYBE)
    with pytest.raises(MpiMismatch, match="PMI_SIZE: got 1, expected 4"):
        check(step(BY_FD, PMI_SIZE="1"), (MPICH,), "auto", MAYBE)


def test_an_mpiexec_of_the_host_that_does_not_fit_is_refused() -> None:
    with pytest.raises(MpiMismatch, match="mpiexec") as caught:
        check(step(BY_FD, launcher="local"), (OPEN_MPI,), "auto", MAYBE)
    assert caught.value.hint is not None
    assert "hpcpod run -n 4" in caught.value.hint


def test_in_a_job_too_it_is_the_mpiexec_that_does_not_fit() -> None:
    with pytest.raises(MpiMismatch, match="the mpiexec that started this rank serves pmix") as caught:
        check(step(PMIX, OMPI_COMM_WORLD_SIZE="4"), (MPICH,), "auto", MAYBE)
    assert caught.value.hint is not None
    assert "mpiexec of the image's family" in caught.value.hint


def test_one_library_of_each_family_is_named() -> None:
    abi = MpiLibrary(MpiFamily.MPICH, "/usr/lib/libmpi_abi.so.1", BY_FD)
    with pytest.raises(MpiMismatch, match=r"image: MPICH \(/usr/lib/libmpich.so.12\) speaks pmi1 and pmi2;"):
        check(step(PMIX), (MPICH, abi), "auto", MAYBE)


def test_a_path_of_an_image_is_shown_escaped() -> None:
    evil = MpiLibrary(MpiFamily.MPICH, "/opt/\x1b[31m\n/libmpi.so", BY_FD)
    with pytest.raises(MpiMismatch) as caught:
        check(step(frozenset()), (evil,), "auto", MAYBE)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("mode", "ops"),
    [
        (None, ()),
        ("native", ()),
        ("munge", ()),
        ("munge,native", (EnvSet("PMIX_SECURITY_MODE", "native"),)),
    ],
)
def test_native_security_where_the_server_lists_it(mode: str | None, ops: tuple[EnvSet, ...]) -> None:
    assert wiring({} if mode is None else {"PMIX_SECURITY_MODE": mode}) == ops


def test_hydra_forks_on_this_node_alone() -> None:
    launch = local_launch(Mpiexec(MpiFamily.MPICH, "/usr/bin/mpiexec.hydra"), 3, 1001)
    assert launch.words == (
        *("/usr/bin/mpiexec.hydra", "-launcher", "fork", "-hosts", "localhost", "-n", "3"),
    )
    assert EnvUnset("PMI_FD") in launch.environment


@pytest.mark.parametrize("uid", [0, 1001])
def test_open_mpi_runs_as_the_pods_root_only_where_told(uid: int) -> None:
    launch = local_launch(Mpiexec(MpiFamily.OPENMPI, "/usr/bin/orterun"), 3, uid)
    assert launch.words == ("/usr/bin/orterun", "--oversubscribe", "-n", "3")
    assert (EnvSet("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1") in launch.environment) == (uid == 0)
    assert EnvUnset("PMIX_SERVER_*") in launch.environment
