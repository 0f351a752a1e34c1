# SPDX-License-Identifier: Apache-2.0
"""Starts as odd as schedulers, shells and daemons make them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration.pod.conftest import Pods, step

WAYS = pytest.mark.parametrize("env", [{}, step(0, 2)], ids=["alone", "step"])

_PYTHON = """
import os, resource, signal, sys
{setup}
os.execv(sys.argv[1], sys.argv[1:])
"""


def prepared(setup: str) -> list[str]:
    """Words before the front that do this in Python first."""
    return ["/usr/bin/python3", "-c", _PYTHON.format(setup=setup)]


@WAYS
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_closed_standard_descriptors(pods: Pods, env: dict[str, str], closed: Sequence[int]) -> None:
    made = pods.account.home / "made"
    script = f"echo out; echo err >&2; (ls -l /proc/$$/fd >{made}); :"
    before = prepared(f"[os.close(fd) for fd in {closed}]")
    for _ in range(2):
        done = pods.run("sh", "-c", script, before=before, env=env)
        assert done.returncode == 0
        assert done.stdout == ("" if 1 in closed else "out\n") and done.stderr == (
            "" if 2 in closed else "err\n"
        )
        opened = made.read_text()
        assert all(f" {fd} -> /dev/null" in opened for fd in closed), opened
    for events in (pods.runtime / "events").iterdir():  # the program's output did not go there
        assert all(json.loads(line) for line in events.read_text().splitlines())


@WAYS
@pytest.mark.parametrize("number", ["SIGCHLD", "SIGPIPE", "SIGUSR1", "SIGTERM"])
def test_ignored_and_blocked_signals_pass(pods: Pods, env: dict[str, str], number: str) -> None:
    bit = 1 << (getattr(signal, number) - 1)
    ignore = f"signal.signal(signal.{number}, signal.SIG_IGN)"
    setup = f"{ignore}; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{number}])"
    for _ in range(2):
        text = pods.out("cat", "/proc/self/status", before=prepared(setup), env=env)
        found = dict(line.split(":\t") for line in text.splitlines() if line.startswith("Sig"))
        assert int(found["SigIgn"], 16) & bit and int(found["SigBlk"], 16) & bit
        # Python ignores SIGPIPE and SIGXFSZ itself; children of glibc's posix_spawn, make's among them, find
        # its own signals, 32 and 33, ignored; nothing else may have been added
        own = bit | 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1) | 1 << 31 | 1 << 32
        assert int(found["SigBlk"], 16) == bit and not int(found["SigIgn"], 16) & ~own


@WAYS
def test_few_descriptors(pods: Pods, env: dict[str, str]) -> None:
    pods.out("true")
    setup = "resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))"
    done = pods.run("sh", "-c", "ulimit -n", before=prepared(setup), env=env)
    assert (done.returncode, done.stdout) == (0, "16\n"), done.stderr
    done = pods.run("true", before=prepared("resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))"), env=env)
    assert done.returncode == 125 and "No file descriptors available" in done.stderr


@WAYS
def test_few_processes(pods: Pods, env: dict[str, str]) -> None:
    if pods.account.uid == 0:
        return  # the limit does not count for root
    pods.out("true")
    done = pods.run("true", before=prepared("resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))"), env=env)
    assert (done.returncode, done.stderr) in (
        (0, ""),
        (125, "hpcpod: fork: Resource temporarily unavailable [pod]\n"),
    )


@WAYS
def test_a_little_stack(pods: Pods, env: dict[str, str]) -> None:
    pods.out("true")
    setup = "resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))"
    assert pods.run("true", before=prepared(setup), env=env).returncode == 0


@pytest.mark.needs("plain", "root", "userns", "native")
def test_a_plan_is_for_these_groups_alone(plain_pods: Pods) -> None:
    """Also where there are more than the C library's own limit."""
    many = [*range(20000, 20100)]
    environment = plain_pods.account.environment({"HPCPOD_STORE": str(plain_pods.store)})
    for groups in (many, [*many[:-1], 7], many):
        drop = ["setpriv", "--reuid=1001", "--regid=1001", f"--groups={','.join(map(str, groups))}"]
        done = subprocess.run(
            [*drop, *plain_pods.words(["grep", "-c", ":u1001$", "/etc/group"])],
            env=environment, cwd="/", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "101\n"), done.stderr
    assert len(list((plain_pods.runtime / "plans").iterdir())) == 2


def test_limits_pass(pods: Pods) -> None:
    setup = "r = resource; r.setrlimit(r.RLIMIT_NOFILE, (100, 200)); r.setrlimit(r.RLIMIT_CORE, (0, 0))"
    assert (
        pods.out("sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c", before=prepared(setup), env=step(0, 2))
        == "100\n200\n0"
    )


def test_many_and_long_arguments(pods: Pods) -> None:
    many = [str(n) for n in range(20000)]
    assert pods.out("sh", "-c", "echo $#", "sh", *many) == "20000"
    assert len(pods.out("sh", "-c", "echo $1", "sh", "x" * 100000)) == 100000
    assert pods.out("echo", "", "a  b", "\u00e9\n", "$HOME") == " a  b \u00e9\n $HOME"


