# SPDX-License-Identifier: Apache-2.0
"""Pods made for real: one small image, a store for each user, a run-time directory for each test."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.conftest import Account, remove_tree
from tests.integration.pod.image import Tree, small_tree, write_layout

PATH = "/bin"
NODE = "n0"


def wait_for(condition: Callable[[], object], what: str, seconds: float = 10) -> None:
    """Return when the condition holds; fail when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s: {what}", pytrace=False)
        time.sleep(0.01)


def step(rank: int, ntasks: int, step_id: int = 0, **more: str) -> dict[str, str]:
    """What srun gives a task of a step of one node; see tests/unit/scheduler/goldens."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": str(step_id),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_STEP_NUM_TASKS": str(ntasks),
        "SLURM_STEP_TASKS_PER_NODE": str(ntasks),
        "SLURMD_NODENAME": NODE,
        **more,
    }


@dataclass
class Pods:
    """``hpcpod run`` as one user, with the small image.

    command: the front.  started: processes that the test's end kills.
    """

    account: Account
    reference: str
    store: Path
    command: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def runtime(self) -> Path:
        return self.account.runtime

    def words(
        self, program: Sequence[str], options: Sequence[str] = (), reference: str | None = None
    ) -> list[str]:
        return [str(self.command), "run", *options, reference or self.reference, "--", *program]

    def _environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        return {"HPCPOD_STORE": str(self.store), **(env or {})}

    def run(
        self,
        *program: str,
        options: Sequence[str] = (),
        reference: str | None = None,
        env: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
        **more: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end.  before: words before the front, such as those of a wrapper."""
        words = [*before, *self.words(program, options, reference)]
        return self.account.run(words, env=self._environment(env), **more)

    def out(self, *program: str, **more: Any) -> str:
        """Its output; the run must succeed."""
        done = self.run(*program, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout.rstrip("\n")

    def start(
        self,
        *program: str,
        options: Sequence[str] = (),
        reference: str | None = None,
        env: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
        **more: Any,
    ) -> subprocess.Popen[str]:
        """Start it; the test's end kills it."""
        words = [*before, *self.words(program, options, reference)]
        process = self.account.start(words, env=self._environment(env), **more)
        self.started.append(process)
        return process

    def pods(self) -> list[Path]:
        """Directories of pods that can be found."""
        directory = self.runtime / "pods"
        return (
            [path for path in directory.iterdir() if not path.name.startswith(".")]
            if directory.exists()
            else []
        )

    def holder(self) -> int:
        """Pid of the holder of the one pod."""
        (pod,) = self.pods()
        return int(os.readlink(pod / "holder"))

    def wait_gone(self, seconds: float = 5) -> None:
        """Until nothing is left of any pod."""
        wait_for(lambda: not any((self.runtime / "pods").iterdir()), "no pod left", seconds)

    def end(self) -> None:
        """Kill what the test started, and the holders with it."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
        for process in self.started:
            process.communicate()
        self.end_holders()

    def end_holders(self) -> None:
        """End the holders of all pods, as a scheduler would; they wait for their members."""
        for pod in self.pods():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends by itself meanwhile
                pid = int(os.readlink(pod / "holder"))
                if Path(f"/proc/{pid}/comm").read_text().strip() == "hpcpod-holder":
                    os.kill(pid, signal.SIGTERM)
                    wait_for(functools.partial(gone, pid), f"holder {pid} ends")


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def member(pods: Pods, rank: int, ntasks: int, **more: str) -> subprocess.Popen[str]:
    """A rank that is in the pod when this returns, and stays until its input is closed."""
    process = pods.start(
        "sh",
        "-c",
        "readlink /proc/self/ns/mnt; cat",
        env={**step(rank, ntasks), **more},
        stdin=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.namespace = process.stdout.readline()  # type: ignore[attr-defined]
    assert process.namespace.startswith("mnt:"), process.communicate()  # type: ignore[attr-defined]
    return process


def gone(pid: int) -> bool:
    """The contrary of :func:`alive`."""
    return not alive(pid)


@pytest.fixture(scope="session")
def layouts() -> Iterator[Path]:
    """A directory for images that every user can read."""
    path = Path(tempfile.mkdtemp(prefix="hpcpod-test-images-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def tree() -> Tree:
    """What the small image holds; to be copied before it is changed."""
    return small_tree()


@pytest.fixture(scope="session")
def small(layouts: Path, tree: Tree) -> str:
    """Reference of the small image."""
    env = {"PATH": PATH, "FROM_IMAGE": "yes", "LD_IMAGE": "kept"}
    return write_layout(layouts / "small", tree, env=env, cmd=["echo", "from", "cmd"], workdir="/opt/app")


@pytest.fixture(scope="session")
def stores() -> Iterator[Callable[[int], Path]]:
    """``stores(uid)``: the store of a user, the same for all tests, so that the image is unpacked once."""
    made: dict[int, Path] = {}

    def store(uid: int) -> Path:
        if uid not in made:
            made[uid] = Path(tempfile.mkdtemp(prefix="hpcpod-test-store-", dir="/var/tmp"))
            if os.geteuid() == 0:
                os.chown(made[uid], uid, uid)
        return made[uid]

    yield store
    for path in made.values():
        remove_tree(path)


@pytest.fixture(
    params=[
        pytest.param("user", id="plain", marks=pytest.mark.needs("plain", "userns", "native")),
        pytest.param("root_user", id="root", marks=pytest.mark.needs("root", "userns", "native")),
    ]
)
def pods(request: pytest.FixtureRequest, small: str, stores: Callable[[int], Path]) -> Iterator[Pods]:
    """The small image's pods, as a plain user and as root."""
    account: Account = request.getfixturevalue(request.param)
    made = Pods(account, small, stores(account.uid), needs.front_path())
    yield made
    made.end()


@pytest.fixture
def plain_pods(user: Account, small: str, stores: Callable[[int], Path]) -> Iterator[Pods]:
    """The same, as a plain user only; tests that use it need "plain", "userns", "native"."""
    made = Pods(user, small, stores(user.uid), needs.front_path())
    yield made
    made.end()


@dataclass
class Gate:
    """An installation whose Python waits until it is let through: for tests of what happens meanwhile.

    Made of a copy of the front and, beside it, a script that becomes the real interpreter.
    """

    directory: Path

    def __post_init__(self) -> None:
        real = needs.front_path().parent / "python3"
        script = (
            "#!/bin/sh\n"
            f"echo $$ >>{self.directory}/started\n"
            f"while [ ! -e {self.directory}/open ]; do sleep 0.02; done\n"
            f'exec {real} "$@"\n'
        )
        self.directory.mkdir()
        self.directory.chmod(0o777)
        self.front = Path(shutil.copy(needs.front_path(), self.directory / "hpcpod"))
        (self.directory / "python3").write_text(script)
        (self.directory / "python3").chmod(0o755)

    def open(self) -> None:
        """Let every Python through, from now on."""
        (self.directory / "open").touch()

    def started(self) -> list[int]:
        """Pids of the Pythons that were started."""
        path = self.directory / "started"
        return [int(word) for word in path.read_text().split()] if path.exists() else []

    def wait_started(self, count: int) -> list[int]:
        wait_for(lambda: len(self.started()) >= count, f"{count} preparations started")
        return self.started()


@pytest.fixture
def gate(plain_pods: Pods) -> Gate:
    """A gated installation, which plain_pods then uses."""
    made = Gate(plain_pods.account.home.parent / "gate")
    plain_pods.command = made.front
    return made
