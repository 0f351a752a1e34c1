# SPDX-License-Identifier: Apache-2.0
"""Disks that are full, out of inodes or read-only, limits of the process: real ones, made for each test."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.faults.conftest import MakeRig, Mount, plain_uid
from tests.testbed.crashes import Rig, fingerprint
from tests.testbed.injector import Run
from tests.testbed.layouts import Image, Layer, directory, file, write_layout

pytestmark = pytest.mark.needs("gcc", "root", "plain")

MiB = 1 << 20
BIG = Image([Layer(directory(b"./") + file(b"big", bytes(range(256)) * 4096 * 48), "none")])
MANY = Image([Layer(directory(b"./") + b"".join(file(b"f%d" % n, b"x") for n in range(600)))])
"""48 MiB in one file; 600 files."""


@pytest.fixture
def rig(make_rig: MakeRig, mounted: Mount, request: pytest.FixtureRequest) -> Rig:
    """A rig whose store lies on the small file system that the test names."""
    disk = mounted(request.param)
    (disk / "user").mkdir()
    rig = make_rig(plain_uid(), store=disk / "user" / "store")
    write_layout(rig.base / "layouts" / "big", BIG)
    write_layout(rig.base / "layouts" / "many", MANY)
    rig.references |= {name: f"oci:{rig.base}/layouts/{name}" for name in ("big", "many")}
    return rig


def pull(rig: Rig, image: str, **more: Any) -> Run:
    return rig.run(["image", "pull", "--rootfs=dir", rig.references[image]], **more)


def start_with(rig: Rig) -> None:
    """An image is in the store, and is not to be collected to make room."""
    pull(rig, "two").check()
    rig.run(["image", "pin", rig.references["two"]]).check()


def recovers(rig: Rig, failed: Run, slug: str) -> None:
    """The failed pull says why in one line with the path; what was there stays, and small images fit."""
    lines = [line for line in failed.errors.splitlines() if "[" in line]
    assert failed.status == 125, str(failed)
    assert len(lines) == 1 and slug in lines[0] and str(rig.store) in lines[0], str(failed)
    goes_on(rig, failed)


def goes_on(rig: Rig, run: Run) -> None:
    """What was there stays, and small images can be pulled and removed."""
    assert len(rig.names()) == 1, str(run)
    rig.clean(run)
    pull(rig, "one").check()
    rig.run(["image", "unpin", rig.references["two"]]).check()
    for name in ("one", "two"):
        rig.run(["image", "rm", rig.references[name]]).check()
    rig.clean(run)


def fill(rig: Rig, leave: int) -> Path:
    """Take the disk's space but for so many bytes, with a file beside the store."""
    path = rig.store.parent / "ballast"
    subprocess.run(["fallocate", "-l", str(_free(rig) - leave), path], check=True)
    return path


def _free(rig: Rig) -> int:
    done = subprocess.run(
        ["stat", "-f", "-c", "%a %S", rig.store.parent], capture_output=True, text=True, check=True
    )
    blocks, size = map(int, done.stdout.split())
    return blocks * size


@pytest.mark.parametrize(
    "rig", ["size=64m,mode=755", pytest.param("ext4", marks=pytest.mark.needs("loop"))], indirect=True
)
def test_no_space_while_unpacking(rig: Rig) -> None:
    """The layers' sum fits when work starts; then somebody else takes the space."""
    start_with(rig)
    running = rig.start(["image", "pull", "--rootfs=dir", rig.references["big"]], ["changes:60:hold"])
    assert running.held()
    ballast = fill(rig, 4 * MiB)
    running.go_on()
    failed = running.result()
    ballast.unlink()
    recovers(rig, failed, "[store-full]")


@pytest.mark.parametrize("rig", ["size=24m,mode=755"], indirect=True)
def test_no_space_is_seen_before_work_starts(rig: Rig) -> None:
    start_with(rig)
    recovers(rig, pull(rig, "big"), "[store-full]")


@pytest.mark.parametrize("rig", ["nr_inodes=300,mode=755"], indirect=True)
def test_no_inodes(rig: Rig) -> None:
    start_with(rig)
    recovers(rig, pull(rig, "many"), "[store-full]")


@pytest.mark.parametrize("rig", ["size=64m,mode=755"], indirect=True)
def test_limit_of_file_sizes(rig: Rig) -> None:
    """RLIMIT_FSIZE; Python has SIGXFSZ ignored."""
    start_with(rig)
    recovers(rig, pull(rig, "big", limits={"FSIZE": MiB}), "[store-")


@pytest.mark.parametrize("rig", ["size=64m,mode=755"], indirect=True)
def test_limit_of_descriptors(rig: Rig) -> None:
    """RLIMIT_NOFILE: 16 suffice, or it is said that they do not."""
    start_with(rig)
    run = pull(rig, "big", limits={"NOFILE": 16})
    if run.status != 0:
        recovers(rig, run, "[store-")
    else:
        rig.run(["image", "rm", rig.references["big"]]).check()
        goes_on(rig, run)


@pytest.mark.parametrize("rig", ["size=64m,mode=755"], indirect=True)
def test_read_only_disk(rig: Rig) -> None:
    """Images that are there are listed, shown and used; changing commands say why not; nothing is lost."""
    pull(rig, "one").check()
    before = fingerprint(rig.store)
    disk = str(rig.store.parent.parent)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        assert rig.references["one"] in rig.run(["image", "list"]).check().output
        pull(rig, "one").check()
        rig.run(["image", "inspect", rig.references["one"]]).check()
        rig.run(["gc"]).check()
        for words in (["pull", rig.references["two"]], ["rm", rig.references["one"]]):
            run = rig.run(["image", *words])
            line = run.errors.splitlines()[0]
            assert (run.status, len(run.errors.splitlines()) <= 2) == (125, True), str(run)
            assert "read-only file system" in line and str(rig.store) in line, str(run)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert fingerprint(rig.store) == before
    pull(rig, "two").check()
    rig.clean()
