# SPDX-License-Identifier: Apache-2.0
"""A packed image without root: one server and one mount for all pods of a user on a node (docs/adr/0006)."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.integration.pod.conftest import Pods, alive, member, step
from tests.integration.pod.packed import Packed, end, packed_image
from tests.integration.pod.test_cost import CALLS_ALONE, traced

pytestmark = pytest.mark.needs("plain", "userns", "native", "overlay", "fuse")

FUSE = "- fuse.squashfuse sha256:"


@pytest.fixture
def packed(plain_pods: Pods) -> Iterator[Packed]:
    """The packed image with a plan for no options; in the end nothing of it is left."""
    made = packed_image(plain_pods)
    made.plan()
    yield made
    plain_pods.end()
    made.wait_gone()


def lone(packed: Packed, **more: Any) -> subprocess.Popen[str]:
    """A lone run that is in its pod when this returns, and stays until its input is closed."""
    process = packed.pods.start("sh", "-c", "echo in; cat", stdin=subprocess.PIPE, **more)
    assert process.stdout is not None and process.stdout.readline() == "in\n", process.communicate()
    return process


# ------------------------------------------------------------------ one for all


def test_two_pods_and_four_lone_runs_share_one_server(packed: Packed) -> None:
    packed.plan(options=["--shm-size=1M"])
    runs = [
        packed.pods.start("sh", "-c", "echo in; cat", options=options, env=env, stdin=subprocess.PIPE)
        for options, env in [((), step(0, 2)), (("--shm-size=1M",), step(0, 2))] + [((), {})] * 4
    ]
    for run in runs:
        assert run.stdout is not None and run.stdout.readline() == "in\n", run.communicate()
    assert (len(packed.servers()), len(packed.entries()), len(packed.pods.pods())) == (1, 1, 2)
    (server,) = packed.servers()
    late = member(packed.pods, 1, 2)
    for run in runs[2:]:
        assert end(run) == (0, "", "")
    assert packed.servers() == [server]
    for run in (*runs[:2], late):
        assert end(run)[0] == 0
    packed.pods.end_holders()
    packed.wait_gone()


def test_thirty_two_starts_at_once(packed: Packed) -> None:
    runs = [packed.pods.start("cat", "/etc/os-release", env=step(n, 16) if n < 16 else {}) for n in range(32)]
    seen: set[int] = set()
    while any(run.poll() is None for run in runs):
        seen.update(packed.servers())
    assert [(run.returncode, *run.communicate()) for run in runs] == [(0, "ID=tiny\n", "")] * 32
    assert len(seen) <= 1
    packed.wait_gone()


def test_runs_one_after_another_share_it_too(packed: Packed) -> None:
    servers: set[int] = set()
    for _ in range(4):
        assert packed.pods.out("true") == ""
        servers.update(packed.servers())
    assert len(servers) == 1
    packed.wait_gone(seconds=3)


def test_the_mount_stays_as_long_as_a_pod(packed: Packed) -> None:
    run = lone(packed)
    (server,) = packed.servers()
    time.sleep(2.5)  # longer than a mount without pods stays
    assert packed.servers() == [server] and len(packed.entries()) == 1
    assert end(run)[0] == 0


@pytest.mark.needs("root", "cgroup")
def test_what_a_scheduler_kills_with_one_step_is_not_another_s(packed: Packed) -> None:
    """Processes of another control group have a mount of their own; tasks of one step share it."""
    top = needs.control_group()
    assert top is not None
    step_group = top / f"hpcpod-test-{os.getpid()}"
    groups = [step_group, step_group / "task_0", step_group / "task_1"]
    for group in groups:
        group.mkdir()
    try:
        runs = [
            lone(packed),
            *(lone(packed, preexec_fn=functools.partial(enter, group)) for group in groups[1:]),
        ]
        assert len(packed.entries()) == len(packed.servers()) == 2
        assert [end(run)[0] for run in runs] == [0, 0, 0]
        packed.wait_gone()
    finally:
        for group in reversed(groups):
            group.rmdir()


def enter(group: Path) -> None:
    """Put this process into the control group."""
    (group / "cgroup.procs").write_text("0")


@pytest.mark.needs("root")
def test_another_group_of_the_user_has_a_mount_of_its_own(packed: Packed) -> None:
    """The group of the mounter is the only one that the kernel lets in."""
    run = lone(packed)
    before = ["setpriv", "--reuid=1001", "--regid=1002", "--clear-groups"]
    words = [*before, *packed.pods.words(["true"])]
    env = packed.pods.account.environment({"HPCPOD_STORE": str(packed.pods.store)})
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, cwd="/tmp")
    assert done.returncode == 0, done.stderr
    assert end(run)[0] == 0


def test_by_the_command_line(plain_pods: Pods) -> None:
    """``--rootfs=squashfs``: packed, verified and mounted once, whoever asks first."""
    plain_pods.store = plain_pods.account.store
    words = ("sh", "-c", "stat -c '%u %a' /root; grep ' / / ' /proc/self/mountinfo")
    options = ["--rootfs=squashfs"]
    runs = [plain_pods.start(*words, options=options, env=step(n, 4) if n < 4 else {}) for n in range(8)]
    for run in runs:
        out, err = run.communicate(timeout=60)
        # One of them has fetched it, and says that nobody has a policy.
        assert (run.returncode, "" if "on their digest alone" in err else err) == (0, "")
        assert out.startswith(f"{plain_pods.account.uid} 700\n") and FUSE in out
    assert len(list((plain_pods.runtime / "mounts").iterdir())) == 1
    (file,) = plain_pods.store.glob("images/sha256-*.squashfs/rootfs.squashfs")
    Packed(plain_pods, plain_pods.store, file).wait_gone()


def test_an_image_in_use_is_known_by_its_mount(plain_pods: Pods) -> None:
    plain_pods.store = plain_pods.account.store
    process = plain_pods.start(
        "sh", "-c", "echo in; cat", options=["--rootfs=squashfs"], stdin=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == "in\n", process.communicate()
    words = [str(plain_pods.command), "image", "rm", plain_pods.reference]
    env = {"HPCPOD_STORE": str(plain_pods.store)}
    done = plain_pods.account.run(words, env=env)
    assert done.returncode != 0 and "[image-in-use]" in done.stderr
    assert end(process)[0] == 0
    assert len(list((plain_pods.runtime / "mounts").iterdir())) == 1  # still held, but not in use any more
    plain_pods.account.run(words, env=env, check=True)
    assert list(plain_pods.store.glob("images/sha256-*")) == []


# ------------------------------------------------------------------ what it is like inside


def test_the_image_is_mounted_read_only_and_owned_by_the_user(packed: Packed) -> None:
    show = "grep ' / / ' /proc/self/mountinfo; stat -c '%U %u %a' /root /etc/os-release"
    lines = packed.pods.out("sh", "-c", f"{show}; ls /root && echo readable").splitlines()
    assert (
        f"{FUSE}{packed.file.parent.name[7:71]}@" in lines[0]
        and " ro,nosuid,nodev" in lines[0]
        and "default_permissions" in lines[0]
    )
    uid = packed.pods.account.uid
    assert [line.split()[1:] for line in lines[1:3]] == [[str(uid), "700"], [str(uid), "644"]]
    assert lines[3] == "readable"
    done = packed.pods.run("touch", "/new")
    assert done.returncode == 1 and "Read-only file system" in done.stderr


def test_a_mount_point_that_the_image_lacks(packed: Packed) -> None:
    options = ["-B", "/usr/share:/srv/deep/share"]
    packed.plan(options=options)
    found = packed.pods.out(
        "sh", "-c", "ls -d /srv/deep/share; grep ' / / ' /proc/self/mountinfo", options=options
    )
    assert found.startswith("/srv/deep/share\n") and "- overlay sha256:" in found
    assert len(packed.servers()) <= 1


def test_a_writable_pod_changes_files_of_the_image(packed: Packed) -> None:
    packed.plan(options=["--writable"])
    change = "echo more >>/etc/os-release; rm -r /opt/app; touch /bin/new"
    show = "cat /etc/os-release; ls /opt; ls /bin/new"
    out = packed.pods.out("sh", "-c", f"{change}; {show}", options=["--writable"])
    assert out == "ID=tiny\nmore\n/bin/new"
    assert packed.pods.out("cat", "/etc/os-release") == "ID=tiny"


def test_the_server_has_nothing_but_the_image(packed: Packed) -> None:
    run = packed.pods.start("cat", env={"SECRET": "x"}, stdin=subprocess.PIPE)
    while not packed.servers() and run.poll() is None:
        time.sleep(0.01)
    (server,) = packed.servers()
    environ = Path(f"/proc/{server}/environ").read_bytes()
    assert environ == b"PATH=/usr/bin:/bin\0LC_ALL=C\0"
    targets = Counter(os.readlink(link) for link in Path(f"/proc/{server}/fd").iterdir())
    pipes = [name for name in targets if name.startswith("pipe:")]
    assert len(pipes) == 1  # stderr, which nobody reads any more
    del targets[pipes[0]]
    file = str(packed.file)
    assert targets.pop(file) <= 2 and sum(targets.values()) == 3
    assert targets["/dev/null"] == 2 and [name for name in targets if name.endswith("/fuse")]
    status = dict(
        line.split(":\t") for line in Path(f"/proc/{server}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1" and {
        status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")
    } == {"0" * 16}
    assert os.getsid(server) not in (os.getsid(0), os.getsid(run.pid))
    assert FUSE not in Path(f"/proc/{server}/mountinfo").read_text()
    assert end(run)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_what_a_scheduler_sends_to_a_step_is_not_for_the_server(
    packed: Packed, number: signal.Signals
) -> None:
    run = lone(packed)
    (server,) = packed.servers()
    holder = packed.holder()
    os.kill(server, number)
    os.kill(holder, number)
    time.sleep(0.1)
    assert packed.servers() == [server] and alive(holder)
    assert packed.pods.out("cat", "/etc/os-release") == "ID=tiny"
    assert end(run)[0] == 0


# ------------------------------------------------------------------ what it costs


@pytest.mark.needs("strace")
def test_a_lone_run_whose_mount_is_there(packed: Packed) -> None:
    run = lone(packed)
    trace = traced(packed.pods, "true")
    assert trace.executed == [str(packed.pods.command), "/bin/true"]
    assert trace.processes == 2  # one goes into the holder's namespaces for it
    assert len(trace.calls) <= CALLS_ALONE + 30, Counter(name for name, _ in trace.calls)
    assert end(run)[0] == 0


@pytest.mark.needs("strace")
def test_a_rank_that_finds_its_pod_knows_nothing_of_the_mount(packed: Packed) -> None:
    first = member(packed.pods, 0, 3)
    trace = traced(packed.pods, "true", env=step(1, 3))
    assert trace.processes == 1 and not [path for path in trace.opened() if "mounts" in path]
    assert end(first)[0] == 0


# ------------------------------------------------------------------ the time of the last use


def age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


@pytest.mark.parametrize("form", ["packed", "tree"])
def test_a_pod_marks_its_image_as_used_and_a_rank_that_joins_does_not(packed: Packed, form: str) -> None:
    entry = packed.file.parent
    if form == "tree":
        entry = packed.tree.parent
        status = packed.tree.stat()
        packed.plan(
            options=["-B", "/usr"],
            root=["rootfs", str(packed.tree), str(status.st_dev), str(status.st_ino)],
        )
    options = ["-B", "/usr"] if form == "tree" else []
    for start in ({}, step(0, 3)):
        os.utime(entry, (1, 1))
        run = packed.pods.start("cat", options=options, env=start, stdin=subprocess.PIPE)
        while age(entry) > 60:
            assert run.poll() is None, run.communicate()
            time.sleep(0.01)
    os.utime(entry, (1, 1))
    assert packed.pods.run("true", options=options, env=step(1, 3)).returncode == 0
    assert entry.stat().st_mtime == 1


def test_a_tree_outside_of_a_store_is_not_touched(packed: Packed) -> None:
    other = packed.pods.account.home.parent / "other"
    other.mkdir()
    other.chmod(0o777)
    packed.pods.account.run(["cp", "-a", packed.tree, other], check=True)
    os.utime(other, (1, 1))
    status = (other / "rootfs").stat()
    words = ["rootfs", str(other / "rootfs"), str(status.st_dev), str(status.st_ino)]
    packed.plan(options=["-B", "/usr"], root=words)
    assert packed.pods.out("echo", "x", options=["-B", "/usr"]) == "x"
    assert other.stat().st_mtime == 1


# ------------------------------------------------------------------ does the program use MPI?


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "shared"])
def test_the_check_of_mpi_looks_into_the_packed_image(packed: Packed, alone: bool) -> None:
    """Where PMI served and MPI of the image do not meet, Python looks at the program by path."""
    packed.plan(options=["-B", "/usr"], more=["pmi-check", "auto"])
    nodes = {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"} if alone else {}
    done = packed.pods.run("echo", "fine", options=["-B", "/usr"], env={**step(0, 2), **nodes})
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")
    names = [path.name for path in (packed.pods.runtime / "plans").iterdir() if path.stat().st_size == 0]
    assert len(names) == 1  # the verdict
