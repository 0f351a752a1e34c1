# SPDX-License-Identifier: Apache-2.0
"""The table of the benchmark through Slurm."""

from __future__ import annotations

from collections.abc import Sequence

from bench.result import Row
from bench.samples import milliseconds, summarise


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines; `extra` is the difference of the medians of the last rank to plain srun's."""
    plain = next(summarise(row.wall_us["last"]).median for row in rows if row.key == "plain")
    lines = []
    for row in rows:
        first, last = summarise(row.wall_us["first"]), summarise(row.wall_us["last"])
        numbers = (first.median, last.median, last.p95, last.minimum, last.maximum)
        extra = "" if row.key == "plain" else f"{(last.median - plain) / 1000:+.0f}"
        lines.append([row.name, *(milliseconds(value / 1000) for value in numbers), extra, str(last.count)])
    return ["", "first rank ms", "last rank ms", "p95", "min", "max", "extra ms", "launches"], lines
