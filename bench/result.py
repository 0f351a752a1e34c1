# SPDX-License-Identifier: Apache-2.0
"""A benchmark's result: what was measured, on what, and every single measurement; kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One contender.  wall_us, cpu_us: by case (a number of ranks, a kind of image), microseconds.
    peak_kib: largest resident set of any of its processes, where it was taken."""

    key: str
    name: str
    kind: str
    about: str
    command: str
    wall_us: Mapping[str, Sequence[int]]
    cpu_us: Mapping[str, Sequence[int]]
    peak_kib: Mapping[str, Sequence[int]] | None = None


@dataclass(frozen=True)
class Refusal:
    """A contender that could not be measured here, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Result:
    """notes: what was different from the machine as it is, and other things that a reader has to know.
    parts: rows by the part of the benchmark, such as the payload."""

    benchmark: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    notes: Sequence[str]
    parts: Mapping[str, Sequence[Row]]
    refused: Sequence[Refusal]


def write_result(result: Result, directory: Path) -> Path:
    """Write it as BENCHMARK.json, one series a line; returns the path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{result.benchmark}.json"
    text = json.dumps(asdict(result), indent=1)
    path.write_text(_series_on_one_line(text) + "\n")
    return path


def _series_on_one_line(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        word = line.strip()
        number = word.rstrip(",").isdigit()
        if lines and (number or (word in ("]", "],") and lines[-1][-1:].isdigit())):
            lines[-1] += word
        else:
            lines.append(line)
    return "\n".join(lines)


def read_result(path: Path) -> Result:
    """The result in a file that write_result made."""
    data = json.loads(path.read_text())
    parts = {name: [Row(**row) for row in rows] for name, rows in data["parts"].items()}
    refused = [Refusal(**row) for row in data["refused"]]
    return Result(data["benchmark"], data["machine"], data["versions"], data["notes"], parts, refused)
