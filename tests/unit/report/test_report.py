# SPDX-License-Identifier: Apache-2.0
"""Merging events of many ranks and nodes, and what is printed of them."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcpod.launcher.events import Event, Origin, PrepareEvent, RankEvent, parse_line
from hpcpod.launcher.report import GOT_POD, LAUNCHED, TOTAL, Report, Sample, merge, percentile
from hpcpod.launcher.report_table import WIDTH, data, milliseconds, table
from hpcpod.model import Phase
from tests.unit.report.samples import MS, prepare_line, rank_line

NAMES = st.text(max_size=12)
SCOPES = st.sampled_from(["slurm-1.0", "slurm-1.1", "local-5-7"])
TIMES = st.integers(0, 10**12)


@st.composite
def rank_events(draw: st.DrawFn) -> RankEvent:
    scope = draw(SCOPES)
    times = sorted(draw(st.lists(TIMES, min_size=4, max_size=4)))
    origin = Origin("slurm", "1", "0", scope, draw(NAMES), draw(st.integers(0, 9)), draw(NAMES))
    return RankEvent(origin, 0, draw(st.integers(1, 99)), draw(st.sampled_from((*GOT_POD, LAUNCHED))), *times)


@st.composite
def prepare_events(draw: st.DrawFn) -> PrepareEvent:
    origin = Origin("slurm", "1", "0", draw(SCOPES), draw(NAMES), 0, draw(NAMES))
    phases = draw(
        st.lists(
            st.builds(lambda name, at, more: Phase(name, at, at + more), NAMES, TIMES, TIMES), max_size=3
        )
    )
    return PrepareEvent(origin, draw(NAMES), tuple(phases))


EVENTS = st.lists(rank_events() | prepare_events(), max_size=12)
FEW = settings(max_examples=50)


@FEW
@given(EVENTS, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(events: list[Event], source: random.Random) -> None:
    mixed = [*events, *source.choices(events, k=5)] if events else []
    source.shuffle(mixed)
    assert merge(mixed) == merge(events)


@FEW
@given(EVENTS)
def test_every_rank_counts_once_and_figures_hold_together(events: list[Event]) -> None:
    reports = merge(events)
    ranks = {event for event in events if isinstance(event, RankEvent)}
    assert {report.scope for report in reports} == {event.origin.scope for event in ranks}
    assert [report.scope for report in reports] == [
        r.scope for r in sorted(reports, key=lambda r: (r.first_start_ns, r.scope))
    ]
    for report in reports:
        own = [event for event in ranks if event.origin.scope == report.scope]
        launched = [event for event in own if event.how == LAUNCHED]
        figures = {row.name: row for row in report.rank}
        assert figures[TOTAL].count == report.starts == len(launched or own)
        assert figures[TOTAL].max_ns == report.slowest.total_ns
        assert figures[TOTAL].max_ns >= max(event.exec_ns - event.start_ns for event in launched or own)
        assert report.last_exec_ns - report.first_start_ns >= figures[TOTAL].max_ns
        for row in (*report.rank, *report.prepare):
            assert 0 <= row.p50_ns <= row.p95_ns <= row.max_ns == row.slowest.duration_ns


@FEW
@given(EVENTS)
def test_any_report_can_be_shown(events: list[Event]) -> None:
    reports = merge(events)
    json.dumps(data(reports, [("file:1", "no JSON")]))
    for report in reports:
        lines = table(report).split("\n")
        assert all(len(line) <= WIDTH and line.isprintable() for line in lines)


@given(st.lists(st.integers(0, 100), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_smallest_sample_that_so_many_do_not_exceed(
    values: list[int], percent: int
) -> None:
    ordered = [Sample(value, "", None) for value in sorted(values)]
    found = percentile(ordered, percent).duration_ns
    needed = math.ceil(percent * len(values) / 100)
    assert sum(value <= found for value in values) >= needed
    assert sum(value < found for value in values) < needed


def report(*lines: str) -> Report:
    (found,) = merge(parse_line(line) for line in lines)
    return found


def test_ranks_that_wait_and_the_one_they_wait_for_are_told_apart() -> None:
    found = report(
        prepare_line("n0", resolve=2, verify=10, unpack=300, plan=5),
        prepare_line("n0", create=4),
        prepare_line("n1", resolve=3, verify=10, unpack=900, plan=5),
        rank_line(0, "n0", "prepared", found_ns=1330 * MS, entered_ns=1331 * MS, exec_ns=1332 * MS),
        rank_line(1, "n0", "waited", found_ns=1331 * MS, entered_ns=1332 * MS, exec_ns=1333 * MS),
        rank_line(2, "n1", "prepared", found_ns=1930 * MS, entered_ns=1931 * MS, exec_ns=1932 * MS),
        rank_line(3, "n1", "found", start=1950 * MS),
    )
    assert (found.ranks, found.starts, found.nodes) == (4, 4, ("n0", "n1"))
    assert [row.name for row in found.prepare] == ["resolve", "verify", "unpack", "plan", "create"]
    assert [row.name for row in found.rank] == [
        "found pod",
        "waited",
        "prepared",
        "enter",
        "exec",
        "start to exec",
    ]
    unpack = found.prepare[2]
    assert (unpack.count, unpack.p50_ns, unpack.max_ns, unpack.slowest.node) == (2, 300 * MS, 900 * MS, "n1")
    assert found.prepare[4].count == 1
    assert (found.slowest.rank, found.slowest.node) == (2, "n1")
    assert found.last_exec_ns - found.first_start_ns == 956 * MS


EXPECTED = """\
job 12 step 0: 2 ranks on 2 nodes
image: oci:/images/demo (sha256:abababababab)
first start to last program: 6.00 ms

