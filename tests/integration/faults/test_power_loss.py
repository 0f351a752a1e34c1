# SPDX-License-Identifier: Apache-2.0
"""The power is cut while images are pulled and removed: a kernel of its own with a disk of its own, killed.

The machine is user-mode Linux: what its kernel has not yet written to its disk is lost with it.
HPCPOD_POWER_CUTS and HPCPOD_FAULT_SEED make it longer, or the same again.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.conftest import PACKAGES, ROOT
from tests.integration.faults.test_random_kills import SEED
from tests.testbed.crashes import IMAGES
from tests.testbed.layouts import write_layout

pytestmark = pytest.mark.needs("uml")

CUTS = int(os.environ.get("HPCPOD_POWER_CUTS", "6"))
BOOT_SECONDS = 120.0
"""For a boot and what comes before ``ready``, on a busy machine."""
FORMS = ("dir", "squashfs") if needs.unmet("fuse") is None else ("dir",)


class Machine:
    """A virtual machine that has been switched on.  lines: what it has printed."""

    def __init__(self, base: Path, seed: int) -> None:
        self.lines: list[str] = []
        self._rest = b""
        words = [
            "linux.uml",
            "mem=256M",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            f"ubd0={base}/disk",
            "con=null",
            "con0=fd:0,fd:1",
            "quiet",
            f"PYTHONPATH={PACKAGES}:{ROOT}",
            f"init={sys.executable}",
            "--",
            "-P",
            "-B",
            "-m",
            "tests.testbed.powercut",
            f"{base}/layouts",
            str(seed),
            ",".join(FORMS),
        ]
        self._process = subprocess.Popen(
            words,
            env={"PATH": "/usr/bin:/bin", "HOME": str(base), "TMPDIR": "/dev/shm"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def read(self, seconds: float, until: str = "") -> bool:
        """Take lines for so long, or until this one; whether it came."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._process.stdout], [], [], left)[0]:
                break
            chunk = os.read(self._process.stdout.fileno(), 65536)
            if not chunk:
                break
            *whole, self._rest = (self._rest + chunk.replace(b"\r", b"")).split(b"\n")
            self.lines += [line.decode(errors="replace") for line in whole]
            if until and until in self.lines:
                return True
        return False

    def cut(self) -> None:
        """Cut its power."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    @property
    def text(self) -> str:
        """What it has printed, for a person."""
        return "\n".join(self.lines)

    def said(self, word: str) -> list[list[str]]:
        """The words of each line that begins with this one, that left out."""
        return [line.split()[1:] for line in self.lines if line.split()[:1] == [word]]


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A directory with the layouts and an empty disk."""
    for name, image in IMAGES.items():
        write_layout(tmp_path / "layouts" / name, image)
    with (tmp_path / "disk").open("wb") as disk:
        disk.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", tmp_path / "disk"], check=True)
    yield tmp_path
    (tmp_path / "disk").unlink()


Pull = tuple[str, ...]
"""The words of a command that pulls: form and reference."""


def kept(machine: Machine) -> set[Pull]:
    """Pulls that were done, and that nothing began to undo since."""
    found: set[Pull] = set()
    for line in machine.lines:
        words = tuple(line.split())
        if words[:1] == ("start",) and "rm" in words:
            found = {pull for pull in found if pull[-1] != words[-1]}
        elif words[:2] == ("done", "0") and "pull" in words:
            found.add(words[2:])
    return found


def entries(machine: Machine) -> dict[Pull, str]:
    """What each pull makes, from the first boot: it prints its digest, and its form is among its words."""
    made = {}
    printed = ""
    for line in machine.lines:
        words = tuple(line.split())
        if line.startswith("sha256:"):
            printed = line.replace(":", "-")
        elif words[:2] == ("done", "0"):
            form = words[4].partition("=")[2]
            made[words[2:]] = printed if form == "dir" else f"{printed}.{form}"
    return made


def test_power_is_cut(base: Path) -> None:
    print(f"HPCPOD_FAULT_SEED={SEED} HPCPOD_POWER_CUTS={CUTS}")
    dice = random.Random(SEED)
    machine = Machine(base, 0)
    assert machine.read(BOOT_SECONDS, "end"), machine.text
    machine.cut()
    expected = dict(machine.said("found"))
    assert len(expected) == len(IMAGES) * len(FORMS), machine.text
    names = entries(machine)
    must = set(names)
    for _ in range(CUTS):
        machine = Machine(base, dice.getrandbits(31) | 1)
        ready = machine.read(BOOT_SECONDS, "ready")
        machine.read(dice.uniform(0, 1.5)) if ready else None
        machine.cut()
        assert ready, machine.text
        found = dict(machine.said("found"))
        assert found.items() <= expected.items(), machine.text
        assert {names[pull] for pull in must} <= found.keys(), machine.text
        assert not machine.said("left"), machine.text
        assert all(words[0] == "0" or "rm" in words for words in machine.said("done")), machine.text
        must = kept(machine)
