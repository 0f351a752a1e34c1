# SPDX-License-Identifier: Apache-2.0
"""A site's store and users' stores of the benchmark's own, apart from any that the machine has."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.account import Account, BenchError, last_line

UNPACKER = 65433
"""The site's account: no user of this number has to exist."""
FIRST_USER = 62001


@dataclass(frozen=True)
class Room:
    """disk, memory: scratch directories, on a disk and on tmpfs."""

    disk: Path
    memory: Path

    @property
    def config(self) -> Path:
        """The hpcpod.toml that names the room's site store."""
        return self.disk / "hpcpod.toml"

    @property
    def policy(self) -> Path:
        """The site's policy, which accepts everything: what is measured has no signatures."""
        return self.disk / "policy.json"

    @property
    def accepting(self) -> str:
        """The table of a hpcpod.toml that names it."""
        return f'[trust]\npolicy = "{self.policy}"\n'

    def user(self, number: int, without_site: bool = False) -> Account:
        """A plain user with a store and a run-time directory of its own."""
        uid = FIRST_USER + number
        account = Account(uid, uid)
        home = account.own(self.disk / f"user{number}")
        runtime = account.own(self.memory / f"user{number}")
        for path in (home, runtime):
            path.chmod(0o700)
        extra: Mapping[str, str] = {} if without_site else {"HPCPOD_CONFIG": str(self.config)}
        stores = {"HPCPOD_STORE": str(home), "HPCPOD_RUNTIME": str(runtime)}
        return Account(uid, uid, {**account.environment, **stores, **extra})

    @property
    def root(self) -> Account:
        """Root, as a prolog."""
        account = Account(0, 0)
        return Account(0, 0, {**account.environment, "HPCPOD_CONFIG": str(self.config)})


@contextlib.contextmanager
def room(front: Path) -> Iterator[Room]:
    """Make it; when the body ends nothing of it is mounted and nothing is left."""
    with (
        tempfile.TemporaryDirectory(prefix="hpcpod-bench-", dir="/var/tmp") as disk,
        tempfile.TemporaryDirectory(prefix="hpcpod-bench-", dir="/dev/shm") as memory,
    ):
        made = Room(Path(disk), Path(memory))
        for path in (made.disk, made.memory):
            path.chmod(0o755)
        made.policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        made.config.write_text(
            f'[site]\nstore = "{disk}/site"\nrun = "{memory}/site"\naccount = "{UNPACKER}"\n{made.accepting}'
        )
        try:
            yield made
        finally:
            done = made.root.run([str(front), "image", "umount", "--all", "--lease", "bench"])
            if done.returncode and (made.disk / "site").exists():
                raise BenchError(f"image umount: {last_line(done.stderr)}")


def empty(path: Path) -> None:
    """Remove a directory's content."""
    for entry in path.iterdir():
        shutil.rmtree(entry)
