# SPDX-License-Identifier: Apache-2.0
"""The lines that long work writes where stderr is no terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator

from hpcpod.log import StderrProgress


def lines_of(total: int, count: int) -> str:
    """What is written after five seconds of work."""
    stream = io.StringIO()
    ticks: Iterator[float] = iter((0.0, 5.0))
    progress = StderrProgress(stream=stream, clock=lambda: next(ticks))
    progress.begin("waiting", total)
    progress.advance(count)
    progress.end()
    return stream.getvalue()


def test_waiting_counts_no_bytes() -> None:
    assert lines_of(0, 0) == "hpcpod: waiting, 5 s\n"


def test_work_counts_bytes() -> None:
    assert lines_of(0, 5000) == "hpcpod: waiting: 4.9 KiB, 5 s, 1000 B/s\n"
    assert lines_of(10000, 5000) == "hpcpod: waiting: 50%, 4.9 KiB of 9.8 KiB, 5 s, 1000 B/s\n"
