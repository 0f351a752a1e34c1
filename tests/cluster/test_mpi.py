# SPDX-License-Identifier: Apache-2.0
"""MPI across nodes, for each origin of MPI that an image may have, and what happens where it cannot work."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.cluster.conftest import Site, Start, say
from tests.testbed import image

pytestmark = pytest.mark.needs("root", "slurm", "native", "umoci", "mmdebstrap", "mpich")

MODULE = ["python3", "-m", "hpcpod_demo", "--size", "4", "--json"]
PROGRAMS = {
    "mpich": (MODULE, "pmi2", "MPICH Version: 5."),
    "debian-mpich": (["allreduce", "4"], "pmi2", "MPICH Version:"),
    "openmpi": (MODULE, "pmix", "Open MPI v5."),
    "debian-openmpi": (MODULE, "pmix", "Open MPI v4."),
}


def _check_placement(start: Start) -> None:
    """One world of four ranks: two on each node, each with a CPU of its own, in one pod per node."""
    rows = start.rows
    assert [row["size"] for row in rows] == [4] * 4
    assert sorted(row["rank"] for row in rows) == [0, 1, 2, 3]
    assert Counter(row["node"] for row in rows) == {"n0": 2, "n1": 2}
    assert len({(row["node"], row["cpus"]) for row in rows}) == 4
    assert all(row["cpus"].isdigit() for row in rows)
    assert len({(row["node"], row["mnt_ns"]) for row in rows}) == 2


@pytest.mark.parametrize("name", PROGRAMS)
def test_ranks_on_two_nodes_are_one_world(site: Site, name: str) -> None:
    program, kind, library = PROGRAMS[name]
    reference = image.reference(name, say)
    start = site.srun(reference, program, srun=["-N2", "-n4", f"--mpi={kind}"])
    assert start.status == 0, start.stdout + start.stderr
    _check_placement(start)
    assert {row["library"].startswith(library) for row in start.rows} == {True}


@pytest.mark.parametrize(("name", "kind"), [("mpich", "pmix"), ("mpich", "none"), ("openmpi", "pmi2"),
                                            ("openmpi", "none"), ("debian-mpich", "none"),
                                            ("debian-openmpi", "pmi2")])  # fmt: skip
def test_four_worlds_of_one_rank_are_an_error(site: Site, name: str, kind: str) -> None:
    program, right, _ = PROGRAMS[name]
    start = site.srun(image.reference(name, say), program, srun=["-N2", "-n4", f"--mpi={kind}"])
    assert start.status == 125, start.stdout + start.stderr
    assert start.rows == []
    assert "4 worlds of size 1" in start.stderr
    assert f"hint: srun --mpi={right}" in start.stderr


def test_the_check_can_be_switched_off(site: Site, warm_image: str) -> None:
    program = ["python3", "-m", "hpcpod_demo", "--json"]
    start = site.srun(warm_image, program, srun=["-N2", "-n4", "--mpi=none"], options=["--mpi=none"])
    assert start.status == 0, start.stderr
    assert [row["size"] for row in start.rows] == [1] * 4


def test_mpi_works_again_and_again_in_one_allocation(site: Site, warm_image: str) -> None:
    """Each step has its own pods, and its own PMI."""
    once = f"srun --mpi=pmi2 hpcpod run {warm_image} -- python3 -m hpcpod_demo --size 4 --json"
    start = site.script(f"{once}; {once}; {once}")
    assert start.status == 0, start.stderr
    assert [row["size"] for row in start.rows] == [4] * 12
    assert len({row["mnt_ns"] for row in start.rows}) >= 2
