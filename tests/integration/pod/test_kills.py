# SPDX-License-Identifier: Apache-2.0
"""kill -9 at chosen system calls of the rank that makes the pod, and of its holder."""

from __future__ import annotations

import functools
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests import needs
from tests.conftest import Account
from tests.integration.pod.conftest import Gate, Pods, gone, step, wait_for
from tests.integration.pod.image import Tree, write_layout

pytestmark = pytest.mark.needs("plain", "userns", "native", "strace")

CALLS = (
    "flock", "pipe2", "fork", "setsid", "unshare", "move_mount", "pivot_root", "umount2", "mkdirat",
    "mknodat", "linkat", "symlinkat", "renameat", "epoll_create1", "epoll_ctl", "capset", "write", "setns",
)  # fmt: skip


def kills(call: str, number: int) -> list[str]:
    """Words that kill each process at its number-th call."""
    return [
        "strace",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:signal=KILL:when={number}",
    ]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("pause", [0.0, 0.1], ids=["beside", "after"])
def test_the_next_rank_makes_do(plain_pods: Pods, call: str, number: int, pause: float) -> None:
    plain_pods.out("true")  # the plan is there
    first = plain_pods.start("sleep", "0.5", env=step(0, 2), before=kills(call, number))
    time.sleep(pause)
    done = plain_pods.run("echo", "fine", env=step(1, 2), timeout=20)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    while first.poll() is None:  # strace goes when all that it follows are gone; it is never killed itself
        plain_pods.end_holders()
        time.sleep(0.02)
    plain_pods.end_holders()
    for name in os.listdir(plain_pods.runtime / "pods"):  # half-made ones, whose makers are dead
        if name.startswith("."):
            wait_for(functools.partial(gone, int(name[1:])), f"the end of {name}")
    done = plain_pods.account.run([plain_pods.command, "gc"], env={"HPCPOD_STORE": str(plain_pods.store)})
    assert done.returncode == 0, done.stderr
    assert os.listdir(plain_pods.runtime / "pods") == []


def test_a_stopped_winner_holds_the_others_up_until_it_goes_on(plain_pods: Pods) -> None:
    """No rank overtakes a slow one: two pods for one step would be worse than waiting."""
    stop = ["strace", "-f", "-o", "/dev/null", "-e", "trace=pipe2", "-e", "inject=pipe2:delay_enter=700000"]
    plain_pods.out("true")
    first = plain_pods.start("readlink", "/proc/self/ns/mnt", env=step(0, 2), before=stop)
    time.sleep(0.2)
    start = time.monotonic()
    second = plain_pods.out("readlink", "/proc/self/ns/mnt", env=step(1, 2))
    assert time.monotonic() - start > 0.2
    assert first.communicate(timeout=20)[0].strip() == second
    assert first.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_preparation_ends_with_its_run(plain_pods: Pods, gate: Gate, number: signal.Signals) -> None:
    run = plain_pods.start("true")
    (python,) = gate.wait_started(1)
    run.send_signal(number)
    wait_for(functools.partial(gone, python), "the end of the preparation")
    assert run.wait(5) == -number


@pytest.fixture(scope="module")
def large(layouts: Path, tree: Tree) -> str:
    """An image that takes a second or two to unpack."""
    many = {f"srv/{n}": (0o644, b"x" * 100) for n in range(30_000)}
    return write_layout(layouts / "many-files", replace(tree, files=tree.files | many))


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGTERM, "front"),
        (signal.SIGTERM, "group"),
        (signal.SIGINT, "group"),
        (signal.SIGHUP, "front"),
    ],
)
def test_a_run_that_is_ended_while_it_unpacks_leaves_nothing(
    user: Account, large: str, number: signal.Signals, whom: str
) -> None:
    """When the command is over, the half-made image is gone, not a second later."""
    pods = Pods(user, large, user.store, needs.front_path())
    run = pods.start("true", start_new_session=True)
    wait_for(lambda: next(user.store.glob("tmp/*/rootfs/srv/9"), None), "the unpacking has begun")
    if whom == "group":
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    output = run.communicate(timeout=20)
    assert [path for path in user.store.glob("tmp/*") if path.is_dir()] == []
    assert (run.returncode, *output) == (-number, "", "")


def test_a_second_signal_waits_for_nothing(plain_pods: Pods, gate: Gate) -> None:
    (gate.directory / "python3").write_text(
        f"#!/bin/sh\ntrap '' TERM\necho $$ >>{gate.directory}/started\n"
        f"while [ ! -e {gate.directory}/open ]; do sleep 0.02; done\n"
    )
    run = plain_pods.start("true")
    gate.wait_started(1)
    run.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    assert run.wait(5) == -signal.SIGTERM
    gate.open()  # which ends the preparation, and with it the pipes that it holds
    run.communicate(timeout=5)
