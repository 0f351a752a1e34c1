# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.startup``: measure, print the tables, write the result as JSON."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.account import Account, BenchError, measuring_account
from bench.machine import facts, file_system_of, load, versions
from bench.programs import build, demo_image, installed_hpcpod
from bench.result import Refusal, Result, Row, write_result
from bench.startup import contenders as who
from bench.startup.measure import COUNTS, Results, measure
from bench.startup.room import enter_room
from bench.startup.tables import terminal

SOURCES = Path(__file__).parent
STATIC_SHARE = 0.2
"""Of the budget, for the second payload."""
Admission = tuple[list[who.Contender], list[Refusal]]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__)
    parser.add_argument("--image", help="reference of the image (default: the demo's)")
    parser.add_argument("--root", type=Path, help="an unpacked tree instead; hpcpod is then left out")
    parser.add_argument("--hpcpod", help="the installed command (default: beside this Python)")
    parser.add_argument("--budget", type=float, default=180.0, metavar="SECONDS", help="time to measure")
    parser.add_argument("--quick", action="store_true", help="the same as --budget 15")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), metavar="DIR")
    parser.add_argument("--note", action="append", default=[], metavar="TEXT", help="kept with the result")
    return parser.parse_args(argv)


def _admit(
    account: Account, driver: str, names: str, make: Callable[[], list[who.Contender]], into: Admission
) -> None:
    """Add the contenders that can be started here; the others with the reason."""
    from bench.startup.measure import once

    try:
        made = make()
    except BenchError as error:
        into[1].append(Refusal(names, str(error)))
        return
    for contender in made:
        try:
            once(account, driver, contender, 1)
        except BenchError as error:
            into[1].append(Refusal(contender.name, str(error)))
        else:
            into[0].append(contender)


def _admitted(stage: who.Stage, holders: who.Holders, options: argparse.Namespace) -> Admission:
    into: Admission = ([], [])
    driver = str(stage.programs["driver"])
    state = stage.account.environment["HPCPOD_RUNTIME"] + ".crun"
    makers: list[tuple[str, Callable[[], list[who.Contender]]]] = [
        ("floor", lambda: who.references(stage, holders)),
        ("bubblewrap", lambda: who.bubblewrap(stage)),
        ("Charliecloud", lambda: who.charliecloud(stage)),
        ("crun", lambda: who.crun(stage, Path(state), holders)),
    ]
    if not options.root:  # first, so that the others join its pod
        front = installed_hpcpod(options.hpcpod)
        makers.insert(0, ("hpcpod run", lambda: who.hpcpod(stage, front, options.image, holders)))
    for names, make in makers:
        _admit(stage.account, driver, names, make, into)
    return into


def _rows(
    contenders: Sequence[who.Contender], results: Results, hide: Sequence[tuple[str, str]]
) -> list[Row]:
    def shown(word: str) -> str:
        for path, name in hide:
            word = word.replace(path, name)
        return word

    return [
        Row(
            key=c.key,
            name=c.name,
            kind=c.kind,
            about=c.about,
            command=" ".join(shown(word) for word in c.command),
            wall_us={str(count): series.wall for count, series in results[c.key].items()},
            cpu_us={str(count): series.cpu for count, series in results[c.key].items()},
        )
        for c in contenders
    ]


def _unpacked_root(account: Account, options: argparse.Namespace) -> Path:
    """The tree that all start from: what hpcpod unpacked into its store, so that it is the same for all."""
    if options.root:
        return Path(options.root).absolute()
    options.image = options.image or demo_image()
    front = installed_hpcpod(options.hpcpod)
    account.checked([str(front), "image", "pull", options.image])
    store = Path(account.environment["HPCPOD_STORE"])
    found = (
        [path for path in store.glob("**/rootfs") if (path / "etc").exists()][:1] if store.exists() else []
    )
    if not found:
        raise BenchError(f"{store}: no unpacked tree after image pull")
    return found[0]


def _run(options: argparse.Namespace, account: Account, scratch: Path) -> Result:
    programs = {name: build(SOURCES / f"{name}.c", scratch) for name in ("driver", "floor", "nothing")}
    root = _unpacked_root(account, options)
    stage = who.Stage(account, root, who.standard_mounts(root), ("/bin/true",), programs, scratch)
    state = Path(account.environment["HPCPOD_RUNTIME"] + ".probe")
    crun_outside = who.crun_refusal(stage, account.own(state)) if shutil.which("crun") else None
    changes = enter_room(account, scratch)
    budget = 15.0 if options.quick else options.budget
    holders = who.Holders()
    parts: dict[str, list[Row]] = {}
    head = facts()
    refused: list[Refusal] = []
    try:
        for payload, words, share in (
            ("dynamic", ("/bin/true",), 1 - STATIC_SHARE),
            ("static", (str(programs["nothing"]),), STATIC_SHARE),
        ):
            now, refused_now = _admitted(replace(stage, payload=words), holders, options)
            refused = refused_now if payload == "dynamic" else refused
            counts = COUNTS if payload == "dynamic" else (1, 64)
            results = measure(account, str(programs["driver"]), now, budget * share, counts)
            hide = [(str(root), "ROOT"), (str(scratch), "."), (str(Path(sys.executable).parent) + "/", "")]
            hide += [(stage.account.environment["HPCPOD_RUNTIME"], "RUNTIME"), ("/usr/bin/", "")]
            hide += [(str(options.image), "IMAGE")] if options.image else []
            hide += [(options.hpcpod, "hpcpod")] if options.hpcpod else []
            parts[payload] = _rows(now, results, hide)
            holders.stop()
    finally:
        holders.stop()
    if crun_outside:
        changes.append(f"crun on the machine as it is: {crun_outside}")
    head |= {"load_after": load(), "root": file_system_of(root), "image": options.image or "a bare tree"}
    return Result("startup", head, versions(), [*changes, *options.note], parts, refused)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; status 1 where it cannot be run."""
    options = _arguments(argv)
    options.output = options.output.absolute()
    account = measuring_account()
    scratch = Path(tempfile.mkdtemp(prefix="hpcpod-bench-", dir="/tmp"))  # ch-run binds no other
    scratch.chmod(0o755)
    os.chown(scratch, account.uid, account.gid)
    runtime = f"/dev/shm/{scratch.name}"
    account = replace(
        account,
        environment={
            **account.environment,
            "HPCPOD_STORE": str(scratch / "store"),
            "HPCPOD_RUNTIME": runtime,
        },
    )
    try:
        result = _run(options, account, scratch)
    except BenchError as error:
        print(f"bench.startup: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for path in Path("/dev/shm").glob(f"{scratch.name}*"):
            shutil.rmtree(path, ignore_errors=True)
    written = write_result(result, options.output)
    print(terminal(result))
    print(f"\nwritten: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
