# SPDX-License-Identifier: Apache-2.0
"""``--mpi`` asks for a kind that the image's MPI does not speak: refused where the program may use MPI."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.pod.conftest import PATH, Pods, step
from tests.integration.pod.image import Tree, write_layout
from tests.unit.mpi.elves import AARCH64, X86_64, elf

MACHINE = {"x86_64": X86_64, "aarch64": AARCH64}[platform.machine()]


@pytest.fixture
def with_mpich(layouts: Path, tree: Tree, pods: Pods) -> str:
    """An image that holds MPICH, as far as its files tell, and a program linked with it."""
    library = elf(soname="libmpich.so.12", machine=MACHINE)
    program = elf(needed=["libmpich.so.12"], interpreter="/lib64/ld-linux-x86-64.so.2", machine=MACHINE)
    files = {
        **tree.files,
        "usr/lib/libmpich.so.12": (0o755, library),
        "bin/solver": (0o755, program),
        "usr/bin/mpiexec.hydra": (0o755, tree.files["bin/true"][1]),
    }
    path = layouts / f"mpich-{pods.account.uid}"
    if path.exists():
        return f"oci:{path}:latest"
    return write_layout(path, replace(tree, files=files), env={"PATH": PATH})


@pytest.mark.parametrize("rootfs", ["dir", pytest.param("squashfs", marks=pytest.mark.needs("fuse"))])
def test_a_lone_rank_too(pods: Pods, with_mpich: str, rootfs: str) -> None:
    options = [f"--rootfs={rootfs}"]
    for env in ({}, step(0, 1), step(0, 2)):
        done = pods.run("solver", reference=with_mpich, options=[*options, "--mpi=pmix"], env=env)
        assert done.returncode == 125, done.stderr
        assert (
            "speaks pmi1 and pmi2; --mpi=pmix asks for what it does not speak [mpi-mismatch]" in done.stderr
        )
    done = pods.run("solver", reference=with_mpich, options=options, env={"HPCPOD_MPI": "pmix"})
    assert "[mpi-mismatch]" in done.stderr
    for mode in ("pmi2", "auto", "none"):
        done = pods.run("solver", reference=with_mpich, options=[*options, f"--mpi={mode}"])
        assert "[mpi-mismatch]" not in done.stderr
    assert pods.run("true", reference=with_mpich, options=[*options, "--mpi=pmix"]).returncode == 0


def test_the_images_own_mpiexec(pods: Pods, with_mpich: str) -> None:
    done = pods.run("true", reference=with_mpich, options=["-n", "2", "--mpi=pmix"])
    assert done.returncode == 125
    assert "mpiexec of the image: MPICH (/usr/bin/mpiexec.hydra) serves pmi1 and pmi2" in done.stderr
    assert pods.run("true", reference=with_mpich, options=["-n", "2", "--mpi=pmi2"]).returncode == 0
