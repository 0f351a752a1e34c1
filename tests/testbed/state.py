# SPDX-License-Identifier: Apache-2.0
"""What a cluster leaves on the machine while it lives, written down so that a later run can sweep it.

Each cluster has a folder below BASE with ``lock``, which its owner holds with flock(2), and
``record.json``.  A folder whose lock can be taken has lost its owner, by ``kill -9`` for example; its
nodes left with the lifeline, and what the record names is removed: processes (by pid *and* start time),
control groups, the folder.  Nothing else is ever touched.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.testbed import cgroups

BASE = Path("/var/lib/hpcpod-testbed")
"""Root-owned, on disk: the nodes' own disks are folders in it."""

KINDS = ("net", "mnt", "uts", "ipc", "pid", "cgroup")
"""The namespaces that each node has of its own."""


@dataclass(frozen=True)
class NodeRecord:
    """A node that was started.  starttime: field 22 of proc_pid_stat(5), in clock ticks since boot."""

    name: str
    pid: int
    starttime: int

    def alive(self) -> bool:
        """Whether that very process still exists."""
        return starttime(self.pid) == self.starttime


@dataclass(frozen=True)
class Record:
    """A cluster on this machine: its folder, the group that its processes are in, its nodes."""

    state: str
    top: str
    nodes: tuple[NodeRecord, ...]


def starttime(pid: int) -> int | None:
    """When that process started, in clock ticks since boot; None if there is none, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


@contextmanager
def _held(base: Path) -> Iterator[None]:
    """Hold the base directory, made if need be: nobody sweeps while a folder has no lock yet."""
    while True:
        base.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # the last cluster just left and took it along
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def _remove_if_empty(base: Path) -> None:
    try:
        base.rmdir()
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise


class StateFolder:
    """The folder of one cluster, locked as long as its owner lives."""

    def __init__(self, base: Path | None = None) -> None:
        self._base = base or BASE
        with _held(self._base):
            self.path = Path(tempfile.mkdtemp(dir=self._base))
            self.path.chmod(0o755)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def write(self, record: Record) -> None:
        """Say what there is to sweep; whole or not at all."""
        temporary = self.path / "record.json.new"
        temporary.write_text(json.dumps(asdict(record)))
        temporary.rename(self.path / "record.json")

    def remove(self) -> None:
        """Remove the folder, and the base with it if no other cluster is there."""
        with _held(self._base):
            shutil.rmtree(self.path)
            os.close(self._lock)
            _remove_if_empty(self._base)


def _load(path: Path) -> Record | None:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    nodes = tuple(NodeRecord(node["name"], node["pid"], node["starttime"]) for node in data["nodes"])
    return Record(data["state"], data["top"], nodes)


def kill(record: Record, seconds: float = 10.0) -> list[str]:
    """End the nodes' first processes, and with them all others; returns those that do not go."""
    for node in record.nodes:
        if node.alive():
            os.kill(node.pid, signal.SIGKILL)
    deadline = time.monotonic() + seconds
    left = list(record.nodes)
    while left and time.monotonic() < deadline:
        left = [node for node in left if node.alive()]
        if left:
            time.sleep(0.01)
    return [f"process {node.pid} of node {node.name} does not end" for node in left]


def _sweep_folder(folder: Path) -> bool:
    """Remove what one cluster left, if its owner is gone; whether it was."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        record = _load(folder / "record.json")
        if record is not None:
            kill(record)
            cgroups.remove(record.top)
        shutil.rmtree(folder)
        return True
    finally:
        os.close(lock)


def sweep(base: Path | None = None) -> list[str]:
    """Remove what clusters without an owner left; returns a line for each.  Other clusters stay."""
    place = base or BASE
    if not place.exists():
        return []
    with _held(place):
        gone = [folder for folder in sorted(place.glob("*/")) if _sweep_folder(folder)]
        _remove_if_empty(place)
    return [f"removed what an earlier cluster left: {folder}" for folder in gone]
