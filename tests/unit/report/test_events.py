# SPDX-License-Identifier: Apache-2.0
"""Lines of events: what is written can be read, and what cannot be read says why."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.launcher.events import EventMalformed, PrepareEvent, RankEvent, append_prepare, parse_line
from hpcpod.model import ImageConfig, Phase, Platform, StepContext, Tree, VerifiedImage
from tests.unit.report.samples import MS, prepare_line, rank_line


def context(launcher: str = "slurm", node: str = "n0") -> StepContext:
    return StepContext(
        launcher=launcher,
        scope="",
        job_id="12",
        step_id="0",
        node=node,
        rank=3,
        local_rank=1,
        ntasks=4,
        local_ntasks=2,
        served=frozenset(),
        environment={},
        cwd="/",
    )


IMAGE = VerifiedImage('oci:/im"age\n', "sha256:00", Tree("/r"), Platform("linux", "amd64"), ImageConfig())
PHASES = (Phase("resolve", 5, 7), Phase("plan", 7, 7))


def test_a_ranks_line() -> None:
    event = parse_line(rank_line(3, "n1", "waited"))
    assert isinstance(event, RankEvent)
    assert (event.origin.rank, event.origin.node, event.how) == (3, "n1", "waited")
    assert event.exec_ns - event.start_ns == 6 * MS


def test_what_is_appended_can_be_read(tmp_path: Path) -> None:
    for _ in range(2):
        append_prepare(str(tmp_path), "slurm-12.0", context(), IMAGE, PHASES)
    file = tmp_path / "events" / "slurm-12.0.jsonl"
    assert file.stat().st_mode & 0o777 == 0o600
    lines = file.read_text().splitlines()
    assert len(lines) == 2
    event = parse_line(lines[0])
    assert isinstance(event, PrepareEvent)
    assert (event.phases, event.origin.image, event.digest) == (PHASES, IMAGE.reference, "sha256:00")
    assert (event.origin.scope, event.origin.job, event.origin.rank) == ("slurm-12.0", "12", 3)


def test_runs_without_a_scheduler_share_a_file(tmp_path: Path) -> None:
    append_prepare(str(tmp_path), "local-1-2", context("local"), IMAGE, PHASES)
    assert os.listdir(tmp_path / "events") == ["local.jsonl"]


def test_a_place_that_cannot_be_written_does_not_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("in the way")
    append_prepare(str(tmp_path), "slurm-12.0", context(), IMAGE, PHASES)
    append_prepare("/proc/self/absent", "slurm-12.0", context(), IMAGE, PHASES)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "events" / "slurm-12.0.jsonl")
    append_prepare(str(tmp_path), "slurm-12.0", context(), IMAGE, PHASES)
    assert not (tmp_path / "elsewhere").exists()


def changed(line: str, **fields: object) -> str:
    return json.dumps({**json.loads(line), **fields})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "no JSON"),
        ("[" * 100000, "no JSON"),
        ("[1]", "no JSON object"),
        (rank_line()[:-9], "no JSON"),
        (changed(rank_line(), v=2), "version 2"),
        (changed(rank_line(), event="\x1b[2J"), "event"),
        (changed(rank_line(), rank="0"), "rank '0'"),
        (changed(rank_line(), rank=True), "rank True"),
        (changed(rank_line(), rank=-1), "rank -1"),
        (changed(rank_line(), start_ns=1.5), "start_ns"),
        (changed(rank_line(), exec_ns=2**63), "exec_ns"),
        (changed(rank_line(), node=None), "node None"),
        (changed(rank_line(), node="n" * 5000), "node"),
        (changed(rank_line(), how="guessed"), "how"),
        (changed(rank_line(), start_ns=2**62), "backwards"),
        (changed(prepare_line(), phases={}), "phases"),
        (changed(prepare_line(), phases=[1]), "phase 1"),
        (changed(prepare_line(), phases=[{"name": "x", "start_ns": 2, "end_ns": 1}]), "backwards"),
    ],
)
def test_what_is_no_event_says_why(line: str, why: str) -> None:
    with pytest.raises(EventMalformed, match=why) as caught:
        parse_line(line)
    assert str(caught.value).isprintable()


@given(st.text(max_size=200) | st.recursive(st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_an_event_or_malformed(text: str) -> None:
    with pytest.raises(EventMalformed):
        parse_line(text)
