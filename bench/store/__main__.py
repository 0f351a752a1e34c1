# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.store``: store hit to ready in each form, and eight users at once.  Needs root.

A hit is timed from just before the exec of ``hpcpod run`` to the end of a payload that does nothing: front,
plan, pod, exec.  Kinds take turns in random order.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.account import Account, BenchError, last_line
from bench.machine import facts, load, versions
from bench.programs import build, demo_image, installed_hpcpod
from bench.result import Result, Row, write_result
from bench.samples import text_table
from bench.store.room import UNPACKER, Room, room
from bench.store.tables import table

ROUNDS, QUICK_ROUNDS = 40, 5
CROWDS, QUICK_CROWDS = 5, 1
USERS = 8
PAUSE = 0.03
"""Seconds between two starts: the kernel takes the last pod's namespaces down."""


@dataclass(frozen=True)
class Hit:
    """One kind of start.  before: what a run needs that is not timed."""

    key: str
    name: str
    about: str
    account: Account
    words: Sequence[str]
    before: Callable[[], None] = lambda: None


def timed(account: Account, words: Sequence[str]) -> int:
    """µs of one run to its end.  Raises BenchError."""
    start = time.monotonic_ns()
    done = account.run(words)
    wall = time.monotonic_ns() - start
    if done.returncode:
        raise BenchError(f"{' '.join(words)}: status {done.returncode}: {last_line(done.stderr)}")
    return wall // 1000


def hits(front: Path, reference: str, payload: str, place: Room) -> list[Hit]:
    """The kinds; every image is in its store when this returns."""
    own, packed, shared, planning = (place.user(number, number != 2) for number in range(4))
    for account, form in ((own, "dir"), (packed, "squashfs"), (planning, "dir")):
        account.checked([str(front), "image", "pull", f"--rootfs={form}", reference])
    place.root.checked([str(front), "image", "mount", "--lease", "bench", reference])
    run = [str(front), "run", "--no-home"]
    tail = [reference, "--", payload]

    def forget() -> None:
        shutil.rmtree(Path(planning.environment["HPCPOD_RUNTIME"]) / "plans", ignore_errors=True)

    def settle() -> None:
        time.sleep(SERVER_GONE)

    return [
        Hit("host", "the payload alone", "no pod: what starting and ending it costs", own, [payload]),
        Hit("dir", "own store, directory", "the plan is cached", own, [*run, *tail]),
        Hit("site", "site's store, EROFS mounted", "by the kernel, once for all", shared, [*run, *tail]),
        Hit(
            "fuse",
            "own store, squashfs, nobody runs from it",
            "the FUSE server is started and the image mounted",
            packed,
            [*run, "--rootfs=squashfs", *tail],
            settle,
        ),
        Hit(
            "fuse-shared",
            "own store, squashfs, mounted already",
            "another pod of the user runs from it",
            packed,
            [*run, "--rootfs=squashfs", *tail],
        ),
        Hit("plan", "own store, directory, no plan", "Python plans first", planning, [*run, *tail], forget),
    ]


SERVER_GONE = 2.5
"""Seconds after which nothing keeps a FUSE mount that no pod uses."""


