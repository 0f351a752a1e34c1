# SPDX-License-Identifier: Apache-2.0
"""One pod for all ranks of a step on a node: whoever comes, goes or is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter

import pytest

from tests.integration.pod.conftest import Gate, Pods, alive, member, step, wait_for

SHOW = ("readlink", "/proc/self/ns/user", "/proc/self/ns/mnt", "/proc/self/ns/ipc")


def events(pods: Pods) -> list[dict[str, object]]:
    path = pods.runtime / "events" / "slurm-4711.0.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def finish(processes: list[subprocess.Popen[str]], seconds: float = 60) -> list[tuple[int, str, str]]:
    """Status, output and errors of each, when all have ended."""
    end = time.monotonic() + seconds
    results = []
    for process in processes:
        out, err = process.communicate(timeout=max(0.1, end - time.monotonic()))
        results.append((process.returncode, out, err))
    return results


# ------------------------------------------------------------------ coming and going


def test_ranks_share_their_namespaces_and_leave_nothing(pods: Pods) -> None:
    found = finish([pods.start(*SHOW, env=step(rank, 4)) for rank in range(4)])
    assert [status for status, _, _ in found] == [0] * 4, found
    assert len({out for _, out, _ in found}) == 1
    own = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("user", "mnt", "ipc")]
    assert not set(found[0][1].split()) & set(own)
    pods.wait_gone()
    how = Counter(str(event["how"]) for event in events(pods) if event["event"] == "rank")
    assert how["prepared"] == 1 and sum(how.values()) == 4


def test_sixty_four_ranks_at_once(pods: Pods) -> None:
    found = finish([pods.start(*SHOW, env=step(rank, 64)) for rank in range(64)])
    assert [status for status, _, _ in found] == [0] * 64, [entry for entry in found if entry[0]]
    assert len({out for _, out, _ in found}) == 1
    pods.wait_gone()
    ranks = [event for event in events(pods) if event["event"] == "rank"]
    assert sorted(int(str(event["rank"])) for event in ranks) == list(range(64))
    assert Counter(event["how"] for event in ranks)["prepared"] == 1


def test_a_late_rank_joins_when_the_preparing_one_is_gone(pods: Pods) -> None:
    assert pods.run("true", env=step(0, 3)).returncode == 0
    first = member(pods, 1, 3)
    late = member(pods, 2, 3)
    assert first.namespace == late.namespace  # type: ignore[attr-defined]
    assert {event["how"] for event in events(pods) if event["event"] == "rank"} == {"prepared", "found"}
    for process in (first, late):
        assert process.communicate("", timeout=10)[1] == ""
    pods.wait_gone()


def test_another_step_and_another_request_have_pods_of_their_own(pods: Pods) -> None:
    first = member(pods, 0, 2)
    spaces = {
        first.namespace,  # type: ignore[attr-defined]
        pods.out("readlink", "/proc/self/ns/mnt", env=step(1, 2, step_id=1)) + "\n",
        pods.out("readlink", "/proc/self/ns/mnt", env=step(1, 2), options=["--shm-size=1M"]) + "\n",
        pods.out("readlink", "/proc/self/ns/mnt", env=step(1, 2, SLURMD_NODENAME="n1")) + "\n",
    }
    assert len(spaces) == 4


def test_a_rank_alone_on_its_node_needs_no_holder(pods: Pods) -> None:
    member(pods, 0, 1, SLURM_STEP_TASKS_PER_NODE="1(x2)", SLURM_STEP_NUM_TASKS="2")
    assert pods.pods() == []


def test_shared_memory_and_message_queues_are_the_steps(pods: Pods) -> None:
    writer = pods.start(
        "sh", "-c", "echo here >/dev/shm/seg; echo ok; cat", env=step(0, 2), stdin=subprocess.PIPE
    )
    assert writer.stdout is not None and writer.stdout.readline() == "ok\n"
    assert pods.out("cat", "/dev/shm/seg", env=step(1, 2)) == "here"
    assert pods.out("sh", "-c", "ls -A /dev/shm", env=step(1, 2, step_id=3)) == ""


def test_the_holder_keeps_no_stream_of_a_rank_open(pods: Pods) -> None:
    done = pods.run("echo", "x", env=step(0, 2), timeout=10)  # would wait for the end of its output
    assert done.stdout == "x\n"
    holder = pods.holder()
    if os.geteuid() == 0:
        links = [os.readlink(f"/proc/{holder}/fd/{fd}") for fd in (0, 1, 2)]
        assert links == ["/dev/null"] * 3
        assert len(os.listdir(f"/proc/{holder}/fd")) <= 8
    assert os.getsid(holder) != os.getsid(0)


# ------------------------------------------------------------------ kills


def test_a_killed_holder_is_replaced(pods: Pods) -> None:
    first = member(pods, 0, 3)
    holder = pods.holder()
    os.kill(holder, signal.SIGKILL)
    wait_for(lambda: not alive(holder), "the holder's death")
    second = member(pods, 1, 3)
    assert first.namespace != second.namespace  # type: ignore[attr-defined]
    assert pods.holder() != holder
    third = member(pods, 2, 3)
    assert third.namespace == second.namespace  # type: ignore[attr-defined]
    assert first.communicate("still here\n", timeout=10)[0] == "still here\n"


def test_signals_for_the_step_do_not_end_the_holder_while_it_has_members(pods: Pods) -> None:
    first = member(pods, 0, 3)
    holder = pods.holder()
    for number in (
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGCONT,
        signal.SIGTSTP,
        signal.SIGTERM,
    ):
        os.kill(holder, number)
    late = member(pods, 1, 3)
    assert late.namespace == first.namespace and alive(holder)  # type: ignore[attr-defined]
    for process in (first, late):
        process.communicate("", timeout=10)
    pods.wait_gone()  # although a third rank was expected: the step was told to end
    wait_for(lambda: not alive(holder), "the holder's end")


def test_a_killed_rank_leaves_the_others_alone(pods: Pods) -> None:
    ranks = [member(pods, rank, 3) for rank in range(3)]
    ranks[0].kill()
    ranks[0].communicate()
    assert ranks[1].communicate("go on\n", timeout=10)[0] == "go on\n"
    assert ranks[2].communicate("go on\n", timeout=10)[0] == "go on\n"
    pods.wait_gone()


def test_a_stale_pod_with_another_process_pid_is_not_entered(pods: Pods) -> None:
    first = member(pods, 0, 2)
    holder = pods.holder()
    os.kill(holder, signal.SIGKILL)
    wait_for(lambda: not alive(holder), "the holder's death")
    (pod,) = pods.pods()
    (pod / "holder").unlink()
    (pod / "holder").symlink_to(str(first.pid))  # as if its pid had been given out again
    second = member(pods, 1, 2)
    assert second.namespace != first.namespace  # type: ignore[attr-defined]


PLAIN = pytest.mark.needs("plain", "userns", "native")


@PLAIN
def test_when_the_preparing_rank_is_killed_another_takes_over(plain_pods: Pods, gate: Gate) -> None:
    winner = plain_pods.start("true", env=step(0, 4))
    gate.wait_started(1)
    others = [plain_pods.start(*SHOW, env=step(rank, 4)) for rank in (1, 2, 3)]
    time.sleep(0.2)
    winner.kill()
    winner.wait()
    gate.wait_started(2)
    gate.open()
    found = finish(others)
    assert [status for status, _, _ in found] == [0] * 3, found
    assert len({out for _, out, _ in found}) == 1
    assert len(gate.started()) == 2


@PLAIN
def test_when_the_preparation_is_killed_another_rank_takes_over(plain_pods: Pods, gate: Gate) -> None:
    winner = plain_pods.start("true", env=step(0, 4))
    (python,) = gate.wait_started(1)
    others = [plain_pods.start(*SHOW, env=step(rank, 4)) for rank in (1, 2, 3)]
    time.sleep(0.2)
    os.kill(python, signal.SIGKILL)
    gate.wait_started(2)
    gate.open()
    assert finish([winner])[0] == (125, "", "hpcpod: preparing was ended by signal 9 [killed]\n")
    found = finish(others)
    assert [status for status, _, _ in found] == [0] * 3, found
    assert len({out for _, out, _ in found}) == 1


@PLAIN
def test_a_second_killed_preparation_ends_the_others(plain_pods: Pods, gate: Gate) -> None:
    ranks = [plain_pods.start("true", env=step(rank, 6)) for rank in range(6)]
    (first,) = gate.wait_started(1)
    time.sleep(0.3)
    os.kill(first, signal.SIGKILL)
    os.kill(gate.wait_started(2)[1], signal.SIGKILL)
    found = finish(ranks)
    assert [status for status, _, _ in found] == [125] * 6
    assert sum(err.count("ended by signal 9") for _, _, err in found) == 2
    assert len(gate.started()) == 2


@PLAIN
def test_a_failed_preparation_is_said_once_and_ends_every_rank_alike(plain_pods: Pods, gate: Gate) -> None:
    ranks = [plain_pods.start("true", reference="oci:/none-such", env=step(rank, 8)) for rank in range(8)]
    gate.wait_started(1)
    time.sleep(0.5)  # all have started, and wait
    gate.open()
    found = finish(ranks)
    assert [status for status, _, _ in found] == [125] * 8
    text = "".join(err for _, _, err in found)
    assert text.count("[image-not-found]") == 1, text
    assert len(gate.started()) == 1


@PLAIN
def test_after_a_failure_a_new_rank_tries_again(plain_pods: Pods) -> None:
    layout = plain_pods.account.home / "later"
    for _ in range(2):
        done = plain_pods.run("true", reference=f"oci:{layout}", env=step(0, 2))
        assert done.returncode == 125 and "[image-not-found]" in done.stderr
    layout.symlink_to(plain_pods.reference.split(":")[1])
    assert plain_pods.run("true", reference=f"oci:{layout}", env=step(0, 2)).returncode == 0


@PLAIN
@pytest.mark.parametrize("milliseconds", range(0, 12))
def test_a_rank_killed_at_any_moment_breaks_no_other(plain_pods: Pods, milliseconds: int) -> None:
    assert plain_pods.run("true").returncode == 0  # the plan is there
    first = plain_pods.start("sleep", "60", env=step(0, 4))
    others = [plain_pods.start(*SHOW, env=step(rank, 4)) for rank in (1, 2, 3)]
    time.sleep(milliseconds / 1000)
    first.kill()
    found = finish(others)
    assert [status for status, _, _ in found] == [0] * 3, found


@PLAIN
def test_a_pod_that_cannot_be_made_is_said_once_and_leaves_nothing(plain_pods: Pods) -> None:
    options = ["--bind", "/none-such:/mnt"]
    ranks = [plain_pods.start("true", options=options, env=step(rank, 4)) for rank in range(4)]
    found = finish(ranks)
    assert [status for status, _, _ in found] == [125] * 4
    assert 1 <= "".join(err for _, _, err in found).count("[bind-source]") <= 4
    plain_pods.wait_gone()


@PLAIN
def test_many_lone_runs_at_once_prepare_once(plain_pods: Pods, gate: Gate) -> None:
    runs = [plain_pods.start("echo", "x") for _ in range(16)]
    gate.wait_started(1)
    time.sleep(0.3)
    gate.open()
    assert finish(runs) == [(0, "x\n", "")] * 16
    assert len(gate.started()) == 1


@PLAIN
def test_steps_one_after_another_under_load(plain_pods: Pods) -> None:
    """Ranks of several steps at once, each of which comes back to its pod again and again."""
    failures: list[tuple[int, str]] = []

    def rank(number: int, step_id: int) -> None:
        for _ in range(5):
            done = plain_pods.run("true", env=step(number, 3, step_id=step_id))
            if done.returncode != 0:
                failures.append((done.returncode, done.stderr))

    threads = [
        threading.Thread(target=rank, args=(number, step_id)) for number in range(3) for step_id in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
