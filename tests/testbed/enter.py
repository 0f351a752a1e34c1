# SPDX-License-Identifier: Apache-2.0
"""Running a program on a node: its control groups first, then its namespaces, then the user."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.testbed import cgroups
from tests.testbed.files import PEOPLE
from tests.testbed.needs import SEARCH

GRACE = 3
"""Seconds between SIGTERM and SIGKILL for a program that ran out of time."""

TIMED_OUT = (124, 137)
"""Exit statuses of timeout(1) when it had to end the program; a program may have them on its own."""


@dataclass(frozen=True)
class Login:
    """Who runs a program, and where it starts."""

    name: str
    uid: int
    home: str


def person(name: str) -> Login:
    """root, or one of the plain users.  Raises KeyError."""
    logins = {p.name: Login(p.name, p.uid, p.home) for p in PEOPLE} | {"root": Login("root", 0, "/root")}
    return logins[name]


def check(done: subprocess.CompletedProcess[str]) -> str:
    """What a program that failed was and said."""
    return f"{shlex.join(done.args)}: exit status {done.returncode}\n{done.stdout}{done.stderr or ''}"


def finish(daemon: subprocess.Popen[str]) -> None:
    """Wait until a daemon has gone into the background.  Raises CalledProcessError with its words."""
    stdout, _ = daemon.communicate(timeout=20)
    if daemon.returncode != 0:
        raise subprocess.SubprocessError(f"{daemon.args!r}: exit status {daemon.returncode}\n{stdout}")


@dataclass(frozen=True)
class Entry:
    """One user's way into one node.  pid: of the node's pid 1."""

    top: str
    node: str
    pid: int
    login: Login

    def _command(
        self, words: Sequence[str], env: Mapping[str, str] | None, cwd: str | Path | None
    ) -> list[str]:
        """The whole command line.

        Membership of a control group does not follow nsenter(1) -C, so a shell moves itself there first.
        The clean environment matters: srun hands its caller's whole environment to the ranks.
        """
        variables = {
            "PATH": SEARCH,
            "LANG": "C.UTF-8",
            "HOME": self.login.home,
            "USER": self.login.name,
            "LOGNAME": self.login.name,
            **(env or {}),
        }
        where = str(cwd) if cwd is not None else (self.login.home if self.login.uid else "/")
        moves = "".join(
            f"echo 0 > {shlex.quote(path)} && " for path in cgroups.process_files(self.top, self.node)
        )
        become: list[str] = []
        if self.login.uid:
            number = str(self.login.uid)
            become = ["setpriv", f"--reuid={number}", f"--regid={number}", "--init-groups"]
        return [
            *("/bin/sh", "-c", f'{moves}exec "$@"', "enter"),
            *("nsenter", "-t", str(self.pid), "-n", "-u", "-m", "-i", "-p", "-C"),
            *become,
            *("env", "-i", "-C", where, *(f"{name}={value}" for name, value in variables.items())),
            *words,
        ]

    def popen(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        output: int | None = None,
    ) -> subprocess.Popen[str]:
        """Start it; output: where stderr goes together with stdout, None for two pipes."""
        return subprocess.Popen(
            self._command(words, env, cwd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if output is None else subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # an interrupt at the terminal is for the tester alone
        )

    def run(
        self,
        words: Sequence[str],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end.

        The limit is kept by timeout(1) on the node: killing nsenter(1) from outside would leave the
        program running.  Raises subprocess.TimeoutExpired.
        """
        limited = ["timeout", f"--kill-after={GRACE}", str(timeout), *words]
        started = time.monotonic()
        done = subprocess.run(
            self._command(limited, env, cwd),
            input=stdin or "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout + GRACE + 10,
            start_new_session=True,
            check=False,
        )
        if done.returncode in TIMED_OUT and time.monotonic() - started >= timeout:
            raise subprocess.TimeoutExpired(list(words), timeout, done.stdout, done.stderr)
        return subprocess.CompletedProcess(list(words), done.returncode, done.stdout, done.stderr)
