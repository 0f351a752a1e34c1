# SPDX-License-Identifier: Apache-2.0
"""Who is measured: the command that each contender is started with, and what it is given before."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.account import SEARCH, Account, BenchError, last_line

Prepare = Callable[[int], Mapping[str, str]]
"""Called with N before each measurement, outside the time taken; returns variables to add."""


@dataclass(frozen=True)
class Contender:
    """One row.  kind: ``host``, ``join`` (a pod that runs already), ``fresh`` (own namespaces) or ``step``
    (one new pod for the N, who join it).  rank_variables: set to the number of the copy.  every: measured
    in each so-many-th round only."""

    key: str
    name: str
    kind: str
    about: str
    command: Sequence[str]
    prepare: Prepare = field(default=lambda count: {})
    rank_variables: Sequence[str] = ()
    every: int = 1


@dataclass(frozen=True)
class Stage:
    """What all contenders share.  root: the unpacked image; mounts: (kind, source, target) in order;
    payload: the program of the image."""

    account: Account
    root: Path
    mounts: Sequence[tuple[str, str, str]]
    payload: Sequence[str]
    programs: Mapping[str, Path]
    scratch: Path


def standard_mounts(root: Path) -> list[tuple[str, str, str]]:
    """The mounts of hpcpod's default plan, which every contender that can be told is told to make.

    Those whose mount point the tree lacks are left out: some would make it, in the tree that all share.
    """
    wanted = [
        ("bind", "/dev", "/dev"),
        ("tmpfs", "", "/dev/shm"),
        ("bind", "/proc", "/proc"),
        ("ro", "/sys", "/sys"),
        ("bind", "/tmp", "/tmp"),
        ("bind", "/var/tmp", "/var/tmp"),
        ("ro", "/etc/passwd", "/etc/passwd"),
        ("ro", "/etc/group", "/etc/group"),
        ("ro", "/etc/resolv.conf", "/etc/resolv.conf"),
        ("ro", "/etc/hosts", "/etc/hosts"),
    ]
    return [mount for mount in wanted if (root / mount[2].lstrip("/")).exists() or mount[0] == "tmpfs"]


@dataclass(frozen=True)
class Holder:
    """A process that keeps a pod.  end: what stops it, where killing it would leave its child behind; then:
    called when it is gone."""

    process: subprocess.Popen[str]
    end: Callable[[], object] | None
    then: Callable[[], object] | None

    def stop(self) -> None:
        """Stop and reap it."""
        if self.end:
            self.end()
        else:
            self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        if self.then:
            self.then()


class Holders:
    """The processes that keep pods for the joins; stop() ends them.

    pod: pid of the one that holds hpcpod's pod, None where there is none.
    """

    def __init__(self) -> None:
        self.pod: int | None = None
        self._running: list[Holder] = []

    def start(
        self,
        account: Account,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        end: Callable[[], object] | None = None,
        then: Callable[[], object] | None = None,
    ) -> str:
        """Start one and return the first line that it prints when it is ready.  Raises BenchError."""
        process = account.start(command, env=env)
        self._running.append(Holder(process, end, then))
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise BenchError(f"{' '.join(command)}: ended at once with status {process.wait()}")
        return line

    def stop(self) -> None:
        """Stop and reap them all."""
        self.pod = None
        while self._running:
            self._running.pop().stop()


def tool(name: str) -> str:
    """Path of a program, so that no contender pays for a search.  Raises BenchError."""
    path = shutil.which(name, path=SEARCH)
    if path is None:
        raise BenchError(f"{name}: not installed")
    return path


def floor_mounts(stage: Stage) -> list[str]:
    """The mounts in floor.c's notation."""
    return [
        f"tmpfs:{to}" if kind == "tmpfs" else f"{kind}:{source}:{to}" for kind, source, to in stage.mounts
    ]


def held_pods(runtime: Path) -> list[int]:
    """The processes that hold hpcpod's pods."""
    found = []
    for pod in runtime.glob("pods/*"):
        with contextlib.suppress(OSError):
            found.append(int((pod / "holder").readlink().name))
    return found


