# SPDX-License-Identifier: Apache-2.0
"""One real Slurm of two nodes for all tests here, and the way hpcpod is started on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.testbed import image
from tests.testbed.cluster import Cluster

COLD_SECONDS = 240.0
"""For a start that may unpack on both nodes; a disk shared with other virtual machines can be very slow."""

ENOUGH_MEMORY = 8 << 30
"""Bytes; all images of these tests, unpacked on two nodes, take 3 GiB."""

Event = dict[str, Any]


def say(text: str) -> None:
    """Progress that pytest shows with -s: images take a minute each to build."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Start:
    """A step that came to its end.  rows: the JSON lines that its ranks printed."""

    status: int
    stdout: str
    stderr: str
    events: tuple[Event, ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines() if line.startswith("{")]

    def of(self, kind: str) -> list[Event]:
        """Events of that kind, by node and rank."""
        chosen = [event for event in self.events if event["event"] == kind]
        return sorted(chosen, key=lambda event: (event["node"], event["rank"]))


class Site:
    """The cluster with hpcpod installed on it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.front = str(needs.front_path())
        self.path = f"{needs.front_path().parent}:{needs.SYSTEM_PATH}"

    def event_files(self) -> dict[Path, int]:
        """All files of events on the nodes and their sizes."""
        roots = [self.cluster.root(node) / "dev/shm" for node in self.cluster.nodes]
        return {path: path.stat().st_size for root in roots for path in root.glob("hpcpod-*/events/*")}

    def _events_since(self, before: dict[Path, int]) -> tuple[Event, ...]:
        found: list[Event] = []
        for path in sorted(self.event_files()):
            text = path.read_text()[before.get(path, 0) :]
            found += [json.loads(line) for line in text.splitlines()]
        return tuple(found)

    def srun(
        self,
        reference: str,
        program: Sequence[str],
        *,
        srun: Sequence[str] = ("-N2", "-n4", "--mpi=pmi2"),
        options: Sequence[str] = (),
        user: str = "alice",
        timeout: float = COLD_SECONDS,
    ) -> Start:
        """``srun … hpcpod run … REFERENCE -- PROGRAM``, from the login node."""
        words = ["srun", *srun, self.front, "run", *options, reference, "--", *program]
        return self.run(words, user=user, timeout=timeout)

    def run(self, words: Sequence[str], *, user: str = "alice", timeout: float = COLD_SECONDS) -> Start:
        """Any command, from the login node."""
        before = self.event_files()
        done = self.cluster.run(words, user=user, timeout=timeout, env={"PATH": self.path})
        return Start(done.returncode, done.stdout, done.stderr, self._events_since(before))

    def script(self, text: str, **more: Any) -> Start:
        """A bash script inside an allocation of two nodes and four ranks; it stops at the first failure."""
        return self.run(["salloc", "-Q", "-N2", "-n4", "bash", "-euo", "pipefail", "-c", text], **more)

    def mounts(self, node: str) -> list[str]:
        """The mount table of that node."""
        return Path(f"/proc/{self.cluster.pid(node)}/mountinfo").read_text().splitlines()


def _memory_available() -> int:
    """Bytes, as proc_meminfo(5) estimates them."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    keep = [needs.front_path().parent, image.where()]
    with Cluster(nodes=2, keep=keep, disk_in_memory=_memory_available() > ENOUGH_MEMORY) as running:
        yield running
    assert running.leftovers() == []


@pytest.fixture(scope="session")
def site(cluster: Cluster) -> Site:
    return Site(cluster)


@pytest.fixture(scope="session")
def demo_image() -> str:
    return image.reference(image.DEMO, say)


@pytest.fixture(scope="session")
def warm_image(site: Site, demo_image: str) -> str:
    """The demo's image, unpacked on both nodes already."""
    start = site.srun(demo_image, ["true"], srun=["-N2", "-n2"])
    assert start.status == 0, start.stderr
    return demo_image


@pytest.fixture(autouse=True)
def _nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: every node takes jobs, and nothing of the job is left on any."""
    if "site" not in request.fixturenames:
        yield
        return
    site: Site = request.getfixturevalue("site")
    processes = set(site.cluster.processes())
    mounts = {node: site.mounts(node) for node in site.cluster.nodes}
    yield
    assert site.cluster.wait_idle() == dict.fromkeys(site.cluster.nodes, "idle")
    left = set(site.cluster.processes()) - processes
    assert [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left] == []
    assert {node: site.mounts(node) for node in site.cluster.nodes} == mounts
