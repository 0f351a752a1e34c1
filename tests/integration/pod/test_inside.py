# SPDX-License-Identifier: Apache-2.0
"""What a program in a pod may do, has open and can see; and what of it the node sees."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.conftest import Account
from tests.integration.pod.conftest import Pods, member, step

Stores = Callable[[int], Path]


def status(pods: Pods, *options: str, **more: object) -> dict[str, str]:
    text = pods.out("cat", "/proc/self/status", options=options, **more)
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


@pytest.mark.parametrize("env", [{}, step(0, 2)], ids=["alone", "step"])
def test_privileges_are_gone_for_good(pods: Pods, env: dict[str, str]) -> None:
    found = status(pods, env=env)
    kinds = ("Inh", "Prm", "Eff", "Amb", *(["Bnd"] if pods.account.uid == 0 else []))
    assert {found[f"Cap{kind}"] for kind in kinds} == {"0" * 16}
    assert (found["NoNewPrivs"], found["Seccomp"], found["Seccomp_filters"]) == ("1", "2", "1")


def test_the_filter_can_be_left_out(pods: Pods) -> None:
    found = status(pods, "--seccomp=none")
    assert (found["Seccomp"], found["NoNewPrivs"], found["CapEff"]) == ("0", "1", "0" * 16)


def test_supplementary_groups_stay(pods: Pods) -> None:
    found = status(pods)
    own = Path("/proc/self/status").read_text()
    if pods.account.uid == 0:
        groups = next(line for line in own.splitlines() if line.startswith("Groups:")).split()[1:]
        assert found["Groups"].split() == groups or found["Groups"].split() == ["65534"] * len(groups)
    assert Path("/proc/self/setgroups").read_text() == "allow\n"
    assert pods.out("cat", "/proc/self/setgroups") == "deny"


def test_the_user_is_mapped_to_itself_alone(pods: Pods) -> None:
    uid = str(pods.account.uid)
    assert pods.out("cat", "/proc/self/uid_map").split() == [uid, uid, "1"]
    assert pods.out("cat", "/proc/self/gid_map").split() == [uid, uid, "1"]


# ------------------------------------------------------------------ descriptors


def descriptors(pods: Pods, *options: str, **more: object) -> set[str]:
    # `ls` has one of its own for the directory
    return set(pods.out("sh", "-c", "ls /proc/$$/fd", options=options, **more).split())


@pytest.fixture
def open_directories() -> Iterator[list[int]]:
    """Twenty descriptors of directories of the node, from 3 on or later."""
    made = [os.open("/", os.O_PATH | os.O_DIRECTORY) for _ in range(20)]
    yield made
    for fd in made:
        os.close(fd)


@pytest.mark.parametrize("env", [{}, step(0, 2)], ids=["alone", "step"])
def test_no_descriptor_leaks_in(pods: Pods, open_directories: list[int], env: dict[str, str]) -> None:
    for _ in range(2):  # with a preparation, and without
        assert descriptors(pods, pass_fds=open_directories, env=env) == {"0", "1", "2"}


def test_the_holder_has_none_of_them(pods: Pods, open_directories: list[int]) -> None:
    member(pods, 0, 2)
    links = {os.readlink(f"/proc/{pods.holder()}/fd/{fd}") for fd in os.listdir(f"/proc/{pods.holder()}/fd")}
    assert "/" not in links and len(links) <= 5, links


def test_declared_descriptors_stay(pods: Pods, open_directories: list[int]) -> None:
    script = 'exec 3</etc/hosts 4</etc/hosts 5</etc/hosts; exec "$@"'
    before = ["sh", "-c", script, "sh"]
    assert descriptors(pods, "--preserve-fds=2", before=before) == {"0", "1", "2", "3", "4"}
    assert descriptors(pods, before=before) == {"0", "1", "2"}


@pytest.mark.parametrize("number", [3, 4, 9])
def test_the_descriptor_of_pmi_stays_and_works(pods: Pods, number: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        script = f'exec {number}<&{theirs.fileno()}; exec "$@"'
        before = ["bash", "-c", script, "sh"]
        env = {"PMI_FD": str(number), **step(0, 1)}
        done = pods.run(
            "sh",
            "-c",
            f"ls /proc/$$/fd; echo cmd=init >&{number}",
            before=before,
            env=env,
            pass_fds=[theirs.fileno()],
        )
        assert done.returncode == 0, done.stderr
        assert set(done.stdout.split()) == {"0", "1", "2", str(number)}
        assert ours.recv(100) == b"cmd=init\n"


# ------------------------------------------------------------------ what is seen


def test_the_nodes_devices_processes_and_kernel_files(pods: Pods) -> None:
    script = "ls /proc/1/status /sys/kernel; echo x >/dev/null; readlink /proc/self/exe; ls /dev/tty"
    assert pods.run("sh", "-c", script).returncode == 0
    done = pods.run("sh", "-c", "echo 1 >/sys/kernel/made; echo 1 >/sys/power/state")
    assert done.returncode != 0


def test_the_root_of_the_pod_is_all_there_is(pods: Pods) -> None:
    mounts = [line.split() for line in pods.out("cat", "/proc/self/mountinfo").splitlines()]
    points = [fields[4] for fields in mounts]
    assert points.count("/") == 1
    assert not [point for point in points if point.startswith("/run")]
    assert pods.out("sh", "-c", "cd ../../../../../../..; pwd") == "/"
    for fields in mounts:  # nobody gains privilege from a file; nothing spreads to the node
        assert "nosuid" in fields[5].split(",")
        assert not any(word.startswith("shared:") for word in fields[6:])


def test_kernel_memory_files_of_the_node_stay_closed(pods: Pods) -> None:
    for path in ("/proc/kcore", "/proc/kmsg", "/proc/sysrq-trigger", "/dev/mem"):
        if not os.path.exists(path):
            continue
        done = pods.run("sh", "-c", f"exec 3<>{path}")
        assert done.returncode != 0, path


def test_the_front_cannot_be_overwritten_from_inside(pods: Pods) -> None:
    done = pods.run("/proc/self/exe", "--version")
    assert done.returncode in (125, 126, 127)
    before = pods.command.read_bytes()
    pods.run("sh", "-c", "echo x >/proc/$PPID/exe; echo x >/proc/1/exe; for p in /proc/[0-9]*; do :; done")
    assert pods.command.read_bytes() == before


# ------------------------------------------------------------------ the node


def own_mounts(pods: Pods) -> list[str]:
    """Mounts of the node with something of this test: others make and end theirs meanwhile.

    Whatever a pod mounts lies below its run-time directory, comes from its store, or has the image's digest.
    """
    digest = next((pods.store / "images").iterdir()).name.removeprefix("sha256-")
    own = (str(pods.runtime), str(pods.account.home.parent), str(pods.store), digest)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if any(word in line for word in own)]


@pytest.mark.parametrize(
    "options", [[], ["--writable"], ["-B", "/usr:/made/usr"]], ids=["plain", "writable", "made"]
)
def test_the_nodes_mounts_stay_as_they_are(pods: Pods, options: list[str]) -> None:
    pods.out("true", options=options)
    assert own_mounts(pods) == []
    process = pods.start("sh", "-c", "echo in; cat", options=options, env=step(0, 2), stdin=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    assert own_mounts(pods) == []
    process.communicate("", timeout=10)
    assert own_mounts(pods) == []


@pytest.mark.needs("root", "userns", "native")
def test_nothing_spreads_under_a_shared_root(root_user: Account, small: str, stores: Stores) -> None:
    script = (
        "mount --make-rshared / && sort /proc/self/mountinfo >$0.before && "
        '"$@" >/dev/null; s=$?; sort /proc/self/mountinfo >$0.after; cmp $0.before $0.after && exit $s'
    )
    made = Pods(root_user, small, stores(0), needs.front_path())
    base = str(made.account.home / "mounts")
    done = made.run("true", before=["unshare", "--mount", "sh", "-c", script, base], options=["--writable"])
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.needs("root", "userns", "native")
def test_what_the_node_unmounts_goes_away_in_the_pod(root_user: Account, small: str, stores: Stores) -> None:
    """On nodes whose mounts are shared, as systemd makes them; the pod must not keep a file system busy."""
    home = root_user.home
    (home / "point").mkdir()
    wait = "do sleep 0.05; done"
    inside = f"cd {home}; ls point; touch in; while [ ! -e out ]; {wait}; ls -A point"
    outside = (
        f"mount --make-rshared / && mount -t tmpfs none {home}/point && touch {home}/point/file || exit 9\n"
        '"$@" &\n'
        f"while [ ! -e {home}/in ]; {wait}; umount {home}/point && touch {home}/out; wait $!"
    )
    made = Pods(root_user, small, stores(0), needs.front_path())
    done = made.run("sh", "-c", inside, before=["unshare", "--mount", "sh", "-c", outside, "sh"], cwd="/")
    assert (done.returncode, done.stdout) == (0, "file\n"), done.stderr


# ------------------------------------------------------------------ kernels that will not


@pytest.mark.needs("plain", "userns", "native")
def test_without_user_namespaces(plain_pods: Pods) -> None:
    script = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    wrap = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
    assert plain_pods.run("true").returncode == 0
    for env in ({}, step(0, 2)):
        done = plain_pods.run("true", before=wrap, env=env)
        assert done.returncode == 125
        assert done.stderr == (
            "hpcpod: user, mount and IPC namespaces: No space left on device [kernel-feature]\n"
            "hint: raise user.max_user_namespaces (sysctl); "
            "it is 0 where a site switched user namespaces off\n"
        )
    assert plain_pods.pods() == []


@pytest.mark.needs("plain", "userns", "native")
def test_inside_a_pod_there_is_no_other(plain_pods: Pods) -> None:
    front = plain_pods.account.home / "hpcpod"
    front.write_bytes(plain_pods.command.read_bytes())
    front.chmod(0o755)
    plain_pods.out("true")
    env = {"HPCPOD_RUNTIME": str(plain_pods.account.home.parent / "runtime")}
    assert plain_pods.run("true", env=env, cwd="/").returncode == 0  # a plan in a place that the pod sees
    inner = [str(front), "run", plain_pods.reference, "true"]
    done = plain_pods.run(*inner, env=env, cwd="/")
    assert done.returncode == 125 and "hpcpod:" in done.stderr and "Traceback" not in done.stderr
