# SPDX-License-Identifier: Apache-2.0
"""The tables of the unpacking benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from bench.result import Row
from bench.samples import summarise

FLOOR = "floor"


def median(row: Row, case: str = "all") -> float:
    """Of the wall time, µs."""
    return summarise(row.wall_us[case]).median


def cpu_median(row: Row) -> float:
    """Of the CPU time, µs."""
    return summarise(row.cpu_us["all"]).median


def floor_of(rows: Sequence[Row], row: Row) -> Row | None:
    """The floor of the same compression."""
    packing = row.key.rpartition("-")[2]
    return next((other for other in rows if other.key == f"{FLOOR}-{packing}"), None)


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines for one image in one place; the fastest first, in each compression after its floor."""
    lines = []
    for row in sorted(rows, key=lambda row: (row.key.rpartition("-")[2], row.kind != FLOOR, median(row))):
        wall, cpu = summarise(row.wall_us["all"]), cpu_median(row)
        floor = floor_of(rows, row)
        ratios = (
            [f"{wall.median / median(floor):.2f}", f"{cpu / cpu_median(floor):.2f}"] if floor else ["", ""]
        )
        peak = f"{summarise(row.peak_kib['all']).maximum / 1024:.0f}" if row.peak_kib else ""
        shown = [f"{value / 1e6:.2f}" for value in (wall.median, wall.minimum, wall.maximum)]
        flushed = f"{median(row, 'flushed') / 1e6:.2f}" if "flushed" in row.wall_us else ""
        lines.append(
            [row.name, *shown, flushed, ratios[0], f"{cpu / 1e6:.2f}", ratios[1], peak, str(wall.count)]
        )
    head = ["", "median s", "min", "max", "flushed", "to floor", "CPU s", "to CPU floor", "peak MiB", "runs"]
    return head, lines


def stages(rows: Sequence[Row]) -> str:
    """The floors' stages in one line each."""
    lines = []
    for row in (row for row in rows if row.kind == FLOOR):
        parts = [
            f"{name} {summarise(row.wall_us[name]).median / 1e6:.3f}" for name in row.wall_us if name != "all"
        ]
        lines.append(f"{row.name}: {', '.join(parts)} s")
    return "\n".join(lines)
