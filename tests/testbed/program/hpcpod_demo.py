# SPDX-License-Identifier: Apache-2.0
"""The demo's MPI program: says where each rank is, then adds up across nodes and checks the sum.

``python3 -m hpcpod_demo [--size N] [--json]``; it lives in the image.  Exit status 0 only if the world has
N ranks and every sum is right, so that N worlds of one rank never pass for one world of N.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import Any

import numpy
from mpi4py import MPI  # type: ignore[import-not-found,unused-ignore]  # only images have it

ELEMENTS = 100_000
"""Doubles that each rank adds to: 800 kB, beyond what MPI libraries send eagerly."""


def cpu_list() -> str:
    """This process's CPUs in the kernel's list notation: 0-3,8."""
    with open("/proc/self/status", encoding="ascii") as status:
        rows = dict(line.split(":", 1) for line in status)
    return rows["Cpus_allowed_list"].strip()


def place(world: Any) -> dict[str, Any]:
    """Where this rank is: what a container changes, and what it must not."""
    return {
        "rank": world.rank,
        "size": world.size,
        "node": platform.node(),
        "cpus": cpu_list(),
        "os": platform.freedesktop_os_release()["PRETTY_NAME"],
        "uid": os.getuid(),
        "pid": os.getpid(),
        "user_ns": os.readlink("/proc/self/ns/user"),
        "mnt_ns": os.readlink("/proc/self/ns/mnt"),
        "net_ns": os.readlink("/proc/self/ns/net"),
        "cwd": os.getcwd(),
        "python": platform.python_version(),
        "library": " ".join(MPI.Get_library_version().split("\n", 1)[0].split(",", 1)[0].split()),
    }


def sums_agree(world: Any) -> bool:
    """An Allreduce of integers and one of a large array; both sums are known beforehand."""
    expected = world.size * (world.size + 1) // 2
    small = world.allreduce(world.rank + 1, op=MPI.SUM)
    mine = numpy.full(ELEMENTS, float(world.rank + 1))
    total = numpy.empty_like(mine)
    world.Allreduce(mine, total, op=MPI.SUM)
    return bool(small == expected and numpy.all(total == float(expected)))


def table(rows: list[dict[str, Any]]) -> str:
    """One line per rank."""
    head = f"{'rank':>4} {'size':>4}  {'node':<12} {'cpus':<8} operating system in the container"
    lines = [f"{r['rank']:>4} {r['size']:>4}  {r['node']:<12} {r['cpus']:<8} {r['os']}" for r in rows]
    return "\n".join([head, *lines])


def main() -> int:
    """Run one rank; rank 0 prints for all."""
    parser = argparse.ArgumentParser(prog="hpcpod_demo")
    parser.add_argument("--size", type=int, default=0, help="ranks that the world must have")
    parser.add_argument("--json", action="store_true", help="one JSON object per rank instead of a table")
    options = parser.parse_args()
    world = MPI.COMM_WORLD
    right = sums_agree(world)
    rows = world.gather(place(world), root=0)
    complete = options.size in (0, world.size)
    if world.rank == 0:
        if options.json:
            sys.stdout.write("".join(json.dumps(row) + "\n" for row in rows))
        else:
            nodes = len({row["node"] for row in rows})
            print(table(rows))
            print(f"MPI library: {rows[0]['library']}; Python {rows[0]['python']}, numpy {numpy.__version__}")
            print(
                f"Allreduce over {world.size} ranks on {nodes} node(s), {ELEMENTS} doubles: "
                f"{'correct' if right else 'WRONG'}"
            )
        if not complete:
            print(f"the world has {world.size} rank(s), expected {options.size}", file=sys.stderr)
        sys.stdout.flush()
    return 0 if right and complete else 1


if __name__ == "__main__":
    sys.exit(main())
