# SPDX-License-Identifier: Apache-2.0
"""Packed images under a scheduler that ends a step by killing its control group (docs/adr/0006)."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import Site
from tests.integration.pod.image import small_tree, write_layout

pytestmark = pytest.mark.needs("root", "slurm", "native", "fuse")


@pytest.fixture(scope="module")
def small_image(site: Site) -> str:
    """The small image as a layout on the first node's disk."""
    layout = site.cluster.root("n0") / "var/tmp/small-image"
    write_layout(layout, small_tree(), env={"PATH": "/bin"})
    return "oci:/var/tmp/small-image:latest"


def test_the_end_of_a_step_leaves_the_image_of_another_alone(site: Site, small_image: str) -> None:
    """The first step made the mount of its own: its server is killed with it."""
    run = f"srun -w n0 -N1 -n1 --exact hpcpod run --rootfs=squashfs {small_image} --"
    start = site.script(
        f"{run} true; "
        f"{run} sleep 2 & sleep 1; "
        f"{run} sh -c 'sleep 3; cat /etc/os-release; ls -d /srv' & second=$!; "
        "wait %1; wait $second"
    )
    assert (start.status, start.stdout) == (0, "ID=tiny\n/srv\n"), start.stderr


def test_ranks_of_a_step_share_a_mount(site: Site, small_image: str) -> None:
    script = "grep -c fuse.squashfuse /proc/self/mountinfo; readlink /proc/self/ns/mnt"
    start = site.srun(
        small_image,
        ["sh", "-c", script],
        srun=["-w", "n0", "-N1", "-n2"],
        options=["--rootfs=squashfs", "--mpi=none"],
    )
    assert start.status == 0, start.stderr
    assert len(set(start.stdout.split())) == 2