def measure_hits(found: Sequence[Hit], front: Path, reference: str, rounds: int) -> list[Row]:
    """Rounds of all kinds in random order; those beside a running FUSE pod come last, together."""
    samples: dict[str, list[int]] = {hit.key: [] for hit in found}
    plain = [hit for hit in found if hit.key not in ("fuse", "fuse-shared")]
    for hit in plain:
        timed(hit.account, hit.words)
    for _ in range(rounds):
        for hit in random.sample(plain, len(plain)):
            hit.before()
            samples[hit.key].append(timed(hit.account, hit.words))
            time.sleep(PAUSE)
    cold = next(hit for hit in found if hit.key == "fuse")
    timed(cold.account, cold.words)
    for _ in range(max(3, rounds // 8)):
        cold.before()
        samples["fuse"].append(timed(cold.account, cold.words))
    warm = next(hit for hit in found if hit.key == "fuse-shared")
    words = [str(front), "run", "--no-home", "--rootfs=squashfs", reference, "--", "/bin/sleep", "3600"]
    with warm.account.start(words) as keeper:
        try:
            time.sleep(0.5)
            for _ in range(rounds):
                samples["fuse-shared"].append(timed(warm.account, warm.words))
                time.sleep(PAUSE)
        finally:
            keeper.terminate()
    return [
        Row(hit.key, hit.name, "hit", hit.about, " ".join(hit.words[1:4]), {"1": samples[hit.key]}, {})
        for hit in found
    ]


# --------------------------------------------------------------------------- eight users


@dataclass(frozen=True)
class Crowd:
    """Eight users who start at once, with stores and, if shared, a site's store that nobody has used yet."""

    number: int
    shared: bool

    def environment(self, place: Room) -> dict[str, str]:
        """Of root, who starts each user's command after what a prolog would do."""
        config = place.disk / f"crowd{self.number}.toml"
        store, run = place.disk / f"site{self.number}", place.memory / f"site{self.number}"
        config.write_text(
            f'[site]\nstore = "{store}"\nrun = "{run}"\naccount = "{UNPACKER}"\n{place.accepting}'
        )
        return {**Account(0, 0).environment, **({"HPCPOD_CONFIG": str(config)} if self.shared else {})}

    def user(self, place: Room, user: int) -> Account:
        """One of them."""
        return place.user(100 * (self.number + 1) + user, not self.shared)

    def script(self, front: Path, reference: str, payload: str, place: Room, user: int) -> str:
        """What is run for one of them, as root."""
        account = self.user(place, user)
        mount = f"{front} image mount --lease job{user} {reference} >/dev/null && " if self.shared else ""
        variables = " ".join(
            f"{name}={account.environment[name]}" for name in ("HPCPOD_STORE", "HPCPOD_RUNTIME")
        )
        become = f"setpriv --reuid={account.uid} --regid={account.gid} --clear-groups env {variables}"
        return f"{mount}exec {become} {front} run --no-home {reference} -- {payload}"

    def check(self, front: Path, place: Room) -> None:
        """One unpacking, one mount and none of the users' own; then nothing is mounted any more."""
        site = f"site{self.number}"
        lines = Path("/proc/mounts").read_text().splitlines()
        own = [
            path
            for user in range(USERS)
            for path in Path(self.user(place, user).environment["HPCPOD_STORE"]).glob("images/*")
        ]
        counts = (
            len(list((place.disk / site / "images").iterdir())),
            len([line for line in lines if f"/{site}/" in line]),
            len(own),
        )
        if counts != (1, 1, 0):
            raise BenchError(f"eight users: images, mounts, images of their own: {counts}")
        for user in range(USERS):
            words = [str(front), "image", "umount", "--all", "--lease", f"job{user}"]
            subprocess.run(words, env=self.environment(place), stdout=subprocess.DEVNULL, check=True)


def run_crowd(front: Path, reference: str, payload: str, place: Room, crowd: Crowd) -> int:
    """µs until all users' payloads have ended, from nothing unpacked.  Raises BenchError."""
    scripts = [crowd.script(front, reference, payload, place, user) for user in range(USERS)]
    start = time.monotonic_ns()
    processes = [
        subprocess.Popen(
            ["/bin/sh", "-c", script],
            env=crowd.environment(place),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for script in scripts
    ]
    said = [process.communicate()[1] for process in processes]
    wall = (time.monotonic_ns() - start) // 1000
    if any(process.returncode for process in processes):
        raise BenchError(f"eight users: {last_line(''.join(said))}")
    if crowd.shared:
        crowd.check(front, place)
    return wall


def measure_crowds(front: Path, reference: str, payload: str, place: Room, rounds: int) -> list[Row]:
    """Eight users through the site's store, and each on their own."""
    samples: dict[bool, list[int]] = {True: [], False: []}
    for number in range(rounds):
        for shared in random.sample([True, False], 2):
            who = Crowd(2 * number + int(shared), shared)
            samples[shared].append(run_crowd(front, reference, payload, place, who))
    about = "one unpacking, one mount, eight pods: counted", "eight unpackings, at once, on the same cores"
    names = "through the site's store", "each in a store of their own"
    return [
        Row(f"crowd-{shared}", name, "crowd", text, "image mount, run", {"1": samples[shared]}, {})
        for shared, name, text in zip((True, False), names, about, strict=True)
    ]


def _measure(front: Path, reference: str, quick: bool) -> dict[str, list[Row]]:
    rounds, crowds = (QUICK_ROUNDS, QUICK_CROWDS) if quick else (ROUNDS, CROWDS)
    # Below /tmp: pods see the node's.
    with room(front) as place, tempfile.TemporaryDirectory(prefix="hpcpod-bench-", dir="/tmp") as scratch:
        Path(scratch).chmod(0o755)
        payload = str(build(Path(__file__).parent.parent / "startup" / "nothing.c", Path(scratch)))
        found = hits(front, reference, payload, place)
        return {
            "hit": measure_hits(found, front, reference, rounds),
            "crowd": measure_crowds(front, reference, payload, place, crowds),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write store.json; status 1 where that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__)
    parser.add_argument("--image", help="oci:DIR[:TAG] (default: the demo's)")
    parser.add_argument("--hpcpod", help="the installed command (default: beside this Python)")
    parser.add_argument("--results", type=Path, default=Path("build/bench"), metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="a few runs each")
    options = parser.parse_args(argv)
    if os.geteuid() != 0:
        print("bench.store: needs root: the site's store is root's", file=sys.stderr)
        return 1
    machine = facts()
    try:
        front = installed_hpcpod(options.hpcpod)
        parts = _measure(front, options.image or demo_image(), options.quick)
    except BenchError as error:
        print(f"bench.store: {error}", file=sys.stderr)
        return 1
    machine["load_after"] = load()
    result = Result("store", machine, versions(), [], parts, [])
    write_result(result, options.results)
    for name, rows in parts.items():
        print(f"\n{name}\n{text_table(*table(rows))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
