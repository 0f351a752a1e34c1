# SPDX-License-Identifier: Apache-2.0
"""A picture of start-up time over the number of ranks, both logarithmic, as plain SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 250, 40, 60
LABEL_HEIGHT = 16
STYLE = "font-family='Helvetica,Arial,DejaVu Sans,sans-serif' font-size='13'"


@dataclass(frozen=True)
class Line:
    """name: written at its right end; points: (ranks, ms); dashed: for references."""

    name: str
    colour: str
    points: Sequence[tuple[int, float]]
    dashed: bool = False


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {more}>{escape(words)}</text>"


def _spread(wanted: Sequence[float]) -> list[float]:
    """Label positions near the wanted ones, which ascend, that do not overlap."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + LABEL_HEIGHT) if placed else y)
    over = max(0.0, (placed[-1] if placed else 0) - (HEIGHT - BOTTOM + 10))
    return [y - over for y in placed]


def _grid(low: float, high: float, y: Callable[[float], float]) -> list[str]:
    """A line and its label at 1, 2 and 5 of each power of ten."""
    parts = []
    decades = range(math.floor(low), math.ceil(high))
    values = [tick * 10.0**decade for decade in decades for tick in (1, 2, 5)]
    for value in (value for value in values if 10**low <= value <= 10**high):
        shade = "#bbb" if math.log10(value).is_integer() else "#eee"
        grid = f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y(value):.1f}' y2='{y(value):.1f}' "
        parts.append(f"{grid}stroke='{shade}'/>")
        parts.append(_text(LEFT - 8, y(value) + 4, f"{value:g} ms", "text-anchor='end'"))
    return parts


def _curve(line: Line, label: float, x: Callable[[int], float], y: Callable[[float], float]) -> list[str]:
    """One contender: the line, its dots, and its name at the height `label`."""
    path = " ".join(f"{x(count):.1f},{y(value):.1f}" for count, value in line.points)
    dash = " stroke-dasharray='5,4'" if line.dashed else ""
    width = 3 if line.name.startswith("hpcpod") else 1.8
    weight = " font-weight='bold'" if width == 3 else ""
    words = f"{line.name}, {line.points[-1][1]:.0f} ms"
    return [
        f"<polyline points='{path}' fill='none' stroke='{line.colour}' stroke-width='{width}'{dash}/>",
        *(f"<circle cx='{x(n):.1f}' cy='{y(v):.1f}' r='3' fill='{line.colour}'/>" for n, v in line.points),
        _text(WIDTH - RIGHT + 12, label, words, f"fill='{line.colour}'{weight}"),
    ]


def svg(title: str, lines: Sequence[Line]) -> str:
    """The picture; every line needs at least one point, all values above 0."""
    counts = sorted({count for line in lines for count, _ in line.points})
    values = [value for line in lines for _, value in line.points]
    low, high = math.log10(min(values) * 0.8), math.log10(max(values) * 1.1)
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(count: int) -> float:
        return LEFT + wide * math.log(count / counts[0]) / math.log(counts[-1] / counts[0])

    def y(value: float) -> float:
        return TOP + tall * (high - math.log10(value)) / (high - low)

    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' {STYLE}>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' fill='white'/>",
        _text(LEFT, 22, title, "font-weight='bold'"),
        _text(LEFT + wide / 2, HEIGHT - 15, "ranks started at once on one node", "text-anchor='middle'"),
    ]
    parts += _grid(low, high, y)
    parts += [_text(x(count), TOP + tall + 20, str(count), "text-anchor='middle'") for count in counts]
    ordered = sorted(lines, key=lambda line: -line.points[-1][1])
    labels = _spread([y(line.points[-1][1]) + 4 for line in ordered])
    for line, label in zip(ordered, labels, strict=True):
        parts += _curve(line, label, x, y)
    return "\n".join([*parts, "</svg>", ""])
