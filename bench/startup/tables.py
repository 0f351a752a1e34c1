# SPDX-License-Identifier: Apache-2.0
"""The start-up tables: medians, p95, ratios to the floor of the same kind."""

from __future__ import annotations

from collections.abc import Sequence

from bench.result import Result, Row
from bench.samples import milliseconds, summarise, text_table

FLOORS = {"join": "floor-join", "fresh": "floor-fresh", "step": "floor-join", "cold": "floor-fresh"}
"""What a row of each kind is divided by."""
ORDER = (
    "host", "floor-join", "hpcpod-join", "nsenter", "ch-run-join", "crun-exec", "hpcpod-step",
    "floor-fresh", "hpcpod-fresh", "bwrap-lean", "bwrap", "ch-run", "crun", "hpcpod-cold",
)  # fmt: skip
TITLES = {
    "dynamic": "Payload: /bin/true of the image (dynamic)",
    "static": "Payload: a static C program that ends at once",
}


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Joins first, then fresh starts; within each from the floor upwards."""
    return sorted(rows, key=lambda row: ORDER.index(row.key) if row.key in ORDER else len(ORDER))


def ratio(row: Row, rows: Sequence[Row], count: str) -> float | None:
    """Median of the row to that of the floor of its kind."""
    floors = [other for other in rows if other.key == FLOORS.get(row.kind)]
    if not floors or not row.wall_us.get(count) or not floors[0].wall_us.get(count):
        return None
    return summarise(row.wall_us[count]).median / summarise(floors[0].wall_us[count]).median


def cells(row: Row, rows: Sequence[Row], count: str) -> list[str]:
    """``median [p95]`` and the ratio."""
    values = row.wall_us.get(count)
    if not values:
        return ["-", "-"]
    summary = summarise(values)
    times = ratio(row, rows, count)
    shown = f"{milliseconds(summary.median / 1000)} [{milliseconds(summary.p95 / 1000)}]"
    return [shown, "" if times is None else f"{times:.2f}"]


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines for one payload."""
    counts = sorted({count for row in rows for count in row.wall_us}, key=int)
    columns = [word for count in counts for word in (f"N={count} ms [p95]", "ratio")]
    head = ["", *columns, "CPU ms/rank", "rounds"]
    lines = []
    for row in in_order(rows):
        most = counts[-1]
        cpu = row.cpu_us.get(most)
        each = milliseconds(summarise(cpu).median / 1000 / int(most)) if cpu else "-"
        rounds = "/".join(str(len(row.wall_us.get(count, ()))) for count in counts)
        measured = [word for count in counts for word in cells(row, rows, count)]
        lines.append([row.name, *measured, each, rounds])
    return head, lines


def terminal(result: Result) -> str:
    """The whole result for a terminal."""
    parts = []
    for name, rows in result.parts.items():
        parts += [f"\n{TITLES[name]}: wall time until all N have ended", text_table(*table(rows))]
    parts += [f"not measured: {refusal.name}: {refusal.reason}" for refusal in result.refused]
    parts += [f"note: {note}" for note in result.notes]
    return "\n".join(parts)
