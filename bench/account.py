# SPDX-License-Identifier: Apache-2.0
"""The plain user that everything is measured as, and running programs as that user."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PLAIN_UID = 1001
"""Whom root becomes: the plain user of the tests, who needs no entry in /etc/passwd."""
SEARCH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


class BenchError(Exception):
    """A benchmark cannot be run here; the text says why."""


def _base() -> dict[str, str]:
    # HOME=/home: a mount point that every image has, so that no tool needs a layer over the image for it.
    return {"PATH": SEARCH, "HOME": "/home", "USER": "bench", "LOGNAME": "bench", "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Account:
    """Whom to run as.  environment: all that the programs inherit."""

    uid: int
    gid: int
    environment: Mapping[str, str] = field(default_factory=_base)

    def run(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; output is kept, the status is not checked."""
        return subprocess.run(
            command,
            env={**self.environment, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            user=self._user,
            group=self._group,
            extra_groups=self._groups,
        )

    def start(self, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start in the background; standard output is a pipe."""
        return subprocess.Popen(
            command,
            env={**self.environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            user=self._user,
            group=self._group,
            extra_groups=self._groups,
        )

    def checked(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        """Run to the end and return what it printed.  Raises BenchError with the end of its complaint."""
        done = self.run(command, env=env, cwd=cwd)
        if done.returncode:
            raise BenchError(f"{' '.join(command)}: status {done.returncode}: {last_line(done.stderr)}")
        return done.stdout

    def own(self, path: Path) -> Path:
        """Make a directory of this account's, mode 0755."""
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, self.uid, self.gid)
        return path

    @property
    def _user(self) -> int | None:
        return self.uid if os.geteuid() == 0 else None

    @property
    def _group(self) -> int | None:
        return self.gid if os.geteuid() == 0 else None

    @property
    def _groups(self) -> list[int] | None:
        return [] if os.geteuid() == 0 else None


def last_line(text: str) -> str:
    """The line that says why, which most programs print last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "(it said nothing)"


def measuring_account() -> Account:
    """Uid 1001 for root, else whoever runs this."""
    if os.geteuid() == 0:
        return Account(PLAIN_UID, PLAIN_UID)
    return Account(os.getuid(), os.getgid())
