# SPDX-License-Identifier: Apache-2.0
"""The floor: what the same bytes cost at least on these cores, stage by stage.

CPU floor: the stages' CPU time, added up.  Wall floor: that on all cores at once, or the longest chain that
cannot be split (writing the layers one after the other; decompressing the largest), whichever is longer; and
then the flush, where the tree lies on a disk.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.account import Account
from bench.unpack.images import Image
from bench.unpack.layout import layers

STAGES = ("sha256 of blobs", "decompress", "sha256 of layers", "write")
FLUSH = "flush"


@dataclass(frozen=True)
class Floor:
    """Seconds by stage, and what follows from them."""

    stages: dict[str, float]
    cpu: float
    wall: float


@contextmanager
def plain_layers(image: Image) -> Iterator[list[Path]]:
    """The layers' archives, uncompressed, in memory."""
    from isal import igzip

    with TemporaryDirectory(prefix="hpcpod-bench-tars-", dir="/dev/shm") as directory:
        Path(directory).chmod(0o755)
        tars = []
        for number, layer in enumerate(layers(image.references["gzip"])):
            tars.append(Path(directory) / f"{number:03d}.tar")
            with igzip.open(layer) as source, tars[-1].open("wb") as tar:
                while data := source.read(1 << 20):
                    tar.write(data)
        yield tars


def measure(
    account: Account, image: Image, packing: str, program: Path, tars: list[Path], target: Path
) -> Floor:
    """One measurement of every stage, each by itself.  Raises BenchError."""
    blobs = map(str, layers(image.references[packing]))
    measured = json.loads(
        account.checked([sys.executable, "-m", "bench.unpack.stages", *blobs], cwd=Path.cwd())
    )
    words = account.checked([str(program), str(target), *map(str, tars)]).split()
    write_cpu, write_wall, flush = map(float, words)
    stages = {name: sum(seconds) for name, seconds in measured.items()} | {"write": write_cpu}
    cpu = sum(stages.values())
    chain = max(write_wall, *measured["decompress"])
    wall = max(cpu / len(os.sched_getaffinity(0)), chain) + flush
    return Floor({**stages, FLUSH: flush}, cpu, wall)
