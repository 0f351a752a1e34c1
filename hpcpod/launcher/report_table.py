# SPDX-License-Identifier: Apache-2.0
"""A start-up report as a table for people and as plain data for programs.  Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hpcpod.launcher.events import VERSION
from hpcpod.launcher.report import PhaseFigures, Report, Sample
from hpcpod.log import shown

WIDTH = 100
NAME, NUMBER, BAR = 15, 10, 12
SHORT_DIGEST = 19
"""``sha256:`` and twelve digits."""


def milliseconds(duration_ns: int) -> str:
    """Four digits or so: 0.043, 12.31, 1234."""
    value = duration_ns / 1e6
    digits = 3 if value < 1 else 2 if value < 100 else 1 if value < 1000 else 0
    return f"{value:.{digits}f}"


def _whose(sample: Sample) -> str:
    node = shown(sample.node)
    return node if sample.rank is None else f"rank {sample.rank} on {node}"


def _bar(value: int, largest: int, symbol: str) -> str:
    """A bar that shows the share of the largest; something is shown for everything above zero."""
    if value <= 0 or largest <= 0:
        return ""
    return symbol * max(1, round(BAR * value / largest))


def _row(figures: PhaseFigures, largest: int, symbol: str) -> str:
    numbers = (figures.p50_ns, figures.p95_ns, figures.max_ns)
    left = f"  {shown(figures.name)[:NAME]:<{NAME}}{figures.count:>6}"
    left += "".join(f"{milliseconds(number):>{NUMBER}}" for number in numbers)
    bar = f"{_bar(figures.max_ns, largest, symbol):<{BAR}}"
    return f"{left}  {bar}  {_whose(figures.slowest)}".rstrip()[:WIDTH]


def _head(title: str, count: str) -> str:
    left = f"{title:<{NAME + 2}}{count:>6}" + "".join(
        f"{name:>{NUMBER}}" for name in ("p50", "p95", "max ms")
    )
    return f"{left}  {'':<{BAR}}  slowest"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _title(report: Report) -> str:
    what = f"job {shown(report.job)} step {shown(report.step)}" if report.job else shown(report.scope)
    again = f" ({_plural(report.starts, 'start')})" if report.starts != report.ranks else ""
    return f"{what}: {_plural(report.ranks, 'rank')}{again} on {_plural(len(report.nodes), 'node')}"


def _image(report: Report) -> str:
    digests = ", ".join(shown(digest[:SHORT_DIGEST]) for digest in report.digests)
    names = ", ".join(shown(image) for image in report.images)
    return f"image: {names}" + (f" ({digests})" if digests else "")


def _slowest(report: Report) -> str:
    start = report.slowest
    told = ", ".join(f"{name} {milliseconds(duration)}" for name, duration in start.phases[:-1])
    return f"slowest: rank {start.rank} on {shown(start.node)}, {milliseconds(start.total_ns)} ms: {told}"


def table(report: Report, *, symbol: str = "█") -> str:
    """The report in lines of at most WIDTH columns, the last one without an end.  symbol: of the bars."""
    largest = max(figures.max_ns for figures in (*report.prepare, *report.rank))
    span = milliseconds(report.last_exec_ns - report.first_start_ns)
    lines = [_title(report), _image(report), f"first start to last program: {span} ms", ""]
    if report.prepare:
        lines += [_head("prepare", "nodes"), *(_row(row, largest, symbol) for row in report.prepare), ""]
    lines += [_head("ranks", "ranks"), *(_row(row, largest, symbol) for row in report.rank), ""]
    lines += [_slowest(report)]
    return "\n".join(line[:WIDTH] for line in lines)


def _phase_data(figures: PhaseFigures) -> dict[str, object]:
    slowest: dict[str, object] = {"node": figures.slowest.node}
    if figures.slowest.rank is not None:
        slowest["rank"] = figures.slowest.rank
    return {
        "phase": figures.name,
        "count": figures.count,
        "p50_ns": figures.p50_ns,
        "p95_ns": figures.p95_ns,
        "max_ns": figures.max_ns,
        "slowest": slowest,
    }


def _report_data(report: Report) -> dict[str, object]:
    start = report.slowest
    return {
        "launcher": report.launcher,
        "job": report.job,
        "step": report.step,
        "scope": report.scope,
        "images": report.images,
        "digests": report.digests,
        "nodes": report.nodes,
        "ranks": report.ranks,
        "starts": report.starts,
        "first_start_ns": report.first_start_ns,
        "last_exec_ns": report.last_exec_ns,
        "prepare": [_phase_data(figures) for figures in report.prepare],
        "rank": [_phase_data(figures) for figures in report.rank],
        "slowest": {
            "rank": start.rank,
            "node": start.node,
            "pid": start.pid,
            "phases": [{"phase": name, "ns": duration} for name, duration in start.phases],
        },
    }


def data(reports: Sequence[Report], malformed: Sequence[tuple[str, str]]) -> dict[str, object]:
    """The reports as JSON's values.  malformed: (where, why) of each line that was passed over."""
    return {
        "v": VERSION,
        "reports": [_report_data(report) for report in reports],
        "malformed": [{"where": where, "why": why} for where, why in malformed],
    }
