# SPDX-License-Identifier: Apache-2.0
"""The store: what a reference gives, many first users at once, kill -9, full and unusable disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcpod.images.stores.ensure import ensure
from hpcpod.images.stores.store import VERSION
from hpcpod.launcher.record import rootfs_path
from hpcpod.model import Platform
from tests.conftest import PACKAGES, Account
from tests.testbed.layouts import (
    INDEX,
    MANIFEST,
    REF_NAME,
    Image,
    as_json,
    descriptor,
    digest,
    directory,
    file,
    image,
    write_archive,
    write_files,
    write_layout,
)
from tests.testbed.places import AMD64, Place, call_as, scan

ONE = image(file(b"one", b"1"), config={"Env": ["A=1", "B=x=y"], "Cmd": ["/one"], "WorkingDir": "/w"})
TWO = image(file(b"two", b"2"))
HPCPOD = [sys.executable, "-m", "hpcpod"]
PYTHON = {"PYTHONPATH": PACKAGES}


def pull(place: Place, reference: str, platform: Platform = AMD64) -> Any:
    """Call ensure() as the place's user; its result as JSON, or the error's slug."""
    account = place.account

    def work() -> dict[str, Any]:
        present = ensure(reference, environment=account.environment(), uid=account.uid, platform=platform)
        found = present.image
        return {
            "digest": found.digest,
            "rootfs": rootfs_path(found.rootfs),
            "env": found.config.env,
            "cmd": found.config.cmd,
            "phases": [phase.name for phase in present.phases],
            "stamps": [stamp.path for stamp in present.guards if stamp.ino and stamp.path[:5] != "/etc/"],
        }

    outcome = call_as(account.uid, work)
    return outcome.value if outcome.slug is None else outcome.slug


def leftovers(store: Path) -> list[str]:
    return [str(path) for name in ("tmp", "garbage") for path in (store / name).glob("*")]


def test_first_and_second_time(place: Place) -> None:
    reference = place.layout({"one": ONE, "two": TWO})
    first = pull(place, f"{reference}:one")
    assert first["phases"] == ["resolve", "verify", "unpack"]
    assert first["env"] == [["A", "1"], ["B", "x=y"]]
    assert first["cmd"] == ["/one"]
    assert first["digest"] == digest(ONE.blobs()[0])
    assert first["stamps"] == [f"{reference.partition(':')[2]}/index.json"]
    assert scan(Path(first["rootfs"])) == {"one": ("-rw-r--r--", b"1", 1)}
    second = pull(place, f"{reference}:one")
    assert second == first | {"phases": ["resolve", "verify"]}
    store = place.account.store
    entry = Path(first["rootfs"]).parent
    documents = {"config.json", "facts.json", "manifest.json", "meta.json"}
    assert {path.name for path in entry.iterdir()} == {"rootfs", *documents}
    assert digest((entry / "manifest.json").read_bytes()) == first["digest"]
    assert (store / "version").read_text() == f"{VERSION}\n"
    assert leftovers(store) == []
    assert all(path.stat().st_mode & 0o077 == 0 for path in (store, entry))


def test_one_image_under_two_references_is_unpacked_once(plain_place: Place) -> None:
    reference = plain_place.layout(ONE)
    archive = write_archive(plain_place.account.home / "i.tar", Path(reference.partition(":")[2]))
    first = pull(plain_place, reference)
    second = pull(plain_place, f"oci-archive:{archive}")
    assert second["digest"] == first["digest"]
    assert second["phases"] == ["resolve", "verify"]
    assert second["stamps"] == [str(archive)]


def test_what_a_reference_means(plain_place: Place) -> None:
    one, two = digest(ONE.blobs()[0]), digest(TWO.blobs()[0])
    reference = plain_place.layout({"one": ONE, "two": TWO})
    meanings = {
        f"{reference}:one": one,
        f"{reference}:two": two,
        f"{reference}@{two}": two,
        f"{reference}:one@{one}": one,
        reference: "image-not-found",
        f"{reference}:three": "image-not-found",
        f"{reference}:one@{two}": "image-digest",
        f"{reference}@{digest(b'')}": "image-digest",
        f"{reference}x": "image-not-found",
        "docker://Debian": "image-reference",
    }
    found = {each: pull(plain_place, each) for each in meanings}
    assert {each: got if isinstance(got, str) else got["digest"] for each, got in found.items()} == meanings


def many(*platforms: str, tag: str = "") -> tuple[dict[str, Any], dict[str, bytes]]:
    """An index with an image for each platform; its tree holds a file of that name."""
    entries: list[dict[str, Any]] = []
    blobs: dict[str, bytes] = {}
    for name in platforms:
        system, architecture, *variant = name.split("/")
        made = Image(
            image(file(name.replace("/", "-").encode())).layers, os=system, architecture=architecture
        )
        manifest, found = made.blobs()
        blobs |= found
        platform = {"os": system, "architecture": architecture} | ({"variant": variant[0]} if variant else {})
        entries.append(descriptor(manifest, MANIFEST, platform=platform))
    inner = as_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
    annotations = {"annotations": {REF_NAME: tag}} if tag else {}
    return {"schemaVersion": 2, "manifests": [descriptor(inner, INDEX, **annotations)]}, blobs | {
        digest(inner): inner
    }


CHOICES = {
    "linux/amd64": "linux-amd64",
    "linux/arm64": "linux-arm64-v8",
    "linux/arm64/v8": "linux-arm64-v8",
    "linux/arm/v7": "linux-arm-v6",
    "linux/arm/v6": "linux-arm-v6",
    "linux/arm/v5": "image-platform",
    "linux/s390x": "image-platform",
    "windows/amd64": "windows-amd64",
}


@pytest.mark.parametrize("wanted", CHOICES)
def test_platforms(plain_place: Place, wanted: str) -> None:
    layout = plain_place.account.home / "layout"
    write_files(
        layout, *many("windows/amd64", "linux/amd64/v3", "linux/amd64", "linux/arm/v6", "linux/arm64/v8")
    )
    found = pull(plain_place, f"oci:{layout}", Platform(*wanted.split("/")))
    assert (found if isinstance(found, str) else next(iter(scan(Path(found["rootfs"]))))) == CHOICES[wanted]


def test_platform_of_the_config_counts(plain_place: Place) -> None:
    reference = plain_place.layout(Image(ONE.layers, architecture="s390x"))
    assert pull(plain_place, reference) == "image-platform"
    assert pull(plain_place, reference, Platform("linux", "s390x"))["cmd"] == []
    # In the store now, but still not for this machine.
    assert pull(plain_place, reference) == "image-platform"


def test_damaged_images_are_replaced(plain_place: Place) -> None:
    reference = plain_place.layout(ONE)
    entry = Path(pull(plain_place, reference)["rootfs"]).parent
    (entry / "meta.json").write_text("{")
    assert pull(plain_place, reference)["phases"] == ["resolve", "verify", "unpack"]
    (entry / "config.json").write_text("")
    (entry / "rootfs" / "one").unlink()
    assert set(scan(Path(pull(plain_place, reference)["rootfs"]))) == {"one"}
    assert leftovers(plain_place.account.store) == []


# --------------------------------------------------------------------------- many at once, and killed


FILES = 2500


@pytest.fixture
def quick(user: Account) -> Account:
    """The user with a store in memory: many small files are slow to remove from a disk."""
    return replace(user, store=user.runtime.parent / "store")


def slow_image(account: Account, files: int = FILES) -> str:
    """An image that takes a moment to unpack, but little disk."""
    tar = b"".join(file(b"d/%d" % n, b"%d" % n) for n in range(files))
    tar += directory(b"closed", 0o555) + file(b"closed/x", b"", mode=0)
    return f"oci:{write_layout(account.home / 'slow', image(tar))}"


ENSURE = """
import json, os, sys
from hpcpod.images.sources.platforms import parse_platform
from hpcpod.images.stores.ensure import ensure
platform = parse_platform("linux/amd64")
present = ensure(sys.argv[1], environment=os.environ, uid=os.getuid(), platform=platform)
print(json.dumps([present.image.rootfs.path, [phase.name for phase in present.phases]]))
"""


def test_first_users_at_once_unpack_once(quick: Account) -> None:
    """The path is the same whoever unpacks: the phases say who did."""
    command = [sys.executable, "-c", ENSURE, slow_image(quick, 1000)]
    processes = [quick.start(command, env=PYTHON) for _ in range(32)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 32, said
    found = [json.loads(out) for out, _ in said]
    assert len({rootfs for rootfs, _ in found}) == 1
    assert [phases.count("unpack") for _, phases in found if "unpack" in phases] == [1]
    assert leftovers(quick.store) == []


def unpacks(account: Account) -> Path | None:
    """The directory that an unpack in progress is filling, once it holds something."""
    return next((path for path in account.store.glob("tmp/*/rootfs/d/*")), None)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_in_the_middle(quick: Account, number: signal.Signals) -> None:
    reference = slow_image(quick)
    command = [*HPCPOD, "image", "pull", "--platform", "linux/amd64", reference]
    process = quick.start(command, env=PYTHON)
    while unpacks(quick) is None and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    if number != signal.SIGKILL:
        assert leftovers(quick.store) == []
    assert list(quick.store.glob("images/*")) == []
    quick.run(command, env=PYTHON, check=True)
    assert leftovers(quick.store) == []
    assert len(list(quick.store.glob("images/*/rootfs/d/*"))) == FILES


def test_unpacking_killed_leaves_what_the_next_removes(user: Account) -> None:
    reference = slow_image(user)
    command = [*HPCPOD, "image", "unpack", "--platform", "linux/amd64", reference, "out"]
    process = user.start(command, env=PYTHON)
    while not list(user.home.glob(".hpcpod-unpack-*/d/*")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=30)
    assert not (user.home / "out").exists()
    assert len(list(user.home.glob(".hpcpod-unpack-*"))) == 1
    user.run(command, env=PYTHON, check=True)
    assert list(user.home.glob(".hpcpod-unpack-*")) == []
    assert (user.home / "out" / "d" / f"{FILES - 1}").exists()


def test_living_unpacks_are_not_swept(quick: Account) -> None:
    reference = slow_image(quick)
    first = quick.start([*HPCPOD, "image", "pull", "--platform", "linux/amd64", reference], env=PYTHON)
    while unpacks(quick) is None and first.poll() is None:
        time.sleep(0.002)
    other = write_layout(quick.home / "other", ONE)
    quick.run([*HPCPOD, "image", "pull", "--platform", "linux/amd64", f"oci:{other}"], env=PYTHON, check=True)
    quick.run([*HPCPOD, "gc"], env=PYTHON)
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert len(list(quick.store.glob("images/*"))) == 2


def test_two_nodes_without_common_locks(quick: Account) -> None:
    """Each has a run-time directory of its own; whoever is later throws his work away."""
    reference = slow_image(quick, 1000)
    processes = [
        quick.start(
            [*HPCPOD, "image", "pull", "--platform", "linux/amd64", reference],
            env=PYTHON | {"HPCPOD_RUNTIME": f"{quick.runtime}-{node}"},
        )
        for node in range(4)
    ]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    quick.run([*HPCPOD, "gc"], env=PYTHON)
    assert leftovers(quick.store) == []
    assert len(list(quick.store.glob("images/*"))) == 1


# --------------------------------------------------------------------------- disks

MEGABYTE = bytes(1 << 20)


@pytest.mark.needs("root")
@pytest.mark.parametrize("options", ["size=16m", "size=64m,nr_inodes=20"])
def test_full_disk(user: Account, options: str) -> None:
    reference = (
        f"oci:{write_layout(user.home / 'layout', image(*(file(b'%d' % n, MEGABYTE) for n in range(40))))}"
    )
    disk = user.home / "disk"
    disk.mkdir()
    inner = " ".join([*HPCPOD, "image", "pull", "--platform", "linux/amd64", reference])
    plain = f"setpriv --reuid={user.uid} --regid={user.uid} --clear-groups"
    script = (
        f"mount -t tmpfs -o {options},uid={user.uid},gid={user.uid},mode=700 t {disk} && {plain} {inner}; "
        f"status=$?; find {disk} | sort; exit $status"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env=user.environment(PYTHON | {"HPCPOD_STORE": str(disk)}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 125
    assert "[store-full]" in done.stderr
    assert str(disk) in done.stderr
    assert "ENOSPC" in done.stderr
    found = [line.removeprefix(str(disk)) for line in done.stdout.splitlines()]
    assert found == ["", "/garbage", "/images", "/tmp", "/version"]


@pytest.mark.parametrize("mode", [0o500, 0o755])
def test_unusable_stores(user: Account, mode: int) -> None:
    reference = f"oci:{write_layout(user.home / 'layout', ONE)}"
    user.store.mkdir()
    os.chown(user.store, user.uid, user.uid)
    user.store.chmod(mode)
    done = user.run([*HPCPOD, "image", "pull", "--platform", "linux/amd64", reference], env=PYTHON)
    user.store.chmod(0o700)
    assert done.returncode == 125
    assert "[store-unusable]" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_newer_store_is_refused(plain_place: Place) -> None:
    reference = plain_place.layout(ONE)
    pull(plain_place, reference)
    (plain_place.account.store / "version").write_text("99\n")
    assert pull(plain_place, reference) == "store-unusable"
