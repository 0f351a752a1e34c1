# SPDX-License-Identifier: Apache-2.0
"""What a start costs, in things that can be counted: programs executed, files opened, system calls made.

Time is measured by bench/startup.  The ceilings here are what was counted, and a little room; a change that
needs more has to say why.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.pod.conftest import Pods, member, step

pytestmark = pytest.mark.needs("plain", "userns", "native", "strace")

CALLS_FOUND = 60
"""From the front's execve to the program's, for a rank that finds the pod: 41 of them drop capabilities."""
CALLS_ALONE = 260
"""The same where the plan is found and the pod is made around the process: about 20 for each mount."""
DROPS = 42
"""PR_CAPBSET_DROP, once for each capability, and once to find that there are no more."""


@dataclass
class Trace:
    """System calls of a start, in order, up to the program's execve: (name, whole line)."""

    calls: list[tuple[str, str]]
    executed: list[str]
    processes: int

    def opened(self) -> list[str]:
        """Paths given to open(2), openat(2) and openat2(2) that were there."""
        found = []
        for _, line in self.calls:
            match = re.match(r'(?:open|openat|openat2)\((?:[^,"]+, )?"([^"]*)"', line)
            if match and "= -1" not in line:
                found.append(match.group(1))
        return found


def traced(
    pods: Pods, *program: str, options: list[str] | None = None, env: dict[str, str] | None = None
) -> Trace:
    """The trace of ``hpcpod run … program``."""
    out = pods.account.home / "trace"
    words = ["strace", "--follow-forks", "--string-limit=4096", f"--output={out}"]
    done = pods.run(*program, options=options or [], env=env, before=words)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1) for line in out.read_text(errors="replace").splitlines()]
    executed = [match.group(1) for _, text in lines if (match := re.match(r'execve\("([^"]*)".* = 0$', text))]
    first = lines[0][0]
    calls = []
    for pid, text in lines[1:]:
        if pid != first:
            continue
        if text.startswith("execve("):
            break
        name = text.partition("(")[0]
        if re.fullmatch(r"[a-z0-9_]+", name):
            calls.append((name, text))
    return Trace(calls, executed, len({pid for pid, _ in lines}))


def relative(paths: list[str], pods: Pods) -> list[str]:
    return [path.replace(str(pods.runtime), "RUNTIME") for path in paths]


def test_a_rank_that_finds_the_pod(plain_pods: Pods) -> None:
    member(plain_pods, 0, 3)
    trace = traced(plain_pods, "true", env=step(1, 3))
    assert trace.executed == [str(plain_pods.command), "/bin/true"]  # no Python, nor anything else
    assert trace.processes == 1
    (pod,) = plain_pods.pods()
    assert relative(trace.opened(), plain_pods) == [
        "RUNTIME",
        "events",
        "slurm-4711.0.jsonl",
        f"pods/{pod.name}",
        "record",
        "members",
    ]
    counts = Counter(name for name, _ in trace.calls)
    assert len(trace.calls) <= CALLS_FOUND, counts
    assert sum("PR_CAPBSET_DROP" in line for _, line in trace.calls) <= DROPS
    assert counts["setns"] == counts["pidfd_open"] == 1


def test_a_lone_run_whose_plan_is_there(plain_pods: Pods) -> None:
    plain_pods.out("true")
    trace = traced(plain_pods, "true")
    assert trace.executed == [str(plain_pods.command), "/bin/true"]
    assert trace.processes == 1
    hash_ = next((plain_pods.runtime / "plans").iterdir()).name
    opened = relative(trace.opened(), plain_pods)
    assert opened[:4] == ["RUNTIME", "events", "local.jsonl", f"plans/{hash_}"]
    node = [path for path in opened if path.startswith("/proc/")]
    assert node == ["/proc/self/setgroups", "/proc/self/uid_map", "/proc/self/gid_map"]
    assert len(trace.calls) <= CALLS_ALONE, Counter(name for name, _ in trace.calls)


def test_each_further_bind_costs_little(plain_pods: Pods) -> None:
    counts = []
    for number in (0, 10):
        options = [word for n in range(number) for word in ("-B", f"/usr/share:/mnt/b{n}:optional")]
        plain_pods.out("true", options=options)
        counts.append(len(traced(plain_pods, "true", options=options).calls))
    # 7 calls to bind, 14 to make the mount point in the image's stead
    assert counts[1] - counts[0] <= 10 * 21, counts


def test_python_is_started_only_to_prepare(plain_pods: Pods) -> None:
    trace = traced(plain_pods, "true")
    python = str(Path(plain_pods.command).parent / "python3")
    assert trace.executed == [str(plain_pods.command), python, "/bin/true"]


def test_the_environment_is_no_matter_of_system_calls(plain_pods: Pods) -> None:
    member(plain_pods, 0, 3)
    few = len(traced(plain_pods, "true", env=step(1, 3)).calls)
    many = len(
        traced(plain_pods, "true", env={**step(2, 3), **{f"V{n}": "x" * 50 for n in range(500)}}).calls
    )
    assert many - few <= 20  # memory alone
