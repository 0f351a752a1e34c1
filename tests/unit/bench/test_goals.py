# SPDX-License-Identifier: Apache-2.0
"""A goal counts as met only where all that it names was measured."""

from __future__ import annotations

import pytest

from bench import goals
from bench.result import Result, Row


def results(*peers: str) -> dict[str, Result]:
    """Joins by hpcpod in 1 ms, starts by these peers in 2 ms."""
    times = {"hpcpod-join": 1000, **dict.fromkeys(peers, 2000)}
    rows = [
        Row(key, key, "", "", "", {count: [time] for count in goals.COUNTS}, {})
        for key, time in times.items()
    ]
    return {"startup": Result("startup", {}, {}, [], {"dynamic": rows}, [])}


def met(*peers: str) -> str:
    found = {line[0]: line[2] for line in goals.lines(results(*peers))}
    return next(value for goal, value in found.items() if "every peer" in goal)


def test_faster_than_every_peer() -> None:
    assert met(*goals.PEERS) == "yes"


@pytest.mark.parametrize("absent", goals.PEERS)
def test_a_peer_that_was_not_measured_might_have_been_faster(absent: str) -> None:
    assert met(*(peer for peer in goals.PEERS if peer != absent)) == "not measured"


def test_benchmarks_without_results_show() -> None:
    """A goal that nobody measured is no goal that was met, and none that was never set."""
    lines = goals.lines({})
    assert {line[2] for line in lines} == {"not measured"}
    for part in ("entering", "fresh", "unpacking", "store hit", "srun"):
        assert any(part in line[0] for line in lines), part
    measured = [line for line in goals.lines(results(*goals.PEERS)) if line[2] != "not measured"]
    assert len(measured) == 1
