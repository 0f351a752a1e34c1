# SPDX-License-Identifier: Apache-2.0
"""Stop, kill or fail a command at its N-th system call of a kind: the Python side of injector.c.

    with Commands(account, directory) as commands:
        run = commands.run(["image", "pull", "oci:x"], rules=["changes:17:kill"])

A server process (forkserver.py) has hpcpod and all that it uses imported; each command is a fork of it, so it
costs milliseconds, and its calls are counted from where the command begins.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import PACKAGES, ROOT, Account

_HERE = Path(__file__).resolve().parent
SOURCES = (_HERE / "injector.c", _HERE / "injector_rules.c")
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
SECONDS = 60.0
"""A command that takes longer hangs: it is killed, and its run is late."""
KILLED = 9


def build(directory: Path, *, program: bool = False) -> Path:
    """Compile the injector, as a library or as a program; where it is."""
    target = directory / ("injector" if program else "injector.so")
    kind = ["-DPROGRAM"] if program else ["-shared", "-fPIC"]
    subprocess.run(["gcc", *_FLAGS, *kind, "-o", target, *SOURCES], check=True)
    return target


@dataclass(frozen=True)
class Run:
    """How a command ended.

    status: None where a signal ended it.  counts: per rule, the calls it counted; fired: per rule, the last
    call it acted on, empty for none.  left: processes that the command left behind.
    """

    words: Sequence[str]
    status: int | None
    signal: int
    late: bool
    left: int
    counts: tuple[int, ...]
    fired: tuple[str, ...]
    output: str
    errors: str

    @property
    def killed(self) -> bool:
        """Whether a rule killed it (or somebody else with SIGKILL)."""
        return self.signal == KILLED and not self.late

    def __str__(self) -> str:
        end = f"signal {self.signal}" if self.signal else f"status {self.status}"
        at = f" at {' '.join(self.fired)}" if any(self.fired) else ""
        return f"hpcpod {' '.join(self.words)}: {end}{at}{' (late)' * self.late}\n{self.output}{self.errors}"

    def check(self) -> Run:
        """This run, which must have succeeded and left no process."""
        assert self.status == 0 and not self.left, str(self)
        return self


@dataclass(frozen=True)
class Machine:
    """Another machine, as far as hpcpod can tell: it has a name and a boot of its own.  Needs root.

    boot: a file that holds the boot id.
    """

    name: str
    boot: str


class Running:
    """A command that was started."""

    def __init__(self, words: Sequence[str], connection: socket.socket) -> None:
        self._words = words
        self._connection = connection
        self._lines = connection.makefile("r", encoding="utf-8", errors="replace")
        self._end: Run | None = None

    @property
    def goes_on(self) -> bool:
        """Whether nobody has asked for its end yet."""
        return self._end is None

    def held(self) -> str | None:
        """Wait until a rule holds the command, and return at which call; None when it ended instead."""
        message = json.loads(self._lines.readline() or "{}")
        if "held" in message:
            return str(message["held"])
        self._end = self._finish(message)
        return None

    def go_on(self) -> None:
        """Let a held command go on."""
        self._connection.sendall(b"\n")

    def kill(self) -> None:
        """Kill a held command, with all its processes."""
        self._connection.sendall(b"k")

    def result(self) -> Run:
        """Wait for its end."""
        while self._end is None:
            if self.held() is not None:
                self.go_on()
        return self._end

    def close(self) -> None:
        """Let go of it; one that is held dies."""
        self._lines.close()
        self._connection.close()

    def _finish(self, message: Mapping[str, Any]) -> Run:
        rest = json.loads(self._lines.readline() or "{}")
        self.close()
        assert "rules" in message and "output" in rest, f"the server lost {self._words}: {message} {rest}"
        return Run(
            words=self._words,
            status=None if message["signal"] else message["status"],
            signal=message["signal"],
            late=message["late"],
            left=message["left"],
            counts=tuple(rule["count"] for rule in message["rules"]),
            fired=tuple(rule["fired"] for rule in message["rules"]),
            output=rest["output"],
            errors=rest["errors"],
        )


class Commands:
    """Commands of one user, forked from a server.  A context manager."""

    def __init__(self, account: Account, directory: Path, library: Path) -> None:
        self.account = account
        self._path = str(directory / "commands")
        self._started: list[Running] = []
        self._server = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.testbed.forkserver", self._path, str(library)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{PACKAGES}:{ROOT}", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n", "the server of commands did not start"

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        for running in self._started:
            running.close()
        self._server.communicate()  # it ends with its standard input

    def start(
        self,
        words: Sequence[str | os.PathLike[str]],
        rules: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        machine: Machine | None = None,
        limits: Mapping[str, int] | None = None,
        seconds: float = SECONDS,
    ) -> Running:
        """Start ``hpcpod WORDS``.  limits: by name of resource.RLIMIT_*, without the prefix."""
        plain = [os.fspath(word) for word in words]
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self._path)
        request = {
            "words": plain,
            "rules": list(rules),
            "uid": self.account.uid,
            "cwd": str(self.account.home),
            "env": self.account.environment(env),
            "machine": vars(machine) if machine else None,
            "limits": dict(limits or {}),
            "seconds": seconds,
        }
        connection.sendall(json.dumps(request).encode() + b"\n")
        self._started = [each for each in self._started if each.goes_on]
        self._started.append(Running(plain, connection))
        return self._started[-1]

    def run(self, words: Sequence[str | os.PathLike[str]], rules: Sequence[str] = (), **more: Any) -> Run:
        """Start it and wait for its end; as start()."""
        return self.start(words, rules, **more).result()
