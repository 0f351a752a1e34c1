# SPDX-License-Identifier: Apache-2.0
"""Stores that commands are killed in, as a plain user and as root."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import needs
from tests.testbed.crashes import Rig, make_account, remove_base
from tests.testbed.injector import Commands, build

MEMORY = "/dev/shm"
"""Where the stores are: what is tested is the order of changes, which a disk only makes slower."""

MakeRig = Callable[..., Rig]


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
