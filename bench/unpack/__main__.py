# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.unpack``: hpcpod image unpack against umoci unpack --rootless, interleaved.

Every run has a fresh target directory, and no tree is deleted before the last run: extraction right after the
deletion of a tree is several times slower on ext4.  Between runs the disk is given time to write (sync).
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

from bench.account import Account, BenchError, last_line, measuring_account
from bench.machine import facts, file_system_of, load, versions
from bench.programs import demo_image, installed_hpcpod
from bench.result import Refusal, Result, Row, write_result
from bench.samples import text_table
from bench.startup.contenders import tool
from bench.unpack.layout import layers, split, warm
from bench.unpack.tables import table
from tests.testbed.build import copy_image, open_to_all

FEWEST, MOST = 3, 8
RESERVE = 4 << 30
"""Bytes that stay free on a target's file system."""


@dataclass(frozen=True)
class Unpacker:
    """One contender; the target directory is added to its words, or replaces {} in them."""

    key: str
    name: str
    about: str
    words: Sequence[str]
    as_root: bool = False

    def command(self, target: Path) -> list[str]:
        """The words for one target."""
        if "{}" in self.words:
            return [str(target) if word == "{}" else word for word in self.words]
        return [*self.words, str(target)]


@dataclass(frozen=True)
class Sample:
    """One unpacking: µs, µs, KiB of the largest process."""

    wall: int
    cpu: int
    peak: int


def unpackers(reference: str, zstd: str | None, front: Path | None) -> list[Unpacker]:
    """Who takes part."""
    layout, tag = split(reference)
    files = " ".join(map(str, layers(reference)))
    # A plain user makes no devices; the zeros, because umoci writes layers whose last entry is not padded.
    extract = "tar -x -C $0 --exclude='dev/*' --exclude='./dev/*'"
    unpadded = "{ gzip -dc $layer; head -c 10240 /dev/zero; }"
    tar = f"mkdir $0 && for layer in {files}; do {unpadded} | {extract} || exit; done"
    found = [
        Unpacker(
            "umoci-gzip",
            "umoci unpack --rootless, gzip",
            "digests checked, mtree manifest written",
            [tool("umoci"), "unpack", "--rootless", "--image", f"{layout}:{tag}"],
        ),
        Unpacker(
            "tar-gzip", "gzip -dc and GNU tar", "nothing verified, no whiteouts", ["/bin/sh", "-c", tar, "{}"]
        ),
    ]
    if os.geteuid() == 0:
        found.append(
            Unpacker(
                "umoci-root",
                "umoci unpack as root, gzip",
                "the same without the rootless mode, whose walks along each path cost most of its time",
                [tool("umoci"), "unpack", "--image", f"{layout}:{tag}"],
                as_root=True,
            )
        )
    if front is None:
        return found
    words = [str(front), "image", "unpack"]
    every = "every digest and size checked, safe paths"
    found.append(Unpacker("hpcpod-gzip", "hpcpod image unpack, gzip", every, [*words, reference, "{}"]))
    if zstd is not None:
        found.append(Unpacker("hpcpod-zstd", "hpcpod image unpack, zstd", every, [*words, zstd, "{}"]))
    return found


def zstd_copy(reference: str, layout: Path) -> str:
    """The same image with zstd layers, for everybody to read."""
    copy_image(reference, f"oci:{layout}:latest", "zstd")
    open_to_all(layout)
    return f"oci:{layout}:latest"


