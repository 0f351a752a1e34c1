# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.slurm``: what hpcpod adds to srun -N2 -n4, until the last rank is in main.

Not srun's own time: with more than one task on a node its end waits for a timer of 100 ms.  Each rank prints
the time; srun's start is stamped just before its exec.  All nodes are on this machine and share its clock.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.account import BenchError, last_line
from bench.machine import facts, load, versions
from bench.programs import build, demo_image, installed_hpcpod
from bench.result import Result, Row, write_result
from bench.samples import text_table
from bench.slurm.tables import table
from tests.testbed.cluster import Cluster, ClusterError

SRUN = ("srun", "-N2", "-n4", "--mpi=pmi2")
RANKS = 4
ROUNDS, QUICK_ROUNDS = 25, 5
COLD_EVERY = 8
"""The image is unpacked anew in each so-many-th round only: it takes seconds and space."""
PAUSE = 0.25
"""Seconds between launches: slurmd is still busy with the end of the step before."""


@dataclass(frozen=True)
class Case:
    """One way to start the ranks.  fresh: variables that get a new value, ending in the round's number, each
    time."""

    key: str
    name: str
    about: str
    words: Sequence[str]
    fresh: Mapping[str, str] = field(default_factory=dict)
    every: int = 1


@dataclass(frozen=True)
class Launch:
    """µs from just before srun's exec to main of the first and of the last rank."""

    first: int
    last: int


def cases(front: Path, reference: str, payload: str) -> list[Case]:
    """Plain srun first."""
    run = [str(front), "run", reference, "--", payload]
    runtime, store = {"HPCPOD_RUNTIME": "/dev/shm/bench-runtime"}, {"HPCPOD_STORE": "/var/tmp/bench-store"}
    return [
        Case("plain", "plain srun", "the payload on the nodes themselves", [payload]),
        Case("cached", "hpcpod run, plan cached", "the first rank of a node makes the pod, in C", run),
        Case(
            "prepare",
            "hpcpod run, no plan yet",
            "the first rank of a node plans in Python (image in the store) and makes the pod",
            run,
            runtime,
        ),
        Case(
            "unpack",
            "hpcpod run, image not unpacked",
            "each node verifies and unpacks the image, both on the same two cores",
            run,
            {**runtime, **store},
            COLD_EVERY,
        ),
    ]


def launch(cluster: Cluster, case: Case, stamp: str, number: int) -> Launch:
    """Start the ranks once.  Raises BenchError if not all of them say when."""
    env = {name: f"{value}-{case.key}-{number}" for name, value in case.fresh.items()}
    done = cluster.run([stamp, *SRUN, *case.words], env=env, timeout=120)
    stamps = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("stamp ")]
    times = {who: int(when) for who, when in stamps}
    start = times.pop("start", None)
    if done.returncode or start is None or len(times) != RANKS:
        raise BenchError(f"{case.name}: status {done.returncode}: {last_line(done.stderr)}")
    return Launch((min(times.values()) - start) // 1000, (max(times.values()) - start) // 1000)


def measure(cluster: Cluster, every: Sequence[Case], stamp: str, rounds: int) -> dict[str, list[Launch]]:
    """A round that is not counted (it fills the stores and warms the caches), then the rounds."""
    for case in every[:3]:
        launch(cluster, case, stamp, -1)
    launches: dict[str, list[Launch]] = {case.key: [] for case in every}
    for number in range(rounds):
        due = [case for case in every if number % case.every == 0]
        for case in random.sample(due, len(due)):
            cluster.wait_idle()
            time.sleep(PAUSE)
            launches[case.key].append(launch(cluster, case, stamp, number))
    return launches


def _rows(every: Sequence[Case], launches: Mapping[str, Sequence[Launch]]) -> list[Row]:
    return [
        Row(
            key=case.key,
            name=case.name,
            kind="slurm",
            about=case.about,
            command=" ".join(
                [*SRUN, *(Path(word).name if word[0] == "/" else word for word in case.words[:2])]
            ),
            wall_us={
                "first": [one.first for one in launches[case.key]],
                "last": [one.last for one in launches[case.key]],
            },
            cpu_us={},
        )
        for case in every
    ]


def terminal(result: Result) -> str:
    """The result for a terminal."""
    parts = [f"\n{' '.join(SRUN)}, from srun's start to main", text_table(*table(result.parts["srun"]))]
    return "\n".join([*parts, *(f"note: {note}" for note in result.notes)])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.slurm", description=__doc__)
    parser.add_argument("--image", help="oci:DIR[:TAG] (default: the demo's)")
    parser.add_argument("--hpcpod", help="the installed command (default: beside this Python)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="launches of each kind")
    parser.add_argument("--quick", action="store_true", help=f"the same as --rounds {QUICK_ROUNDS}")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), metavar="DIR")
    parser.add_argument("--note", action="append", default=[], metavar="TEXT", help="kept with the result")
    return parser.parse_args(argv)


def _run(options: argparse.Namespace) -> Result:
    reference = options.image or demo_image()
    front = installed_hpcpod(options.hpcpod)
    layout = Path(reference.split(":")[1])
    head = facts()
    with Cluster(nodes=2, keep=(layout, front.parent.parent)) as cluster:
        stamp = build(Path(__file__).parent / "stamp.c", cluster.home())
        inside = f"/home/alice/{stamp.name}"  # as the nodes and, by the bind of the home, the pods see it
        every = cases(front, reference, inside)
        rounds = QUICK_ROUNDS if options.quick else options.rounds
        launches = measure(cluster, every, inside, rounds)
        left = cluster.wait_idle()
    notes = [
        *options.note,
        f"states of the nodes afterwards: {' '.join(f'{node} {state}' for node, state in left.items())}",
    ]
    head |= {"load_after": load(), "image": layout.name}
    return Result("slurm", head, versions(), notes, {"srun": _rows(every, launches)}, [])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; status 1 where it cannot be run."""
    options = _arguments(argv)
    try:
        result = _run(options)
    except (BenchError, ClusterError) as error:
        print(f"bench.slurm: {error}", file=sys.stderr)
        return 1
    written = write_result(result, options.output.absolute())
    print(terminal(result))
    print(f"\nwritten: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
