# SPDX-License-Identifier: Apache-2.0
"""Pods of a plain user whose image the kernel mounts: squashfs by a loop device, EROFS from its file."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import remove_tree
from tests.integration.pod.conftest import Pods, step
from tests.integration.pod.packed import Packed, packed_image

pytestmark = pytest.mark.needs("root", "plain", "userns", "native", "overlay", "kernel-images")

FORMS = ["squashfs", "erofs"]
READ_ONLY = 1 | 2 | 4  # with nosuid and nodev (mount(2))


def command(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True, stdin=subprocess.DEVNULL)


@dataclass
class Mounted:
    """An image that root has mounted.  options: those whose plan has it as root."""

    packed: Packed
    form: str
    place: Path

    def plan(self, *options: str) -> tuple[str, ...]:
        status = self.place.stat()
        root = ["rootfs", str(self.place), str(status.st_dev), str(status.st_ino)]
        self.packed.plan(options=options, root=root)
        return options

    def unmount(self) -> None:
        command("umount", self.place)


def mount_image(packed: Packed, form: str, place: Path) -> None:
    if form == "squashfs":
        command("mount", "-t", "squashfs", "-o", "loop,ro,nosuid,nodev", packed.file, place)
        return
    file = packed.file.with_name("rootfs.erofs")
    command("mkfs.erofs", "--all-root", file, packed.tree)
    libc = ctypes.CDLL(None, use_errno=True)
    words = [os.fsencode(word) for word in (file, place, form)]
    assert libc.mount(*words, ctypes.c_ulong(READ_ONLY), None) == 0, os.strerror(ctypes.get_errno())


@pytest.fixture(params=["private", "shared"])
def directory(request: pytest.FixtureRequest, plain_pods: Pods) -> Iterator[Path]:
    """Where root mounts images: below a mount that tells others of what happens on it, or does not."""
    made = plain_pods.account.home.parent / "site"
    made.mkdir()
    command("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", made)
    command("mount", f"--make-{request.param}", made)
    yield made
    command("umount", "--recursive", made)
    remove_tree(made)


@pytest.fixture(params=FORMS)
def mounted(request: pytest.FixtureRequest, plain_pods: Pods, directory: Path) -> Iterator[Mounted]:
    packed = packed_image(plain_pods)
    place = directory / f"{packed.tree.parent.name}.{request.param}" / "rootfs"
    place.mkdir(parents=True)
    mount_image(packed, request.param, place)
    yield Mounted(packed, request.param, place)
    plain_pods.end()


def root_of(listing: str) -> str:
    """Type of the file system of the pod's root, from its mountinfo."""
    (line,) = [line for line in listing.splitlines() if line.split()[4] == "/"]
    return line.partition(" - ")[2].split()[0]


def test_the_tree_of_the_mount_is_the_root(mounted: Mounted) -> None:
    options = mounted.plan()
    listing = mounted.packed.pods.out("cat", "/proc/self/mountinfo", options=options)
    assert root_of(listing) == mounted.form
    done = mounted.packed.pods.run("touch", "/new", options=options)
    assert done.returncode == 1 and "Read-only file system" in done.stderr


def test_a_memory_layer_lies_over_the_mount(mounted: Mounted) -> None:
    options = mounted.plan("-B", "/usr/share:/srv/deep/share")
    listing = mounted.packed.pods.out("cat", "/proc/self/mountinfo", options=options)
    assert root_of(listing) == "overlay" and " /srv/deep/share " in listing
    assert mounted.packed.pods.out("cat", "/etc/os-release", options=options) == "ID=tiny"


@pytest.mark.parametrize("layered", [False, True], ids=["bind", "overlay"])
def test_a_running_pod_outlives_the_unmounting(mounted: Mounted, layered: bool) -> None:
    pods = mounted.packed.pods
    options = mounted.plan(*(["-B", "/usr/share:/srv/deep/share"] if layered else []))
    rank = member_of(pods, options)
    mounted.unmount()
    assert pods.run("cat", "/etc/os-release", options=options, env=step(1, 3)).stdout == "ID=tiny\n"
    assert rank.communicate("still here\n", timeout=10)[0] == "still here\n"


def member_of(pods: Pods, options: tuple[str, ...]) -> subprocess.Popen[str]:
    process = pods.start("sh", "-c", "echo in; cat", options=options, env=step(0, 3), stdin=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "in\n", process.communicate()
    return process


def test_after_the_unmounting_the_plan_is_void(mounted: Mounted) -> None:
    """The directory below has another identity: the start asks Python again."""
    options = mounted.plan()
    mounted.unmount()
    listing = mounted.packed.pods.out("cat", "/proc/self/mountinfo", options=options)
    assert root_of(listing) != mounted.form