def end_pods(runtime: Path) -> None:
    """Ask those who hold pods to end with the last member; they would linger for a minute."""
    for pid in held_pods(runtime):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)


def references(stage: Stage, holders: Holders) -> list[Contender]:
    """The host itself, the floors, and other programs that join a pod: hpcpod's own if there is one."""
    floor = str(stage.programs["floor"])
    hold = [floor, "hold", str(stage.root), *floor_mounts(stage)]
    pid = str(holders.pod) if holders.pod else holders.start(stage.account, hold)
    join = "into hpcpod's pod" if holders.pod else "into the floor's pod"
    return [
        Contender("host", "no pod: exec on the host", "host", "the same program of the host", stage.payload),
        Contender(
            "floor-join", "floor: join", "join", f"pidfd_open, setns, exec in static C, {join}",
            [floor, "join", pid, *stage.payload],
        ),
        Contender(
            "floor-fresh", "floor: fresh", "fresh", "unshare, the same mounts, pivot_root, exec in static C",
            [floor, "fresh", str(stage.root), *floor_mounts(stage), "--", *stage.payload],
        ),
        Contender(
            "nsenter", "nsenter", "join", f"user, mount and ipc {join}",
            [tool("nsenter"), "-t", pid, "-U", "-m", "-i", "--preserve-credentials", *stage.payload],
        ),
        Contender(
            "ch-run-join", "Charliecloud --join-pid", "join", f"user and mount {join}",
            [tool("ch-run"), f"--join-pid={pid}", str(stage.root), "--", *stage.payload],
        ),
    ]  # fmt: skip


def bubblewrap(stage: Stage) -> list[Contender]:
    """bwrap with the same mounts, and at its leanest."""
    words = [tool("bwrap"), "--unshare-user", "--unshare-ipc", "--ro-bind", str(stage.root), "/"]
    options = {"bind": "--dev-bind", "ro": "--ro-bind"}
    mounts: list[str] = []
    for kind, source, target in stage.mounts:
        mounts += ["--tmpfs", target] if kind == "tmpfs" else [options[kind], source, target]
    return [
        Contender(
            "bwrap", "bubblewrap", "fresh", "user, mount and ipc namespaces, the same mounts",
            [*words, *mounts, *stage.payload],
        ),
        Contender(
            "bwrap-lean", "bubblewrap, root and /dev alone", "fresh", "user and mount namespaces, two binds",
            [words[0], "--unshare-user", "--ro-bind", str(stage.root), "/", "--dev-bind", "/dev", "/dev",
             *stage.payload],
        ),
    ]  # fmt: skip


def charliecloud(stage: Stage) -> list[Contender]:
    """ch-run as it comes: user and mount namespaces, its own default mounts."""
    return [
        Contender(
            "ch-run", "Charliecloud", "fresh", "user and mount namespaces, its own default binds",
            [tool("ch-run"), str(stage.root), "--", *stage.payload],
        )
    ]  # fmt: skip


def _oci_mount(kind: str, source: str, target: str) -> dict[str, object]:
    if kind == "tmpfs":
        options = ["nosuid", "nodev", "mode=1777"]
        return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options}
    options = ["rbind", "ro"] if kind == "ro" else ["rbind"]
    return {"destination": target, "type": "bind", "source": source, "options": options}


def oci_bundle(stage: Stage, name: str, args: Sequence[str]) -> Path:
    """A bundle for crun with the same namespaces and mounts; returns its directory."""
    account = stage.account
    env = [f"{key}={value}" for key, value in account.environment.items()]
    user = {"uid": account.uid, "gid": account.gid}
    config = {
        "ociVersion": "1.0.0",
        "process": {"user": user, "args": list(args), "env": env, "cwd": "/", "noNewPrivileges": True},
        "root": {"path": str(stage.root), "readonly": True},
        "mounts": [_oci_mount(*mount) for mount in stage.mounts],
        "linux": {
            "uidMappings": [{"containerID": account.uid, "hostID": account.uid, "size": 1}],
            "gidMappings": [{"containerID": account.gid, "hostID": account.gid, "size": 1}],
            "namespaces": [{"type": kind} for kind in ("user", "mount", "ipc")],
        },
    }
    bundle = account.own(stage.scratch / name)
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def crun_refusal(stage: Stage, state: Path) -> str | None:
    """Why crun cannot be started on this machine as it is, None if it can."""
    bundle = oci_bundle(stage, "crun-probe", stage.payload)
    words = [tool("crun"), f"--root={state}", "--cgroup-manager=disabled", "run", "-b", str(bundle), "probe"]
    done = stage.account.run(words)
    return last_line(done.stderr) if done.returncode else None


