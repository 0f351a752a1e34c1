# SPDX-License-Identifier: Apache-2.0
"""The table of the unpacking benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from bench.result import Row
from bench.samples import summarise


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines for one place; the ratio is to umoci."""
    peer = next(summarise(row.wall_us["all"]).median for row in rows if row.key == "umoci-gzip")
    lines = []
    for row in sorted(rows, key=lambda row: summarise(row.wall_us["all"]).median):
        wall = summarise(row.wall_us["all"])
        cpu = summarise(row.cpu_us["all"]).median / 1e6
        peak = summarise((row.peak_kib or {})["all"]).median / 1024
        shown = [f"{value / 1e6:.2f}" for value in (wall.median, wall.minimum, wall.maximum)]
        lines.append(
            [row.name, *shown, f"{wall.median / peer:.2f}", f"{cpu:.2f}", f"{peak:.0f}", str(wall.count)]
        )
    return ["", "median s", "min", "max", "to umoci", "CPU s", "peak MiB", "runs"], lines
