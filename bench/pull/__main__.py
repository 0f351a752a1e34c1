# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.pull``: the demo's image from a registry on loopback, by TLS, to what can run.

hpcpod and podman end with a tree in a store of their own, verified; skopeo copies the blobs into a layout and
unpacks nothing: what the transfer alone takes.  Kinds take turns in random order; every pull begins with an
empty store.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.account import BenchError, last_line
from bench.machine import facts, load, versions
from bench.programs import demo_image, installed_hpcpod
from bench.result import Result, Row, write_result
from bench.samples import milliseconds, summarise, text_table
from bench.startup.contenders import tool
from tests.testbed.authority import Authority
from tests.testbed.registry import Registry

ROUNDS, QUICK_ROUNDS = 20, 3
REPOSITORY = "bench/image:1"
_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'


@dataclass(frozen=True)
class Puller:
    """One contender.  words: {} in them stands for a directory of this pull's own."""

    key: str
    name: str
    about: str
    words: Sequence[str]


def pullers(front: Path, host: str) -> list[Puller]:
    """Who takes part.  Raises BenchError."""
    reference = f"docker://{host}/{REPOSITORY}"
    own = ["--root", "{}/root", "--runroot", "{}/run", "--tmpdir", "{}/tmp"]
    policy = ["--signature-policy", "{}/policy.json"]
    podman = [tool("podman"), *own, "--storage-driver", "overlay", "pull", "--quiet", *policy, reference]
    skopeo = [tool("skopeo"), "--policy", "{}/policy.json", "copy", "--quiet", reference, "oci:{}/layout:1"]
    return [
        Puller(
            "hpcpod",
            "hpcpod image pull",
            "a directory, every digest checked",
            [str(front), "image", "pull", "--rootfs", "dir", reference],
        ),
        Puller("podman", "podman pull", "overlay layers, tar-split data written", podman),
        Puller("skopeo", "skopeo copy to a layout", "nothing unpacked", skopeo),
    ]


def once(puller: Puller, authority: Authority, scratch: Path) -> tuple[int, int]:
    """Wall and processor time of one pull into an empty place, µs.  Raises BenchError."""
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        (Path(place) / "policy.json").write_text(_POLICY)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": place,
            "HPCPOD_STORE": f"{place}/store",
            "HPCPOD_RUNTIME": f"{place}/runtime",
            "XDG_RUNTIME_DIR": place,
            "SSL_CERT_FILE": str(authority.certificate),
        }
        words = [word.replace("{}", place) for word in puller.words]
        with tempfile.TemporaryFile("w+") as said:
            start = time.monotonic_ns()
            process = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=place
            )
            _, status, used = os.wait4(process.pid, 0)
            wall = time.monotonic_ns() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            if status:
                said.seek(0)
                raise BenchError(f"{puller.name}: status {process.returncode}: {last_line(said.read())}")
    os.sync()  # what this pull left to be written is not the next one's
    return wall // 1000, round((used.ru_utime + used.ru_stime) * 1e6)


def measure(kinds: Sequence[Puller], rounds: int, authority: Authority, scratch: Path) -> list[Row]:
    """All pulls, in random order within each round."""
    samples: dict[str, list[tuple[int, int]]] = {kind.key: [] for kind in kinds}
    order = list(kinds)
    for number in range(rounds):
        print(f"==> round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        random.shuffle(order)
        for kind in order:
            samples[kind.key].append(once(kind, authority, scratch))
    return [
        Row(
            kind.key,
            kind.name,
            "pull",
            kind.about,
            " ".join(kind.words),
            {"pull": [wall for wall, _ in samples[kind.key]]},
            {"pull": [cpu for _, cpu in samples[kind.key]]},
        )
        for kind in kinds
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write build/bench/pull.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.pull", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--hpcpod", metavar="PATH", help="the installed command")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), metavar="DIRECTORY")
    options = parser.parse_args(argv)
    scratch = Path(tempfile.mkdtemp(prefix="hpcpod-bench-", dir="/var/tmp"))
    try:
        authority = Authority(scratch / "authority")
        layout, _, tag = demo_image().removeprefix("oci:").rpartition(":")
        with Registry(scratch / "registry", authority) as registry:
            registry.push(Path(layout), REPOSITORY, tag=tag)
            kinds = pullers(installed_hpcpod(options.hpcpod), registry.host)
            rows = measure(kinds, QUICK_ROUNDS if options.quick else ROUNDS, authority, scratch)
        notes = ["registry, TLS and tools share the machine's cores"]
        tools = versions()
        result = Result("pull", {**facts(), "load": load()}, tools, notes, {"pull": rows}, [])
        print(table(rows))
        print(write_result(result, options.out))
    except BenchError as error:
        print(f"bench.pull: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def table(rows: Sequence[Row]) -> str:
    """Medians and 95th percentiles, ms."""
    lines = []
    for row in rows:
        wall, cpu = summarise(row.wall_us["pull"]), summarise(row.cpu_us["pull"])
        cells = (wall.median, wall.p95, cpu.median)
        lines.append([row.name, *(milliseconds(value / 1000) for value in cells)])
    return text_table(["pull", "median ms", "p95 ms", "cpu ms"], lines)


if __name__ == "__main__":
    sys.exit(main())