def crun(stage: Stage, state: Path, holders: Holders) -> list[Contender]:
    """crun run, and crun exec into a container that runs."""
    refusal = crun_refusal(stage, state)
    if refusal:
        raise BenchError(refusal)
    words = [tool("crun"), f"--root={state}", "--cgroup-manager=disabled"]
    fresh = oci_bundle(stage, "crun-fresh", stage.payload)
    held = oci_bundle(stage, "crun-held", ["/bin/sh", "-c", "echo ready; exec sleep infinity"])
    # "delete --force" of crun 1.8.1 leaves the process of a container without a cgroup alive.
    kill = [*words, "kill", "held", "KILL"]
    holders.start(
        stage.account, [*words, "run", "-b", str(held), "held"], end=lambda: stage.account.run(kill)
    )
    return [
        Contender(
            "crun", "crun run", "fresh", "user, mount and ipc namespaces, the same mounts, no cgroup",
            [*words, "run", "-b", str(fresh), "{}"],
        ),
        Contender(
            "crun-exec", "crun exec", "join", "into a container that runs",
            [*words, "exec", f"--user={stage.account.uid}:{stage.account.gid}", "held", *stage.payload],
        ),
    ]  # fmt: skip


def step_environment(step: int, tasks: int) -> dict[str, str]:
    """What slurmstepd tells a task of a step that runs on this node alone, but for the rank's own numbers."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_ID": str(step),
        "SLURM_NTASKS": str(tasks),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": str(tasks),
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURMD_NODENAME": "bench",
    }


RANK_VARIABLES = ("SLURM_PROCID", "SLURM_LOCALID")
STEPS = itertools.count(1)
"""No two steps of a run have the same number."""
MANY = 1_000_000
"""Tasks of the step whose pod stays for the joins: the pod ends when all of them have been there."""


def hpcpod(stage: Stage, front: Path, reference: str, holders: Holders) -> list[Contender]:
    """Joining a pod that is held, a new pod of a new step, a lone run, and runs that start Python."""
    run = [str(front), "run", "--mpi=none", reference, "--"]
    held = step_environment(next(STEPS), MANY)
    runtime = Path(stage.account.environment["HPCPOD_RUNTIME"])
    member = [*run, "/bin/sh", "-c", "echo ready; exec sleep infinity"]
    holders.start(stage.account, member, env=held, then=lambda: end_pods(runtime))
    holders.pod = next(iter(held_pods(runtime)), None)
    stage.account.checked([*run, *stage.payload])  # makes the plan that the fresh rows find

    def new_runtime(count: int) -> dict[str, str]:
        return {"HPCPOD_RUNTIME": f"{runtime}-cold{next(STEPS)}"}

    return [
        Contender(
            "hpcpod-join", "hpcpod run: pod ready", "join", "ranks of a step whose pod is there",
            [*run, *stage.payload], lambda count: held, RANK_VARIABLES,
        ),
        Contender(
            "hpcpod-fresh", "hpcpod run: fresh", "fresh", "a pod for each; image unpacked, plan cached",
            [*run, *stage.payload],
        ),
        Contender(
            "hpcpod-step", "hpcpod run: new step", "step",
            "the first makes the step's pod from the cached plan, the others join", [*run, *stage.payload],
            lambda count: step_environment(next(STEPS), count), RANK_VARIABLES,
        ),
        Contender(
            "hpcpod-cold", "hpcpod run: no plan yet", "cold",
            "the first plans in Python (image in the store), the others wait", [*run, *stage.payload],
            new_runtime, (), 4,
        ),
    ]  # fmt: skip