def once(account: Account, unpacker: Unpacker, target: Path) -> Sample:
    """Unpack once.  Raises BenchError if that fails."""
    words = unpacker.command(target)
    become = os.geteuid() == 0 and not unpacker.as_root
    with tempfile.TemporaryFile("w+") as said:
        start = time.monotonic_ns()
        process = subprocess.Popen(
            words,
            env=dict(account.environment),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            user=account.uid if become else None,
            group=account.gid if become else None,
            extra_groups=[] if become else None,
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic_ns() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            said.seek(0)
            raise BenchError(f"{unpacker.name}: status {process.returncode}: {last_line(said.read())}")
    return Sample(wall // 1000, round((used.ru_utime + used.ru_stime) * 1e6), used.ru_maxrss)


def tree_size(path: Path) -> tuple[int, int]:
    """Bytes of regular files and number of entries below a directory."""
    total = count = 0
    for directory, names, files in os.walk(path):
        count += len(names) + len(files)
        for name in files:
            status = os.lstat(os.path.join(directory, name))
            total += status.st_size if status.st_nlink == 1 else status.st_size // status.st_nlink
    return total, count


def affordable(where: Path, before: int, budget: float, seconds: float) -> int:
    """Rounds that fit into the space and the time, from what the first took; before: bytes free before it."""
    free = os.statvfs(where)
    available = free.f_bavail * free.f_frsize
    room = (available - RESERVE) // max(1, before - available)
    return min(1 + room, max(FEWEST, min(MOST, int(budget / max(seconds, 0.1)))))


Trees = tuple[int, int]


def measure(account: Account, who: Sequence[Unpacker], where: Path, budget: float) -> tuple[list[Row], Trees]:
    """Rounds in one place, at least three unless space or a budget of 0 forbids; the tree's size."""
    samples: dict[str, list[Sample]] = {unpacker.key: [] for unpacker in who}
    free = os.statvfs(where)
    before = free.f_bavail * free.f_frsize
    rounds, number = 1, 0
    start = time.monotonic()
    while number < rounds:
        for unpacker in random.sample(list(who), len(who)):
            os.sync()
            samples[unpacker.key].append(once(account, unpacker, where / f"{number}-{unpacker.key}"))
        number += 1
        if number == 1 and budget > 0:
            rounds = affordable(where, before, budget, time.monotonic() - start)
    return [_row(unpacker, samples[unpacker.key]) for unpacker in who], tree_size(where / "0-tar-gzip")


def _row(unpacker: Unpacker, samples: Sequence[Sample]) -> Row:
    return Row(
        key=unpacker.key,
        name=unpacker.name,
        kind="unpack",
        about=unpacker.about,
        command=" ".join(Path(word).name if word.startswith("/") else word for word in unpacker.words[:4]),
        wall_us={"all": [sample.wall for sample in samples]},
        cpu_us={"all": [sample.cpu for sample in samples]},
        peak_kib={"all": [sample.peak for sample in samples]},
    )


def terminal(result: Result) -> str:
    """The result for a terminal."""
    parts = []
    for place, rows in result.parts.items():
        parts += [f"\nunpacking onto {place}", text_table(*table(rows))]
    parts += [f"not measured: {refusal.name}: {refusal.reason}" for refusal in result.refused]
    return "\n".join([*parts, *(f"note: {note}" for note in result.notes)])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.unpack", description=__doc__)
    parser.add_argument("--image", help="oci:DIR[:TAG] with gzip layers (default: the demo's)")
    parser.add_argument("--hpcpod", help="the installed command (default: beside this Python)")
    parser.add_argument("--budget", type=float, default=120.0, metavar="SECONDS", help="time to measure")
    parser.add_argument("--quick", action="store_true", help="one run each")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), metavar="DIR")
    parser.add_argument("--note", action="append", default=[], metavar="TEXT", help="kept with the result")
    return parser.parse_args(argv)


def _run(options: argparse.Namespace, account: Account, places: dict[str, Path]) -> Result:
    options.image = options.image or demo_image()
    refused: list[Refusal] = []
    front: Path | None = None
    zstd: str | None = None
    try:
        front = installed_hpcpod(options.hpcpod)
        zstd = zstd_copy(options.image, places["disk"] / "zstd-image")
        account.checked([str(front), "--version"])
    except BenchError as error:
        refused.append(Refusal("hpcpod", str(error)))
        front = None
    who = unpackers(options.image, zstd, front)
    head = facts()
    size = warm(options.image)
    parts = {}
    tree: Trees = (0, 0)
    for place, path in places.items():
        budget = 0.0 if options.quick else options.budget / len(places)
        rows, tree = measure(account, who, path, budget)
        parts[f"{place} ({file_system_of(path)})"] = rows
    head |= {
        "load_after": load(),
        "image": Path(split(options.image)[0]).name,
        "layers": len(layers(options.image)),
        "compressed_mb": round(size / 1e6),
        "unpacked_mb": round(tree[0] / 1e6),
        "entries": tree[1],
    }
    notes = [*options.note, "umoci 0.4.7 cannot read zstd layers; that row stands alone"]
    return Result("unpack", head, versions(), notes, parts, refused)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; status 1 where it cannot be run."""
    options = _arguments(argv)
    account = measuring_account()
    places = {}
    for name, parent in (("disk", "/var/tmp"), ("memory", "/dev/shm")):
        places[name] = Path(tempfile.mkdtemp(prefix="hpcpod-bench-unpack-", dir=parent))
        places[name].chmod(0o755)
        os.chown(places[name], account.uid, account.gid)
    try:
        result = _run(options, account, places)
    except BenchError as error:
        print(f"bench.unpack: {error}", file=sys.stderr)
        return 1
    finally:
        for path in places.values():
            _remove(path)
    written = write_result(result, options.output.absolute())
    head = result.machine
    print(f"{head['unpacked_mb']} MB, {head['entries']} entries, {head['compressed_mb']} MB compressed")
    print(terminal(result))
    print(f"\nwritten: {written}")
    return 0


def _remove(path: Path) -> None:
    # An image may hold directories that their owner cannot write.
    subprocess.run(["chmod", "-R", "u+rwX", path], check=False)
    shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
