# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.report``: docs/benchmarks.md and its picture, from the results in bench/results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import goals
from bench.plot import Line, svg
from bench.result import Result, Row, read_result
from bench.samples import markdown_table, summarise
from bench.slurm import tables as slurm_tables
from bench.startup import tables as startup_tables
from bench.store import tables as store_tables
from bench.unpack import tables as unpack_tables

RESULTS = Path("bench/results")
PAGE = Path("docs/benchmarks.md")
PICTURE = Path("docs/benchmarks-startup.svg")
COLOURS = {
    "host": "#888888",
    "floor-join": "#555555",
    "hpcpod-join": "#c1121f",
    "hpcpod-step": "#f4842c",
    "floor-fresh": "#222222",
    "hpcpod-fresh": "#7b2cbf",
    "bwrap": "#1d6fb8",
    "ch-run": "#2a9d5c",
    "crun": "#8a6d3b",
}
"""The rows of the picture."""


def picture(result: Result) -> str:
    """The start-up picture: medians of the dynamic payload."""
    lines = [
        Line(
            row.name,
            COLOURS[row.key],
            [(int(n), summarise(row.wall_us[n]).median / 1000) for n in sorted(row.wall_us, key=int)],
            row.key == "host" or row.key.startswith("floor"),
        )
        for row in result.parts["dynamic"]
        if row.key in COLOURS
    ]
    return svg("Wall time until all ranks have run /bin/true of the image (median)", lines)


def machine_lines(results: Mapping[str, Result]) -> list[str]:
    """Where and when, and with which versions."""
    head = next(iter(results.values())).machine
    kind = "virtual machine" if head["virtual"] else "machine"
    versions = next(iter(results.values())).versions
    loads = ", ".join(
        f"{name} {r.machine['load_before']:.1f} to {r.machine['load_after']:.1f}"
        for name, r in results.items()
    )
    priorities = {name: r.machine.get("nice", 0) for name, r in results.items() if r.machine.get("nice")}
    raised = ", ".join(f"{name} at nice {value}" for name, value in priorities.items())
    priority = f"; run beside other work with priority over it: {raised}" if raised else ""
    return [
        f"- **{kind}**: {head['cores']} cores ({head['cpu']}), {head['memory_gib']} GiB, {head['system']}, "
        f"kernel {head['kernel']}, {head['mounts']} mounts on the host",
        f"- **date**: {head['date']}; load average before and after: {loads}{priority}",
        f"- **versions**: {', '.join(f'{name} {number}' for name, number in versions.items())}",
    ]


def about_lines(rows: Sequence[Row]) -> str:
    """What each row does, with its command."""
    lines = [[row.name, row.about, f"`{_short(row.command)}`"] for row in startup_tables.in_order(rows)]
    return markdown_table(["row", "what it does", "command"], lines).replace("---:", "---")


def _short(command: str) -> str:
    return command if len(command) < 110 else command[:70] + " … " + command[-30:]


def startup_section(result: Result) -> list[str]:
    """Tables and notes of bench.startup."""
    parts = [
        "## Starting N ranks on one node",
        "",
        PROSE_STARTUP,
        "",
        f"![start-up times]({PICTURE.name})",
        "",
    ]
    for name, rows in result.parts.items():
        parts += [f"### {startup_tables.TITLES[name]}", ""]
        parts += [markdown_table(*startup_tables.table(rows)), ""]
    parts += ["### The rows", "", about_lines(result.parts["dynamic"]), ""]
    parts += [f"- not measured: {refusal.name}: {refusal.reason}" for refusal in result.refused]
    return [*parts, *(f"- {note}" for note in result.notes), ""]


