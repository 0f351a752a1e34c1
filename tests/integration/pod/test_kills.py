# SPDX-License-Identifier: Apache-2.0
"""kill -9 at chosen system calls of the rank that makes the pod, and of its holder."""

from __future__ import annotations

import functools
import os
import signal
import time

import pytest

from tests.integration.pod.conftest import Gate, Pods, gone, step, wait_for

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
