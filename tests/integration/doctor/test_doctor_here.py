# SPDX-License-Identifier: Apache-2.0
"""The doctor on this machine: what it tries leaves nothing behind, and a node without namespaces shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcpod.launcher.doctor import Level, findings
from hpcpod.launcher.node_facts import read_node
from tests.conftest import PACKAGES

ASK = """
import os
from hpcpod.launcher.node_facts import read_node
print(read_node(os.environ, os.getuid()).userns)
"""


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    return {"HPCPOD_STORE": str(tmp_path / "store"), "HPCPOD_RUNTIME": str(tmp_path / "runtime")}


def attempts() -> list[str]:
    """What the doctor's attempts mount, as far as it is seen here; other mounts are others' affair."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4] in ("/tmp", "/tmp/merged")]


@pytest.mark.needs("userns")
def test_pods_can_start_here(places: dict[str, str]) -> None:
    before = attempts(), os.listdir("/proc/self/fd")
    facts = read_node(places, os.getuid())
    assert (attempts(), os.listdir("/proc/self/fd")) == before
    assert facts.userns == ""
    assert {found.subject for found in findings(facts) if found.level is Level.FAIL} == set()


@pytest.mark.needs("root")
def test_a_node_without_user_namespaces(places: dict[str, str]) -> None:
    """The limit is per user namespace, so setting it in one of our own leaves the machine as it is."""
    command = ["unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh"]
    done = subprocess.run(
        [*command, sys.executable, "-c", ASK],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": PACKAGES, **places},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "ENOSPC"), done.stderr
