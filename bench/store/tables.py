# SPDX-License-Identifier: Apache-2.0
"""The tables of the store benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from bench.result import Row
from bench.samples import milliseconds, summarise

TITLES = {"hit": "Store hit to ready", "crowd": "Eight users at once, nothing unpacked"}


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of one part; milliseconds."""
    lines = []
    for row in rows:
        wall = summarise([value / 1000 for value in row.wall_us["1"]])
        shown = [milliseconds(value) for value in (wall.median, wall.p95, wall.minimum)]
        lines.append([row.name, *shown, str(wall.count)])
    return ["", "median ms", "p95", "min", "runs"], lines
