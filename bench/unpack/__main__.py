# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.unpack``: hpcpod image unpack, its peers and the floor, on the same images, interleaved.

Every run has a fresh target directory.  On a disk no tree is deleted before the last run: extraction right
after the deletion of a tree is several times slower on ext4.  In memory each tree goes after its run, so that
all write to memory that was used before.  Between runs the disk is given time to write (sync).
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
from dataclasses import dataclass, field
from pathlib import Path

from bench.account import Account, BenchError, measuring_account
from bench.machine import facts, file_system_of, load, version_of, versions
from bench.programs import build, installed_hpcpod
from bench.result import Refusal, Result, Row, write_result
from bench.samples import text_table
from bench.unpack.contenders import Sample, Unpacker, once, unpackers
from bench.unpack.floor import Floor, measure, plain_layers
from bench.unpack.images import MADE, Image, image
from bench.unpack.layout import layers, warm
from bench.unpack.tables import FLOOR, stages, table

FEWEST, MOST = 3, 8
RESERVE = 6 << 30
"""Bytes that stay free on a target's file system."""
PLACES = {"disk": "/var/tmp", "memory": "/dev/shm"}
IMAGES = ("demo", *MADE)


@dataclass
class Series:
    """What was measured of one image in one place."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    floors: dict[str, list[Floor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stand:
    """Where and by whom one image is unpacked.  keep: trees stay until the end.  program: floor.c."""

    account: Account
    image: Image
    who: Sequence[Unpacker]
    where: Path
    keep: bool
    program: Path
    tars: list[Path]

    def round(self, number: int, series: Series) -> None:
        """Everybody once, in random order; the slow ones in the first round only."""
        turns: list[Unpacker | str] = [one for one in self.who if not (one.once and number)]
        turns += [f"{FLOOR}-{packing}" for packing in self.image.references]
        for turn in random.sample(turns, len(turns)):
            key = turn if isinstance(turn, str) else turn.key
            target = self.where / f"{self.image.name}-{number}-{key}"
            os.sync()
            if isinstance(turn, str):
                floor = measure(
                    self.account, self.image, key.rpartition("-")[2], self.program, self.tars, target
                )
                series.floors.setdefault(key, []).append(floor)
            else:
                series.samples.setdefault(key, []).append(once(self.account, turn, target))
            if not self.keep:
                remove(target)

    def measure(self, budget: float) -> Series:
        """Rounds, at least three unless space or a budget of 0 forbids."""
        series = Series()
        before, start = free(self.where), time.monotonic()
        self.round(0, series)
        if budget > 0:
            taken = max(1, before - free(self.where)) if self.keep else 1
            room = (free(self.where) - RESERVE) // taken
            seconds = max(time.monotonic() - start, 0.1)
            for number in range(1, min(1 + room, max(FEWEST, min(MOST, int(budget / seconds))))):
                self.round(number, series)
        return series


def free(path: Path) -> int:
    """Bytes that are free there."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def remove(path: Path) -> None:
    """Remove a tree, whatever its modes."""
    if path.exists():
        subprocess.run(["chmod", "-R", "u+rwX", path], check=False)
        shutil.rmtree(path, ignore_errors=True)


def rows(who: Sequence[Unpacker], series: Series) -> list[Row]:
    """Of one image in one place."""
    found = []
    for one in who:
        samples = series.samples[one.key]
        command = " ".join(Path(word).name if word.startswith("/") else word for word in one.words)
        found.append(
            Row(
                key=one.key,
                name=one.name,
                kind="unpack",
                about=one.about,
                command=command if len(command) < 300 else command[:140] + " … " + command[-140:],
                wall_us={
                    "all": [sample.wall for sample in samples],
                    "flushed": [sample.flushed for sample in samples],
                },
                cpu_us={"all": [sample.cpu for sample in samples]},
                peak_kib={"all": [sample.peak for sample in samples]},
            )
        )
    return [*found, *(_floor_row(key, floors) for key, floors in series.floors.items())]


