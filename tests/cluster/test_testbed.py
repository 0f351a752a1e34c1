# SPDX-License-Identifier: Apache-2.0
"""The test cluster itself: it goes without a trace, also when its owner is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.testbed import cgroups, state
from tests.testbed.cluster import Cluster, ClusterError

pytestmark = pytest.mark.needs("root", "slurm")

OWNER = """
import json, sys, time
from pathlib import Path
from tests.testbed.cluster import Cluster
with Cluster(nodes=2, state_dir=Path(sys.argv[1])) as cluster:
    cluster.popen(["srun", "-N2", "sleep", "1000"])
    print("up", flush=True)
    time.sleep(1000)
"""


def test_two_nodes_run_a_job_and_leave_no_trace(tmp_path: Path) -> None:
    with Cluster(nodes=2, state_dir=tmp_path) as cluster:
        done = cluster.run(["srun", "-N2", "-n4", "sh", "-c", "hostname; id -un"], check_status=True)
        assert sorted(done.stdout.split()) == ["alice"] * 4 + ["n0"] * 2 + ["n1"] * 2
        assert cluster.processes()
    assert cluster.leftovers() == []
    assert list(tmp_path.glob("*")) == []


def test_four_nodes(tmp_path: Path) -> None:
    with Cluster(nodes=4, state_dir=tmp_path) as cluster:
        assert cluster.node_states() == {"n0": "idle", "n1": "idle", "n2": "idle", "n3": "idle"}


def test_a_program_that_does_not_end_is_ended(tmp_path: Path) -> None:
    with Cluster(nodes=1, state_dir=tmp_path) as cluster:
        before = cluster.processes()
        with pytest.raises(subprocess.TimeoutExpired):
            cluster.run(["sleep", "1000"], timeout=0.5)
        assert cluster.processes() == before


def test_a_configuration_that_slurm_refuses_is_shown(tmp_path: Path) -> None:
    with (
        pytest.raises(ClusterError, match="NoSuchOption"),
        Cluster(extra_conf="NoSuchOption=1", state_dir=tmp_path),
    ):
        pass
    assert list(tmp_path.glob("*")) == []


def test_the_next_cluster_sweeps_what_a_killed_owner_left(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        (folder,) = tmp_path.glob("*/")
        top = f"hpcpod-testbed-{folder.name}"
        assert cgroups.processes(top)
        os.kill(owner.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while cgroups.processes(top) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert cgroups.processes(top) == []  # the nodes went with their owner
    assert cgroups.groups(top)  # what only a sweep removes
    assert state.sweep(tmp_path) == [f"removed what an earlier cluster left: {folder}"]
    assert cgroups.groups(top) == []
    assert not folder.exists()