prepare           nodes       p50       p95    max ms                slowest
  resolve             1      2.00      2.00      2.00  █             n0
  unpack              1     300.0     300.0     300.0  ████████████  n0
  plan                1      5.00      5.00      5.00  █             n0

ranks             ranks       p50       p95    max ms                slowest
  found pod           2      1.00      1.00      1.00  █             rank 1 on n1
  enter               2      2.00      2.00      2.00  █             rank 1 on n1
  exec                2      3.00      3.00      3.00  █             rank 1 on n1
  start to exec       2      6.00      6.00      6.00  █             rank 1 on n1

slowest: rank 1 on n1, 6.00 ms: found pod 1.00, enter 2.00, exec 3.00"""


def test_the_table() -> None:
    assert table(report(prepare_line(), rank_line(0, "n0"), rank_line(1, "n1"))) == EXPECTED


def test_a_step_that_starts_twice_says_so() -> None:
    found = report(rank_line(0), rank_line(0, start=2000 * MS, pid=7))
    assert (found.ranks, found.starts) == (1, 2)
    assert "1 rank (2 starts) on 1 node" in table(found)


def test_a_lone_run_is_named_by_its_scope() -> None:
    line = rank_line(0, launcher="local", job="", step="", scope="local-1-2", how="launched")
    assert table(report(line)).startswith("local-1-2: 1 rank on 1 node\n")


def test_ranks_of_a_local_launch_count_from_the_start_of_their_mpiexec() -> None:
    lone: dict[str, Any] = {"launcher": "local", "job": "", "step": "", "scope": "local-1-2"}
    stub: dict[str, Any] = {
        "how": "launched",
        "found_ns": 1050 * MS,
        "entered_ns": 1050 * MS,
        "exec_ns": 1051 * MS,
    }
    found = report(
        rank_line(0, how="created", **lone),
        rank_line(0, start=1050 * MS, **stub, **lone),
        rank_line(1, start=1050 * MS, **stub, **lone),
    )
    assert (found.ranks, found.starts) == (2, 2)
    assert [(row.name, row.count, row.max_ns // MS) for row in found.rank] == [
        ("created pod", 2, 1),
        ("enter", 2, 2),
        ("mpiexec", 2, 44),
        ("exec", 2, 1),
        ("start to exec", 2, 51),
    ]


def test_names_of_images_are_shown_escaped() -> None:
    text = table(report(rank_line(0, "n\x1b[2J0", image="oci:\x1b]0;x\x07")))
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (43, "0.043"),
        (999, "0.999"),
        (12_310, "12.31"),
        (456_780, "456.8"),
        (1_234_567, "1235"),
    ],
)
def test_milliseconds(microseconds: int, text: str) -> None:
    assert milliseconds(microseconds * 1000) == text
