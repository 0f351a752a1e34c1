# SPDX-License-Identifier: Apache-2.0
"""What hpcpod sets out to reach, and whether these results show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.result import Result, Row
from bench.samples import milliseconds, summarise
from bench.unpack.tables import cpu_median, floor_of, median

JOIN_OVER_FLOOR = 1.5
SRUN_EXTRA_MS = 60.0
HIT_MS = 5.0
HIT_FORMS = {"dir": "directory", "site": "EROFS of the site", "fuse-shared": "squashfs by FUSE"}
PEERS = ("bwrap", "bwrap-lean", "ch-run", "crun")
COUNTS = ("1", "16", "64")
UNPACK_PEERS = ("umoci-gzip", "podman-gzip", "podman-zstd")
OVER_PEERS = 3.0
OVER_FLOOR = 1.4
PEAK_MIB = 190
"""200 MB."""


def _median(rows: Sequence[Row], key: str, case: str) -> float | None:
    values = next((row.wall_us.get(case) for row in rows if row.key == key), None)
    return summarise(values).median / 1000 if values else None


def _cpu(rows: Sequence[Row], key: str, count: int) -> float:
    row = next(row for row in rows if row.key == key)
    return summarise(row.cpu_us[str(count)]).median / 1000 / count


def _line(goal: str, seen: str, met: bool | None) -> list[str]:
    return [goal, seen, "not measured" if met is None else "yes" if met else "**no**"]


def _join(rows: Sequence[Row]) -> list[list[str]]:
    ours, floor = _median(rows, "hpcpod-join", "64"), _median(rows, "floor-join", "64")
    goal = (
        f"entering a ready pod: at most {JOIN_OVER_FLOOR:g} times the bare C floor of the same joins at N=64"
    )
    if ours is None or floor is None:
        lines = [_line(goal, "-", None)]
    else:
        cpu = " to ".join(f"{_cpu(rows, key, 64):.2f}" for key in ("hpcpod-join", "floor-join"))
        seen = (
            f"{milliseconds(ours)} ms to {milliseconds(floor)} ms: {ours / floor:.2f} (CPU {cpu} ms per rank)"
        )
        lines = [_line(goal, seen, ours / floor <= JOIN_OVER_FLOOR)]
    goal = "entering a ready pod: faster than a fresh start of every peer at N=1, 16, 64"
    best = {count: _best(rows, count) for count in COUNTS}
    own = {count: _median(rows, "hpcpod-join", count) for count in COUNTS}
    pairs = [(own[count], best[count]) for count in COUNTS]
    texts, met = [], True
    for mine, theirs in pairs:
        if mine is None or theirs is None:
            return [*lines, _line(goal, "-", None)]
        texts.append(f"{milliseconds(mine)} to {milliseconds(theirs)}")
        met = met and mine < theirs
    return [*lines, _line(goal, f"{', '.join(texts)} ms (the fastest peer)", met)]


def _best(rows: Sequence[Row], count: str) -> float | None:
    """The fastest peer's; None where one of them was not measured: it might have been the fastest."""
    values = [_median(rows, key, count) for key in PEERS]
    found = [value for value in values if value is not None]
    return min(found) if len(found) == len(values) else None


def _fresh(rows: Sequence[Row]) -> list[list[str]]:
    goal = "fresh `hpcpod run`, image unpacked and plan cached: not slower than bubblewrap (the same mounts)"
    texts, met = [], True
    for count in COUNTS:
        mine, theirs = _median(rows, "hpcpod-fresh", count), _median(rows, "bwrap", count)
        if mine is None or theirs is None:
            return [_line(goal, "-", None)]
        texts.append(f"{milliseconds(mine)} to {milliseconds(theirs)}")
        met = met and mine <= theirs
    return [_line(goal, f"{', '.join(texts)} ms", met)]


