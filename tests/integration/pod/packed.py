# SPDX-License-Identifier: Apache-2.0
"""Pods whose image is a squashfs file, by plans written by hand: the plan of the tree, with another root."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import Account
from tests.integration.pod.conftest import Pods, alive, wait_for
from tests.unit.launcher.records import values, with_root

SERVER = "/usr/bin/squashfuse_ll"


@dataclass
class Packed:
    """The small image as a squashfs file of a store's entry, and pods made from it.

    tree: the same image unpacked.
    """

    pods: Pods
    tree: Path
    file: Path
    server: str = SERVER

    @property
    def mounts(self) -> Path:
        return self.pods.runtime / "mounts"

    def words(self) -> list[str]:
        """The operation of the record."""
        status = self.file.stat()
        identity = (str(self.file), str(status.st_dev), str(status.st_ino))
        return ["fuse", *identity, self.file.parent.name, self.server]

    def plan(
        self,
        options: Sequence[str] = (),
        root: Sequence[str] | None = None,
        more: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Leave a plan for these options.  root: words of another root; more: operations to add."""
        self.pods.out("true", options=options, env=env)
        for path in (self.pods.runtime / "plans").iterdir():
            content = path.read_bytes()
            if b"\0rootfs\0" in content:
                path.write_bytes(with_root(content, *(root or self.words()), *more))

    def entries(self) -> list[Path]:
        """Directories of mounts that can be found."""
        return [path for path in self.mounts.iterdir() if not path.name.startswith(".")]

    def holder(self) -> int:
        """Pid of the one mount's holder."""
        (entry,) = self.entries()
        return int(os.readlink(entry / "holder"))

    def servers(self) -> list[int]:
        """Pids of the processes that serve this very file."""
        return [pid for pid in _pids() if self._serves(pid)]

    def _serves(self, pid: int) -> bool:
        try:
            if SERVER.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return False
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:  # gone meanwhile, or somebody else's
            return False
        return str(self.file) in links and alive(pid)

    def wait_gone(self, seconds: float = 10) -> None:
        """Until nothing is left of any mount."""
        wait_for(lambda: not self.servers(), "no server left", seconds)
        wait_for(lambda: not any(self.mounts.iterdir()), "no mount left", seconds)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def pack(account: Account, tree: Path, file: Path) -> None:
    """Make the squashfs file of this tree, as the user, everything in it owned by 0."""
    words = ["mksquashfs", str(tree), str(file), "-all-root", "-noappend", "-quiet", "-no-progress"]
    account.run(words, check=True)


def packed_image(pods: Pods) -> Packed:
    """The small image, packed from what the store unpacked, in a directory named like a store's entry."""
    pods.out("true")
    (plan,) = (pods.runtime / "plans").iterdir()
    (tree,) = values(plan.read_bytes(), "rootfs")
    entry = Path(tree).parent
    directory = pods.account.home.parent / "images" / f"{entry.name}.squashfs"
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(directory, pods.account.uid, pods.account.uid)
    file = directory / "rootfs.squashfs"
    pack(pods.account, Path(tree), file)
    return Packed(pods, Path(tree), file)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Close its input and wait for its end: status, output, errors."""
    out, err = process.communicate("", timeout=20)
    return process.returncode, out, err


def remove(path: Path) -> None:
    """Remove whatever it is."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


wait_until = functools.partial(wait_for, seconds=10)
