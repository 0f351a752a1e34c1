# SPDX-License-Identifier: Apache-2.0
"""Which MPI an unpacked tree holds, and which programs of it use it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcpod.images.contents.inside import Inside
from hpcpod.images.contents.mpi_scan import find_mpi, find_mpiexec, program_may_use_mpi
from hpcpod.model import Mpiexec, MpiFamily, MpiLibrary, MpiUse, PmiKind
from tests.unit.mpi.elves import AARCH64, elf, put

BY_FD = frozenset({PmiKind.PMI1, PmiKind.PMI2})
PMIX = frozenset({PmiKind.PMIX})
LIB = "/usr/lib/x86_64-linux-gnu"

MPICH = elf(needed=["libc.so.6"], soname="libmpich.so.12")
OPEN_MPI = elf(needed=["libopen-pal.so.40", "libc.so.6"], soname="libmpi.so.40")
LIBC = elf(soname="libc.so.6")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, f"{LIB}/libc.so.6", LIBC)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "data", "family", "kinds"),
    [
        pytest.param(f"{LIB}/libmpich.so.12.2.2", MPICH, MpiFamily.MPICH, BY_FD, id="Debian MPICH"),
        pytest.param(f"{LIB}/libmpi.so.40.30.4", OPEN_MPI, MpiFamily.OPENMPI, PMIX, id="Debian Open MPI"),
        pytest.param("/usr/lib64/openmpi/lib/libmpi.so.40", OPEN_MPI, MpiFamily.OPENMPI, PMIX, id="Fedora"),
        pytest.param("/usr/lib64/mpi/gcc/mpich/lib64/libmpi.so.12", MPICH, MpiFamily.MPICH, BY_FD, id="SUSE"),
        pytest.param("/usr/local/lib/libmpi.so.12", MPICH, MpiFamily.MPICH, BY_FD, id="wheel, system Python"),
        pytest.param("/opt/view/lib/libmpi.so.40", OPEN_MPI, MpiFamily.OPENMPI, PMIX, id="prefix in /opt"),
        pytest.param("/opt/conda/lib/libmpi.so.12", MPICH, MpiFamily.MPICH, BY_FD, id="conda"),
        pytest.param(
            "/usr/local/mpi/lib/libmpi.so.40", OPEN_MPI, MpiFamily.OPENMPI, PMIX, id="/usr/local/mpi"
        ),
        pytest.param(
            "/usr/local/lib/libmpi.so.12",
            elf(needed=["libopen-rte.so.12"], soname="libmpi.so.12"),
            *(MpiFamily.OPENMPI, PMIX),
            id="Open MPI 1.10 has MPICH's soname",
        ),
        pytest.param(
            "/usr/lib/libmpi.so.12",
            elf(needed=["libpmix.so.2"], soname="libmpi.so.12"),
            *(MpiFamily.MPICH, BY_FD | PMIX),
            id="MPICH with PMIx",
        ),
    ],
)
def test_known_places(
    root: Path, path: str, data: bytes, family: MpiFamily, kinds: frozenset[PmiKind]
) -> None:
    put(root, path, data)
    assert find_mpi(str(root)) == (MpiLibrary(family, path, kinds),)


def test_a_virtual_environment_is_found_through_path(root: Path) -> None:
    put(root, "/srv/app/venv/lib/libmpi.so.40", OPEN_MPI)
    assert find_mpi(str(root)) == ()
    found = find_mpi(str(root), ("/srv/app/venv/bin", "/usr/bin"))
    assert [library.path for library in found] == ["/srv/app/venv/lib/libmpi.so.40"]


def test_links_of_one_library_are_one_library(root: Path) -> None:
    put(root, f"{LIB}/libmpi.so.40.30.4", OPEN_MPI)
    for name in ("libmpi.so", "libmpi.so.40"):
        os.symlink("libmpi.so.40.30.4", root / LIB[1:] / name)
    put(root, f"{LIB}/libmpi_cxx.so.40", OPEN_MPI)
    assert len(find_mpi(str(root))) == 1


def test_open_mpi_4_built_with_slurms_pmi(root: Path) -> None:
    put(root, "/usr/lib64/openmpi/lib/libmpi.so.40", OPEN_MPI)
    put(root, "/usr/lib64/openmpi/lib/openmpi/mca_pmix_s2.so", b"")
    assert find_mpi(str(root))[0].pmi == PMIX | {PmiKind.PMI2}


def test_no_link_leads_out_of_the_tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    put(outside, "lib/libmpi.so.40", OPEN_MPI)
    (root / "opt").mkdir()
    os.symlink(outside, root / "opt" / "absolute")
    os.symlink("../../../" * 20 + str(outside), root / "opt" / "relative")
    os.symlink(outside / "lib/libmpi.so.40", root / LIB[1:] / "libmpi.so.40")
    assert find_mpi(str(root)) == ()
    # The same link means the file at that path inside the tree, where there is one.
    put(root, str(outside / "lib/libmpi.so.40"), OPEN_MPI)
    assert [library.path for library in find_mpi(str(root))] == [str(outside / "lib/libmpi.so.40")]


def test_traps_are_passed_over(root: Path) -> None:
    where = root / LIB[1:]
    os.mkfifo(where / "libmpi.so.40")
    (where / "libmpi.so.12").mkdir()
    os.symlink("libmpich.so.12", where / "libmpich.so.12")
    put(root, f"{LIB}/libmpi_abi.so.1", b"\x7fELF\x02\x01" + b"\xff" * 200)
    put(root, f"{LIB}/libmpi.so", b"INPUT(libmpi.so.12)\n")
    assert find_mpi(str(root)) == ()


def test_dots_and_a_missing_root(root: Path) -> None:
    put(root, "/etc/os-release", b"x")
    with Inside(str(root)) as inside:
        assert inside.resolve("/../../etc/./os-release") == "/etc/os-release"
        assert inside.resolve("/") == "/"
        assert inside.resolve("/nul\0") is None
        assert inside.names("/etc") == ["os-release"]
    with pytest.raises(FileNotFoundError):
        find_mpi(str(root / "absent"))


# --------------------------------------------------------------------------- programs


def use(root: Path, program: str, *search: str) -> tuple[MpiUse, list[str]]:
    libraries = find_mpi(str(root))
    found = program_may_use_mpi(str(root), program, libraries, search)
    return found.use, [library.path for library in found.libraries]


def test_a_program_linked_with_mpi_uses_that_one(root: Path) -> None:
    put(root, f"{LIB}/libmpi.so.40", OPEN_MPI)
    put(root, f"{LIB}/libmpich.so.12", MPICH)
    put(root, f"{LIB}/libopen-pal.so.40", LIBC)
    put(root, "/usr/bin/a.out", elf(needed=["libc.so.6", "libmpich.so.12"]))
    assert use(root, "/usr/bin/a.out") == (MpiUse.YES, [f"{LIB}/libmpich.so.12"])


def test_through_another_library_and_its_run_path(root: Path) -> None:
    put(root, "/opt/app/lib/libhdf5.so.1", elf(needed=["libmpi.so.40", "libc.so.6"], runpath="$ORIGIN/mpi"))
    put(root, "/opt/app/lib/mpi/libmpi.so.40", OPEN_MPI)
    put(root, "/opt/app/bin/a.out", elf(needed=["libhdf5.so.1"], runpath="${ORIGIN}/../lib"))
    assert use(root, "/opt/app/bin/a.out")[0] is MpiUse.YES


def test_the_library_path_of_the_image_counts(root: Path) -> None:
    put(root, "/srv/lib/libx.so", elf(needed=["libmpi.so.12"]))
    put(root, "/bin/a.out", elf(needed=["libx.so"]))
    assert use(root, "/bin/a.out") == (MpiUse.MAYBE, [])
    assert use(root, "/bin/a.out", "/srv/lib") == (MpiUse.YES, [])


def test_a_program_without_mpi_does_not_use_it(root: Path) -> None:
    put(root, "/usr/bin/hostname", elf(needed=["libc.so.6"]))
    put(root, "/usr/bin/static", elf(static=True))
    assert use(root, "/usr/bin/hostname") == (MpiUse.NO, [])
    assert use(root, "/usr/bin/static") == (MpiUse.NO, [])


@pytest.mark.parametrize("name", ["python3.11", "python3", "perl5.36.0", "bash", "R", "env", "timeout"])
def test_interpreters_and_starters_may(root: Path, name: str) -> None:
    put(root, f"/usr/bin/{name}", elf(needed=["libc.so.6"]))
    assert use(root, f"/usr/bin/{name}") == (MpiUse.MAYBE, [])


def test_a_link_to_an_interpreter_may(root: Path) -> None:
    put(root, "/usr/bin/python3.11", elf(needed=["libc.so.6"]))
    os.symlink("/usr/bin/python3.11", root / "usr/bin/mytool")
    assert use(root, "/usr/bin/mytool") == (MpiUse.MAYBE, [])


def test_scripts_and_what_is_not_there_may(root: Path) -> None:
    put(root, "/usr/bin/tool", b"#!/usr/bin/python3\n")
    assert use(root, "/usr/bin/tool") == (MpiUse.MAYBE, [])
    assert use(root, "/home/alice/a.out") == (MpiUse.MAYBE, [])


def test_libraries_that_need_each_other_end(root: Path) -> None:
    put(root, f"{LIB}/liba.so", elf(needed=["libb.so"]))
    put(root, f"{LIB}/libb.so", elf(needed=["liba.so"]))
    put(root, "/bin/a.out", elf(needed=["liba.so"]))
    assert use(root, "/bin/a.out") == (MpiUse.NO, [])


def test_a_library_of_another_machine_does_not_count(root: Path) -> None:
    put(root, "/usr/lib/libx.so", elf(needed=["libmpi.so.40"], machine=AARCH64))
    put(root, "/bin/a.out", elf(needed=["libx.so"]))
    assert use(root, "/bin/a.out") == (MpiUse.MAYBE, [])


# --------------------------------------------------------------------------- mpiexec


def test_each_family_has_its_own_mpiexec(root: Path) -> None:
    put(root, f"{LIB}/libmpi.so.40", OPEN_MPI)
    put(root, f"{LIB}/libmpich.so.12", MPICH)
    for name in ("orterun", "mpiexec.hydra", "hydra_pmi_proxy"):
        put(root, f"/usr/bin/{name}", LIBC)
    os.symlink("orterun", root / "usr/bin/mpiexec.openmpi")
    os.symlink("/etc/alternatives/mpiexec", root / "usr/bin/mpiexec")
    (root / "etc/alternatives").mkdir(parents=True)
    os.symlink("/usr/bin/mpiexec.openmpi", root / "etc/alternatives/mpiexec")
    assert find_mpiexec(str(root), find_mpi(str(root))) == (
        Mpiexec(MpiFamily.OPENMPI, "/usr/bin/mpiexec.openmpi"),
        Mpiexec(MpiFamily.MPICH, "/usr/bin/mpiexec.hydra"),
    )


@pytest.mark.parametrize(
    ("library", "data", "beside", "family"),
    [
        ("libmpi.so.12", MPICH, "hydra_pmi_proxy", MpiFamily.MPICH),
        ("libmpi.so.40", OPEN_MPI, "prterun", MpiFamily.OPENMPI),
    ],
)
def test_a_wheels_mpiexec_is_told_by_what_lies_beside_it(
    root: Path, library: str, data: bytes, beside: str, family: MpiFamily
) -> None:
    put(root, f"/venv/lib/{library}", data)
    put(root, "/venv/bin/mpiexec", LIBC)
    put(root, f"/venv/bin/{beside}", LIBC)
    search = ("/venv/bin", "/usr/bin")
    assert find_mpiexec(str(root), find_mpi(str(root), search), search) == (
        Mpiexec(family, "/venv/bin/mpiexec"),
    )


def test_an_mpiexec_of_the_other_family_is_none(root: Path) -> None:
    put(root, f"{LIB}/libmpi.so.40", OPEN_MPI)
    put(root, "/usr/bin/mpiexec", LIBC)
    put(root, "/usr/bin/hydra_pmi_proxy", LIBC)
    assert find_mpiexec(str(root), find_mpi(str(root))) == ()
