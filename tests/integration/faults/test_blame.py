# SPDX-License-Identifier: Apache-2.0
"""What fails is named, and nothing else blamed: the image's disk, the destination, or the image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.faults.conftest import MakeRig, Mount, plain_uid
from tests.testbed import squashes
from tests.testbed.acis import aci
from tests.testbed.crashes import Rig
from tests.testbed.injector import Run
from tests.testbed.layouts import directory, file, gz
from tests.testbed.sifs import partition, sif

pytestmark = pytest.mark.needs("gcc", "plain")

MOST = 60


def said(run: Run, slug: str, *words: str) -> None:
    """It failed with one line of this kind and these words; a hint may follow."""
    lines = [line for line in run.errors.splitlines() if not line.startswith("hint: ")]
    assert run.status == 125 and len(lines) == 1, str(run)
    assert lines[0].endswith(f" [{slug}]") and all(word in lines[0] for word in words), str(run)
    assert ".hpcpod-unpack-" not in run.errors and "/proc/" not in run.errors, str(run)


@pytest.fixture(scope="module")
def references(rig: Rig) -> dict[str, str]:
    """An image of each kind of file that blobs are read from."""
    (rig.base / "layouts/a.aci").write_bytes(gz(aci(directory(b"rootfs") + file(b"rootfs/f", b"x"))))
    squash = squashes.squash(squashes.directory({b"f": squashes.file(b"x")}))
    (rig.base / "layouts/a.sif").write_bytes(sif([partition(squash)]))
    files = {"aci": f"aci:{rig.base}/layouts/a.aci", "sif": f"sif:{rig.base}/layouts/a.sif"}
    return {"oci": rig.references["two"], **files}


@pytest.mark.parametrize("name", ["EIO", "ESTALE"])
@pytest.mark.parametrize("kind", ["oci", "aci", "sif"])
def test_a_file_of_the_image_cannot_be_read(
    rig: Rig, references: dict[str, str], kind: str, name: str
) -> None:
    failed = 0
    for number in range(1, MOST):
        run = rig.run(["image", "unpack", references[kind], rig.out], [f"pread64:{number}:{name}"])
        if not run.fired[0]:
            run.check()
            rig.run(["gc"]).check()
            break
        if kind == "sif" and "destination" in run.errors:  # its private copy, which lies there
            said(run, "store-unusable", str(rig.out), f"({name})")
        else:
            failed += 1
            said(run, "os-error", f"{rig.base}/layouts/", f"({name})")
            assert "the image may be sound" in run.errors
        assert not rig.out.exists(), str(run)
    rig.reset()
    assert failed >= 2


def test_a_destinations_name_is_looked_at_first(rig: Rig) -> None:
    """Not even the image is: there is none."""
    run = rig.run(["image", "unpack", "oci:/nowhere", rig.account.home / ("x" * 300)])
    said(run, "usage", "file name too long (ENAMETOOLONG)")


def test_the_destination_is_on_another_disk_all_of_a_sudden(rig: Rig) -> None:
    run = rig.run(["image", "unpack", rig.references["two"], rig.out], ["renameat2:1:EXDEV"])
    said(run, "store-unusable", f"destination {rig.out}", "(EXDEV)")
    rig.clean(run)


def below(rig: Rig, rule: str, change: str) -> tuple[Run, Path]:
    """Unpack to PLACE/out, and change PLACE when the call of the rule is about to be made."""
    place = rig.account.home / "place"
    place.mkdir()
    os.chown(place, rig.account.uid, rig.account.uid)
    running = rig.start(["image", "unpack", rig.references["two"], place / "out"], [rule])
    assert running.held()
    (growing,) = place.iterdir()
    if change == "renamed":
        place.rename(place.with_name("elsewhere"))
    elif change == "removed":
        rig.account.run(["rm", "-r", growing], check=True)
    elif change == "read-only":
        place.chmod(0o555)
    else:
        growing.rename(place / "stolen")
        growing.symlink_to("/etc")
    running.go_on()
    return running.result(), place


CHANGES = {
    "renamed": ("usage", "is not a directory"),
    "removed": ("store-unusable", "(E"),
    "read-only": ("store-unusable", "permission denied (EACCES)"),
    "swapped": ("store-unusable", "somebody else put another thing"),
}


WHEN = [(change, rule) for change in CHANGES for rule in ("changes:6:hold", "renameat2:1:hold")]
WHEN.remove(("removed", "renameat2:1:hold"))  # there is nothing to rename, as when it was renamed


@pytest.mark.parametrize(("change", "rule"), WHEN)
def test_the_destinations_parent_changes(rig: Rig, rule: str, change: str) -> None:
    run, place = below(rig, rule, change)
    slug, words = CHANGES[change]
    said(run, slug, f"destination {place}/out", words)
    if change == "swapped":  # what is not ours stays: the link is somebody's, and the tree may be
        assert any(path.is_symlink() for path in place.iterdir())
    for path in (place, place.with_name("elsewhere")):
        if path.exists():
            path.chmod(0o755)
            rig.account.run(["rm", "-r", path], check=True)
    rig.run(["gc"]).check()


@pytest.mark.needs("root")
def test_a_store_where_no_inodes_are_left(make_rig: MakeRig, mounted: Mount) -> None:
    disk = mounted("nr_inodes=2,mode=755")
    (disk / "user").mkdir()
    rig = make_rig(plain_uid(), store=disk / "user" / "store")
    run = rig.run(["image", "pull", rig.references["two"]])
    said(run, "store-full", str(rig.store), "no space left on device (ENOSPC)")
