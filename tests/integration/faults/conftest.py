# SPDX-License-Identifier: Apache-2.0
"""Stores that commands are killed in, as a plain user and as root."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import needs
from tests.testbed.crashes import Rig, make_account, remove_base
from tests.testbed.injector import Commands, build
from tests.testbed.syscalls import detach

MEMORY = "/dev/shm"
"""Where the stores are: what is tested is the order of changes, which a disk only makes slower."""

MakeRig = Callable[..., Rig]
Mount = Callable[[str], Path]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The injector, compiled."""
    return build(tmp_path_factory.mktemp("injector"))


@pytest.fixture(scope="module")
def make_rig(library: Path) -> Iterator[MakeRig]:
    """``make_rig(uid, store=…, site=…)``: a rig with its images written, all empty; removed at the end."""
    with ExitStack() as stack:

        def make(uid: int, store: Path | None = None, *, site: bool = False) -> Rig:
            base = Path(tempfile.mkdtemp(prefix="hpcpod-faults-", dir=MEMORY))
            stack.callback(remove_base, base)
            base.chmod(0o755)
            account = make_account(base, uid, store)
            rig = Rig(account, base, stack.enter_context(Commands(account, base, library)), site=site)
            rig.write_images()
            return rig

        yield make


@pytest.fixture(scope="module")
def mounted() -> Iterator[Mount]:
    """``mounted(how)``: a small file system, visible to this user alone until the test has ended."""
    with ExitStack() as stack:

        def mount(how: str) -> Path:
            base = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="hpcpod-disk-", dir="/var/tmp"))
            )
            base.chmod(0o755)
            point = base / "disk"
            point.mkdir()
            if how == "ext4":
                disk = base / "disk.img"
                with disk.open("wb") as image:
                    image.truncate(64 << 20)
                subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-F", disk], check=True)
                words = ["mount", "-o", "loop", disk, point]
            else:
                words = ["mount", "-t", "tmpfs", "-o", how, "hpcpod-test", point]
            subprocess.run(list(map(str, words)), check=True)
            stack.callback(detach, str(point))
            point.chmod(0o755)
            return point

        yield mount


def plain_uid() -> int:
    """The plain user: 1001 where the tests run as root, else the one who runs them."""
    return needs.PLAIN_UID if os.geteuid() == 0 else os.geteuid()


@pytest.fixture(scope="module")
def rig(make_rig: MakeRig) -> Rig:
    """The plain user's rig, with the entries that pulls make known."""
    rig = make_rig(plain_uid())
    learn(rig)
    return rig


def forms() -> list[str]:
    """The forms of images that this machine makes and uses for a plain user."""
    return ["dir", "squashfs"] if needs.unmet("fuse") is None else ["dir"]


def learn(rig: Rig, *more: str) -> None:
    """Note what each pull makes when nothing disturbs it; the store is empty afterwards.  more: forms."""
    for reference in rig.references.values():
        for form in (*forms(), *more):
            rig.learn(["image", "pull", f"--rootfs={form}", *rig.site, reference])
    rig.empty()
    rig.reset()
