# SPDX-License-Identifier: Apache-2.0
"""A real Slurm of several nodes on one machine, each node in namespaces of its own.

    with Cluster(nodes=2) as cluster:
        cluster.run(["srun", "-N2", "-n4", "hostname"])

``ctl`` is the controller and login node; ``n0``, ``n1``, … compute.  Every node has its own network, host
name, mounts, processes, IPC and control groups, and its own /tmp, /var/tmp, /run and /dev/shm; homes are
shared.  The plain users alice and bob exist on the nodes only.  Nothing on the machine changes but a
folder below /var/lib/hpcpod-testbed and one control group per hierarchy, both gone afterwards.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.testbed import cgroups, files, state, traces
from tests.testbed.enter import Entry, check, finish, person
from tests.testbed.holders import start_holders, wire
from tests.testbed.needs import missing
from tests.testbed.node import NodeSpec

IDLE_SECONDS = 15.0
"""A cluster whose nodes are not idle by then is broken, never merely slow."""


class ClusterError(Exception):
    """The cluster could not be started, or did not go away; says what and shows the daemons' logs."""


class Cluster:
    """A running cluster; a context manager.

    nodes: compute nodes.  extra_conf: further lines of slurm.conf(5).  plugstack: text of
    plugstack.conf.  keep: paths that the nodes must see although a directory of their own covers them;
    this checkout and this Python are always among them.  state_dir: where the cluster's folder is made.
    disk_in_memory: /var/tmp of each node is memory instead, for speed.
    """

    def __init__(
        self,
        nodes: int = 2,
        *,
        extra_conf: str = "",
        plugstack: str = "",
        keep: Sequence[Path] = (),
        state_dir: Path | None = None,
        disk_in_memory: bool = False,
    ) -> None:
        self.nodes = tuple(f"n{index}" for index in range(nodes))
        self._extra_conf = extra_conf
        self._plugstack = plugstack
        checkout = Path(__file__).resolve().parents[2]
        self._keep = tuple(str(path) for path in (checkout, Path(sys.prefix), Path(sys.base_prefix), *keep))
        self._base = state_dir
        self._disk_in_memory = disk_in_memory
        self._folder: state.StateFolder | None = None
        self._lifeline = -1
        self._record = state.Record("", "", ())
        self._daemons: list[subprocess.Popen[str]] = []
        self._before = traces.look()

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Cluster:
        """Start all of it and wait until every node is idle.  Raises ClusterError."""
        gaps = missing()
        if gaps:
            raise ClusterError("this machine cannot hold a test cluster; missing: " + "; ".join(gaps))
        for line in state.sweep(self._base):
            print(line, file=sys.stderr)
        self._before = traces.look()
        try:
            self._start()
        except BaseException as error:
            logs = self.logs()
            self._teardown()
            if isinstance(error, (subprocess.SubprocessError, OSError, ClusterError)):
                raise ClusterError(f"{error}\n{logs}") from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take all of it down.  Raises ClusterError if something stays, unless an exception is under way."""
        left = self._teardown()
        if left and error is None:
            raise ClusterError("the cluster left something behind: " + "; ".join(left))

    def _start(self) -> None:
        self._folder = state.StateFolder(self._base)
        folder = self._folder.path
        top = f"hpcpod-testbed-{folder.name}"
        names = ("ctl", *self.nodes)
        self._record = state.Record(str(folder), top, ())
        self._folder.write(self._record)
        owners = {name: (pwd.getpwnam(name).pw_uid, pwd.getpwnam(name).pw_gid) for name in ("slurm", "munge")}
        files.write_etc(folder / "etc", self.nodes, self._extra_conf, self._plugstack, owners["munge"])
        files.write_disks(folder, names, owners["slurm"], owners["munge"])
        cgroups.create(top, names)
        wiring = wire()
        try:
            template = NodeSpec(
                name="",
                top=top,
                state=str(folder),
                keep=self._keep,
                slurm=owners["slurm"],
                munge=owners["munge"],
                disk_in_memory=self._disk_in_memory,
            )
            self._lifeline, records = start_holders(names, template)
            self._record = state.Record(str(folder), top, records)
            self._folder.write(self._record)
            for name in names:
                self._daemon(name, "setpriv", *MUNGE)
            wiring.join(records)
        finally:
            wiring.close()
        self._finish()
        self._daemon("ctl", "slurmctld")
        for name in self.nodes:
            self._daemon(name, "slurmd", "-N", name)
        self._finish()
        self._wait_idle()

    def _daemon(self, node: str, *command: str) -> None:
        self._daemons.append(self._entry(node, "root").popen(command, output=subprocess.PIPE))

    def _finish(self) -> None:
        """Wait until the daemons are in the background."""
        while self._daemons:
            finish(self._daemons.pop())

    def _wait_idle(self) -> None:
        deadline = time.monotonic() + IDLE_SECONDS
        while True:
            states = self.node_states()
            if states and all(word == "idle" for word in states.values()) and len(states) == len(self.nodes):
                return
            if time.monotonic() > deadline:
                raise ClusterError(f"nodes are not idle after {IDLE_SECONDS:.0f} s: {states}")
            time.sleep(0.05)

    def _teardown(self) -> list[str]:
        held = traces.hold(self._record)
        left = state.kill(self._record) + traces.inhabitants(held)
        for daemon in self._daemons:
            daemon.communicate()  # its start was cut short, and its node is gone
        for descriptor in held:
            os.close(descriptor)
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._record.top:
            left += cgroups.remove(self._record.top)
        if self._folder is not None and not left:
            self._folder.remove()
            self._folder = None
        return left or self.leftovers()

    # ------------------------------------------------------------------ use

    def _entry(self, node: str, user: str) -> Entry:
        pids = {record.name: record.pid for record in self._record.nodes}
        return Entry(self._record.top, node, pids[node], person(user))

    def popen(
        self,
        args: Sequence[str | Path],
        *,
        user: str = "alice",
        node: str = "ctl",
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        merge: bool = False,
    ) -> subprocess.Popen[str]:
        """Start a program on a node with a clean environment; stdout and stderr are pipes.

        env: variables in addition.  cwd: the user's home if None.  merge: one pipe for both.
        """
        output = subprocess.PIPE if merge else None
        return self._entry(node, user).popen([str(word) for word in args], env=env, cwd=cwd, output=output)

    def run(
        self,
        args: Sequence[str | Path],
        *,
        user: str = "alice",
        node: str = "ctl",
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: str | None = None,
        check_status: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on a node to its end, within `timeout` seconds.

        Raises subprocess.TimeoutExpired (the program was killed), and ClusterError with its output if
        check_status is set and its exit status is not 0.
        """
        words = [str(word) for word in args]
        done = self._entry(node, user).run(words, timeout=timeout, env=env, cwd=cwd, stdin=stdin)
        if check_status and done.returncode != 0:
            raise ClusterError(check(done))
        return done

    def node_states(self) -> dict[str, str]:
        """State of each compute node as sinfo(1) has it: idle, alloc, drain, …"""
        done = self.run(["sinfo", "-h", "-N", "-o", "%N %T"], user="root", timeout=10)
        rows = [line.split() for line in done.stdout.splitlines()]
        return {row[0]: row[1] for row in rows if len(row) == 2}

    def wait_idle(self, seconds: float = 10.0) -> dict[str, str]:
        """Wait until no job is left; returns the states, whatever they are by then."""
        deadline = time.monotonic() + seconds
        while True:
            states = self.node_states()
            if set(states.values()) <= {"idle"} or time.monotonic() > deadline:
                return states
            time.sleep(0.05)

    def home(self, user: str = "alice") -> Path:
        """That user's home directory as the machine (not a node) sees it."""
        return Path(self._record.state, "home", user)

    def root(self, node: str) -> Path:
        """That node's file system as the machine (not a node) sees it."""
        return Path(f"/proc/{self.pid(node)}/root")

    def pid(self, node: str) -> int:
        """The machine's number of that node's pid 1."""
        return {record.name: record.pid for record in self._record.nodes}[node]

    def processes(self) -> list[int]:
        """All processes of the cluster, in the machine's numbers."""
        return cgroups.processes(self._record.top)

    def logs(self, lines: int = 30) -> str:
        """The end of every daemon's log."""
        texts: list[str] = []
        for path in sorted(Path(self._record.state, "nodes").glob("*/log-*/*.log")):
            tail = path.read_text(errors="replace").splitlines()[-lines:]
            if tail:
                texts.append("\n".join([f"--- {path.parts[-3]} {path.name}", *tail]))
        return "\n".join(texts)

    def leftovers(self) -> list[str]:
        """After the end: what is still there of this cluster, one line each."""
        return traces.leftovers(self._before, self._record)


MUNGE = ("--reuid=munge", "--regid=munge", "--clear-groups", "munged")
"""As root munged refuses a log folder that belongs to munge."""