def unpack_section(result: Result) -> list[str]:
    """Tables of bench.unpack."""
    parts = ["## Unpacking an image", "", PROSE_UNPACK, ""]
    names = ["image", "layers", "gzip MB", "zstd MB", "unpacked MB"]
    sizes = [
        [str(one[key]) for key in ("about", "layers", "gzip_mb", "zstd_mb", "tar_mb")]
        for one in result.machine["images"].values()
    ]
    parts += [markdown_table(names, sizes), ""]
    about: dict[str, str] = {}
    for part, rows in result.parts.items():
        parts += [f"### {part[:1].upper()}{part[1:]}", "", markdown_table(*unpack_tables.table(rows)), ""]
        parts += [f"- {line}" for line in unpack_tables.stages(rows).splitlines()] + [""]
        about |= {row.name: row.about for row in rows}
    parts += ["### Who unpacks", "", *(f"- {name}: {text}" for name, text in about.items())]
    parts += [f"- not measured: {refusal.name}: {refusal.reason}" for refusal in result.refused]
    return [*parts, *(f"- {note}" for note in result.notes), ""]


def slurm_section(result: Result) -> list[str]:
    """Tables of bench.slurm."""
    rows = result.parts["srun"]
    parts = ["## Through Slurm", "", PROSE_SLURM, "", markdown_table(*slurm_tables.table(rows)), ""]
    parts += [f"- {row.name}: {row.about}" for row in rows]
    return [*parts, *(f"- {note}" for note in result.notes), ""]


def store_section(result: Result) -> list[str]:
    """Tables of bench.store."""
    parts = ["## Images in a store", "", PROSE_STORE, ""]
    for name, rows in result.parts.items():
        parts += [f"### {store_tables.TITLES[name]}", "", markdown_table(*store_tables.table(rows)), ""]
        parts += [*(f"- {row.name}: {row.about}" for row in rows), ""]
    return [*parts, *(f"- {note}" for note in result.notes)]


SECTIONS = {
    "startup": startup_section,
    "unpack": unpack_section,
    "store": store_section,
    "slurm": slurm_section,
}


