# SPDX-License-Identifier: Apache-2.0
"""One pod per node and step: what its ranks share, what each has alone, and that nobody owns it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cluster.conftest import Site
from tests.testbed import image

pytestmark = pytest.mark.needs("root", "slurm", "native", "umoci", "mmdebstrap")

LOOK = """
import json, os, pwd
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
links = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("user", "mnt", "ipc", "net", "pid", "uts")}
print(json.dumps({
    "node": os.uname().nodename, "cpus": status["Cpus_allowed_list"].strip(), "uid": os.getuid(),
    "groups": sorted(os.getgroups()), "cwd": os.getcwd(), "home": os.environ["HOME"],
    "capabilities": int(status["CapEff"], 16), "no_new_privs": int(status["NoNewPrivs"]),
    "name": pwd.getpwuid(os.getuid()).pw_name, "descriptors": sorted(os.listdir("/proc/self/fd")),
    **links}))
"""


def _look(site: Site, reference: str, *srun: str, user: str = "alice") -> list[dict[str, object]]:
    start = site.srun(
        reference, ["python3", "-c", LOOK], srun=srun or ["-N2", "-n4"], options=["--mpi=none"], user=user
    )
    assert start.status == 0, start.stderr
    return sorted(start.rows, key=lambda row: (row["node"], row["cpus"]))


def test_ranks_of_a_node_share_a_pod_and_have_a_cpu_each(site: Site, warm_image: str) -> None:
    rows = _look(site, warm_image)
    assert [(row["node"], row["cpus"]) for row in rows] == [
        ("n0", "0"),
        ("n0", "1"),
        ("n1", "0"),
        ("n1", "1"),
    ]
    for kind in ("user", "mnt", "ipc"):
        assert len({(row["node"], row[kind]) for row in rows}) == 2
        nodes = {str(Path(f"/proc/{site.cluster.pid(node)}/ns/{kind}").readlink()) for node in ("n0", "n1")}
        assert nodes.isdisjoint(str(row[kind]) for row in rows)


def test_ranks_keep_what_belongs_to_the_node(site: Site, warm_image: str) -> None:
    """PMIx talks to the node's loopback; tools count on the node's processes and name."""
    for row in _look(site, warm_image):
        for kind in ("net", "pid", "uts"):
            pid1 = site.cluster.pid(str(row["node"]))
            assert row[kind] == str(Path(f"/proc/{pid1}/ns/{kind}").readlink())


def test_ranks_are_the_user_and_have_no_privileges(site: Site, warm_image: str) -> None:
    for row in _look(site, warm_image):
        assert (row["uid"], row["name"], row["home"], row["cwd"]) == (
            1001,
            "alice",
            "/home/alice",
            "/home/alice",
        )
        assert (row["capabilities"], row["no_new_privs"]) == (0, 1)


def test_ranks_inherit_stdio_and_nothing_else(site: Site, warm_image: str) -> None:
    for row in _look(site, warm_image):
        assert row["descriptors"] == ["0", "1", "2", "3"]  # 3: listdir's own


def test_another_user_has_pods_and_a_store_of_her_own(site: Site, warm_image: str) -> None:
    rows = _look(site, warm_image, "-N1", "-n1", user="bob")
    assert [(row["uid"], row["name"]) for row in rows] == [(1002, "bob")]


def test_a_killed_rank_does_not_break_the_others(site: Site, warm_image: str) -> None:
    """Rank 0, most likely the one that made the pod, is killed; rank 1 is in it, rank 2 enters afterwards."""
    rank = (
        "case $SLURM_LOCALID in 0) sleep 1; kill -KILL $$;; 1) sleep 3;; esac; "
        "readlink /proc/self/ns/mnt; cat /etc/hostname >/dev/null 2>&1; echo alive $SLURM_LOCALID"
    )
    step = (
        "[ $SLURM_LOCALID = 0 ] || sleep 0.5; [ $SLURM_LOCALID != 2 ] || sleep 1.5; "
        f'exec {site.front} run --mpi=none {warm_image} -- sh -c "$RANK"'
    )
    start = site.run(
        [*("env", f"RANK={rank}", "srun", "-N1", "-n3", "-O", "--kill-on-bad-exit=0"), "bash", "-c", step]
    )
    assert start.status != 0  # srun tells that rank 0 was killed
    assert sorted(line for line in start.stdout.splitlines() if line.startswith("alive")) == [
        "alive 1",
        "alive 2",
    ]
    assert len({line for line in start.stdout.splitlines() if line.startswith("mnt:")}) == 1


def test_a_rank_that_comes_after_the_last_has_left_finds_a_new_pod(site: Site, warm_image: str) -> None:
    step = f"sleep $SLURM_LOCALID; exec {site.front} run {warm_image} -- echo done"
    start = site.run(["srun", "-N1", "-n2", "bash", "-c", step])
    assert (start.status, start.stdout) == (0, "done\ndone\n"), start.stderr


def test_the_status_is_the_programs(site: Site, warm_image: str) -> None:
    statuses = {"exit 7": 7, "exec /bin/nothing-there": 127, "exec /etc/passwd": 126}
    for script, status in statuses.items():
        assert site.srun(warm_image, ["sh", "-c", script], srun=["-N1", "-n1"]).status == status
    assert site.srun(warm_image, ["nothing-there"], srun=["-N1", "-n1"]).status == 127


def test_scancel_leaves_nothing(site: Site, warm_image: str) -> None:
    """Processes and mounts are looked at after every test.

    Slurm kills the pod's holder together with the last rank, so that its folder may be left in the run-time
    directory: for `hpcpod gc`, or the next start.
    """
    words = ["srun", "-N2", "-n4", "--job-name=endless", site.front, "run", warm_image, "--", "sleep", "1000"]
    with site.cluster.popen(words) as job:
        deadline = time.monotonic() + 30
        while _sleepers(site) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _sleepers(site) == 4
        site.run(["scancel", "--name=endless"])
        job.communicate(timeout=30)
    site.cluster.wait_idle()
    assert _sleepers(site) == 0
    assert site.run(["srun", "-N2", "-n2", site.front, "gc"]).status == 0
    assert _pods(site) == []


def _sleepers(site: Site) -> int:
    count = 0
    for pid in site.cluster.processes():
        try:
            count += Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x001000\0"
        except FileNotFoundError:
            continue
    return count


def _pods(site: Site) -> list[str]:
    """What is kept of pods on all nodes."""
    found = (site.cluster.root(node).glob("dev/shm/hpcpod-*/pods/*") for node in site.cluster.nodes)
    return [str(pod) for pods in found for pod in pods]


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("form", ["zstd", "archive"])
def test_other_forms_of_the_image_start_too(site: Site, form: str) -> None:
    reference = f"oci:{image.zstd()}:latest" if form == "zstd" else f"oci-archive:{image.archive()}:latest"
    start = site.srun(reference, ["cat", "/etc/os-release"], srun=["-N2", "-n2"])
    assert start.status == 0, start.stderr
    assert start.stdout.count("ID=debian\n") == 2
