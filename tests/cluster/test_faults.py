# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an image is the user's to know and never the node's: no node is drained for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import Site
from tests.testbed import image

pytestmark = pytest.mark.needs("root", "slurm", "native", "umoci", "mmdebstrap")


@pytest.fixture
def broken(site: Site, demo_image: str) -> Iterator[Path]:
    """A copy of the demo's image in alice's home, with its largest blob cut short."""
    layout = site.cluster.home() / "broken"
    shutil.copytree(image.image(), layout)
    blob = max((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    with blob.open("r+b") as file:
        file.truncate(blob.stat().st_size // 2)
    yield layout
    shutil.rmtree(layout)


def _refused(site: Site, reference: str) -> str:
    """Start it with an empty store: what is unpacked already is not read again."""
    srun = ["-N2", "-n4", "--export=ALL,HPCPOD_STORE=/var/tmp/store-of-a-broken-image"]
    start = site.srun(reference, ["echo", "started"], srun=srun)
    assert start.status == 125, start.stdout + start.stderr
    assert "started" not in start.stdout
    assert "Traceback" not in start.stderr
    assert site.cluster.wait_idle() == {"n0": "idle", "n1": "idle"}
    return start.stderr


def test_an_image_that_is_not_there(site: Site) -> None:
    assert "/home/alice/nothing" in _refused(site, "oci:/home/alice/nothing")


def test_a_tag_that_is_not_there(site: Site, demo_image: str) -> None:
    assert "nosuchtag" in _refused(site, demo_image.replace(":latest", ":nosuchtag"))


def test_another_digest_than_the_pinned_one(site: Site, demo_image: str) -> None:
    digest = "sha256:" + "0" * 64
    layout = demo_image.removesuffix(":latest")
    assert digest[:19] in _refused(site, f"{layout}@{digest}")


@pytest.mark.usefixtures("broken")
def test_a_truncated_layer(site: Site) -> None:
    said = _refused(site, "oci:/home/alice/broken:latest")
    assert "/home/alice/broken" in said or "sha256:" in said


def test_a_word_that_is_no_reference(site: Site) -> None:
    _refused(site, "Not A Reference")


@pytest.mark.usefixtures("broken")
def test_the_next_job_on_the_same_nodes_works(site: Site, warm_image: str) -> None:
    _refused(site, "oci:/home/alice/broken:latest")
    start = site.srun(warm_image, ["echo", "started"], srun=["-N2", "-n4"])
    assert (start.status, start.stdout) == (0, "started\n" * 4), start.stderr
