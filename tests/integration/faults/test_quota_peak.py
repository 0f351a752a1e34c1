# SPDX-License-Identifier: Apache-2.0
"""The quota holds while an image is made: disks here are hardly larger, so what exceeds it fills them."""

from __future__ import annotations

import os
import re

import pytest

from tests import needs
from tests.integration.faults.conftest import MakeRig, Mount
from tests.testbed import squashes
from tests.testbed.acis import aci
from tests.testbed.crashes import Rig, fingerprint
from tests.testbed.injector import Run
from tests.testbed.layouts import Image, Layer, directory, file, gz, hardlink, write_layout
from tests.testbed.sifs import partition, sif

pytestmark = pytest.mark.needs("gcc", "root", "plain")

MiB = 1 << 20
QUOTA = 10 * MiB
SLACK = 4 * MiB
"""What a chunk that is being written, documents and directories take beside it."""
_SMALL = b"".join(file(b"d%02d/f%d" % (n % 50, n), b"x") for n in range(30_000))
_EMPTY = b"".join(directory(b"d%d" % n) for n in range(30_000))
LAYERS = {
    "one file": [file(b"f", bytes(300 * MiB))],
    "small files": [_SMALL],
    "directories": [_EMPTY],
    "long way": [b"".join(file(b"./.f%d" % n, bytes(MiB)) for n in range(100))],
    "two layers": [file(b"a", bytes(6 * MiB)), file(b"b", bytes(6 * MiB))],
}
FITS = {
    "just": [file(b"a", bytes(9 * MiB))],
    "linked": [file(b"a", bytes(6 * MiB)) + b"".join(hardlink(b"b%d" % n, b"a") for n in range(9))],
    "replaced": [file(b"a", bytes(6 * MiB)), file(b"a", bytes(7 * MiB))],
    "whiteouts": [file(b"d/e/a", bytes(6 * MiB)), file(b".wh.d") + file(b"a", bytes(7 * MiB))],
    "opaque": [file(b"d/e/a", bytes(6 * MiB)), file(b"d/.wh..wh..opq") + file(b"a", bytes(7 * MiB))],
}


@pytest.fixture(scope="module")
def rig(make_rig: MakeRig, mounted: Mount) -> Rig:
    """A store under a quota, on a disk of that size and some."""
    disk = mounted(f"size={QUOTA + SLACK},nr_inodes=0,mode=755")
    (disk / "user").mkdir()
    rig = make_rig(needs.PLAIN_UID, store=disk / "user" / "store")
    with (rig.base / "hpcpod.toml").open("a") as config:
        config.write('[user]\nquota = "10M"\n[store]\nhigh = 90\nlow = 50\n')
    return rig


def layout(rig: Rig, name: str, layers: list[bytes]) -> str:
    path = rig.base / "layouts" / name.replace(" ", "-")
    if not path.exists():
        write_layout(path, Image([Layer(layer, "zstd") for layer in layers]))
    return f"oci:{path}"


def refused(rig: Rig, *words: str) -> Run:
    """The command is refused for the quota, with nothing left; the disk never was full."""
    before = fingerprint(rig.store / "images") if rig.store.exists() else {}
    run = rig.run(["image", "pull", *words])
    assert run.status == 125 and "[store-full]" in run.errors, str(run)
    assert re.search(r"takes [0-9.]+ MiB or more, quota 10.0 MiB", run.errors), str(run)
    assert "ENOSPC" not in run.errors and "collected" not in run.errors, str(run)
    assert {k: v for k, v in fingerprint(rig.store / "images").items() if k != "."} == {
        k: v for k, v in before.items() if k != "."
    }
    assert not [*(rig.store / "tmp").iterdir()]
    return run


@pytest.mark.parametrize("name", LAYERS)
def test_what_unpacks_to_more_than_the_quota(rig: Rig, name: str) -> None:
    rig.reset()
    refused(rig, "--rootfs=dir", layout(rig, name, LAYERS[name]))


@pytest.mark.parametrize("name", FITS)
def test_what_fits_is_taken(rig: Rig, name: str) -> None:
    rig.reset()
    rig.run(["image", "pull", "--rootfs=dir", layout(rig, name, FITS[name])]).check()


def test_pinned_images_leave_less(rig: Rig) -> None:
    rig.reset()
    pinned = layout(rig, "pinned", [file(b"a", os.urandom(3 * MiB))])
    rig.run(["image", "pull", "--rootfs=dir", pinned]).check()
    rig.run(["image", "pin", pinned]).check()
    run = refused(rig, "--rootfs=dir", layout(rig, "eight", [file(b"a", bytes(8 * MiB))]))
    assert "of which 3.0 MiB are pinned or in use" in run.errors, str(run)
    rig.run(["image", "pull", "--rootfs=dir", layout(rig, "six", [file(b"a", bytes(6 * MiB))])]).check()


def test_no_image_goes_for_one_that_cannot_fit(rig: Rig) -> None:
    """Its layers would fit, its tree does not: that shows only when six images might have gone for it."""
    rig.reset()
    for number in range(6):
        small = layout(rig, f"small{number}", [file(b"a", os.urandom(900_000))])
        rig.run(["image", "pull", "--rootfs=dir", small]).check()
    large = layout(rig, "large", [file(b"a", os.urandom(2 * MiB) + bytes(9 * MiB))])
    rig.run(
        ["image", "rm", f"oci:{rig.base}/layouts/small5"]
    ).check()  # room on the disk for what is not in vain
    assert len(rig.names()) == 5
    refused(rig, "--rootfs=dir", large)
    assert len(rig.names()) == 5


@pytest.mark.needs("fuse")
def test_the_tree_of_a_packed_image_counts(rig: Rig) -> None:
    """Tree and packed file are on the disk together."""
    rig.reset()
    refused(rig, "--rootfs=squashfs", layout(rig, "random", [file(b"a", os.urandom(6 * MiB))]))
    rig.run(
        ["image", "pull", "--rootfs=squashfs", layout(rig, "zeros", [file(b"a", bytes(9 * MiB))])]
    ).check()
    half = layout(rig, "half", [file(b"a", os.urandom(4 * MiB))])
    rig.run(["image", "pull", "--rootfs=squashfs", half]).check()


@pytest.mark.parametrize(("kind", "fits", "too_large"), [("aci", 9, 13), ("sif", 9, 13)])
def test_other_formats(rig: Rig, kind: str, fits: int, too_large: int) -> None:
    """A SIF is read where it lies: no copy of it counts."""
    rig.reset()
    for size in (fits, too_large):
        path = rig.base / f"{size}.{kind}"
        tree = directory(b"rootfs") + file(b"rootfs/f", bytes(size * MiB))
        squash = squashes.squash(squashes.directory({b"f": squashes.file(os.urandom(size * MiB))}))
        path.write_bytes(gz(aci(tree)) if kind == "aci" else sif([partition(squash)]))
    rig.run(["image", "pull", "--rootfs=dir", f"{kind}:{rig.base}/{fits}.{kind}"]).check()
    rig.run(["image", "gc", "--all"]).check()
    refused(rig, "--rootfs=dir", f"{kind}:{rig.base}/{too_large}.{kind}")