def page(results: Mapping[str, Result]) -> str:
    """The whole page."""
    parts = ["# Benchmarks", "", PROSE_HEAD, "", *machine_lines(results), "", "## Against the goals", ""]
    parts += [markdown_table(["goal", "seen", "met"], goals.lines(results)).replace("---:", "---"), ""]
    for name, result in results.items():
        parts += SECTIONS[name](result)
    return "\n".join([*parts, PROSE_REPEAT, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; status 1 without results."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args(argv)
    found = {name: options.results / f"{name}.json" for name in SECTIONS}
    results = {name: read_result(path) for name, path in found.items() if path.exists()}
    if not results:
        print(f"bench.report: {options.results}: no results there", file=sys.stderr)
        return 1
    PAGE.write_text(page(results))
    if "startup" in results:
        PICTURE.write_text(picture(results["startup"]))
    print(f"written: {PAGE}, {PICTURE}")
    return 0


PROSE_HEAD = """\
How long hpcpod takes, beside other tools that do comparable work, in the same run on the same machine.
This page is made by `python -m bench.report` from the measurements in `bench/results`; every single one
is there. Times are medians, with the 95th percentile in brackets. Absolute times belong to this machine;
the ratios carry over better. On two cores, N=64 shows the CPU cost of a start rather than contention
between many cores: what happens to the kernel's mount and namespace locks on a 128-core node is not
measured here."""

PROSE_STARTUP = """\
One C program, the same for all (`bench/startup/driver.c`), starts N copies of the command with
posix_spawn and takes the time until the last has ended, as a plain user. All contenders take turns in
rounds, in a new random order each round, with a pause after each for the kernel to take namespaces down.
All use the same unpacked tree. *floor* is the least that any tool could do: a static C program with
nothing but the system calls, without options, checks, events or a system call filter
(`bench/startup/floor.c`). *ratio* is to the floor of the same kind: joins to `floor: join`, which enters
the very pod that hpcpod's ranks enter, fresh starts to `floor: fresh`.

What is compared fairly: the same root directory, payload, user and launcher; no PID and no network
namespace for anybody; bubblewrap, crun and the floor make the same mounts as hpcpod (Charliecloud has
defaults of its own, fewer of them). hpcpod alone loads a system call filter, writes a start-up event for
each rank and checks that its plan still holds; the others do not, and pay nothing for it. It also binds
/etc/hosts, for which many images have no mount point; its root is then an overlay, theirs a plain bind
without /etc/hosts. The launcher starts a rank when the one before has reached its exec, as slurmstepd
does, so that at N=64 part of the ranks' work hides behind the launcher's; the column of CPU time shows
all of it. What is not the same: ranks that join a pod share its namespaces, fresh starts have their own,
so the join rows are to be compared with joins. That a batch step's ranks can join at all, where the
other tools start N containers, is the point of one pod per node; hence the comparison of joins with
fresh starts that the goals make. `hpcpod run: new step` is what a step costs as a whole: the first rank
makes the pod and the others join it. `no plan yet` is a user's first run of an image that is in the
store: one Python start, N ranks wait for it."""

PROSE_UNPACK = """\
OCI image layouts, blobs in the page cache, to directories that can be started from. Contenders take turns
in random order, each time with a fresh target. On disk no tree is deleted before the last run, since
extraction right after a deletion is several times slower on ext4: for a while it searches past every inode
that was deleted (perf: `recently_deleted` below `ext4_create`), whoever deleted it. The disk is synced
between runs. In memory (tmpfs) each tree goes after its run, so that all write to memory that was used
before. hpcpod is the installed command, run as a plain user, Python's start included; it flushes its tree
to disk before it says that it is done, the others do not: *flushed* is the median time until a sync(2)
after each has ended. The goals compare both times. umoci and podman run as root, which is faster for both;
umoci's rootless mode, measured once, opens files several hundred times for each entry (strace), which
newer versions may not do. GNU tar shows what extraction alone costs when nothing is verified.

The *floor* is the same bytes' cost in the stages that nobody can leave out, each measured by itself in
one thread with its input in memory: sha256 of the blobs, decompression (ISA-L, zstd) into one buffer that
is used again, sha256 of what comes out, and writing the tree by a C program that trusts its archive
(`bench/unpack/floor.c`: open, write, utimensat, close). *CPU floor*: their CPU time added up. *Wall
floor*: that divided by the cores, or the longest chain that cannot be divided (writing the layers in
their order, or decompressing the largest), whichever is longer, and then the flush where the tree lies on
a disk. *to floor* is wall to wall floor, *to CPU floor* is CPU time to CPU floor; *peak* is the largest
process's resident set."""

PROSE_STORE = """\
From an image in a store to the end of a payload that does nothing, a static C program, so that nearly all of
it is the front, the plan and the pod. Kinds take turns in random order; those with a FUSE mount follow, since
one that stays would serve the others. Then eight users with nothing unpacked start the demo image at once:
through the site's store, where each is preceded by what a prolog does (`hpcpod image mount`), and each with
a store of their own. In the first case one unpacking, one mount and no image of their own are checked for."""

PROSE_SLURM = """\
A Slurm cluster of two nodes, each in namespaces of its own on this machine, launches four ranks as a
plain user. The time is from just before srun's exec to the rank's `main`, both by CLOCK_REALTIME: srun's
own end has a quantum of 100 ms. The payload is a static C program in the user's home. Kinds of launch
take turns in random order. *extra* is the difference of the last rank's medians to plain srun's. Both
nodes share two cores, so that whatever the two do at the same time is slower than on real nodes."""

PROSE_REPEAT = """\
## Doing it again

`make bench` sets up what is needed and measures everything into `build/bench`; `BENCH_ARGS=--quick` takes a
few minutes. [How to measure start-up](howto/measure-startup.md) says more. To replace this page's results:

    python -m bench --output bench/results && python -m bench.report"""


if __name__ == "__main__":
    sys.exit(main())
