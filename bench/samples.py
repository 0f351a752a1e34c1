# SPDX-License-Identifier: Apache-2.0
"""Medians and percentiles of repeated measurements, and plain tables of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """What the tables show of a series; same unit as the series."""

    count: int
    median: float
    p95: float
    minimum: float
    maximum: float


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the series does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarise(values: Sequence[float]) -> Summary:
    """Summary of a series that is not empty."""
    return Summary(len(values), statistics.median(values), percentile(values, 0.95), min(values), max(values))


def milliseconds(value: float) -> str:
    """As many digits as mean something."""
    if value < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns for a terminal: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        others = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([cells[0].ljust(widths[0]), *others])

    return "\n".join([line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for docs/."""
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
