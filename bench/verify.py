# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.verify``: what comparing a packed file costs, by one process and by all, and by threads.

A file of 1 GiB in memory, the best of five.  What docs/reference/verified-at-use.md shows.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

from bench.machine import load
from bench.samples import text_table
from hpcpod.images.stores import leaves, merkle
from hpcpod.images.stores.intact import sha256_of

SIZE, REPEATS = 1 << 30, 5


def _best(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the fastest, wall and CPU, children included."""
    found = []
    for _ in range(REPEATS):
        before, start = sum(os.times()[:4]), time.perf_counter()
        work()
        found.append((time.perf_counter() - start, sum(os.times()[:4]) - before))
    return min(found)


def _by_threads(fd: int, count: int) -> None:
    step = SIZE // count
    threads = [
        threading.Thread(target=leaves._hash, args=(fd, start, start + step))
        for start in range(0, SIZE, step)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def rows(fd: int) -> list[Sequence[str]]:
    """What was measured of the open file."""
    count = len(os.sched_getaffinity(0))
    digests = leaves.leaves_of(fd, SIZE)
    works: dict[str, Callable[[], object]] = {
        "SHA-256 of the whole file": lambda: sha256_of(fd),
        "leaves, one process": lambda: leaves._hash(fd, 0, SIZE),
        f"leaves, {count} threads": lambda: _by_threads(fd, count),
        f"leaves, {count} processes": lambda: leaves.leaves_of(fd, SIZE),
        "the levels above": lambda: merkle.tree_of(digests),
    }
    measured = {name: _best(work) for name, work in works.items()}
    return [
        (name, f"{wall:.3f}", f"{SIZE / wall / 1e6:.0f}", f"{cpu:.2f}")
        for name, (wall, cpu) in measured.items()
    ]


def main() -> int:
    """Measure and print."""
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        piece = os.urandom(1 << 20)
        for _ in range(SIZE // len(piece)):
            file.write(piece)
        file.flush()
        print(f"load {load()}")
        print(text_table(("what", "wall s", "MB/s", "CPU s"), rows(file.fileno())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