def _floor_row(key: str, floors: Sequence[Floor]) -> Row:
    packing = key.rpartition("-")[2]
    parts = {name: [round(f.stages[name] * 1e6) for f in floors] for name in floors[0].stages}
    return Row(
        key=key,
        name=f"floor, {packing}",
        kind=FLOOR,
        about="the stages' CPU time; on all cores at once, or the longest chain of them",
        command=f"python -m bench.unpack.stages LAYERS; {FLOOR} DIR TARS",
        wall_us={"all": [round(f.wall * 1e6) for f in floors], **parts},
        cpu_us={"all": [round(f.cpu * 1e6) for f in floors]},
    )


def terminal(result: Result) -> str:
    """The result for a terminal."""
    parts = []
    for place, found in result.parts.items():
        parts += [f"\n{place}", text_table(*table(found)), stages(found)]
    parts += [f"not measured: {refusal.name}: {refusal.reason}" for refusal in result.refused]
    return "\n".join([*parts, *(f"note: {note}" for note in result.notes)])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.unpack", description=__doc__)
    parser.add_argument("--images", default=",".join(IMAGES), metavar="NAMES", help="some of %(default)s")
    parser.add_argument("--places", default=",".join(PLACES), metavar="NAMES", help="some of %(default)s")
    parser.add_argument("--hpcpod", help="the installed command (default: beside this Python)")
    parser.add_argument("--budget", type=float, default=600.0, metavar="SECONDS", help="time to measure")
    parser.add_argument("--quick", action="store_true", help="one run each")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), metavar="DIR")
    parser.add_argument("--note", action="append", default=[], metavar="TEXT", help="kept with the result")
    return parser.parse_args(argv)


def _size(one: Image, tars: Sequence[Path]) -> dict[str, object]:
    return {
        "about": one.about,
        "layers": len(layers(one.references["gzip"])),
        "gzip_mb": round(warm(one.references["gzip"]) / 1e6),
        "zstd_mb": round(warm(one.references["zstd"]) / 1e6),
        "tar_mb": round(sum(tar.stat().st_size for tar in tars) / 1e6),
    }


def _run(options: argparse.Namespace, account: Account, scratch: dict[str, Path]) -> Result:
    refused: list[Refusal] = []
    front: Path | None = None
    try:
        front = installed_hpcpod(options.hpcpod)
        account.checked([str(front), "--version"])
    except BenchError as error:
        refused.append(Refusal("hpcpod", str(error)))
        front = None
    head: dict[str, object] = dict(facts())
    sizes, parts = {}, {}
    program = build(Path(__file__).parent / "floor.c", next(iter(scratch.values())))
    names = options.images.split(",")
    budget = 0.0 if options.quick else options.budget / len(names) / len(scratch)
    for one in map(image, names):
        who = unpackers(one, front)
        with plain_layers(one) as tars:
            sizes[one.name] = _size(one, tars)
            for place, path in scratch.items():
                stand = Stand(account, one, who, path, place != "memory", program, tars)
                parts[f"{one.about}: {place} ({file_system_of(path)})"] = rows(who, stand.measure(budget))
    head |= {"load_after": load(), "images": sizes}
    notes = [*options.note, "umoci 0.4.7 cannot read zstd layers"]
    known = versions() | {"Podman": version_of(("podman", "--version"))}
    return Result("unpack", head, known, notes, parts, refused)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; status 1 where it cannot be run."""
    options = _arguments(argv)
    account = measuring_account()
    scratch = {}
    for name in options.places.split(","):
        scratch[name] = Path(tempfile.mkdtemp(prefix="hpcpod-bench-unpack-", dir=PLACES[name]))
        scratch[name].chmod(0o755)
        os.chown(scratch[name], account.uid, account.gid)
    try:
        result = _run(options, account, scratch)
    except BenchError as error:
        print(f"bench.unpack: {error}", file=sys.stderr)
        return 1
    finally:
        for path in scratch.values():
            remove(path)
    written = write_result(result, options.output.absolute())
    print(terminal(result))
    print(f"\nwritten: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