def test_many_options(pods: Pods) -> None:
    options = [word for n in range(3000) for word in ("--env", f"V{n}={n}")]
    for _ in range(2):
        assert pods.out("sh", "-c", "echo $V0 $V2999", options=options) == "0 2999"


def test_a_large_environment(pods: Pods) -> None:
    env = {f"VARIABLE_{n}": "x" * 100 for n in range(5000)}
    assert pods.out("sh", "-c", "echo $VARIABLE_4999", env=env) == "x" * 100


@pytest.mark.parametrize("length", [300, 1500, 3000, 5000])
def test_a_long_run_time_directory(pods: Pods, length: int) -> None:
    directory = pods.runtime.parent / "/".join("x" * 200 for _ in range(length // 200))
    if length < 3800:
        made = Path(str(pods.runtime.parent))
        for part in directory.relative_to(made).parts[:-1]:
            made /= part
            made.mkdir()
            os.chown(made, pods.account.uid, pods.account.uid) if os.geteuid() == 0 else None
    done = pods.run("echo", "x", env={"HPCPOD_RUNTIME": str(directory), **step(0, 2)})
    if length < 3800:
        assert (done.returncode, done.stdout) == (0, "x\n"), done.stderr
    else:
        assert done.returncode == 125 and "[store-unusable]" in done.stderr and len(done.stderr) < 2000


@pytest.mark.parametrize("missing", ["locks", "pods", "plans", "events", "mnt"])
def test_a_half_made_run_time_directory(pods: Pods, missing: str) -> None:
    pods.out("true", env=step(0, 1))
    pods.out("true")
    directory = pods.runtime / missing
    if directory.exists():
        for entry in directory.iterdir():
            entry.unlink()
        directory.rmdir()
    assert pods.run("true", env=step(0, 2, step_id=9)).returncode == 0
    assert pods.run("true").returncode == 0


def test_a_full_run_time_directory(pods: Pods) -> None:
    if pods.account.uid != 0:
        return  # root makes the small file system
    pods.runtime.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "none", pods.runtime], check=True)
    try:
        done = pods.run("true", options=["--env", f"LONG={'x' * 5000}"])
        assert done.returncode == 125 and "No space left" in done.stderr and "hint:" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", pods.runtime], check=True)


@pytest.mark.parametrize("content", [b"", b"hpcpod-record\0", b"hpcpod-record\0001\0end\0", b"\xff" * 5000])
def test_a_broken_plan_on_file_is_made_anew(pods: Pods, content: bytes) -> None:
    pods.out("true")
    (plan,) = (pods.runtime / "plans").iterdir()
    plan.write_bytes(content)
    assert pods.run("true").returncode == 0
    assert plan.read_bytes() != content


def test_a_plan_that_is_no_file_is_replaced_or_named(pods: Pods) -> None:
    pods.out("true")
    (plan,) = (pods.runtime / "plans").iterdir()
    plan.unlink()
    os.mkfifo(plan)
    done = pods.run("true", timeout=20)
    assert done.returncode == 0, done.stderr


def test_a_changed_image_is_seen(pods: Pods, layouts: Path) -> None:
    from tests.integration.pod.image import small_tree, write_layout

    name = f"changing-{pods.account.uid}"
    tree = small_tree()
    try:
        reference = write_layout(layouts / name, tree, env={"PATH": "/bin", "WHICH": "old"})
        assert pods.out("sh", "-c", "echo $WHICH", reference=reference) == "old"
        (layouts / name).rename(layouts / f"{name}-old")
        write_layout(layouts / name, tree, env={"PATH": "/bin", "WHICH": "new"})
        assert pods.out("sh", "-c", "echo $WHICH", reference=reference) == "new"
    finally:
        subprocess.run(["rm", "-rf", layouts / name, layouts / f"{name}-old"], check=True)


def test_a_removed_tree_is_unpacked_again(pods: Pods, tmp_path: Path) -> None:
    store = pods.account.home.parent / "own-store"
    env = {"HPCPOD_STORE": str(store)}
    pods.out("true", env=env)
    (image,) = (store / "images").iterdir()
    image.rename(store / "moved")
    assert pods.run("true", env=env).returncode == 0


def test_a_step_whose_numbers_make_no_sense_is_refused(pods: Pods) -> None:
    done = pods.run("true", env=step(3, 2))
    assert done.returncode == 125 and "environment variable SLURM_PROCID: got '3'" in done.stderr


def test_more_ranks_are_refused_inside_a_step(pods: Pods) -> None:
    done = pods.run("true", options=["-n", "2"], env=step(0, 2))
    assert done.returncode == 125 and "this is rank 0 of a step of 2" in done.stderr


def test_the_front_called_by_odd_names(pods: Pods) -> None:
    link = pods.account.home / "pod"
    link.symlink_to(pods.command)
    words = [str(link), "run", pods.reference, "echo", "x"]
    assert pods.account.run(words, env={"HPCPOD_STORE": str(pods.store)}).stdout == "x\n"
    words = ["bash", "-c", f"exec -a '' {pods.command} run {pods.reference} echo x"]
    assert pods.account.run(words, env={"HPCPOD_STORE": str(pods.store)}).stdout == "x\n"
