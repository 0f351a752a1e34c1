# SPDX-License-Identifier: Apache-2.0
"""Starting the nodes and the network between them: the programs node.py and network.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from tests.testbed.node import NodeSpec
from tests.testbed.state import NodeRecord, starttime

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass
class Wiring:
    """network.py, started early so that its import overlaps with the nodes."""

    process: subprocess.Popen[str]

    def join(self, records: tuple[NodeRecord, ...]) -> None:
        """Tell it the nodes, the controller first, and wait.  Raises SubprocessError with its words."""
        nodes = [(record.name, record.pid) for record in records[1:]]
        request = json.dumps({"controller": records[0].pid, "nodes": nodes})
        _, errors = self.process.communicate(request, timeout=30)
        if self.process.returncode != 0:
            raise subprocess.SubprocessError(f"network of the nodes: {errors}")

    def close(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def wire() -> Wiring:
    """Start network.py."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.testbed.network"],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Wiring(process)


@dataclass
class Holder:
    """node.py for one node, and the pipe that it says "ready" on."""

    name: str
    process: subprocess.Popen[str]
    ready: TextIO

    def wait(self) -> NodeRecord:
        """Wait until the node stands.  Raises SubprocessError with the holder's words."""
        words = self.ready.read().split()
        _, errors = self.process.communicate(timeout=20)
        if len(words) != 2 or words[1] != "ready":
            raise subprocess.SubprocessError(f"node {self.name} did not start: {errors}")
        pid = int(words[0])
        return NodeRecord(self.name, pid, starttime(pid) or 0)

    def close(self) -> None:
        """Let go of it; a node that stands leaves with the lifeline."""
        self.ready.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def _start(spec: NodeSpec, lifeline: int) -> Holder:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-m", "tests.testbed.node", replace(spec, ready=write).as_json()],
        cwd=CHECKOUT,
        pass_fds=(write, lifeline),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    return Holder(spec.name, process, os.fdopen(read))


def start_holders(names: tuple[str, ...], template: NodeSpec) -> tuple[int, tuple[NodeRecord, ...]]:
    """Start all nodes at once; returns the lifeline, to be held until they shall go, and their records.

    template: what is the same for all.  Raises SubprocessError and OSError.
    """
    end, lifeline = os.pipe()
    holders: list[Holder] = []
    try:
        holders += [_start(replace(template, name=name, lifeline=end), end) for name in names]
        return lifeline, tuple(holder.wait() for holder in holders)
    except BaseException:
        os.close(lifeline)  # those that did start see it and leave
        raise
    finally:
        os.close(end)
        for holder in holders:
            holder.close()
