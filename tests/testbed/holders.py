# SPDX-License-Identifier: Apache-2.0
"""Starting the nodes and the network between them: the programs node.py and network.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tests.testbed.node import NodeSpec
from tests.testbed.state import NodeRecord, namespaces, starttime

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


def _read_ready(name: str, ready: int, holder: subprocess.Popen[str]) -> int:
    """The pid of the node, once it says that it is ready.  Raises SubprocessError."""
    with os.fdopen(ready) as lines:
        words = lines.read().split()
    _, errors = holder.communicate(timeout=20)
    if len(words) != 2 or words[1] != "ready":
        raise subprocess.SubprocessError(f"node {name} did not start: {errors}")
    return int(words[0])


def start_holders(names: tuple[str, ...], template: NodeSpec) -> tuple[int, tuple[NodeRecord, ...]]:
    """Start all nodes at once; returns the lifeline, to be held until they shall go, and their records.

    template: what is the same for all.  Raises SubprocessError and OSError.
    """
    end, lifeline = os.pipe()
    started: list[tuple[str, int, subprocess.Popen[str]]] = []
    try:
        for name in names:
            read, write = os.pipe()
            spec = replace(template, name=name, ready=write, lifeline=end)
            holder = subprocess.Popen(
                [sys.executable, "-S", "-E", "-m", "tests.testbed.node", spec.as_json()],
                cwd=CHECKOUT,
                pass_fds=(write, end),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            os.close(write)
            started.append((name, read, holder))
        pids = {name: _read_ready(name, read, holder) for name, read, holder in started}
    except BaseException:
        os.close(lifeline)  # those that did start see it and leave
        raise
    finally:
        os.close(end)
    records = tuple(NodeRecord(name, pid, starttime(pid) or 0, namespaces(pid)) for name, pid in pids.items())
    return lifeline, records