def _unpack(parts: Mapping[str, Sequence[Row]]) -> list[list[str]]:
    found = []
    for part, rows in parts.items():
        # hpcpod returns when the tree is on the disk, the others before: both times are compared, both count.
        if "disk" in part and all("flushed" in row.wall_us for row in rows if row.peak_kib):
            found.append(_unpack_peers(part, rows, "flushed", ", until the tree is on the disk"))
            found.append(_unpack_peers(part, rows, "all", ", until the command ends; hpcpod alone flushes"))
        else:
            found.append(_unpack_peers(part, rows, "all", ""))
        found += _floors(part, rows)
    return found


def _unpack_peers(part: str, rows: Sequence[Row], until: str, words: str) -> list[str]:
    goal = f"unpacking, {part}: at least {OVER_PEERS:g} times faster than umoci and podman load{words}"
    found = {row.key: _median(rows, row.key, until) for row in rows}
    pairs = [("hpcpod-gzip", key) for key in UNPACK_PEERS if key.endswith("gzip")]
    pairs += [("hpcpod-zstd", key) for key in UNPACK_PEERS if key.endswith("zstd")]
    texts, met = [], True
    for own, peer in pairs:
        mine, theirs = found.get(own), found.get(peer)
        if mine is None or theirs is None:
            return _line(goal, "-", None)
        texts.append(f"{peer.replace('-', ' ')} {theirs / mine:.1f}")
        met = met and theirs / mine >= OVER_PEERS
    return _line(goal, f"{', '.join(texts)} times", met)


def _floors(part: str, rows: Sequence[Row]) -> list[list[str]]:
    goal = f"unpacking, {part}: CPU time at most {OVER_FLOOR:g} times the floor's, at most {PEAK_MIB} MiB"
    texts, met = [], True
    for row in (row for row in rows if row.key.startswith("hpcpod-")):
        floor = floor_of(rows, row)
        if floor is None or not row.peak_kib:
            return [_line(goal, "-", None)]
        ratio, wall = cpu_median(row) / cpu_median(floor), median(row) / median(floor)
        peak = max(row.peak_kib["all"]) / 1024
        packing = row.key.rpartition("-")[2]
        texts.append(f"{packing} {ratio:.2f} (wall {wall:.2f}), {peak:.0f} MiB")
        met = met and ratio <= OVER_FLOOR and peak <= PEAK_MIB
    return [_line(goal, "; ".join(texts) or "-", met if texts else None)]


def _hits(rows: Sequence[Row]) -> list[list[str]]:
    goal = f"store hit to ready, plan cached: under {HIT_MS:g} ms in each form"
    found = {key: _median(rows, key, "1") for key in ("dir", "site", "fuse-shared")}
    seen = [value for value in found.values() if value is not None]
    if len(seen) < len(found):
        return [_line(goal, "-", None)]
    texts = ", ".join(f"{HIT_FORMS[key]} {value:.2f}" for key, value in found.items() if value is not None)
    return [_line(goal, f"{texts} ms", max(seen) < HIT_MS)]


def _slurm(rows: Sequence[Row]) -> list[list[str]]:
    plain = _median(rows, "plain", "last")
    lines = []
    for key, what in (("prepare", "the first rank plans in Python"), ("cached", "the plan is cached")):
        mine = _median(rows, key, "last")
        goal = f"`srun -N2 -n4 hpcpod run`, image ready, {what}: at most {SRUN_EXTRA_MS:g} ms more"
        if mine is None or plain is None:
            lines.append(_line(goal, "-", None))
        else:
            seen = f"{milliseconds(mine)} ms to {milliseconds(plain)} ms: {mine - plain:+.0f} ms"
            lines.append(_line(goal, seen, mine - plain <= SRUN_EXTRA_MS))
    return lines


def lines(results: Mapping[str, Result]) -> list[list[str]]:
    """Goal, what was seen, whether it is met; without results of a benchmark, its goals as not measured."""

    def rows(name: str, part: str) -> Sequence[Row]:
        return results[name].parts.get(part, []) if name in results else []

    unpacked = results["unpack"].parts if "unpack" in results else {"each image": []}
    return [
        *_join(rows("startup", "dynamic")),
        *_fresh(rows("startup", "dynamic")),
        *_unpack(unpacked),
        *_hits(rows("store", "hit")),
        *_slurm(rows("slurm", "srun")),
    ]
